"""Trained world models, frozen, and the episodes that none of them was trained on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents import agent_class, load_agent
from benchmarks.evaluation.runs import load_description, weights_hash
from benchmarks.report.tables import run_title
from lewm_gym.data.dataset import Dataset
from lewm_gym.results import Json, part_of

BATCH = 64  # frames encoded at once
#: Called with (stage, done, total).
Progress = Callable[[str, int, int], object]


@dataclass(frozen=True)
class World:
    """A world model of a run folder, frozen.

    Attributes:
        folder: The run folder.
        description: Its `run.json`.
        agent: The agent that plans in it.
        untrained: Whether it is a control: the run's network with random weights.
    """

    folder: Path
    description: dict[str, Any]
    agent: Any
    untrained: bool = False

    @property
    def model(self) -> Any:
        """The model: `encode`, `rollout`, `normalize_actions`, `config`."""
        return self.agent.model

    @property
    def frame_skip(self) -> int:
        """Environment steps in a block of actions."""
        return int(self.model.config.frame_skip)

    @property
    def context(self) -> int:
        """Most frames that the predictor sees."""
        return int(self.model.config.context)

    @property
    def render_quality(self) -> str | None:
        """How carefully the frames it was trained on are drawn; None if it does not say."""
        return part_of(self.description, "dataset").get("render_quality")

    @property
    def title(self) -> str:
        """Agent, preset and training seed, e.g. `LeWM, laptop, seed 0`."""
        title = run_title(self.description["agent"], self.description)
        return f"{title}: untrained network" if self.untrained else title

    def control(self) -> World:
        """Returns the same network with random weights: what the architecture gives without any learning."""
        torch.manual_seed(0)
        agent = copy.copy(self.agent)
        agent.model = type(self.model)(self.model.config).to(self.agent.device).eval()
        return World(self.folder, self.description, agent, untrained=True)

    @torch.inference_mode()
    def encode(self, frames: NDArray[np.uint8]) -> Tensor:
        """Returns latents (n, Z) float32, on the CPU, of frames (n, h, w, 3) uint8."""
        device = self.agent.device
        parts = (torch.from_numpy(frames[i : i + BATCH]).to(device) for i in range(0, len(frames), BATCH))
        return torch.cat([self.model.encode(part).float().cpu() for part in parts])

    def pooled(self, latents: Tensor) -> Tensor:
        """Returns latents (n, Z) as probes see them: the patches of a patch encoder averaged, others as they are."""
        patches = getattr(self.model.config, "n_patches", 1)
        return latents if patches == 1 else latents.unflatten(-1, (patches, -1)).mean(dim=1)

    @torch.inference_mode()
    def rollout(self, latents: Tensor, actions: Tensor, past: Tensor | None = None) -> Tensor:
        """Returns predicted latents (B, H, Z) from context latents (B, n, Z).

        Args:
            latents: (B, n, Z), n at most `context`.
            actions: (B, H, A), raw; NaN where none was recorded.
            past: (B, n - 1, A), raw, between the context's frames; None for n = 1.
        """
        device, model = self.agent.device, self.model
        blocks = model.normalize_actions(actions.to(device)).unsqueeze(1)
        options = {} if past is None else {"past_actions": model.normalize_actions(past.to(device))}
        predicted: Tensor = model.rollout(latents.to(device), blocks, **options)[:, 0]
        return predicted.float().cpu()

    def describe(self) -> dict[str, Any]:
        """Returns what a record says of the run, ready for JSON."""
        kept = ("agent", "preset", "task", "dataset", "training_seconds", "commit", "hardware", "features")
        said = {name: self.description[name] for name in kept if name in self.description}
        training = self.description.get("training", {})
        return {
            "folder": str(self.folder),
            "title": self.title,
            "weights": None if self.untrained else weights_hash(self.folder),
            "steps": training.get("steps"),
            "batch_size": training.get("batch_size"),
            **said,
        }


def load_world(run: str | Path, device: str | None = None) -> World:
    """Returns the world model of a run folder.

    Raises:
        ValueError: If there is no finished run, or its agent has no world model.
        OSError: If a file is missing.
    """
    run = Path(run)
    description = load_description(run)
    kind = agent_class(description["agent"])
    if not hasattr(getattr(kind, "model_class", None), "rollout"):
        raise ValueError(f"{run} holds a run of {description['agent']!r}, which has no world model")
    return World(run, description, load_agent(run, device=device))


def load_worlds(runs: Sequence[str | Path], device: str | None = None) -> list[World]:
    """Returns the world models of runs of one task.

    Raises:
        ValueError: If a run is missing or not finished, has no world model, or their tasks differ.
        OSError: If a file is missing.
    """
    worlds = [load_world(run, device) for run in runs]
    tasks = {world.description["task"]: world.folder for world in worlds}
    if len(tasks) > 1:
        raise ValueError("the runs are of different tasks: " + ", ".join(f"{f} of {t}" for t, f in tasks.items()))
    return worlds


@dataclass(frozen=True)
class Episodes:
    """The episodes of a dataset, by position, as a measurement uses them.

    Attributes:
        fit: Those to learn a probe or a decoder from.
        test: Those that none of the runs was trained on.
        fresh: Whether the runs saw nothing of the dataset; otherwise `test` is the part that they held out.
    """

    fit: NDArray[np.int64]
    test: NDArray[np.int64]
    fresh: bool


def open_dataset(folder: str | Path, worlds: Sequence[World]) -> Dataset:
    """Returns a dataset that fits the runs.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is of another task or drawn in another quality than the runs', or has no frames.
    """
    dataset = Dataset.open(folder)
    _ = dataset.codec  # raises if there are no frames
    for world in worlds:
        task, trained = world.description["task"], part_of(world.description, "dataset")
        if dataset.task != task:
            raise ValueError(f"{folder} holds episodes of task {dataset.task!r}, but {world.folder} is of {task!r}")
        quality = trained.get("render_quality", dataset.header.render_quality)
        if dataset.header.render_quality != quality:
            raise ValueError(
                f"{folder} is drawn in quality {dataset.header.render_quality!r}, but {world.folder} was trained on "
                f"{quality!r}: collect it with --render-quality {quality}"
            )
    return dataset


def describe_dataset(dataset: Dataset) -> Json:
    """Returns what a record says of a dataset."""
    header = dataset.header
    return {
        "folder": str(dataset.folder),
        "hash": dataset.content_hash,
        "episodes": dataset.n_episodes,
        "seed": header.seed,
        "policy": header.policy,
        "render_quality": header.render_quality,
    }


def divide(dataset: Dataset, worlds: Sequence[World], fit: int, test: int) -> Episodes:
    """Returns the first `fit` episodes to learn from and up to `test` that no run was trained on.

    Of the dataset that a run was trained on, that is its validation split. Of another collection it is every episode;
    of the same collection at another size, the episodes numbered beyond those that the run had. Without a word on
    the training data in the run folder (released weights) every episode counts as new.

    Raises:
        ValueError: If no episode is left on either side.
    """
    unseen = np.arange(dataset.n_episodes)
    fresh = True
    for world in worlds:
        new = _unseen(dataset, world)
        fresh = fresh and len(new) == dataset.n_episodes
        unseen = np.intersect1d(unseen, new)
    if fresh:  # half of it at most, so that there is something to learn from
        unseen = np.random.default_rng(0).permutation(unseen)[: max(1, dataset.n_episodes // 2)]
    chosen = np.sort(unseen[:test])
    rest = np.setdiff1d(np.arange(dataset.n_episodes), np.sort(unseen))
    if not len(chosen) or not len(rest):
        names = ", ".join(str(world.folder) for world in worlds)
        raise ValueError(
            f"{dataset.folder} has no episode that {names} never saw, or none beside; collect some with another --seed"
        )
    rest = np.random.default_rng(0).permutation(rest)
    return Episodes(np.sort(rest[:fit]), chosen, fresh)


def _unseen(dataset: Dataset, world: World) -> NDArray[np.int64]:
    """Returns the positions of the episodes that a run was not trained on."""
    trained = part_of(world.description, "dataset")
    everything = np.arange(dataset.n_episodes)
    if trained.get("hash") == dataset.content_hash:
        return dataset.split()[1]
    same = (trained.get("seed"), trained.get("policy")) == (dataset.header.seed, dataset.header.policy)
    return everything[dataset.episode_numbers >= trained["episodes"]] if same else everything


def encoded(
    dataset: Dataset, episodes: Sequence[int] | NDArray[np.int64], worlds: Sequence[World], stride: int
) -> Iterator[tuple[int, NDArray[np.int64], list[Tensor]]]:
    """Yields (position, steps (T,), one tensor of latents (T, Z) per world) of each episode, every `stride` steps.

    Where not every picture is stored: at every `stride`-th step that has one.
    """
    for index in episodes:
        steps = np.arange(0, dataset.lengths[index], math.lcm(stride, dataset.picture_every))
        frames = dataset.frames(int(index), steps)
        yield int(index), steps, [world.encode(frames) for world in worlds]
