"""What a protocol evaluates: the starts and goals, the environment's rules and how success is judged.

- audited (ours): a pair set of a reserved seed, none solved at its start, a random stream each, strict success too;
- official: as published, see `benchmarks.official`: rows of the training set, the reference's rules with its inexact
  restore, one random stream for all, an episode stops at its success;
- sampled: goals that no dataset holds, drawn uniformly or found by random walks, see `benchmarks.sampled`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks import official, runs
from benchmarks.environments import PairLike, Rules
from benchmarks.plan import Settings
from benchmarks.sampled import sample_pairs
from lewm_gym.results import PROTOCOLS
from lewm_gym.tasks import Task, get_task

SHIPPED = "shipped"  # what a result calls the source of the task's own suite; "shipped, markov" that of another
SAMPLED_EPISODES = 100  # by default


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


@dataclass(frozen=True)
class Request:
    """What is asked of an evaluation; `benchmarks.measure.measure` says what each argument means."""

    protocol: str = "audited"
    pairs: str | Path | PairSetLike | None = None
    offset_steps: int = 25
    episodes: int | None = None
    budget_steps: int | None = None
    seed: int = 0
    n_envs: int = 16
    workers: int = 1
    strict: bool = True
    dataset: str | Path | None = None
    sampled_goals: str = "uniform"

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"--protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        for name in ("n_envs", "workers", "budget_steps"):
            value = getattr(self, name)
            option = "--" + name.removesuffix("_steps").replace("_", "-")
            if value is not None and value < 1:
                raise ValueError(f"{option} must be at least 1, got {value}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, got {self.seed}")
        if self.pairs is not None and self.protocol != "audited":
            raise ValueError(f"--pairs is for the audited protocol; {self.protocol} has pairs of its own")
        if self.dataset is not None and self.protocol != "official":
            raise ValueError("--dataset is for the official protocol; others need no dataset")
        if self.protocol == "official" and (self.budget_steps or official.BUDGET_STEPS) != official.BUDGET_STEPS:
            raise ValueError(
                f"the official protocol's budget is {official.BUDGET_STEPS}, got --budget {self.budget_steps}"
            )


@dataclass(frozen=True)
class Job:
    """What is evaluated, the agent aside.

    Attributes:
        task: The task.
        protocol: One of PROTOCOLS.
        offset_steps: Distance from start to goal; 0 where the environment drew them.
        pairs: Starts and goals, those to evaluate only.
        source: What a result says of the pairs: `{"hash", "source", "count", "seed"}`, and `"phases"` where they have.
        settings: How they are evaluated.
        rules: How the environments are made.
    """

    task: Task
    protocol: str
    offset_steps: int
    pairs: Sequence[PairLike]
    source: dict[str, Any]
    settings: Settings
    rules: Rules

    @property
    def has_recorded_actions(self) -> bool:
        """Whether there are actions that lead from start to goal."""
        return len(self.pairs[0].actions) > 0

    def identity(self) -> dict[str, Any]:
        """Returns, ready for JSON, what outcomes are a function of, the agent aside; speed is not among it."""
        settings = {k: v for k, v in asdict(self.settings).items() if k not in ("n_envs", "workers")}
        source = {key: self.source[key] for key in ("hash", "seed")}
        rules = {k: v for k, v in asdict(self.rules).items() if k != "proprioception"}  # the agent's need
        return {"task": self.task.name, "protocol": self.protocol, "pairs": source, **settings, **rules}


def make_job(run: Path, description: dict[str, Any], request: Request) -> Job:
    """Returns what a request means for a run.

    Raises:
        ValueError: If run, pairs and arguments do not fit one another.
        FileNotFoundError: If a file or dataset is missing.
    """
    makers = {"audited": _audited, "official": _official, "sampled": _sampled}
    return makers[request.protocol](run, description, request)


def _audited(run: Path, description: dict[str, Any], request: Request) -> Job:
    task = get_task(str(description["task"]))
    pair_set = load_pairs(task.name, request.pairs, request.offset_steps)
    if pair_set.task != task.name:
        raise ValueError(f"the pairs are of task {pair_set.task!r}, but {run} was trained on {task.name!r}")
    known = runs.dataset_of(description)
    if known.get("seed") is not None and known["seed"] == pair_set.seed:
        raise ValueError(
            f"the pairs come from seed {pair_set.seed}, on which {run} was trained; use pairs of another seed"
        )
    count = len(pair_set.pairs)
    if request.episodes is not None and not 1 <= request.episodes <= count:
        raise ValueError(f"--n-pairs must be within 1 and {count}, got {request.episodes}")
    return Job(
        task,
        "audited",
        pair_set.offset_steps,
        pair_set.pairs[: request.episodes],
        {
            "hash": pair_set.content_hash,
            "source": _source_name(request.pairs),
            "count": count,
            "seed": pair_set.seed,
            **_phases(pair_set.pairs[: request.episodes]),
        },
        _settings(request, request.budget_steps or 2 * pair_set.offset_steps, strict=request.strict),
        Rules(known.get("render_quality")),
    )


def _official(run: Path, description: dict[str, Any], request: Request) -> Job:
    if request.offset_steps != official.OFFSET_STEPS:
        raise ValueError(f"the official protocol's distance is {official.OFFSET_STEPS}, got {request.offset_steps}")
    task = get_task(str(description["task"]))
    folder = None if request.dataset is None else Path(request.dataset)
    dataset = official.open_training_set(run, description, folder)
    count = _count(request, official.EPISODES)
    pairs = official.recorded_pairs(dataset, count)
    # All at once, as in the reference: the random stream that they share makes the batch part of the protocol.
    settings = _settings(request, official.BUDGET_STEPS, n_envs=count, shared_stream=True, solved_starts=True)
    source = f"rows of {dataset.folder} ({dataset.content_hash[:16]})"
    return Job(
        task,
        "official",
        official.OFFSET_STEPS,
        pairs,
        {"hash": official.content_hash(pairs), "source": source, "count": count, "seed": official.SEED},
        settings,
        Rules(runs.dataset_of(description).get("render_quality"), reference_rules=True),
    )


def _sampled(run: Path, description: dict[str, Any], request: Request) -> Job:
    task = get_task(str(description["task"]))
    count = _count(request, SAMPLED_EPISODES)
    walks = request.sampled_goals == "walk"
    budget = request.budget_steps or (2 * request.offset_steps if walks else task.max_episode_steps)
    sampled = sample_pairs(task, request.sampled_goals, count, request.seed, request.offset_steps if walks else budget)
    source = {
        "hash": official.content_hash(sampled.pairs),
        "source": request.sampled_goals,
        "count": count,
        "seed": request.seed,
        "drawn": sampled.drawn,
        **_phases(sampled.pairs),
    }
    return Job(
        task,
        "sampled",
        request.offset_steps if walks else 0,
        sampled.pairs,
        source,
        _settings(request, budget, strict=request.strict),
        Rules(runs.dataset_of(description).get("render_quality")),
    )


def load_pairs(task: str, pairs: str | Path | PairSetLike | None, offset_steps: int) -> PairSetLike:
    """Returns the pair set given, read from its file, or the shipped one of a task at a distance.

    Args:
        task: Name of the task.
        pairs: None for the task's own suite, the name of another suite that ships (such as "markov"), a file, or a set.
        offset_steps: Distance of shipped pairs.

    Raises:
        ValueError: If there is none, or the file is damaged or was changed.
        FileNotFoundError: If there is no such file.
    """
    if pairs is not None and not isinstance(pairs, str | Path):
        return pairs
    module = importlib.import_module("lewm_gym.pairs")
    if pairs is None or is_suite(pairs):
        shipped: PairSetLike = module.load_shipped(task, offset_steps, pairs and str(pairs))
        return shipped
    loaded: PairSetLike = module.PairSet.load(Path(pairs))
    return loaded


def is_suite(pairs: Any) -> bool:
    """Returns whether what was asked for is the name of a suite that ships, rather than a file."""
    named = isinstance(pairs, str | Path) and re.fullmatch(r"[a-z_]+", str(pairs)) is not None
    return named and not Path(pairs).is_file()


def _phases(pairs: Sequence[PairLike]) -> dict[str, Any]:
    """Returns the pairs' phases as a result has them: none of a file of an older version."""
    phases = [getattr(pair, "phase", None) for pair in pairs]
    return {} if None in phases else {"phases": phases}


def _source_name(pairs: str | Path | PairSetLike | None) -> str:
    if pairs is None:
        return SHIPPED
    if is_suite(pairs):
        return f"{SHIPPED}, {pairs}"
    return str(pairs) if isinstance(pairs, str | Path) else "given"


def _count(request: Request, default: int) -> int:
    count = default if request.episodes is None else request.episodes
    if count < 1:
        raise ValueError(f"--n-pairs must be at least 1, got {count}")
    return count


def _settings(request: Request, budget_steps: int, **changes: Any) -> Settings:
    values = {"seed": request.seed, "n_envs": request.n_envs, "workers": request.workers, "strict": False}
    return Settings(budget_steps, **(values | changes))
