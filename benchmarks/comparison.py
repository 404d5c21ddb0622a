"""What a comparison consists of: what was asked for, the datasets with their pairs, the time each training may take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from agents import AGENTS, agent_class
from agents.devices import choose_device
from agents.run import is_finished
from benchmarks.calibrate import Calibration, calibrate
from benchmarks.references import REFERENCES
from lewm_gym.data.dataset import Dataset
from lewm_gym.files import read_json
from lewm_gym.nn import dino
from lewm_gym.pairs import PairSet, load_shipped
from lewm_gym.results import write_json

TRAINABLE = tuple(name for name in AGENTS if name not in REFERENCES)
OPTIONS = {"seed": "--seeds", "steps": "--steps or --budget-min"}  # which say what a comparison's settings may not
ANEW = "delete it, and it is made anew"  # what to do with a damaged file of a comparison


@dataclass(frozen=True)
class Comparison:
    """What is compared, on what, and for how long.

    Attributes:
        datasets: Folders.
        agents: Names, of TRAINABLE; the references come by themselves.
        seeds: Of the trainings.
        preset: Of every agent.
        budget_min: Minutes of optimiser steps for each training.
        steps: Optimiser steps instead: by "task/agent", by "agent", or for all under "".
        offset_steps: Distance of the shipped pairs.
        n_pairs: How many pairs, from the first; None is all.
        runs: Folder of the run folders.
        out: Folder of results, calibration and tables.
        device: Where to compute.
        settings: Agent -> settings in place of the preset's.
    """

    datasets: tuple[Path, ...]
    agents: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    preset: str = "laptop"
    budget_min: float = 10.0
    steps: Mapping[str, int] = field(default_factory=dict)
    offset_steps: int = 25
    n_pairs: int | None = None
    runs: Path = Path("runs/compare")
    out: Path = Path("results/compare")
    device: str | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.agents:
            if name not in TRAINABLE:
                raise ValueError(f"unknown agent {name!r}; expected all, or some of: {', '.join(TRAINABLE)}")
            if self.preset not in agent_class(name).presets:
                raise ValueError(f"agent {name!r} has no preset {self.preset!r}")
        for what, values in (("dataset", self.datasets), ("agent", self.agents), ("seed", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"expected at least one {what}, and none twice; got {', '.join(map(str, values))}")
        for key in (*self.steps, *self.settings):
            if key and key.rpartition("/")[2] not in self.agents:
                raise ValueError(f"steps or settings of {key!r}, which is not compared: {', '.join(self.agents)}")
        for agent, settings in self.settings.items():
            for name in sorted({"seed", "steps"} & set(settings)):
                raise ValueError(f"{agent}.{name} is not a setting of a comparison: {OPTIONS[name]} says it")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds must not be negative, got {min(self.seeds)}")
        if not 0 < self.budget_min < float("inf"):
            raise ValueError(f"the budget must be a positive number of minutes, got {self.budget_min}")
        if self.steps and min(self.steps.values()) < 1:
            raise ValueError(f"steps must be at least 1, got {min(self.steps.values())}")
        object.__setattr__(self, "device", choose_device(self.device))

    def given_steps(self, task: str, agent: str) -> int | None:
        """Returns the steps asked for, None where the budget decides."""
        return next((self.steps[key] for key in (f"{task}/{agent}", agent, "") if key in self.steps), None)


def named_agents(asked: Sequence[str], settings: Mapping[str, Mapping[str, Any]] | None = None) -> tuple[str, ...]:
    """Returns the agents that are meant, `random_vit` in the place of `dino_wm` where there are no DINOv2 weights.

    Args:
        asked: Names, or "all" alone, which has `random_vit`, a control, only where it stands in.
        settings: Agent -> settings; `dino_weights` of `dino_wm` names a file to use.
    """
    names = tuple(asked)
    if names == ("all",):
        names = tuple(name for name in TRAINABLE if name != "random_vit")
    if "dino_wm" not in names or (settings or {}).get("dino_wm", {}).get("dino_weights") or dino.available():
        return names
    return tuple(dict.fromkeys("random_vit" if name == "dino_wm" else name for name in names))


@dataclass(frozen=True)
class Scene:
    """A dataset with the pairs of its task that agents are measured on."""

    folder: Path
    dataset: Dataset
    pairs: PairSet
    n_pairs: int

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.dataset.task

    @property
    def budget_steps(self) -> int:
        """Environment steps allowed for a pair."""
        return 2 * self.pairs.offset_steps


def open_scenes(comparison: Comparison) -> list[Scene]:
    """Returns the datasets with their pairs.

    Raises:
        FileNotFoundError: If there is no dataset.
        ValueError: If two are of the same task, or there are no pairs at the distance, or not as many; if steps are
            given for a task of which there is no dataset, or a setting does not fit.
    """
    scenes: list[Scene] = []
    for folder in comparison.datasets:
        dataset = Dataset.open(folder)
        if dataset.task in [scene.task for scene in scenes]:
            raise ValueError(f"{folder} is a second dataset of {dataset.task}: compare them in two calls")
        pairs = load_shipped(dataset.task, comparison.offset_steps)
        wanted = len(pairs.pairs) if comparison.n_pairs is None else comparison.n_pairs
        if not 1 <= wanted <= len(pairs.pairs):
            raise ValueError(f"--n-pairs must be within 1 and {len(pairs.pairs)}, got {wanted}")
        scenes.append(Scene(folder, dataset, pairs, wanted))
    tasks = [scene.task for scene in scenes]
    for key in comparison.steps:
        if "/" in key and key.rpartition("/")[0] not in tasks:
            raise ValueError(f"steps of {key!r}, but the datasets are of {', '.join(tasks)}")
    for scene in scenes:
        for agent in comparison.agents:  # now, not when its turn comes after hours
            Cell(scene, agent, comparison.seeds[0], 1).is_trained(comparison, None)
    return scenes


# How long ----------------------------------------------------------------------------------------------------


class Calibrations:
    """The calibrations of a comparison, on disk: what was timed once is used again."""

    def __init__(self, comparison: Comparison) -> None:
        self.path = comparison.out / "calibration.json"
        self._comparison = comparison
        self._known = read_json(self.path, ANEW) if self.path.is_file() else {}

    def known(self, scene: Scene, agent: str) -> Calibration | None:
        """Returns the calibration of an agent on a dataset, None if it has not been timed under these conditions.

        Raises:
            ValueError: If the file holds something else.
        """
        entry = self._known.get(f"{scene.task}/{agent}")
        if entry is None:
            return None
        try:
            return Calibration(**entry["timed"]) if entry["of"] == self._conditions(scene, agent) else None
        except (KeyError, TypeError):
            raise ValueError(f"{self.path} holds no calibration of {scene.task}/{agent}: {ANEW}") from None

    def measure(self, scene: Scene, agent: str, on_load: Any) -> Calibration:
        """Returns the same, timed now if it has to be."""
        found = self.known(scene, agent)
        if found is not None:
            return found
        comparison = self._comparison
        settings = comparison.settings.get(agent, {})
        made = calibrate(
            agent_class(agent), scene.folder, comparison.preset, settings, comparison.device, on_load
        ).to_json()
        self._known[f"{scene.task}/{agent}"] = {"of": self._conditions(scene, agent), "timed": made}
        write_json(self.path, self._known)
        return Calibration(**made)

    def _conditions(self, scene: Scene, agent: str) -> dict[str, Any]:
        conditions = {
            "dataset": scene.dataset.content_hash,
            "preset": self._comparison.preset,
            "settings": dict(self._comparison.settings.get(agent, {})),
            "device": self._comparison.device,
            "threads": torch.get_num_threads(),
        }
        return dict(json.loads(json.dumps(conditions)))


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation, or one reference's.

    Attributes:
        scene: Dataset and pairs.
        agent: Its name.
        seed: Of the training; None for a reference.
        steps: Optimiser steps; None for a reference.
        calibration: None where there was nothing to time.
    """

    scene: Scene
    agent: str
    seed: int | None = None
    steps: int | None = None
    calibration: Calibration | None = None

    @property
    def name(self) -> str:
        """Name of the run folder and of the result file."""
        parts = [self.scene.task, self.agent]
        if self.seed is not None:
            parts += [f"{self.steps}steps", f"seed{self.seed}"]
        return "-".join(parts)

    def settings(self, comparison: Comparison) -> dict[str, Any]:
        """Returns the settings of its training in place of the preset's."""
        return {**comparison.settings.get(self.agent, {}), "seed": self.seed, "steps": self.steps}

    def is_trained(self, comparison: Comparison, run: Path | None) -> bool:
        """Returns whether a run folder (None: no folder) holds its training, finished.

        Raises:
            ValueError: If a setting does not fit, or the folder holds another training.
        """
        settings = self.settings(comparison)
        kind = agent_class(self.agent)
        return is_finished(kind, self.scene.dataset, run, comparison.preset, settings, comparison.device)


def lay_out(comparison: Comparison, scenes: list[Scene], calibrations: Calibrations, bars: Any) -> Iterator[Cell]:
    """Yields all cells, references first, calibrating where it has not been done."""
    for scene in scenes:
        yield from (Cell(scene, name) for name in REFERENCES)
        for agent in comparison.agents:
            given = comparison.given_steps(scene.task, agent)
            timed = calibrations.known(scene, agent)
            if timed is None and given is None:
                timed = calibrations.measure(
                    scene, agent, lambda n, of, a=agent: bars(f"load for {a}", n, of, "episode")
                )
            steps = given or timed.steps_within(comparison.budget_min)  # type: ignore[union-attr]  # one of them is there
            yield from (Cell(scene, agent, seed, steps, timed) for seed in comparison.seeds)
