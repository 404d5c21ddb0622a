"""Success of world models that may spend equally many floating-point operations on a plan (paper, figure 3).

A plan's operations are counted, not guessed: one search is traced at two numbers of candidates, which gives the cost
of encoding and of a candidate. The number of candidates per iteration is then what the budget allows; a model that
cannot afford as many as its elites is left out at that budget, and the record says so.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import runs
from benchmarks.charts import Line, curve
from benchmarks.groups import AGENT_TITLES
from benchmarks.knowledge.records import Json, Record
from benchmarks.knowledge.section import Section, plain, table
from benchmarks.plan import evaluate
from benchmarks.protocols import Job, Request, make_job
from benchmarks.session import Stage, TimedAgent, as_arguments, counter
from lewm_gym.results import Rate
from lewm_gym.tasks import TASKS

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


def cost_of_plan(agent: Any, obs: Any) -> Cost:
    """Returns what a plan of an agent costs, counted at two numbers of candidates.

    Args:
        agent: A planning agent.
        obs: One observation.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for n_samples in (MIN_SAMPLES, 2 * MIN_SAMPLES):
        searcher = _with_search(agent, n_samples, 1)
        with FlopCounterMode(display=False) as tally:
            searcher.plan(obs)
        counts.append(float(tally.get_total_flops()))
    per_candidate = (counts[1] - counts[0]) / MIN_SAMPLES
    return Cost(counts[0] - MIN_SAMPLES * per_candidate, per_candidate)


def _with_search(agent: Any, n_samples: int, iterations: int) -> Any:
    """Returns the agent searching by CEM with so many candidates and iterations; the model is shared."""
    cem = importlib.import_module("lewm_gym.planning.cem").CEMConfig
    search = cem(n_samples, max(2, n_samples // ELITES_PER_SAMPLE), iterations)
    planning = dataclasses.replace(agent.planning, search=search)
    return type(agent)(agent.model, planning, agent.description, agent.device)


def measure_equal_flops(
    run_folders: Sequence[str | Path],
    out: str | Path,
    budgets: Sequence[float],
    *,
    episodes: int | None = None,
    seed: int = 0,
    n_envs: int = 16,
    workers: int = 1,
    progress: Stage | None = None,
) -> Json:
    """Returns the success of each run at each budget, and writes the record to `out`.

    Args:
        run_folders: Runs of planning agents, all of one task.
        out: JSON file.
        budgets: Floating-point operations for a plan.
        episodes: How many of the shipped pairs, from the first; default all.
        seed: Seed of the agents' random streams.
        n_envs: Environments planned for at once; changes the speed only.
        workers: Processes that they live in; likewise.
        progress: Called with (stage, done, total).

    Raises:
        ValueError: If a run does not plan, runs are of different tasks or render quality, or a budget is not positive.
        OSError: If a run is missing or the record cannot be written.
    """
    if not budgets or min(budgets) <= 0:
        raise ValueError(f"--flops must be positive numbers, got {list(budgets)}")
    request = Request(episodes=episodes, seed=seed, n_envs=n_envs, workers=workers, strict=False)
    described = {Path(run): runs.load_description(Path(run)) for run in run_folders}
    check_same_scene(described)
    record = Record("equal flops")
    models = []
    jobs = {run: make_job(run, description, request) for run, description in described.items()}
    for run, description in described.items():
        agent = importlib.import_module("agents").load_agent(run)
        if not hasattr(agent, "planning"):
            raise ValueError(f"{run} holds {description['agent']!r}, which does not plan")
        models.append(_measure_model(run, description, agent, jobs[run], budgets, progress))
    job = next(iter(jobs.values()))
    body = {
        "task": job.task.name,
        "seed": seed,
        "offset_steps": job.offset_steps,
        "pairs": job.source,
        "iterations": ITERATIONS,
        "budgets": list(budgets),
        "models": models,
    }
    return record.save(Path(out), body)


def check_same_scene(described: dict[Path, Json]) -> None:
    """Refuses runs that were not trained on the same task, drawn alike.

    Raises:
        ValueError: If tasks or render qualities differ.
    """
    for what, found in (
        ("task", {run: d["task"] for run, d in described.items()}),
        ("render quality", {run: runs.dataset_of(d).get("render_quality") for run, d in described.items()}),
    ):
        if len(set(found.values())) > 1:
            told = ", ".join(f"{run}: {value}" for run, value in found.items())
            raise ValueError(f"the runs are of different {what} ({told}): compare runs that share it")


def _measure_model(
    run: Path, description: Json, agent: Any, job: Job, budgets: Sequence[float], progress: Stage | None
) -> Json:
    cost = cost_of_plan(agent, first_observation(job))
    points = []
    for budget in budgets:
        n_samples = cost.samples_within(budget, ITERATIONS)
        point: Json = {"flops": budget, "n_samples": n_samples, "success": None}
        if n_samples >= MIN_SAMPLES:
            searcher = TimedAgent(_with_search(agent, n_samples, ITERATIONS))
            advance = counter(progress, f"{run.name}, {n_samples} candidates", len(job.pairs))
            outcomes = evaluate(
                searcher,
                job.task,
                job.pairs,
                progress=advance,
                rules=job.rules,
                **as_arguments(job),
            )
            point["success"] = dataclasses.asdict(Rate.of(outcomes))
            point["seconds_per_plan"] = searcher.seconds / (searcher.plans or 1)
        points.append(point)
    return {
        "agent": description["agent"],
        "preset": description.get("preset"),
        "run": {"folder": str(run), "weights": runs.weights_hash(run)},
        "flops_fixed": cost.fixed,
        "flops_per_candidate": cost.per_candidate,
        "points": points,
    }


def first_observation(job: Job) -> Any:
    """Returns what an agent sees at the start of the first pair."""
    from benchmarks.environments import open_environments

    with open_environments(job.task, 1, job.rules) as envs:
        view = envs.reset(job.pairs[:1], [0], [True])[0]
    return {"pixels": view.pixels, "goal": view.goal}


def section(record: Json, folder: Path) -> Section:
    """Returns the report's section of a record."""
    title = TASKS[record["task"]].title
    rows, lines = [], []
    for colour, model in enumerate(record["models"]):
        name = AGENT_TITLES.get(model["agent"], model["agent"])
        measured = [point for point in model["points"] if point["success"]]
        for point in model["points"]:
            rate = point["success"]
            text = (
                f"{100 * rate['rate']:.1f} \\[{100 * rate['low']:.1f}, {100 * rate['high']:.1f}\\]"
                if rate
                else "cannot afford it"
            )
            plan = f"{1000 * point['seconds_per_plan']:,.0f} ms" if rate else ""
            rows.append([plain(name), f"{point['flops']:.2g}", str(max(0, point["n_samples"])), text, plan])
        if measured:
            budget = [point["flops"] / 1e9 for point in measured]
            lines.append(Line(name, budget, [100 * point["success"]["rate"] for point in measured], colour))
    text = (
        f"Each model plans by CEM with {record['iterations']} iterations and as many candidates as the budget allows; "
        "operations are those of matrix products and convolutions, counted. Brackets hold Wilson 95 % intervals."
    )
    header = ["model", "operations per plan", "candidates", "success %", "a plan"]
    drawing = curve("success %", lines, "GFLOP per plan")
    pictures = [(f"{title}: success at equal operations", drawing)] if drawing else []
    return Section(f"{title}: planning at equal operations", f"{text}\n\n{table(header, rows)}", list(pictures))


FORMATS = {"lewm-gym equal flops": section}
