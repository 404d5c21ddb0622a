"""Agents side by side: trains each on each dataset with each seed, evaluates it on the audited pairs, and tabulates.

Everything goes on where it was stopped: finished trainings and evaluations are not repeated, killed ones resume. A
budget in minutes becomes a number of optimiser steps by a short calibration (`benchmarks.calibrate`) that is written
down and used again, so that the same command gives the same steps, and `--steps` repeats them elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from agents import AGENTS, agent_class
from agents.devices import choose_device
from agents.run import train_run
from benchmarks import compare_table
from benchmarks.calibrate import Calibration, calibrate
from benchmarks.measure import measure, weights_hash
from benchmarks.references import REFERENCES, make_reference
from lewm_gym import checkpoint
from lewm_gym.data.dataset import Dataset
from lewm_gym.files import make_folder
from lewm_gym.nn import dino
from lewm_gym.pairs import PairSet, load_shipped
from lewm_gym.progress import Bars
from lewm_gym.results import Result, write_json
from lewm_gym.training import TrainingDiverged

RECORD = "compare.json"  # in the folder of results
TRAINABLE = tuple(name for name in AGENTS if name not in REFERENCES)
EVALUATION_SEED = 0
Say = Callable[[str], None]


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
        if min(self.seeds) < 0:
            raise ValueError(f"seeds must not be negative, got {min(self.seeds)}")
        if not 0 < self.budget_min < float("inf"):
            raise ValueError(f"the budget must be a positive number of minutes, got {self.budget_min}")
        if self.steps and min(self.steps.values()) < 1:
            raise ValueError(f"steps must be at least 1, got {min(self.steps.values())}")
        object.__setattr__(self, "device", choose_device(self.device))


def with_available_features(agents: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the agents with `random_vit` in the place of `dino_wm` where there are no DINOv2 weights."""
    if dino.available():
        return agents
    return tuple(dict.fromkeys("random_vit" if name == "dino_wm" else name for name in agents))


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
        ValueError: If two are of the same task, or there are no pairs at the distance, or not as many.
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
    return scenes


# How long ----------------------------------------------------------------------------------------------------


class Calibrations:
    """The calibrations of a comparison, on disk: what was timed once is used again."""

    def __init__(self, comparison: Comparison) -> None:
        self.path = comparison.out / "calibration.json"
        self._comparison = comparison
        self._known: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def known(self, scene: Scene, agent: str) -> Calibration | None:
        """Returns the calibration of an agent on a dataset, None if it has not been timed under these conditions."""
        entry = self._known.get(f"{scene.task}/{agent}")
        if entry is None or entry["of"] != self._conditions(scene, agent):
            return None
        return Calibration(**entry["timed"])

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


def lay_out(comparison: Comparison, scenes: list[Scene], calibrations: Calibrations, bars: Any) -> Iterator[Cell]:
    """Yields all cells, references first, calibrating where it has not been done."""
    for scene in scenes:
        yield from (Cell(scene, name) for name in REFERENCES)
        for agent in comparison.agents:
            given = _given_steps(comparison, scene.task, agent)
            timed = calibrations.known(scene, agent)
            if timed is None and given is None:
                timed = calibrations.measure(
                    scene, agent, lambda n, of, a=agent: bars(f"load for {a}", n, of, "episode")
                )
            steps = given or timed.steps_within(comparison.budget_min)  # type: ignore[union-attr]  # one of them is there
            yield from (Cell(scene, agent, seed, steps, timed) for seed in comparison.seeds)


def _given_steps(comparison: Comparison, task: str, agent: str) -> int | None:
    return next((comparison.steps[key] for key in (f"{task}/{agent}", agent, "") if key in comparison.steps), None)


# Doing it ----------------------------------------------------------------------------------------------------


def compare(comparison: Comparison, say: Say = print, bars: Any = None, dry_run: bool = False) -> list[Result]:
    """Returns the results of all cells after doing what is missing, and writes the tables.

    Args:
        comparison: What to compare.
        say: Called with lines for the user.
        bars: A `Bars`, for progress.
        dry_run: Say what it will cost, and do nothing.

    Raises:
        ValueError: If something does not fit.
        OSError: If a dataset is missing, or a folder cannot be written.
    """
    scenes = open_scenes(comparison)
    _check_out(comparison.out / RECORD, {scene.task for scene in scenes})
    calibrations = Calibrations(comparison)
    bars = bars or Bars(disable=True)
    if dry_run:
        say(compare_table.expected_cost(comparison, scenes, calibrations))
        return []
    for folder in (comparison.runs, comparison.out):
        make_folder(folder)
    say(compare_table.expected_cost(comparison, scenes, calibrations))
    cells = list(lay_out(comparison, scenes, calibrations, bars))
    say(compare_table.cost([cell for cell in cells if find_result(comparison, cell) is None], len(cells)))
    results: dict[str, Result] = {}
    diverged: dict[str, str] = {}
    for number, cell in enumerate(cells, start=1):
        found = find_result(comparison, cell)
        if found is None:
            say(f"[{number}/{len(cells)}] {cell.name}")
            try:
                found = _do(comparison, cell, bars)
            except TrainingDiverged as error:  # the others are still worth their time
                say(f"  {error}")
                diverged[cell.name] = str(error)
        if found is not None:
            results[cell.name] = found
        _tabulate(comparison, cells, results, diverged)
    say((comparison.out / "compare.md").read_text())
    return list(results.values())


def find_result(comparison: Comparison, cell: Cell) -> Result | None:
    """Returns the stored result of a cell, None if it is missing or not what would be measured now."""
    path, run = _paths(comparison, cell)
    if not path.is_file() or not (run / checkpoint.DESCRIPTION).is_file():
        return None
    result, scene = Result.load(path), cell.scene
    wanted = (weights_hash(run), scene.pairs.content_hash, scene.n_pairs, scene.budget_steps)
    stored = (result.run["weights"], result.pairs["hash"], result.success.episodes, result.budget_steps)
    return result if stored == wanted else None


def _do(comparison: Comparison, cell: Cell, bars: Any) -> Result:
    path, run = _paths(comparison, cell)
    scene, agent = cell.scene, None
    if cell.seed is None:
        pairs = scene.pairs.pairs[: scene.n_pairs]
        make_reference(cell.agent, run, scene.task, pairs, EVALUATION_SEED, scene.budget_steps)
    else:
        settings = {**comparison.settings.get(cell.agent, {}), "seed": cell.seed, "steps": cell.steps}
        kind = agent_class(cell.agent)
        agent = train_run(
            kind, scene.folder, run, comparison.preset, settings, comparison.device, bars.on_log, bars.on_load
        )
    return measure(
        run,
        offset_steps=comparison.offset_steps,
        episodes=scene.n_pairs,
        seed=EVALUATION_SEED,
        out=path,
        agent=agent,
        progress=lambda stage, done, total: bars(stage, done, total, "episode"),
    )


def _paths(comparison: Comparison, cell: Cell) -> tuple[Path, Path]:
    """Returns the files of a cell: its result, and its run folder.

    A reference's plans are those of its pairs, so that other pairs are another run.
    """
    distance = f"-{comparison.offset_steps}"
    some = "" if comparison.n_pairs is None else f"-{comparison.n_pairs}pairs"
    run = cell.name + (distance + some if cell.seed is None else "")
    return comparison.out / f"{cell.name}{distance}{some}.json", comparison.runs / run


def _check_out(record: Path, tasks: set[str]) -> None:
    """Refuses to write over a comparison of tasks that this one does not have."""
    if not record.exists():
        return
    others = {row["task"] for row in json.loads(record.read_text())["rows"]} - tasks
    if others:
        raise ValueError(
            f"{record} compares {', '.join(sorted(others))}: name the datasets together, or choose another --out"
        )


def _tabulate(
    comparison: Comparison, cells: list[Cell], results: Mapping[str, Result], diverged: Mapping[str, str]
) -> None:
    rows = compare_table.rows(cells, results)
    n_missing = len(cells) - len(results) - len(diverged)
    write_json(comparison.out / RECORD, compare_table.to_json(comparison, rows, n_missing, diverged))
    text = compare_table.markdown(comparison, rows, n_missing, diverged)
    checkpoint.write_atomically(comparison.out / "compare.md", text.encode())


def options_json(comparison: Comparison) -> dict[str, Any]:
    """Returns what was asked for, ready for JSON."""
    values = dataclasses.asdict(comparison)
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()} | {
        "datasets": [str(folder) for folder in comparison.datasets]
    }
