"""Violation of expectation: is a world model surprised where physics is broken (paper, figure 10)?

Surprise at a frame is the squared error, averaged over the latent's coordinates, of predicting it from the frames and
actions before it, of which the predictor sees as many as it was trained on. At the event it is compared with the
unperturbed trajectory's at the same frame by a paired t-test over trajectories.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.knowledge import pictures
from benchmarks.knowledge.records import Json, Record
from benchmarks.knowledge.statistics import mean_interval, paired_t_test
from benchmarks.knowledge.trajectories import EVENTS, VARIANTS, Trajectory, make_trajectories
from benchmarks.knowledge.worlds import Progress, World, load_worlds

BLOCKS, EVENT_BLOCK = 10, 6  # frames after the start, and the first of them that differs


def measure_surprise(
    runs: Sequence[str | Path],
    *,
    trajectories: int = 50,
    device: str | None = None,
    out: Path,
    progress: Progress | None = None,
) -> Json:
    """Returns the record of how surprised each run's world model is, after writing it and its picture.

    Args:
        runs: Run folders of world models of one task of EVENTS.
        trajectories: How many, of three variants each.
        device: Where to compute.
        out: JSON file; pictures go beside it.
        progress: Called with (stage, done, total).

    Raises:
        ValueError: If the runs do not belong together, or nothing is defined for their task.
        OSError: If something is missing or cannot be written.
    """
    if trajectories < 2:
        raise ValueError(f"--trajectories must be at least 2 for a paired test, got {trajectories}")
    record = Record("surprise")
    worlds = load_worlds(runs, device)
    task, first = worlds[0].description["task"], worlds[0]
    if len({(world.frame_skip, world.render_quality) for world in worlds}) > 1:
        raise ValueError("the runs differ in frame skip or render quality: measure them one by one")
    made = make_trajectories(task, trajectories, BLOCKS, EVENT_BLOCK, first.frame_skip, first.render_quality)
    surprises = surprise_of(worlds, made, trajectories, progress)
    body = {
        "task": task,
        "object": EVENTS[task].object,
        "trajectories": trajectories,
        "frame_skip": first.frame_skip,
        "blocks": BLOCKS,
        "event_block": EVENT_BLOCK,
        "picture": out.with_suffix(".png").name,
        "models": [
            {**world.describe(), **summary(values, EVENT_BLOCK)}
            for world, values in zip(worlds, surprises, strict=True)
        ],
    }
    saved = record.save(out, body)
    pictures.draw_surprise(saved, out.with_suffix(".png"))
    return saved


def surprise_of(
    worlds: Sequence[World], trajectories: Iterable[Trajectory], total: int, progress: Progress | None = None
) -> list[dict[str, NDArray[np.float64]]]:
    """Returns for each world variant -> (n, K) surprise at each frame after the start."""
    found: list[list[Tensor]] = [[] for _ in worlds]
    for done, trajectory in enumerate(trajectories, 1):
        frames = np.concatenate([trajectory.frames[name] for name in VARIANTS])
        actions = torch.from_numpy(trajectory.actions).expand(len(VARIANTS), -1, -1)
        for world, series in zip(worlds, found, strict=True):
            latents = world.encode(frames).unflatten(0, (len(VARIANTS), -1))
            series.append(surprise_along(world, latents, actions))
        if progress:
            progress("surprise", done, total)
    stacked = [torch.stack(series).double().numpy() for series in found]
    return [{name: values[:, row] for row, name in enumerate(VARIANTS)} for values in stacked]


def surprise_along(world: World, latents: Tensor, actions: Tensor) -> Tensor:
    """Returns the surprise (B, K) at each frame after the first.

    Args:
        world: The world model.
        latents: (B, K + 1, Z) of consecutive frames.
        actions: (B, K, A), raw, the blocks between them.
    """
    errors = []
    for k in range(1, latents.shape[1]):
        start = max(0, k - world.context)
        past = actions[:, start : k - 1] if k - start > 1 else None
        predicted = world.rollout(latents[:, start:k], actions[:, k - 1 : k], past)[:, 0]
        errors.append((predicted - latents[:, k]).square().mean(dim=-1))
    return torch.stack(errors, dim=1)


def summary(series: dict[str, NDArray[np.float64]], event_block: int) -> dict[str, Any]:
    """Returns what a record says of one world's surprises: curves with intervals, and the tests at the event."""
    usual = series["unperturbed"]
    at_event = {name: values[:, event_block - 1] for name, values in series.items()}
    tests = {name: paired_t_test(values, at_event["unperturbed"]) for name, values in at_event.items()}
    return {
        "surprise": {
            name: {key: [getattr(i, key) for i in mean_interval(values)] for key in ("value", "low", "high")}
            for name, values in series.items()
        },
        "at_event": {name: values.tolist() for name, values in at_event.items()},
        "tests": {
            name: {**tests[name]._asdict(), "ratio": float(at_event[name].mean() / usual[:, event_block - 1].mean())}
            for name in VARIANTS[1:]
        },
    }
