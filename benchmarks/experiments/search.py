"""One trained agent, many searches, the same pairs: success against latency, at equal operations, and in bf16.

`equal-flops` (paper, figure 3) counts the operations of a plan: one search is traced with two numbers of candidates,
which gives the cost of encoding and of a candidate. The number of candidates per iteration is then what the budget
allows; a model for which the budget is too small is left out there, and the record says so.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from agents import agent_title, load_agent
from agents.planning import PRECISIONS
from benchmarks.evaluation.envs import Environments
from benchmarks.evaluation.evaluate import ActClock, evaluate
from benchmarks.evaluation.protocols import Asked, Job, make_job
from benchmarks.evaluation.run import Plan, counter
from benchmarks.evaluation.runs import describe_agent, load_description, planner_of, weights_hash
from benchmarks.options import Evaluating
from benchmarks.report.plots import rate_series
from benchmarks.report.records import Measurement, naming
from benchmarks.report.tables import Cell, Section, Table, percent, task_title
from benchmarks.speed.timing import flops_of, in_turn
from lewm_gym.commands import Command, argument, option
from lewm_gym.paired import Difference, compare
from lewm_gym.planning import PLANNERS
from lewm_gym.planning.budget import FEWEST_ELITES
from lewm_gym.plots import Panel, Series, figure_of
from lewm_gym.progress import Bars
from lewm_gym.results import Clock, Json, Rate, Record, Result, part_of

TIMED_PLANS = 5  # of which the median is the latency


class Subject(NamedTuple):
    """A run as a search is measured on it: folder, `run.json`, agent, and what it is evaluated on."""

    run: Path
    description: Json
    agent: Any
    job: Job

    @classmethod
    def of(cls, run: Path, asked: Evaluating) -> Subject:
        """Returns the run of a planning agent with as many of the shipped pairs as are asked for."""
        description = load_description(run)
        job = make_job(run, description, Asked(strict=False, **asked.evaluating()))
        return cls(run, description, planner_of(load_agent(run), run), job)

    def measure(self, planning: Any, name: str, bars: Any) -> tuple[Json, float]:
        """Returns the success of planning so, and the seconds of a plan in it."""
        agent, clock, job = self.agent.with_planning(planning), ActClock(), self.job
        advance = counter(bars.on_episodes, name, len(job.pairs))
        outcomes = evaluate(agent, job.task, job.pairs, job.settings, rules=job.rules, progress=advance, clock=clock)
        return asdict(Rate.of(outcomes)), clock.seconds / (agent.plans or 1)

    def first_observation(self) -> Any:
        """Returns what an agent sees at the start of the first pair."""
        with Environments(self.job.task, 1, self.job.rules) as envs:
            view = envs.reset(self.job.pairs[:1], [0], [True])[0]
        return {"pixels": view.pixels, "goal": view.goal}


# Success against latency -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tradeoff(Evaluating, Measurement):
    """Measures success and the time per plan over planners, candidates and iterations, on the same pairs, and plots
    success against time with Wilson 95 % intervals. Points are saved as they are measured: run the same command again
    to resume; a larger grid adds points.
    """  # noqa: D205

    kind = "tradeoff"

    run: Path = argument("run folder")
    planners: tuple[str, ...] = option(("cem", "icem", "mppi"), f"planners, some of: {', '.join(PLANNERS)}")
    candidates: tuple[int, ...] = option((30, 100, 300), "candidates per iteration", least=2 * FEWEST_ELITES)
    iterations: tuple[int, ...] = option((1, 3, 10, 30), "iterations of the search", least=1)
    precision: str = option("float32", "precision of the rollout", choices=PRECISIONS)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.planners:
            if name not in PLANNERS:
                raise ValueError(f"unknown planner {name!r}; expected some of: {', '.join(PLANNERS)}")

    def searches(self) -> list[tuple[str, Any]]:
        """Returns planner and settings of each search, the cheap ones first; of a planner without a budget one."""
        grid = itertools.product(sorted(self.iterations), sorted(self.candidates), self.planners)
        found = [(name, PLANNERS[name][1]().with_budget(candidates, rounds)) for rounds, candidates, name in grid]
        return [search for place, search in enumerate(found) if search not in found[:place]]

    def measure(self, bars: Any) -> Json:
        """Returns the success and the latency of each search."""
        subject, clock = Subject.of(self.run, self), Clock()
        job, description = subject.job, subject.description
        identity = {
            "agent": description["agent"],
            "preset": description.get("preset"),
            "weights": weights_hash(self.run),
        }
        identity |= {"episodes": len(job.pairs), **job.identity()}
        points = self._known_points(identity)
        body: Json = {"run": str(self.run), "task": job.task.name, "offset_steps": job.offset_steps}
        body |= {"identity": identity, "points": points}
        observation = subject.first_observation()
        for planner, search in self.searches():
            usual = subject.agent.planning.changed({"planner": planner})
            planning = replace(usual, search=search, precision=self.precision)
            settings = {"planner": planner, "precision": self.precision, **asdict(search)}
            if any(point["settings"] == settings for point in points):
                continue
            seconds = _latency(subject.agent.with_planning(planning), observation)
            success, _ = subject.measure(planning, name_of(settings), bars)
            points.append({"settings": settings, "seconds_per_plan": seconds, "success": success})
            self.save(body, clock)
        return body

    def _known_points(self, identity: Json) -> list[Json]:
        """Returns the points of an earlier call with the same run, pairs and seed."""
        if not self.path.exists():
            return []
        known = Record.load(self.path, self.kind)
        if known.get("identity") != identity:
            raise ValueError(f"{self.path} holds another measurement: give another --out, or remove it")
        with naming(known):
            self.show(known)
            return list(known["points"])

    @staticmethod
    def show(record: Record) -> Section:
        """Returns a row for each search, and success against latency, a colour per planner."""
        rows: list[list[Cell]] = []
        series: list[Series] = []
        for planner in dict.fromkeys(point["settings"]["planner"] for point in record["points"]):
            mine = [point for point in record["points"] if point["settings"]["planner"] == planner]
            mine.sort(key=lambda point: point["seconds_per_plan"])
            milliseconds = [1000 * point["seconds_per_plan"] for point in mine]
            for ms, point in zip(milliseconds, mine, strict=True):
                rows.append([name_of(point["settings"]), f"{ms:,.0f} ms", percent(point["success"])])
            series.append(rate_series(planner, milliseconds, [point["success"] for point in mine], len(series)))
        text = (
            f"The same weights with every search, on the same {record['identity']['episodes']:,} pairs, "
            f"{record['offset_steps']} steps apart; a plan for one environment, median of five. Brackets hold Wilson "
            "95 % intervals."
        )
        panel = Panel("", series, "milliseconds per plan", "success %", log_x=True, log_y=False, y_limits=(0, 102))
        title = f"{task_title(record['task'])}: success against latency"
        table = Table(["search, candidates x iterations", "a plan", "success %"], rows)
        return Section(title, [text, table, figure_of(f"{title}, Wilson 95 % intervals.", [panel])])


def _latency(agent: Any, observation: Any) -> float:
    """Returns the median seconds of a plan."""
    return statistics.median(in_turn({"plan": lambda: agent.plan(observation)}, TIMED_PLANS, agent.device)["plan"])


def name_of(settings: Mapping[str, Any]) -> str:
    """Returns a search in words, e.g. "cem 300 x 30"."""
    candidates = settings.get("n_samples", settings.get("n_starts"))
    size = f" {candidates} x {settings['n_iterations']}" if candidates and "n_iterations" in settings else ""
    return f"{settings['planner']}{size}"


# Equal operations --------------------------------------------------------------------------------------------

ITERATIONS = 10
ELITES_PER_SAMPLE = 10  # as in the paper: 300 candidates, 30 elites
MIN_SAMPLES = 20


class Cost(NamedTuple):
    """Floating-point operations of a plan: `fixed`, and `per_candidate` for every candidate of every iteration."""

    fixed: float
    per_candidate: float

    def samples_within(self, flops: float, iterations: int) -> int:
        """Returns how many candidates an iteration may have."""
        return int((flops - self.fixed) // (iterations * self.per_candidate))


def cem(n_samples: int, iterations: int) -> Json:
    """Returns the settings of CEM with so many candidates."""
    elites = max(2, n_samples // ELITES_PER_SAMPLE)
    return {"planner": "cem", "n_samples": n_samples, "n_elites": elites, "n_iterations": iterations}


def cost_of_plan(agent: Any, obs: Any) -> Cost:
    """Returns what a plan of an agent that plans costs from one observation, counted at two numbers of candidates."""
    searchers = [agent.with_planning(cem(n_samples, 1)) for n_samples in (MIN_SAMPLES, 2 * MIN_SAMPLES)]
    counts = [flops_of(partial(searcher.plan, obs)) for searcher in searchers]
    per_candidate = (counts[1] - counts[0]) / MIN_SAMPLES
    return Cost(counts[0] - MIN_SAMPLES * per_candidate, per_candidate)


@dataclass(frozen=True, kw_only=True)
class EqualFlops(Evaluating, Measurement):
    """Measures success if each model may spend the same number of floating-point operations on a plan; the budget
    determines the number of candidates.
    """  # noqa: D205

    kind = "equal-flops"

    runs: tuple[Path, ...] = argument("run folders of one task, e.g. LeWM's and PLDM's")
    flops: tuple[float, ...] = option((1e9, 3e9, 1e10, 3e10), "floating-point operations per plan", least=1)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """What is measured: names the record."""
        return self.runs[:1]

    def measure(self, bars: Any) -> Json:
        """Returns the success of each run at each budget."""
        check_same_scene({run: load_description(run) for run in self.runs})
        subjects = [Subject.of(run, self) for run in self.runs]
        models = [self._measure_model(subject, bars) for subject in subjects]
        return {**subjects[0].job.describe(), "iterations": ITERATIONS, "budgets": list(self.flops), "models": models}

    def _measure_model(self, subject: Subject, bars: Any) -> Json:
        cost = cost_of_plan(subject.agent, subject.first_observation())
        points = []
        for budget in self.flops:
            n_samples = cost.samples_within(budget, ITERATIONS)
            point: Json = {"flops": budget, "n_samples": n_samples, "success": None}
            if n_samples >= MIN_SAMPLES:
                name = f"{subject.run.name}, {n_samples} candidates"
                success, seconds = subject.measure(cem(n_samples, ITERATIONS), name, bars)
                point |= {"success": success, "seconds_per_plan": seconds}
            points.append(point)
        costs = {"flops_fixed": cost.fixed, "flops_per_candidate": cost.per_candidate}
        return {**describe_agent(subject.run, subject.description), **costs, "points": points}

    @staticmethod
    def show(record: Record) -> Section:
        """Returns a row for each model and budget, and success against operations."""
        rows: list[list[Cell]] = []
        series = []
        for colour, model in enumerate(record["models"]):
            name, measured = agent_title(model["agent"]), [point for point in model["points"] if point["success"]]
            for point in model["points"]:
                plan = f"{1000 * point['seconds_per_plan']:,.0f} ms" if point["success"] else ""
                size = [f"{point['flops']:.2g}", str(max(0, point["n_samples"]))]
                rows.append([name, *size, percent(point["success"]) or "cannot afford it", plan])
            if measured:
                flops, rates = [p["flops"] / 1e9 for p in measured], [p["success"] for p in measured]
                series.append(rate_series(name, flops, rates, colour))
        text = (
            f"Each model plans by CEM with {record['iterations']} iterations and as many candidates as the budget "
            "allows; operations are those of matrix products and convolutions, counted. Brackets hold Wilson 95 % "
            "intervals."
        )
        panel = Panel("", series, "GFLOP per plan", "success %", log_x=True, log_y=False)
        title = f"{task_title(record['task'])}: planning at equal operations"
        table = Table(["model", "floating-point operations per plan", "candidates", "success %", "a plan"], rows)
        return Section(title, [text, table, *([figure_of(f"{title}.", [panel])] if series else [])])


def check_same_scene(described: Mapping[Path, Json]) -> None:
    """Refuses runs that were not trained on the same task, drawn alike.

    Raises:
        ValueError: If tasks or render qualities differ.
    """
    for what, found in (
        ("task", {run: d["task"] for run, d in described.items()}),
        ("render quality", {run: part_of(d, "dataset").get("render_quality") for run, d in described.items()}),
    ):
        if len(set(found.values())) > 1:
            told = ", ".join(f"{run}: {value}" for run, value in found.items())
            raise ValueError(f"the runs are of different {what} ({told}): compare runs that share it")


# Pairs of results --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Precision(Evaluating):
    """Measures planning success in float32 and in bf16 on the same pairs, and the paired difference."""

    run: Path = argument("run folder")
    out: Path = option(Path("results"), "folder for both results", metavar="FOLDER")

    def __call__(self) -> int:
        """Measures both and prints how they differ."""
        planner_of(load_agent(self.run), self.run)
        results = []
        with Bars() as bars:
            for name in PRECISIONS:
                out = self.out / f"{self.run.resolve().name}-{name}.json"
                plan = Plan(run=self.run, out=out, planning={"precision": name}, strict=False, **self.evaluating())
                results.append(plan.measure(bars.on_episodes))
        for name, result in zip(PRECISIONS, results, strict=True):
            print(f"{name:8} {result.success}, {1000 * result.timing['seconds_per_plan']:.0f} ms per plan")
        print(told(compare(*results), "bf16", "float32"))
        return 0


@dataclass(frozen=True, kw_only=True)
class CompareResults(Command):
    """Prints the paired difference in success of two results, with its 95 % interval and McNemar's p-value."""

    first: Path = argument("result file of `plan`", metavar="A.json")
    second: Path = argument("another result on the same pairs; the difference is B - A", metavar="B.json")

    def __call__(self) -> int:
        """Prints both and how they differ."""
        first, second = Result.load(self.first), Result.load(self.second)
        for path, result in ((self.first, first), (self.second, second)):
            print(f"{path}: {result.agent}, {result.success}")
        print(told(compare(first, second), "the second", "the first"))
        return 0


def told(difference: Difference, one: str, other: str) -> str:
    """Returns a difference in words."""
    return (
        f"{one} against {other}: {difference} (paired, Newcombe 95 %); {difference.second_only} pairs solved by {one} "
        f"alone, {difference.first_only} by {other} alone (McNemar's exact test, p = {difference.p:.2g})"
    )
