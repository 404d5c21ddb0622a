"""Success against latency: one trained agent, many searches, the same pairs; as JSON and as a picture.

Each point is kept as soon as it is measured: the same command goes on where it was stopped, and adds to what is there.
"""

from __future__ import annotations

import dataclasses
import importlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import runs
from benchmarks.charts import Line, curve
from benchmarks.equal_flops import first_observation
from benchmarks.knowledge.pictures import figure
from benchmarks.knowledge.records import Json, Record
from benchmarks.knowledge.section import Section, plain, table
from benchmarks.plan import evaluate
from benchmarks.protocols import Job, Request, make_job
from benchmarks.session import Stage, as_arguments, counter
from lewm_gym.planning import PLANNERS
from lewm_gym.results import Rate
from lewm_gym.tasks import TASKS

FORMAT = "lewm-gym tradeoff"
TIMED_PLANS = 5  # of which the median is the latency
ELITES_PER_CANDIDATE = 10  # as in the paper: 300 candidates, 30 elites
FEWEST_ELITES = 4


@dataclass(frozen=True)
class Grid:
    """The searches to measure: every planner with every number of candidates and of iterations.

    Attributes:
        planners: Names in PLANNERS.
        candidates: Per iteration; of gradient planning, the starts.
        iterations: Of the search.
        precision: Of the rollout.
    """

    planners: tuple[str, ...] = ("cem", "icem", "mppi")
    candidates: tuple[int, ...] = (30, 100, 300)
    iterations: tuple[int, ...] = (1, 3, 10, 30)
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name in self.planners:
            if name not in PLANNERS:
                raise ValueError(f"unknown planner {name!r}; expected some of: {', '.join(PLANNERS)}")
        least = 2 * FEWEST_ELITES
        if not self.candidates or not self.iterations or min(self.candidates) < least or min(self.iterations) < 1:
            raise ValueError(
                f"--candidates must be at least {least} and --iterations at least 1, "
                f"got {list(self.candidates)} and {list(self.iterations)}"
            )

    def searches(self) -> Iterator[Any]:
        """Yields the settings of each, the cheap ones first."""
        for iterations in sorted(self.iterations):
            for candidates in sorted(self.candidates):
                for name in self.planners:
                    kind = PLANNERS[name][1]
                    fields = {field.name for field in dataclasses.fields(kind)}
                    settings = {"n_samples" if "n_samples" in fields else "n_starts": candidates}
                    if "n_elites" in fields:
                        settings["n_elites"] = max(FEWEST_ELITES, candidates // ELITES_PER_CANDIDATE)
                    yield kind(n_iterations=iterations, **settings)


def measure_tradeoff(
    run: str | Path,
    out: str | Path,
    grid: Grid,
    *,
    episodes: int | None = None,
    seed: int = 0,
    n_envs: int = 16,
    workers: int = 1,
    progress: Stage | None = None,
) -> Json:
    """Returns the success and the latency of each search, and writes the record to `out` and a picture beside it.

    Args:
        run: Run folder of a planning agent.
        out: JSON file; one of the same run, pairs and seed is gone on from.
        grid: What to measure.
        episodes: How many of the shipped pairs, from the first; default all.
        seed: Seed of the agent's random streams.
        n_envs: Environments planned for at once; changes the speed of the measurement only.
        workers: Processes that they live in; likewise.
        progress: Called with (stage, done, total).

    Raises:
        ValueError: If the run does not plan, or `out` holds another measurement.
        OSError: If the run is missing or the record cannot be written.
    """
    run, out = Path(run), Path(out)
    description = runs.load_description(run)
    agent = importlib.import_module("agents").load_agent(run)
    if not hasattr(agent, "planning"):
        raise ValueError(f"{run} holds {description['agent']!r}, which does not plan")
    request = Request(episodes=episodes, seed=seed, n_envs=n_envs, workers=workers, strict=False)
    job = make_job(run, description, request)
    identity = {
        "agent": description["agent"],
        "preset": description.get("preset"),
        "weights": runs.weights_hash(run),
        "episodes": len(job.pairs),
        **job.identity(),
    }
    points = _known_points(out, identity)
    record = Record("tradeoff")
    observation = first_observation(job)
    body: Json = {"run": str(run), "task": job.task.name, "offset_steps": job.offset_steps, "identity": identity}
    for search in grid.searches():
        planning = dataclasses.replace(agent.planning, search=search, precision=grid.precision)
        settings = {"planner": planning.planner_name, "precision": grid.precision, **dataclasses.asdict(search)}
        if any(point["settings"] == settings for point in points):
            continue
        searcher = type(agent)(agent.model, planning, agent.description, agent.device)
        points.append(_measure_point(searcher, settings, job, observation, progress))
        record.save(out, {**body, "points": points})
    saved = record.save(out, {**body, "points": points})
    draw(saved, out.with_suffix(".png"))
    return saved


def _known_points(out: Path, identity: Json) -> list[Json]:
    """Returns the points of an earlier call with the same run, pairs and seed."""
    if not out.exists():
        return []
    known = importlib.import_module("json").loads(out.read_text(encoding="utf-8"))
    if known.get("format") != FORMAT or known.get("identity") != identity:
        raise ValueError(f"{out} holds another measurement: give another --out, or remove it")
    points: list[Json] = known["points"]
    return points


def _measure_point(agent: Any, settings: Json, job: Job, observation: Any, progress: Stage | None) -> Json:
    times = []
    for _ in range(TIMED_PLANS + 1):  # the first warms up
        begun = time.perf_counter()
        agent.plan(observation)
        times.append(time.perf_counter() - begun)
    advance = counter(progress, name_of(settings), len(job.pairs))
    outcomes = evaluate(agent, job.task, job.pairs, progress=advance, rules=job.rules, **as_arguments(job))
    return {
        "settings": settings,
        "seconds_per_plan": statistics.median(times[1:]),
        "success": dataclasses.asdict(Rate.of(outcomes)),
    }


def name_of(settings: Json) -> str:
    """Returns a search in words, e.g. "cem 300 x 30"."""
    candidates = settings.get("n_samples", settings.get("n_starts"))
    return f"{settings['planner']} {candidates} x {settings['n_iterations']}"


def draw(record: Json, path: Path) -> None:
    """Draws success, with Wilson 95 % intervals, against the seconds of a plan, a colour per planner, into a PNG."""
    with figure(path, 1, 1, 7.0, 4.5, f"{TASKS[record['task']].title}: success against latency") as (_, axes):
        axis = axes[0][0]
        for planner in dict.fromkeys(point["settings"]["planner"] for point in record["points"]):
            mine = _of_planner(record, planner)
            rates = [point["success"] for point in mine]
            below = [100 * (rate["rate"] - rate["low"]) for rate in rates]
            above = [100 * (rate["high"] - rate["rate"]) for rate in rates]
            seconds, values = [p["seconds_per_plan"] for p in mine], [100 * rate["rate"] for rate in rates]
            axis.errorbar(seconds, values, [below, above], fmt="o", markersize=4, elinewidth=0.8, label=planner)
        axis.set(xscale="log", xlabel="seconds per plan", ylabel="success %, Wilson 95 % intervals", ylim=(0, 102))
        axis.legend(loc="lower right")


def _of_planner(record: Json, planner: str) -> Sequence[Json]:
    mine = [point for point in record["points"] if point["settings"]["planner"] == planner]
    return sorted(mine, key=lambda point: point["seconds_per_plan"])


def section(record: Json, folder: Path) -> Section:
    """Returns the report's section of a record."""
    rows, lines = [], []
    for colour, planner in enumerate(dict.fromkeys(point["settings"]["planner"] for point in record["points"])):
        mine = _of_planner(record, planner)
        for point in mine:
            rate = point["success"]
            success = f"{100 * rate['rate']:.1f} \\[{100 * rate['low']:.1f}, {100 * rate['high']:.1f}\\]"
            rows.append([plain(name_of(point["settings"])), f"{1000 * point['seconds_per_plan']:,.0f} ms", success])
        seconds = [1000 * point["seconds_per_plan"] for point in mine]
        lines.append(Line(planner, seconds, [100 * point["success"]["rate"] for point in mine], colour))
    title = TASKS[record["task"]].title
    episodes = record["identity"]["episodes"]
    text = (
        f"The same weights under every search, on the same {episodes:,} pairs, {record['offset_steps']} steps apart; "
        "a plan for one environment, median of five. Brackets hold Wilson 95 % intervals."
    )
    header = ["search, candidates x iterations", "a plan", "success %"]
    drawing = curve("success %", lines, "milliseconds per plan")
    pictures = [(f"{title}: success against latency", drawing)] if drawing else []
    return Section(f"{title}: success against latency", f"{text}\n\n{table(header, rows)}", list(pictures))


FORMATS = {FORMAT: section}
