"""How long a training step and an action take on this machine, so that minutes become a recorded number of steps."""

from __future__ import annotations

import dataclasses
import math
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.run import train_run
from benchmarks.speed.timing import time_once
from lewm_gym import checkpoint, training

WARM_UP_STEPS = 5
TIMED = 3  # stretches of WARM_UP_STEPS steps each, of which the median counts


@dataclass(frozen=True)
class Calibration:
    """What a few timed steps of a throwaway run tell.

    Attributes:
        seconds_per_step: Of an optimiser step, its batch included.
        seconds_per_choice: Of choosing actions for one environment once: a plan, or a policy's forward pass.
        steps_per_choice: Environment steps that a choice lasts.
    """

    seconds_per_step: float
    seconds_per_choice: float
    steps_per_choice: int

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")

    def steps_within(self, minutes: float) -> int:
        """Returns how many optimiser steps take so many minutes: two significant digits, at least 1.

        Rounded, since the last digits of a timing are noise, and a round number is easier to repeat.
        """
        steps = max(1.0, 60 * minutes / self.seconds_per_step)
        unit = 10.0 ** max(0, math.floor(math.log10(steps)) - 1)
        return int(math.floor(steps / unit + 1e-9) * unit)

    def evaluation_seconds(self, n_pairs: int, budget_steps: int) -> float:
        """Returns how long an evaluation takes at most: each pair to the end of its budget, simulation aside."""
        return n_pairs * math.ceil(budget_steps / self.steps_per_choice) * self.seconds_per_choice

    def to_json(self) -> dict[str, Any]:
        """Returns the fields, rounded to what a timing can tell."""
        return {name: float(f"{value:.4g}") for name, value in dataclasses.asdict(self).items()}


def calibrate(
    agent_class: Any, dataset: str | Path, preset: str, settings: Mapping[str, Any], device: str | None, on_load: Any
) -> Calibration:
    """Returns the times of an agent on a dataset, from a short run in a temporary folder.

    Arguments are those of `agents.run.train_run`.
    """
    short = {
        "steps": WARM_UP_STEPS * (1 + TIMED),
        "log_every_steps": WARM_UP_STEPS,
        "recalibration_batches": 1,
        "validate_every_steps": 10**9,
    }
    with tempfile.TemporaryDirectory() as folder:
        agent = train_run(agent_class, dataset, folder, preset, {**settings, **short}, device, on_load=on_load)
        rows = training.read_log(Path(folder) / checkpoint.LOG)
    seconds = [row["seconds"] for row in rows if row["step"] % WARM_UP_STEPS == 0]
    per_step = statistics.median(np.diff(seconds)) / WARM_UP_STEPS
    planning = getattr(agent, "planning", None)
    lasts = 1 if planning is None else planning.execute_blocks * agent.model.config.frame_skip
    return Calibration(max(float(per_step), 1e-6), _seconds_per_choice(agent), lasts)


def _seconds_per_choice(agent: Any) -> float:
    frame = np.random.default_rng(0).integers(0, 256, (agent.frame_size, agent.frame_size, 3), dtype=np.uint8)
    obs = {"pixels": frame, "goal": frame}
    if agent.proprioception:
        sensed = np.zeros(agent.model.config.proprioception_size, np.float32)
        obs |= {"proprioception": sensed, "goal_proprioception": sensed}

    def choose() -> float:
        agent.reset([0])
        return time_once(lambda: agent.act(obs), "cpu")

    return min(choose() for _ in range(3))
