"""Open-loop prediction error of a world model against the horizon.

From one frame, as in planning, the model predicts the latents after 1..H blocks of recorded actions. The squared error
is divided by the mean squared distance of two random frames' latents, so that 1 is no better than guessing another
frame, whatever the latents' scale. The baseline copies the latent of the first frame, without any dynamics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.analysis.statistics import column_json, interval_text
from benchmarks.analysis.worlds import World, describe_dataset, divide, encoded, load_worlds, open_dataset
from benchmarks.options import OnDevice
from benchmarks.report.plots import band
from benchmarks.report.records import Measurement
from benchmarks.report.tables import Cell, Section, Table, task_title
from lewm_gym.commands import argument, option
from lewm_gym.plots import Panel, figure_of
from lewm_gym.results import Json, Record

LINES = {"prediction": "prediction", "copy": "copy of the last frame"}


@dataclass(frozen=True, kw_only=True)
class Rollout(Measurement, OnDevice):
    """Predicts held-out episodes open loop and compares the error with that of copying the last frame."""

    kind = "rollout"

    runs: tuple[Path, ...] = argument("run folders of world models of one task")
    dataset: Path = argument("folder that `python -m collect` wrote")
    horizon: int = option(10, "action blocks to predict ahead", least=1)
    episodes: int = option(50, "held-out episodes, at most", least=1)

    def measure(self, bars: Any) -> Json:
        """Returns the open-loop errors of each run."""
        worlds = load_worlds(self.runs, self.device)
        dataset, frame_skip, horizon = open_dataset(self.dataset, worlds), worlds[0].frame_skip, self.horizon
        if any(world.frame_skip != frame_skip for world in worlds):
            raise ValueError("the runs differ in frame skip: measure them one by one")
        unseen = divide(dataset, worlds, 1, dataset.n_episodes).test
        long = unseen[dataset.lengths[unseen] > horizon * frame_skip][: self.episodes]
        if not len(long):
            raise ValueError(
                f"no episode of {dataset.folder} that the runs never saw is longer than {horizon} blocks of "
                f"{frame_skip} steps: lower --horizon or collect more"
            )
        errors: list[list[tuple[Tensor, Tensor]]] = [[] for _ in worlds]
        latents: list[list[Tensor]] = [[] for _ in worlds]
        for done, (index, _, parts) in enumerate(encoded(dataset, long, worlds, frame_skip), 1):
            actions = _blocks(dataset.actions[dataset.starts[index] : dataset.starts[index + 1]], frame_skip)
            for number, (world, part) in enumerate(zip(worlds, parts, strict=True)):
                errors[number].append(open_loop_error(world, part, actions, horizon))
                latents[number].append(part)
            bars("roll out", done, len(long))
        return {
            "task": dataset.task,
            "dataset": describe_dataset(dataset),
            "episodes": len(long),
            "horizon_blocks": horizon,
            "frame_skip": frame_skip,
            "models": [
                {**world.describe(), **summary(pairs, torch.cat(parts))}
                for world, pairs, parts in zip(worlds, errors, latents, strict=True)
            ],
        }

    @staticmethod
    def show(record: Record) -> Section:
        """Returns open-loop error against the horizon, beside copying the last frame."""
        horizon, models = record["horizon_blocks"], record["models"]
        steps = [record["frame_skip"] * (k + 1) for k in range(horizon)]
        shown = sorted({0, horizon // 2 - 1, horizon - 1} - {-1})
        rows: list[list[Cell]] = [
            [model["title"], label, *(interval_text(model[name], k) for k in shown)]
            for model in models
            for name, label in LINES.items()
        ]
        text = (
            f"Squared error of latents predicted from one frame and the recorded actions, over {record['episodes']} "
            "held-out episodes, divided by the mean squared distance of the latents of two random frames. "
            "Brackets: 95 % interval, bootstrapped over episodes. A useful model is below the baseline that copies "
            "the last frame."
        )
        panels = []
        for model in models:
            series = [
                band(LINES["prediction"], steps, model["prediction"], 0),
                band(LINES["copy"], steps, model["copy"], None),
            ]
            panels.append(Panel(model["title"], series, "steps ahead", "squared latent error", log_y=False, y_mark=1.0))
        header = ["model", "", *(f"{steps[k]} steps ahead" for k in shown)]
        caption = "Error of open-loop prediction; 1 = two random frames."
        return Section(
            f"Open-loop prediction error: {task_title(record['task'])}",
            [text, Table(header, rows, 2), figure_of(caption, panels)],
        )


def _blocks(actions: NDArray[np.float32], frame_skip: int) -> Tensor:
    """Returns blocks (K, A) of an episode's actions (T, action_size), without an unfinished one at the end."""
    whole = (len(actions) - 1) // frame_skip
    return torch.from_numpy(actions[: whole * frame_skip].reshape(whole, -1))


def open_loop_error(world: World, latents: Tensor, actions: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """Returns the squared errors (H,) of prediction and of copying the start, averaged over starts and coordinates.

    Latents (K + 1, Z) are of frames a block apart; actions (K, A), raw, are the blocks between; H is at most K.
    """
    starts = range(len(actions) - horizon + 1)
    plans = torch.stack([actions[s : s + horizon] for s in starts])
    next_latents = torch.stack([latents[s + 1 : s + 1 + horizon] for s in starts])
    current = latents[: len(plans), None]
    predicted = world.rollout(current, plans)
    errors = ((predicted - next_latents).square(), (current - next_latents).square())
    return errors[0].mean(dim=(0, 2)), errors[1].mean(dim=(0, 2))


def summary(pairs: Sequence[tuple[Tensor, Tensor]], latents: Tensor) -> Json:
    """Returns errors of episodes as shares of the spread of random frames' latents, with intervals."""
    spread = 2.0 * float(latents.var(dim=0).mean())  # of two random frames
    columns = zip(LINES, zip(*pairs, strict=True), strict=True)
    return {"spread": spread, **{name: column_json(torch.stack(c).double().numpy() / spread) for name, c in columns}}
