"""The published protocol's starts and goals: rows of the training set itself.

Fifty rows are drawn without replacement by `numpy.random.default_rng(42)` from all that lie at least 25 steps before
the end of their episode, and sorted; the goal is the same episode's frame 25 steps on. Its faults (goals from the
training data, starts that satisfy their goal, few episodes) are part of it: see docs/evaluation.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_gym.data.dataset import Dataset

EPISODES = 50
OFFSET_STEPS = 25
BUDGET_STEPS = 50
SEED = 42  # of the rows


@dataclass(frozen=True, eq=False)
class RecordedPair:
    """A row of a dataset and the frame `OFFSET_STEPS` on; see `lewm_gym.pairs.Pair`.

    Attributes:
        start_state: (state_size,) float64.
        goal_state: (state_size,) float64.
        actions: (OFFSET_STEPS, action_size) float32.
        goal_image: (h, w, 3) uint8, the recorded frame; None if it is not stored.
    """

    start_state: NDArray[np.float64]
    goal_state: NDArray[np.float64]
    actions: NDArray[np.float32]
    goal_image: NDArray[np.uint8] | None


def draw_rows(lengths: NDArray[np.int64], count: int = EPISODES) -> NDArray[np.int64]:
    """Returns `count` rows, sorted, as the reference's evaluation draws them.

    Args:
        lengths: (episodes,) frames of each episode, in the order of the rows.
        count: How many.

    Raises:
        ValueError: If fewer rows lie far enough before the end of their episode.
    """
    steps = np.concatenate([np.arange(length) for length in lengths])
    last_start = np.repeat(lengths - OFFSET_STEPS - 1, lengths)
    valid = np.flatnonzero(steps <= last_start)
    if len(valid) < count:
        raise ValueError(
            f"{len(valid)} rows lie {OFFSET_STEPS} steps before the end of their episode, fewer than the {count} that "
            "are asked: collect more or longer episodes"
        )
    chosen = np.random.default_rng(SEED).choice(len(valid), size=count, replace=False)
    return np.sort(valid[chosen])


def recorded_pairs(dataset: Dataset, count: int = EPISODES) -> tuple[RecordedPair, ...]:
    """Returns the published protocol's pairs of a dataset.

    Raises:
        ValueError: If the dataset is too small.
    """
    pairs = []
    for row in draw_rows(dataset.lengths, count):
        episode = int(np.searchsorted(dataset.starts, row, side="right")) - 1
        goal = row + OFFSET_STEPS
        step = int(goal - dataset.starts[episode])
        stored = dataset.has_pixels and step % dataset.picture_every == 0  # another goal is drawn from its state
        frame = dataset.frames(episode, step)[0] if stored else None
        pairs.append(
            RecordedPair(dataset.states[row], dataset.states[goal], np.array(dataset.actions[row:goal]), frame)
        )
    return tuple(pairs)


def open_training_set(run: Path, description: dict[str, Any], folder: Path | None = None) -> Dataset:
    """Returns the dataset that a run was trained on.

    Args:
        run: The run folder, for messages.
        description: What it says of itself.
        folder: Where the dataset lies now, if it was moved.

    Raises:
        ValueError: If the run names no dataset, or another one lies there.
        FileNotFoundError: If nothing lies there.
    """
    known = description.get("dataset")
    if not isinstance(known, dict) or not known.get("folder"):
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
        ("task", dataset.task, description["task"]),
        ("render quality", dataset.header.render_quality, known.get("render_quality")),
        ("hash", dataset.content_hash, known.get("hash")),
    ):
        if wanted is not None and found != wanted:
            raise ValueError(
                f"{folder} is not the dataset that {run} was trained on: its {what} is {found!r}, not {wanted!r}"
            )
    return dataset


def content_hash(pairs: tuple[Any, ...]) -> str:
    """Returns 128 bits, in hexadecimal, that stand for starts, goals and actions."""
    digest = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        for array in (pair.start_state, pair.goal_state, pair.actions):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
