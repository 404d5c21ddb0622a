"""From a run folder to a result on disk: loads, evaluates, resumes, films, and writes down what made the number."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agents.random import RandomAgent
from benchmarks import film as films
from benchmarks.outcome_log import OutcomeLog
from benchmarks.plan import PairLike, evaluate
from lewm_gym import provenance
from lewm_gym.results import Outcome, Result
from lewm_gym.tasks import Task, get_task
from lewm_gym.types import Agent, Obs


class PairSetLike(Protocol):
    """Pairs of one task at one distance; `lewm_gym.pairs.PairSet` is one."""

    @property
    def task(self) -> str:
        """Name of the task."""

    @property
    def offset_steps(self) -> int:
        """Distance, environment steps."""

    @property
    def pairs(self) -> Sequence[PairLike]:
        """The pairs."""

    @property
    def seed(self) -> int:
        """Seed that they were collected from."""

    @property
    def content_hash(self) -> str:
        """What identifies the contents."""


CURVE_POINTS = 200  # of each training curve that a result carries: as many as a plot can show
#: What `measure` does, in its order; the names under which it reports progress.
STAGES = {"floor": "random floor", "agent": "planning", "film": "film"}
#: Called with (stage, done, total).
Stage = Callable[[str, int, int], None]


def measure(
    run: str | Path,
    *,
    pairs: str | Path | PairSetLike | None = None,
    offset_steps: int = 25,
    episodes: int | None = None,
    budget_steps: int | None = None,
    seed: int = 0,
    n_envs: int = 16,
    out: str | Path | None = None,
    film: bool = False,
    progress: Stage | None = None,
    agent: Agent | None = None,
) -> Result:
    """Returns the planning success of a run's agent on audited pairs, and writes it to `out`.

    Outcomes are kept as they come in `<out>.partial`; a call with the same arguments goes on from there.

    Args:
        run: Run folder.
        pairs: A pair set or its file; default the one shipped with the task at `offset_steps`.
        offset_steps: Distance of the shipped pairs, environment steps.
        episodes: How many pairs, from the first; default all.
        budget_steps: Environment steps allowed; default twice the distance.
        seed: Seed of the agent's random streams.
        n_envs: Environments planned for at once; changes the speed only.
        out: JSON file; default `results/<run>-<distance>-seed<seed>.json`.
        film: Whether to film six episodes, beside `out` (`.mp4` and `.png`).
        progress: Called with (stage, done, total).
        agent: Use this agent instead of loading the run's.

    Raises:
        ValueError: If run, pairs and arguments do not fit one another.
        OSError: If the run is missing or the result cannot be written.
    """
    for option, value in (("--n-envs", n_envs), ("--budget", budget_steps)):
        if value is not None and value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    if seed < 0:
        raise ValueError(f"--seed must not be negative, got {seed}")
    run = Path(run)
    description = _load_description(run)
    task = get_task(str(description["task"]))
    pair_set = _load_pairs(task.name, pairs, offset_steps)
    _check_fit(run, description, pair_set)
    job = Job(
        task=task,
        pairs=pair_set.pairs,
        count=_checked_count(episodes, len(pair_set.pairs)),
        budget_steps=2 * pair_set.offset_steps if budget_steps is None else budget_steps,
        seed=seed,
        n_envs=n_envs,
        render_quality=description.get("dataset", {}).get("render_quality"),
    )
    out = Path(out) if out else Path("results", f"{run.resolve().name}-{pair_set.offset_steps}-seed{seed}.json")
    agent = importlib.import_module("agents").load_agent(run) if agent is None else agent
    weights = weights_hash(run)
    log = OutcomeLog(out.with_name(out.name + ".partial"), _log_header(job, pair_set, weights))
    session = _Session(job, log, TimedAgent(agent), progress)
    floor = session.run("floor", RandomAgent(task.action_size))
    outcomes = session.run("agent", session.agent)
    seconds, timing = session.totals()
    if film:
        _film(job, agent, outcomes, out.with_suffix(".mp4"), progress)
    result = Result(
        **provenance.describe(),
        started=log.started,
        seconds=round(seconds, 2),
        task=task.name,
        agent=str(description["agent"]),
        run=_describe_run(run, description, weights),
        seed=seed,
        protocol="audited",
        offset_steps=pair_set.offset_steps,
        budget_steps=job.budget_steps,
        pairs=_describe_pairs(pair_set, pairs),
        outcomes=outcomes,
        floor=floor,
        timing=timing,
        film=out.with_suffix(".mp4").name if film else None,
    )
    result.save(out)
    log.remove()
    return result


def refilm(
    run: str | Path,
    result_path: str | Path,
    *,
    pairs: PairSetLike | None = None,
    n_envs: int = 16,
    progress: Stage | None = None,
    agent: Agent | None = None,
) -> Result:
    """Returns the result in a file after filming its episodes again, beside it; only the name of the film may change.

    Args:
        run: Run folder that was measured.
        result_path: JSON file of the result.
        pairs: The pair set, if the result was measured on one given in Python; otherwise it is found again.
        n_envs: Environments planned for at once; changes the speed only.
        progress: Called with (stage, done, total); the stage is "film".
        agent: Use this agent instead of loading the run's.

    Raises:
        ValueError: If the run's weights or the pairs are not those of the result.
        OSError: If a file is missing or the film cannot be written.
    """
    run, result_path = Path(run), Path(result_path)
    result = Result.load(result_path)
    description = _load_description(run)
    if weights_hash(run) != result.run["weights"]:
        raise ValueError(f"{result_path} was measured with other weights than {run} holds: measure it again")
    source = result.pairs["source"]
    if pairs is None and source == "given":
        raise ValueError(f"{result_path} was measured on pairs given in Python: give them again (pairs=)")
    given = pairs if pairs is not None else None if source == "shipped" else source
    pair_set = _load_pairs(result.task, given, result.offset_steps)
    if pair_set.content_hash != result.pairs["hash"]:
        raise ValueError(f"{result_path} was measured on other pairs than {source}: measure it again")
    job = Job(
        task=get_task(result.task),
        pairs=pair_set.pairs,
        count=len(result.outcomes),
        budget_steps=result.budget_steps,
        seed=result.seed,
        n_envs=n_envs,
        render_quality=description.get("dataset", {}).get("render_quality"),
    )
    agent = importlib.import_module("agents").load_agent(run) if agent is None else agent
    film = result_path.with_suffix(".mp4")
    _film(job, agent, result.outcomes, film, progress)
    if result.film != film.name:
        result = replace(result, film=film.name)
        result.save(result_path)
    return result


@dataclass(frozen=True)
class Job:
    """What is evaluated, the agent aside; the arguments of `evaluate`."""

    task: Task
    pairs: Sequence[PairLike]
    count: int
    budget_steps: int
    seed: int
    n_envs: int
    render_quality: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments that `evaluate` and `film.record` share."""
        return {
            "budget_steps": self.budget_steps,
            "seed": self.seed,
            "n_envs": self.n_envs,
            "render_quality": self.render_quality,
        }


class TimedAgent:
    """An agent that notes how long its actions take; otherwise the agent inside."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.seconds = 0.0
        if hasattr(agent, "keep"):
            self.keep = agent.keep

    @property
    def plans(self) -> int | None:
        """How many plans the agent has made, if it counts them."""
        return getattr(self._agent, "plans", None)

    def reset(self, seeds: list[int] | None = None) -> None:
        """Resets the agent."""
        self._agent.reset(seeds)

    def act(self, obs: Obs) -> NDArray[np.float32]:
        """Returns the agent's actions."""
        start = time.perf_counter()
        actions = self._agent.act(obs)
        self.seconds += time.perf_counter() - start
        return actions

    def predict(self, *args: Any, **kwargs: Any) -> tuple[NDArray[np.float32], Any]:
        """Returns the agent's (action, state)."""
        return self._agent.predict(*args, **kwargs)


class _Session:
    """One call's share of an evaluation that may have begun in an earlier one."""

    def __init__(self, job: Job, log: OutcomeLog, agent: TimedAgent, progress: Stage | None) -> None:
        self.agent = agent
        self._job = job
        self._log = log
        self._progress = progress
        self._call = uuid.uuid4().hex[:8]
        self._start = time.perf_counter()
        self._plans_before = agent.plans or 0

    def run(self, who: str, agent: Agent) -> tuple[Outcome, ...]:
        """Returns the outcomes of all pairs, evaluating those that the log does not know for `who`."""
        known = self._log.known(who)
        missing = [index for index in range(self._job.count) if index not in known]
        advance = _counter(self._progress, STAGES[who], self._job.count, done=self._job.count - len(missing))

        def note(outcome: Outcome) -> None:
            self._log.append(who, outcome, self._call, time.perf_counter() - self._start, self._timing())
            advance()

        fresh = evaluate(
            agent, self._job.task, self._job.pairs, indices=missing, progress=note, **self._job.arguments()
        )
        known.update({outcome.pair: outcome for outcome in fresh})
        return tuple(known[index] for index in range(self._job.count))

    def totals(self) -> tuple[float, dict[str, Any]]:
        """Returns the seconds and the timing of all calls together."""
        mine = self._timing()
        act_seconds = self._log.timing.get("act_seconds", 0.0) + mine["act_seconds"]
        plans = int(self._log.timing.get("plans", 0) + mine["plans"])
        timing = {
            "act_seconds": round(act_seconds, 3),
            "plans": plans or None,
            "seconds_per_plan": round(act_seconds / plans, 4) if plans else None,
        }
        return self._log.seconds + time.perf_counter() - self._start, timing

    def _timing(self) -> dict[str, float]:
        return {"act_seconds": self.agent.seconds, "plans": (self.agent.plans or 0) - self._plans_before}


def _counter(progress: Stage | None, stage: str, total: int, done: int = 0) -> Callable[[], None]:
    """Reports `done` of `total`, and returns what reports one more at each call."""
    steps = itertools.count(done)

    def advance() -> None:
        current = next(steps)
        if progress is not None:
            progress(stage, current, total)

    advance()
    return advance


def _film(job: Job, agent: Agent, outcomes: Sequence[Outcome], path: Path, progress: Stage | None) -> None:
    chosen = films.choose(outcomes)
    advance = _counter(progress, STAGES["film"], len(chosen) + 1)  # the last one is the encoding
    episodes = films.record(agent, job.task, job.pairs, chosen, progress=lambda _: advance(), **job.arguments())
    films.write_film(path, episodes, job.task)
    advance()


def read_curves(rows: Iterable[Mapping[str, Any]], points: int = CURVE_POINTS) -> dict[str, dict[str, list[float]]]:
    """Returns `{column: {"step": [...], "value": [...]}}` of a training log, at most `points` of each.

    Neighbouring rows are averaged, which keeps the trend of a noisy loss and loses none of its mass. Columns that
    are not numbers are left out, and rows without a column do not count in it (validation comes rarely).
    """
    columns: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        step = row.get("step")
        if not isinstance(step, int | float):
            continue
        for name, value in row.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name not in ("step", "seconds") and number and np.isfinite(value):
                columns.setdefault(name, []).append((step, value))
    curves = {}
    for name, samples in columns.items():
        bins = np.array_split(np.array(samples, float), min(points, len(samples)))
        means = [chunk.mean(axis=0) for chunk in bins]
        curves[name] = {
            "step": [round(float(step), 1) for step, _ in means],
            "value": [float(f"{value:.6g}") for _, value in means],
        }
    return curves


def _describe_run(run: Path, description: dict[str, Any], weights: str) -> dict[str, Any]:
    rows = importlib.import_module("lewm_gym.training").read_log(run / "log.jsonl")
    last = rows[-1] if rows else {}
    return {
        "folder": str(run),
        "weights": weights,
        "steps": last.get("step"),
        "seconds": last.get("seconds"),
        "description": description,
        "curves": read_curves(rows),
    }


def _load_description(run: Path) -> dict[str, Any]:
    if not run.is_dir():
        raise ValueError(f"there is no run folder {run}; train one with `python -m agents lewm DATASET`")
    description = importlib.import_module("lewm_gym.checkpoint").load_description(run)
    missing = [key for key in ("agent", "task") if key not in description]
    if missing:
        raise ValueError(f"{run / 'run.json'} does not say its {' and '.join(missing)}; train the run again")
    if description.get("finished") is False:
        raise ValueError(f"the training of {run} is not finished; run its command again, it resumes")
    return dict(description)


def _load_pairs(task: str, pairs: str | Path | PairSetLike | None, offset_steps: int) -> PairSetLike:
    if pairs is not None and not isinstance(pairs, str | Path):
        return pairs
    module = importlib.import_module("lewm_gym.pairs")
    loaded: PairSetLike = module.load_shipped(task, offset_steps) if pairs is None else module.PairSet.load(Path(pairs))
    return loaded


def _check_fit(run: Path, description: dict[str, Any], pair_set: PairSetLike) -> None:
    """Refuses pairs of another task, and those collected from the seed of the run's own training set."""
    if pair_set.task != description["task"]:
        raise ValueError(f"the pairs are of task {pair_set.task!r}, but {run} was trained on {description['task']!r}")
    dataset = description.get("dataset")
    seed = dataset.get("seed") if isinstance(dataset, dict) else None
    if seed is not None and seed == pair_set.seed:
        raise ValueError(f"the pairs come from seed {seed}, on which {run} was trained; use pairs of another seed")


def _describe_pairs(pair_set: PairSetLike, source: str | Path | PairSetLike | None) -> dict[str, Any]:
    names = {"source": "shipped" if source is None else str(source) if isinstance(source, str | Path) else "given"}
    return {"hash": pair_set.content_hash, **names, "count": len(pair_set.pairs), "seed": pair_set.seed}


def _log_header(job: Job, pair_set: PairSetLike, weights: str) -> dict[str, Any]:
    """Returns what outcomes are a function of, and when they were begun."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights": weights,
        "task": job.task.name,
        "pairs": pair_set.content_hash,
        "budget_steps": job.budget_steps,
        "render_quality": job.render_quality,
        "seed": job.seed,
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }


def _checked_count(episodes: int | None, available: int) -> int:
    if episodes is None:
        return available
    if not 1 <= episodes <= available:
        raise ValueError(f"--episodes must be within 1 and {available}, got {episodes}")
    return episodes


def weights_hash(run: Path) -> str:
    """Returns the SHA-256 of the weights, or of `run.json` for an agent without any: what acts."""
    weights = run / "weights.safetensors"
    digest = hashlib.sha256()
    with (weights if weights.is_file() else run / "run.json").open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
