"""What a protocol evaluates: the starts and goals, the environment's rules and how success is judged.

- heldout (ours): a pair set of a reserved seed, none solved at its start, a random stream each, strict success too;
- official: as published, with its faults (docs/evaluation.md): fifty rows of the training set, drawn without
  replacement by `numpy.random.default_rng(42)` from all that lie at least 25 steps before the end of their episode, and
  sorted; the goal is the same episode's frame 25 steps on. The reference's rules with its inexact restore, one random
  stream for all, an episode stops at its success, starts that satisfy their goal are counted;
- sampled: goals that are in no dataset, sampled uniformly or by random walks, see `sampled.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.envs import PairLike, Rules, Settings
from benchmarks.evaluation.sampled import KINDS, sample_pairs
from benchmarks.options import Evaluating
from lewm_gym.commands import option
from lewm_gym.data.dataset import Dataset
from lewm_gym.pairs import FoundPair, PairSet, load_shipped
from lewm_gym.results import PROTOCOLS, part_of
from lewm_gym.tasks import TASKS, Task, get_task

SHIPPED = "shipped"  # what a result calls the source of the task's own suite; "shipped, markov" that of another
SAMPLED_EPISODES = 100  # by default
OFFICIAL_EPISODES, OFFICIAL_OFFSET, OFFICIAL_BUDGET, OFFICIAL_SEED = 50, 25, 50, 42


@dataclass(frozen=True, kw_only=True)
class Asked(Evaluating):
    """What is asked of an evaluation."""

    protocol: str = option(
        "heldout",
        "heldout: held-out pairs, none solved at the start, one random stream per pair, with strict success; "
        "official: as published, 50 rows of the training set under the reference's rules; sampled: see --sampled-goals",
        choices=PROTOCOLS,
    )
    sampled_goals: str | None = option(
        None,
        "goals that are not from a dataset; uniform (default): start and goal sampled over all states; walk: "
        "the end of a random walk of --offset steps from the start of a shipped pair",
        metavar="KIND",
        choices=KINDS,
        const=KINDS[0],
    )
    pairs: Path | PairSet | None = option(
        None, "another shipped suite (cube: markov), or a file of pairs (default: the task's default suite)"
    )
    dataset: Path | None = option(None, "folder of the training set, if it was moved (official)", metavar="FOLDER")
    offset: tuple[int, ...] = option(
        (25,), "distances from start to goal (environment steps); one result file each", metavar="STEPS"
    )
    budget: int | None = option(
        None, "environment steps allowed per pair (default: twice the distance)", metavar="STEPS", least=1
    )
    steps_left: int | None = option(
        None,
        "tell the agent within how many steps each goal is to be reached, counted down from the start; for agents with "
        "an actor (default: it estimates them)",
        metavar="STEPS",
        least=1,
    )
    strict: bool = option(
        True,
        "end each episode at its success and do not measure strict success; saves up to half of the plans",
        flag="--no-strict",
    )

    def __post_init__(self) -> None:
        if self.sampled_goals is not None:
            if self.protocol not in ("heldout", "sampled"):
                raise ValueError("--sampled-goals is a protocol of its own; leave out --protocol")
            object.__setattr__(self, "protocol", "sampled")
        super().__post_init__()
        if self.pairs is not None and self.protocol != "heldout":
            raise ValueError(f"--pairs is for the heldout protocol; {self.protocol} has pairs of its own")
        if self.dataset is not None and self.protocol != "official":
            raise ValueError("--dataset is for the official protocol; others need no dataset")
        if self.protocol != "official":
            return
        if self.budget not in (None, OFFICIAL_BUDGET):
            raise ValueError(f"the official protocol's budget is {OFFICIAL_BUDGET}, got --budget {self.budget}")
        if self.offset != (OFFICIAL_OFFSET,):
            raise ValueError(f"the official protocol's distance is {OFFICIAL_OFFSET}, got {self.offset[0]}")


@dataclass(frozen=True)
class Job:
    """What is evaluated, the agent aside.

    Attributes:
        task: The task.
        protocol: One of PROTOCOLS.
        offset_steps: Distance from start to goal; 0 where the environment drew them.
        pairs: Starts and goals, those to evaluate only.
        source: What a result says of the pairs: `{"hash", "source", "count", "seed"}`.
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

    def describe(self) -> dict[str, Any]:
        """Returns what a record says of it."""
        distances = {"offset_steps": self.offset_steps, "budget_steps": self.settings.budget_steps}
        return {"task": self.task.name, "seed": self.settings.seed, **distances, "pairs": self.source}

    def identity(self) -> dict[str, Any]:
        """Returns, ready for JSON, what outcomes are a function of, the agent aside; speed is not among it."""
        speed = ("n_envs", "workers")
        settings = {k: v for k, v in asdict(self.settings).items() if k not in speed and (k, v) != ("steps_left", None)}
        source = {key: self.source[key] for key in ("hash", "seed")}
        rules = {k: v for k, v in asdict(self.rules).items() if k != "proprioception"}  # the agent's need
        return {"task": self.task.name, "protocol": self.protocol, "pairs": source, **settings, **rules}


def make_job(run: Path, description: dict[str, Any], asked: Asked) -> Job:
    """Returns what is asked of a run, at the first of the offsets.

    Raises:
        ValueError: If run, pairs and arguments do not fit one another.
        FileNotFoundError: If a file or dataset is missing.
    """
    if description["task"] not in TASKS:
        known_tasks = ", ".join(TASKS)
        raise ValueError(
            f"{run} was trained on {description['task']!r}, which is none of the tasks ({known_tasks}) and has no "
            "pairs: act with agents.load_agent, as docs/your_environment.md shows"
        )
    task = get_task(str(description["task"]))
    known = part_of(description, "dataset")
    how: dict[str, Any] = {name: getattr(asked, name) for name in ("seed", "n_envs", "workers", "strict", "steps_left")}
    if asked.protocol == "heldout":
        pairs, source, offset = _heldout(run, task, known, asked)
        budget = asked.budget or 2 * offset
    elif asked.protocol == "official":
        pairs, source = _official(run, task, known, asked)
        offset, budget = OFFICIAL_OFFSET, OFFICIAL_BUDGET
        # All at once, as in the reference: the random stream that they share makes the batch part of the protocol.
        how |= {"n_envs": len(pairs), "strict": False, "shared_rng": True, "solved_starts": True}
    else:
        pairs, source, offset, budget = _sampled(task, asked)
    rules = Rules(known.get("render_quality"), reference_rules=asked.protocol == "official")
    return Job(task, asked.protocol, offset, pairs, source, Settings(budget, **how), rules)


def _heldout(
    run: Path, task: Task, known: dict[str, Any], asked: Asked
) -> tuple[Sequence[PairLike], dict[str, Any], int]:
    pair_set, name = load_pairs(task.name, asked.pairs, asked.offset[0])
    if pair_set.task != task.name:
        raise ValueError(f"the pairs are of task {pair_set.task!r}, but {run} was trained on {task.name!r}")
    if known.get("seed") is not None and known["seed"] == pair_set.seed:
        raise ValueError(
            f"the pairs come from seed {pair_set.seed}, on which {run} was trained; use pairs of another seed"
        )
    count = len(pair_set.pairs)
    if asked.n_pairs is not None and asked.n_pairs > count:
        raise ValueError(f"--n-pairs must be within 1 and {count}, got {asked.n_pairs}")
    source = {"hash": pair_set.content_hash, "source": name, "count": count, "seed": pair_set.seed}
    pairs = pair_set.pairs[: asked.n_pairs]
    return pairs, source | phases_of(pairs), pair_set.offset_steps


def load_pairs(task: str, pairs: str | Path | PairSet | None, offset_steps: int) -> tuple[PairSet, str]:
    """Returns pairs and their source: the task's own suite for None, another that ships by its name, a file, or a set.

    Raises:
        ValueError: If there is none, or the file is damaged or was changed.
        FileNotFoundError: If there is no such file.
    """
    if pairs is None:
        return load_shipped(task, offset_steps), SHIPPED
    if not isinstance(pairs, str | Path):
        return pairs, "given"
    if is_suite(pairs):
        return load_shipped(task, offset_steps, str(pairs)), f"{SHIPPED}, {pairs}"
    return PairSet.load(pairs), str(pairs)


def is_suite(pairs: Any) -> bool:
    """Returns whether what was asked for is the name of a suite that ships, rather than a file."""
    named = isinstance(pairs, str | Path) and re.fullmatch(r"[a-z_]+", str(pairs)) is not None
    return named and not Path(pairs).is_file()


def phases_of(pairs: Sequence[PairLike]) -> dict[str, Any]:
    """Returns the pairs' phases as a result has them: none of a file of an older version."""
    phases = [pair.phase for pair in pairs]
    return {} if None in phases else {"phases": phases}


def _sampled(task: Task, asked: Asked) -> tuple[Sequence[PairLike], dict[str, Any], int, int]:
    kind, count, steps = asked.sampled_goals or KINDS[0], asked.n_pairs or SAMPLED_EPISODES, asked.offset[0]
    walks = kind == "walk"
    budget = asked.budget or (2 * steps if walks else task.max_episode_steps)
    sampled = sample_pairs(task, kind, count, asked.seed, steps if walks else budget)
    source = {"hash": content_hash(sampled.pairs), "source": kind, "count": count, "seed": asked.seed}
    source |= {"drawn": sampled.drawn, **phases_of(sampled.pairs)}
    return sampled.pairs, source, steps if walks else 0, budget


# official ----------------------------------------------------------------------------------------------------


def _official(run: Path, task: Task, known: dict[str, Any], asked: Asked) -> tuple[Sequence[PairLike], dict[str, Any]]:
    dataset = open_training_set(run, task, known, asked.dataset)
    count = asked.n_pairs or OFFICIAL_EPISODES
    pairs = recorded_pairs(dataset, count)
    source = f"rows of {dataset.folder} ({dataset.content_hash[:16]})"
    return pairs, {"hash": content_hash(pairs), "source": source, "count": count, "seed": OFFICIAL_SEED}


def draw_rows(lengths: NDArray[np.int64], count: int = OFFICIAL_EPISODES) -> NDArray[np.int64]:
    """Returns `count` rows, sorted, as the reference's evaluation draws them.

    Lengths (episodes,) are the frames of each episode, in the order of the rows.

    Raises:
        ValueError: If fewer rows lie far enough before the end of their episode.
    """
    steps = np.concatenate([np.arange(length) for length in lengths])
    last_start = np.repeat(lengths - OFFICIAL_OFFSET - 1, lengths)
    valid = np.flatnonzero(steps <= last_start)
    if len(valid) < count:
        raise ValueError(
            f"{len(valid)} rows lie {OFFICIAL_OFFSET} steps before the end of their episode, fewer than the {count} "
            "that are asked: collect more or longer episodes"
        )
    chosen = np.random.default_rng(OFFICIAL_SEED).choice(len(valid), size=count, replace=False)
    return np.sort(valid[chosen])


def recorded_pairs(dataset: Dataset, count: int = OFFICIAL_EPISODES) -> tuple[FoundPair, ...]:
    """Returns the published protocol's pairs of a dataset.

    Raises:
        ValueError: If the dataset is too small.
    """
    pairs = []
    for row in draw_rows(dataset.lengths, count):
        episode = int(np.searchsorted(dataset.starts, row, side="right")) - 1
        goal = row + OFFICIAL_OFFSET
        step = int(goal - dataset.starts[episode])
        stored = dataset.has_pixels and step % dataset.picture_every == 0  # another goal is drawn from its state
        frame = dataset.frames(episode, step)[0] if stored else None
        actions = np.array(dataset.actions[row:goal])
        pairs.append(FoundPair(dataset.states[row], dataset.states[goal], actions, frame))
    return tuple(pairs)


def open_training_set(run: Path, task: Task, known: dict[str, Any], folder: Path | None = None) -> Dataset:
    """Returns the dataset that a run was trained on, by what it says of it; `folder` is where it was moved to.

    Raises:
        ValueError: If the run names no dataset, or another one lies there.
        FileNotFoundError: If nothing lies there.
    """
    if not known.get("folder"):
        raise ValueError(
            f"{run} does not say which dataset it was trained on; the official protocol draws its pairs there"
        )
    if known.get("parts"):
        raise ValueError(
            f"{run} was trained on several datasets ({known['folder']}); the official protocol draws its pairs from one"
        )
    folder = Path(known["folder"]) if folder is None else folder
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no dataset in {folder}, which {run} was trained on; tell with --dataset FOLDER"
        )
    dataset = Dataset.open(folder)
    for what, found, wanted in (
        ("task", dataset.task, task.name),
        ("render quality", dataset.header.render_quality, known.get("render_quality")),
        ("hash", dataset.content_hash, known.get("hash")),
    ):
        if wanted is not None and found != wanted:
            raise ValueError(
                f"{folder} is not the dataset that {run} was trained on: its {what} is {found!r}, not {wanted!r}"
            )
    return dataset


def content_hash(pairs: Sequence[PairLike]) -> str:
    """Returns 128 bits, in hexadecimal, that stand for starts, goals and actions."""
    digest = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        for array in (pair.start_state, pair.goal_state, pair.actions):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
