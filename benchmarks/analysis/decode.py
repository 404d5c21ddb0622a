"""Decoded rollouts and plans: a decoder trained on frozen latents, for visualisation only (paper, figure 7).

The decoder is the paper's: 196 learned queries attend to the latent through blocks of cross-attention and become
patches of 16x16x3. Its output is added to the mean frame, so that it learns what moves from the first step. The encoder
gets no gradient from it. There are two pictures: open-loop rollouts beside the recorded frames, and plans beside the
frames when they were executed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.analysis.worlds import World, describe_dataset, divide, encoded, load_world, open_dataset
from benchmarks.evaluation.runs import weights_hash
from benchmarks.options import OnDevice
from benchmarks.report.records import Measurement
from benchmarks.report.tables import Picture, Section, task_title
from collect.episodes import make_env
from lewm_gym import checkpoint, training
from lewm_gym.commands import argument, option
from lewm_gym.data.dataset import Dataset
from lewm_gym.files import exclusive
from lewm_gym.nn.decoder import PatchDecoder
from lewm_gym.nn.images import to_frames, to_network
from lewm_gym.pairs import load_shipped
from lewm_gym.plots import Figure
from lewm_gym.results import Json, Record
from lewm_gym.tasks import IMAGE_SIZE, TASKS

Frames = NDArray[np.uint8]
FOLDER = "decoder"  # within the run folder: what training resumes from
OFFSET_STEPS = 25  # of the pairs that plans are shown for


@dataclass(frozen=True)
class DecoderConfig:
    """Size and training of the decoder."""

    width: int = 64
    depth: int = 3
    heads: int = 2
    frames: int = 3000  # at most, that it learns from
    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 2e-3


class Seen(NamedTuple):
    """Latents (B, Z) float32 and the frames (B, h, w, 3) uint8 they are of."""

    latents: Tensor
    frames: Tensor


class LatentFrames:
    """Batches of latents with their frames; the batch of a step is a function of its number."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def batch(self, step: int, batch_size: int) -> Seen:
        """Returns the batch of a step."""
        rows = torch.from_numpy(np.random.default_rng([0, step]).integers(len(self._seen.latents), size=batch_size))
        return Seen(self._seen.latents[rows], self._seen.frames[rows])

    def batches(
        self, start_step: int, n_steps: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[Seen]:
        """Yields the batches of consecutive steps."""
        for step in range(start_step, start_step + n_steps):
            yield self.batch(step * world_size + rank, batch_size // world_size)


class FrameDecoder(nn.Module):
    """The decoder around the mean frame, as `lewm_gym.training` trains it.

    Args:
        latent_size: Z.
        mean: (3, size, size), the normalised mean frame.
        variance: Of the frames about it, by which the loss is divided: 1 is what the mean frame achieves.
        config: Size of the network.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, latent_size: int, mean: Tensor, variance: Tensor, config: DecoderConfig) -> None:
        super().__init__()
        self.decoder = PatchDecoder(latent_size, IMAGE_SIZE, width=config.width, depth=config.depth, heads=config.heads)
        nn.init.zeros_(self.decoder.out.weight)  # begins as the mean frame
        nn.init.zeros_(self.decoder.out.bias)
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)

    def forward(self, latents: Tensor) -> Tensor:
        """Returns normalised images (n, 3, size, size) of latents (n, Z)."""
        decoded: Tensor = self.decoder(latents)
        return decoded + self.mean

    def loss(self, batch: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the squared error of the pixels, as a share of the frames' variance."""
        error = (self(batch.latents) - to_network(batch.frames, IMAGE_SIZE)).float().square().mean() / self.variance
        return error, {}

    def after_step(self) -> None:
        """Nothing."""

    @torch.no_grad()
    def frames(self, latents: Tensor) -> Frames:
        """Returns frames (n, h, w, 3) uint8 of latents (n, Z)."""
        decoded: Frames = to_frames(self(latents.to(self.mean.device))).cpu().numpy()
        return decoded


class Strip(NamedTuple):
    """Rows of pictures over the same moments: (label, (n, h, w, 3) uint8), and what stands above each column."""

    rows: list[tuple[str, Frames]]
    columns: list[str]


CAPTIONS = (
    "Top: recorded frames; middle: the same, encoded and decoded; bottom: the model's open-loop rollout from the first "
    "frame and the actions alone, decoded.",
    "Top: plans as predicted by the model, decoded, and the given goal; bottom: the frames when they were executed.",
)


@dataclass(frozen=True, kw_only=True)
class Decode(Measurement, OnDevice):
    """Trains a decoder on frozen latents, for visualisation only, and shows open-loop rollouts beside the recorded
    frames, and plans beside the executed ones. Run the same command again to resume.
    """  # noqa: D205

    kind = "decode"

    run: Path = argument("run folder of a world model")
    dataset: Path = argument("folder that `python -m collect` wrote")
    steps: int = option(1000, "optimiser steps of the decoder", least=1)
    frames: int = option(3000, "training frames of the decoder, at most", least=1)
    episodes: int = option(3, "rollouts and plans to show", least=1)
    horizon: int = option(8, "action blocks of a rollout", least=1)

    def measure(self, bars: Any) -> Json:
        """Returns what the decoder leaves, after training it and drawing what the model imagines.

        A call that was stopped goes on where it was: the decoder's training has its checkpoint in the run folder.
        """
        config, horizon = DecoderConfig(steps=self.steps, frames=self.frames), self.horizon
        world = load_world(self.run, self.device)
        if getattr(world.model.config, "n_patches", 1) > 1:
            raise ValueError(
                f"{self.run} has a latent for each patch, not one for the frame: there is nothing to decode from"
            )
        dataset = open_dataset(self.dataset, [world])
        parts = divide(dataset, [world], dataset.n_episodes, dataset.n_episodes)
        decoder = _trained(world, dataset, parts.fit, config, bars)
        unseen = parts.test[dataset.lengths[parts.test] > horizon * world.frame_skip][: self.episodes]
        if not len(unseen):
            raise ValueError(f"no unseen episode is longer than {horizon} blocks of {world.frame_skip} steps")
        task = str(world.description["task"])
        rollouts = [_rollout(world, decoder, dataset, int(index), horizon) for index in unseen]
        drawn = {"": ("open-loop rollouts", rollouts), "-plans": ("plans", list(_plans(world, decoder, self.episodes)))}
        pictures = []
        for suffix, (what, strips) in drawn.items():
            if strips:
                path = self.path.with_name(f"{self.path.stem}{suffix}.png")
                strips_figure(f"{task_title(task)}, {world.title}: {what}, decoded", strips).save(path)
                pictures.append(path.name)
        return {
            "task": task,
            "dataset": describe_dataset(dataset),
            "decoder": {**asdict(config), "error": _test_error(world, decoder, dataset, parts.test[:20])},
            "episodes": [int(dataset.episode_numbers[index]) for index in unseen],
            "horizon_blocks": horizon,
            "frame_skip": world.frame_skip,
            "pictures": pictures,
            "models": [world.describe()],
        }

    @staticmethod
    def show(record: Record) -> Section:
        """Returns decoded rollouts and plans."""
        decoder = record["decoder"]
        text = (
            f"A decoder was trained on {record['models'][0]['title']}'s frozen latents ({decoder['steps']} steps), for "
            f"visualisation only. Its error on held-out episodes: {100 * decoder['error']:.1f} % of the pixel variance."
        )
        found = [record.folder / Path(name).name for name in record["pictures"]]  # a name, never a way out
        pictures = [Picture(path, caption) for path, caption in zip(found, CAPTIONS, strict=False)]
        return Section(f"Decoded rollouts and plans: {task_title(record['task'])}", [text, *pictures])


def strips_figure(title: str, strips: Sequence[Strip]) -> Figure:
    """Returns rows of frames over time, one block of rows per strip."""
    rows = [(strip, number) for strip in strips for number in range(len(strip.rows))]
    columns = max(len(strip.columns) for strip in strips)

    def draw(figure: Any) -> None:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left", fontweight="bold")
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for (strip, number), line in zip(rows, axes, strict=True):
            label, frames = strip.rows[number]
            for column, axis in enumerate(line):
                axis.set(xticks=[], yticks=[])
                axis.set_visible(column < len(frames))
                if column < len(frames):
                    axis.imshow(frames[column])
                    axis.set_title("" if number else strip.columns[column], fontsize=8, fontweight="normal")
            line[0].set_ylabel(label, fontsize=8)

    return Figure(title, draw, 0.5 + 0.95 * columns, 0.4 + 0.95 * len(rows) + 0.2 * len(strips))


def _trained(world: World, dataset: Dataset, fit: NDArray[np.int64], config: DecoderConfig, bars: Any) -> FrameDecoder:
    """Returns the decoder, trained here or before."""
    folder = world.folder / FOLDER
    identity = {"weights": weights_hash(world.folder), "dataset": dataset.content_hash, **asdict(config)}
    with exclusive(folder.with_suffix(".training")):
        return _train(folder, identity, world, dataset, fit, config, bars)


def _train(
    folder: Path, identity: Json, world: World, dataset: Dataset, fit: NDArray[np.int64], config: DecoderConfig,
    bars: Any,
) -> FrameDecoder:  # fmt: skip
    _claim(folder, identity)
    seen = _gather(world, dataset, fit, config.frames, bars)
    images = to_network(seen.frames[:: max(1, len(seen.frames) // 200)], IMAGE_SIZE)
    mean = images.mean(dim=0)
    torch.manual_seed(0)
    decoder = FrameDecoder(seen.latents.shape[1], mean, (images - mean).square().mean(), config)
    shared = {name: getattr(config, name) for name in ("steps", "batch_size", "learning_rate")}
    settings = training.TrainingConfig(**shared, schedule="cosine", checkpoint_every_s=15.0)
    on_log = lambda done, total, _: bars("train the decoder", done, total)  # noqa: E731
    training.train(decoder, LatentFrames(seen), None, settings, folder, world.agent.device, on_log)  # type: ignore[arg-type]
    checkpoint.load_weights(decoder, checkpoint.load_tensors(folder / checkpoint.WEIGHTS), str(folder))
    return decoder.eval()


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Empties the folder of a decoder of other weights, data or settings."""
    path = folder / "decoder.json"
    if not path.is_file() or path.read_bytes() != json.dumps(identity).encode():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        checkpoint.write_atomically(path, json.dumps(identity).encode())


def _gather(world: World, dataset: Dataset, fit: NDArray[np.int64], limit: int, bars: Any) -> Seen:
    """Returns up to `limit` frames, a block of actions apart, with their latents."""
    found: list[tuple[Tensor, Tensor]] = []
    count = 0
    for index, steps, (part,) in encoded(dataset, np.random.default_rng(0).permutation(fit), [world], world.frame_skip):
        found.append((part, torch.from_numpy(dataset.frames(index, steps))))
        count += len(part)
        bars("encode", min(count, limit), limit)
        if count >= limit:
            break
    return Seen(*(torch.cat(parts)[:limit] for parts in zip(*found, strict=True)))


def _test_error(world: World, decoder: FrameDecoder, dataset: Dataset, unseen: NDArray[np.int64]) -> float:
    """Returns the decoder's loss on frames of unseen episodes."""
    losses = []
    for index, steps, (latents,) in encoded(dataset, unseen, [world], 5 * world.frame_skip):
        device = decoder.mean.device
        batch = Seen(latents.to(device), torch.from_numpy(dataset.frames(index, steps)).to(device))
        with torch.no_grad():
            losses.append(float(decoder.loss(batch)[0]))
    return float(np.mean(losses))


def _rollout(world: World, decoder: FrameDecoder, dataset: Dataset, index: int, horizon: int) -> Strip:
    """Returns frames of an episode: recorded, decoded from their latents, and decoded from an open-loop rollout."""
    skip = world.frame_skip
    start = (int(dataset.lengths[index]) - 1 - horizon * skip) // 2
    start -= start % dataset.picture_every
    steps = start + skip * np.arange(horizon + 1)
    frames = dataset.frames(index, steps)
    latents = world.encode(frames)
    row = int(dataset.starts[index]) + start
    actions = torch.from_numpy(dataset.actions[row : row + horizon * skip].reshape(1, horizon, -1).copy())
    predicted = torch.cat([latents[:1], world.rollout(latents[None, :1], actions)[0]])
    rows = [("recorded", frames), ("decoded", decoder.frames(latents)), ("predicted", decoder.frames(predicted))]
    return Strip(rows, [f"{skip * k} steps" if k else "start" for k in range(horizon + 1)])


def _plans(world: World, decoder: FrameDecoder, count: int) -> Iterator[Strip]:
    """Yields plans for the first evaluation pairs, decoded, and the frames when they were executed."""
    task = str(world.description["task"])
    if task not in TASKS:  # a foreign environment has no pairs
        return
    env: Any = make_env(task, world.render_quality)
    for number, pair in enumerate(load_shipped(task, OFFSET_STEPS).pairs[:count]):
        obs, _ = env.reset(options={"state": pair.start_state, "goal_state": pair.goal_state})
        world.agent.reset([number])
        plan = world.agent.plan(obs)[0]
        executed = [obs["pixels"]]
        for step, action in enumerate(plan.actions, 1):
            seen = env.step(action)[0]
            if step % world.frame_skip == 0:
                executed.append(seen["pixels"])
        predicted = torch.from_numpy(np.stack([plan.start, *plan.latents, plan.goal]))
        goal = obs["goal"]
        rows = [("predicted", decoder.frames(predicted)), ("executed", np.stack([*executed, goal]))]
        yield Strip(rows, ["start", *(f"{world.frame_skip * k} steps" for k in range(1, len(executed))), "goal"])
    env.close()
