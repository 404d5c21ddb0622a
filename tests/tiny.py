"""A dataset and a model small enough for every test that needs one."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from agents.lewm import PRESETS, LeWM, LeWMAgent, LeWMConfig
from agents.planning import PlanningConfig
from lewm_gym import checkpoint
from lewm_gym.planning.cem import CEMConfig

#: Overrides that turn the laptop preset into one that trains in a second.
SETTINGS = {
    "conv_channels": (8, 8, 8),
    "encoder_width": 16,
    "latent_size": 8,
    "projection_width": 16,
    "predictor_depth": 1,
    "predictor_heads": 2,
    "predictor_head_width": 8,
    "predictor_mlp_width": 16,
    "sigreg_directions": 16,
    "batch_size": 8,
    "recalibration_batches": 2,
}
MODEL = {k: v for k, v in SETTINGS.items() if k not in ("batch_size", "recalibration_batches")}
ENVIRONMENT = {
    "agent": "lewm",
    "task": "two_room",
    "action_low": [-1.0] * 2,
    "action_high": [1.0] * 2,
    "frame_size": 224,
}


def config(**changes) -> LeWMConfig:
    return replace(PRESETS["laptop"].model, **{**MODEL, **changes})


def model(seed: int = 0, **changes) -> LeWM:
    torch.manual_seed(seed)
    made = LeWM(config(**changes))
    for block in made.predictor.blocks:  # as after some training: actions matter
        torch.nn.init.normal_(block.modulation.weight, std=0.3)
    return made


def agent(seed: int = 0) -> LeWMAgent:
    made = model()
    planning = PlanningConfig(CEMConfig(n_samples=16, n_elites=4, n_iterations=2))
    return LeWMAgent(made, planning, {**ENVIRONMENT, "model": vars(made.config) | {}}, seed=seed)


def observation(*shape: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {key: rng.integers(0, 256, (*shape, 224, 224, 3), dtype=np.uint8) for key in ("pixels", "goal")}


def collect_two_room(folder: Path, episodes: int = 6) -> Path:
    from collect.collector import collect

    collect("two_room", folder, episodes, workers=1, pictures=False)
    return folder


def note_counts(counts: dict) -> None:
    """Appends what a test has counted to the file `COUNTS`, if that is set; docs/robustness.md shows stored ones."""
    if "COUNTS" in os.environ:
        with open(os.environ["COUNTS"], "a", encoding="utf-8") as file:
            file.write(json.dumps(counts) + "\n")


def edit_run(folder: Path, **changes) -> None:
    """Changes what `run.json` says, as another version or another run would have said it."""
    described = json.loads((folder / "run.json").read_text())
    checkpoint.save_description(folder, {**described, **changes})


def measure(run: Path, *, agent=None, progress=None, **asked):
    """Measures a run as `python -m benchmarks plan` does, with an agent of the test's own."""
    from benchmarks.evaluation.run import Plan

    return Plan(run=run, **{"workers": 1, "overwrite": True, **asked}).measure(progress, agent)


def planning_run(folder: Path) -> Path:
    """Writes the run folder of an untrained agent that plans; returns it."""
    made = agent()
    made.description.update(preset="laptop", finished=True)
    made.save(folder)
    return folder
