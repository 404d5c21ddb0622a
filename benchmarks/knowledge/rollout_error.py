"""How far ahead a world model sees: error of open-loop predictions against the horizon.

From one frame, as in planning, the model predicts the latents after 1..H blocks of recorded actions. The squared error
is divided by the mean squared distance of two random frames' latents, so that 1 is no better than guessing another
frame, whatever the latents' scale. Beside it stands the copy of the last frame, which knows nothing of dynamics.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.knowledge import pictures
from benchmarks.knowledge.probe import describe_dataset
from benchmarks.knowledge.records import Json, Record
from benchmarks.knowledge.statistics import mean_interval
from benchmarks.knowledge.worlds import Progress, World, divide, encoded, load_worlds, open_dataset


def measure_rollouts(
    runs: Sequence[str | Path],
    dataset_folder: str | Path,
    *,
    horizon: int = 10,
    episodes: int = 50,
    device: str | None = None,
    out: Path,
    progress: Progress | None = None,
) -> Json:
    """Returns the record of open-loop errors of each run, after writing it and its picture.

    Args:
        runs: Run folders of world models of one task.
        dataset_folder: Episodes of that task; those that no run was trained on are used.
        horizon: H, blocks of actions.
        episodes: How many, at most.
        device: Where to compute.
        out: JSON file; pictures go beside it.
        progress: Called with (stage, done, total).

    Raises:
        ValueError: If runs and dataset do not fit one another, or all episodes are shorter than the horizon.
        OSError: If something is missing or cannot be written.
    """
    record = Record("rollout error")
    worlds = load_worlds(runs, device)
    dataset = open_dataset(dataset_folder, worlds)
    frame_skip = worlds[0].frame_skip
    if any(world.frame_skip != frame_skip for world in worlds):
        raise ValueError("the runs differ in frame skip: measure them one by one")
    unseen = divide(dataset, worlds, 1, dataset.n_episodes).test
    long = unseen[dataset.lengths[unseen] > horizon * frame_skip][:episodes]
    if not len(long):
        raise ValueError(
            f"no episode of {dataset.folder} that the runs never saw is longer than {horizon} blocks of {frame_skip} "
            "steps: lower --horizon or collect more"
        )
    errors: list[list[tuple[Tensor, Tensor]]] = [[] for _ in worlds]
    latents: list[list[Tensor]] = [[] for _ in worlds]
    for done, (index, _, parts) in enumerate(encoded(dataset, long, worlds, frame_skip), 1):
        rows = slice(dataset.starts[index], dataset.starts[index + 1])
        actions = _blocks(dataset.actions[rows], frame_skip)
        for number, (world, part) in enumerate(zip(worlds, parts, strict=True)):
            errors[number].append(open_loop_error(world, part, actions, horizon))
            latents[number].append(part)
        if progress:
            progress("roll out", done, len(long))
    body = {
        "task": dataset.task,
        "dataset": describe_dataset(dataset),
        "episodes": len(long),
        "horizon_blocks": horizon,
        "frame_skip": frame_skip,
        "picture": out.with_suffix(".png").name,
        "models": [
            {**world.describe(), **_summary(pairs, torch.cat(parts))}
            for world, pairs, parts in zip(worlds, errors, latents, strict=True)
        ],
    }
    saved = record.save(out, body)
    pictures.draw_rollout_error(saved, out.with_suffix(".png"))
    return saved


def _blocks(actions: NDArray[np.float32], frame_skip: int) -> Tensor:
    """Returns blocks (K, A) of an episode's actions (T, action_size), without an unfinished one at the end."""
    whole = (len(actions) - 1) // frame_skip
    return torch.from_numpy(actions[: whole * frame_skip].reshape(whole, -1))


def open_loop_error(world: World, latents: Tensor, actions: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """Returns the squared errors (H,) of prediction and of copying the start, averaged over starts and coordinates.

    Args:
        world: The world model.
        latents: (K + 1, Z) of the frames of an episode, a block apart.
        actions: (K, A), raw, the blocks between them.
        horizon: H, at most K.
    """
    starts = range(len(actions) - horizon + 1)
    plans = torch.stack([actions[s : s + horizon] for s in starts])
    after = torch.stack([latents[s + 1 : s + 1 + horizon] for s in starts])
    now = latents[: len(plans), None]
    predicted = world.rollout(now, plans)
    return (predicted - after).square().mean(dim=(0, 2)), (now - after).square().mean(dim=(0, 2))


def _summary(pairs: Sequence[tuple[Tensor, Tensor]], latents: Tensor) -> dict[str, Any]:
    spread = 2.0 * float(latents.var(dim=0).mean())  # of two random frames
    found: dict[str, Any] = {"spread": spread}
    for name, column in zip(("prediction", "copy"), zip(*pairs, strict=True), strict=True):
        intervals = mean_interval(torch.stack(column).double().numpy() / spread)
        found[name] = {key: [getattr(i, key) for i in intervals] for key in ("value", "low", "high")}
    return found
