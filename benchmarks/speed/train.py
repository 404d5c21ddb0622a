"""Time of a training step of LeWM, compared with a plain implementation of the same computation in one run.

The plain implementation is the obvious one: SIGReg by autograd with all its intermediates, torch's fused attention
everywhere. It gives the same numbers (`tests/test_benchmarks_speed.py`). Where stable-worldmodel is installed, its own
step stands beside them. For planning see `plan.py`.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.devices import choose_device
from agents.lewm import PRESETS, LeWM, LeWMConfig
from agents.planning import PRECISIONS
from benchmarks.options import Timing
from benchmarks.report.records import Measurement
from benchmarks.report.tables import Cell, Section, Table
from benchmarks.speed.reference import reference_model
from benchmarks.speed.timing import HOW, against_plain, flops_of, in_turn, milliseconds, time_once, where
from collect.collector import collect
from lewm_gym.commands import option
from lewm_gym.data.clips import ClipSampler
from lewm_gym.data.dataset import Dataset
from lewm_gym.nn.vit import ViTBlock
from lewm_gym.results import Json, Record
from lewm_gym.types import Batch

TOY_EPISODES = 4  # of Two-Room, where no dataset is named


@dataclass(frozen=True, kw_only=True)
class Train(Timing, Measurement):
    """Times a training step of LeWM with random weights and compares with a plain implementation, and with
    stable-worldmodel if it is installed, in turn in one run: medians.
    """  # noqa: D205

    kind = "speed train"

    batch_size: int = option(128, "clips of 4 frames per step", least=2)
    precisions: tuple[str, ...] = option(PRECISIONS, "precisions of the step", choices=PRECISIONS)
    dataset: Path | None = option(
        None, "dataset whose loading is timed (default: 4 episodes of Two-Room)", metavar="FOLDER"
    )

    def measure(self, bars: Any) -> Json:
        """Returns the time of a training step (forward, backward, clip, AdamW) on random clips, ours and others."""
        device = choose_device(self.device)
        for preset in self.presets:
            if preset not in PRESETS:
                raise ValueError(f"unknown preset {preset!r}; expected some of: {', '.join(PRESETS)}")
        figures = [figure for preset in self.presets for figure in self._figures(preset, device, bars)]
        return {"device": device, "threads": torch.get_num_threads(), "figures": figures}

    def _figures(self, preset: str, device: str, bars: Any) -> list[Json]:
        torch.manual_seed(0)
        model = LeWM(PRESETS[preset].model).to(device).train()
        theirs, plain = reference_model(model.config, device), with_fused_attention(model)
        batch = _random_batch(model, self.batch_size, device)
        flops = flops_of(lambda: plain_loss(plain, batch).backward())
        loading = loading_seconds(model.config, self.batch_size, self.dataset)
        figures = []
        for done, precision in enumerate(self.precisions):
            bars(f"train {preset}", done, len(self.precisions), "precision", precision)
            steps: dict[str, Callable[[], object]] = {
                "ours": _Step(model, lambda: model.loss(batch)[0], precision, device),
                "plain": _Step(plain, lambda: plain_loss(plain, batch), precision, device),
            }
            if self.compiled:
                twin = copy.deepcopy(model)
                twin_loss = torch.compile(twin.loss)
                steps["compiled"] = _Step(twin, lambda loss=twin_loss: loss(batch)[0], precision, device)  # type: ignore[misc]
            if theirs is not None:
                reference, loss = theirs
                steps["reference"] = _Step(reference, lambda loss=loss: loss(batch), precision, device)  # type: ignore[misc]
            times = in_turn(steps, self.repeats, device)
            parts = {"loading": round(loading, 5), **_parts(model, batch, precision, device)}
            common = {"what": "train", "preset": preset, "precision": precision, "repeats": self.repeats}
            common |= {"per": self.batch_size, "flops": flops, "peak": peak_flops(precision, device)}
            for how, seconds in times.items():
                measured = {"seconds": statistics.median(seconds), "fastest": min(seconds)}
                figures.append({**common, "how": how, **measured, "parts": parts if how == "ours" else {}})
        return figures

    @staticmethod
    def show(record: Record) -> Section:
        """Returns the time of a step, ours beside others, and its parts."""
        figures = record["figures"]
        rows: list[list[Cell]] = []
        for f, ratio in zip(figures, against_plain(figures, "preset", "precision"), strict=True):
            peak = f"{f['flops'] / f['seconds'] / f['peak']:.0%}" if f.get("peak") else ""
            rates = (f"{f['per'] / f['seconds']:,.1f}", f"{f['flops'] / f['seconds'] / 1e9:,.0f}")
            rows.append(
                [f["preset"], HOW[f["how"]], f["precision"], f"{f['per']:,}", *milliseconds(f), *rates, peak, ratio]
            )
        notes = []
        for f in figures:
            if f.get("parts"):
                listed = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in f["parts"].items())
                notes.append(
                    f"{f['preset']}, {f['precision']}, by parts, forward and backward: {listed}; loading runs "
                    "in parallel."
                )
        header = ["preset", "of", "precision", "clips", "median ms", "fastest ms", "repeats", "clips/s", "GFLOP/s"]
        text = f"An optimiser step, with so many clips of 4 frames. {where(record)}"
        table = Table([*header, "of peak", "against plain"], rows, words=3)
        names = ", ".join(sorted({f["preset"] for f in figures}))
        return Section(f"Training step: {names}", [text, table, *notes])


def plain_sigreg(model: LeWM, latents: Tensor) -> Tensor:
    """Returns SIGReg of latents (T, B, Z) by autograd, with intermediates (T, B, directions, knots)."""
    sigreg = model.sigreg
    angles = (latents.float() @ sigreg.draw_directions(latents)).unsqueeze(-1) * sigreg.knots
    errors = (angles.cos().mean(dim=1) - sigreg.gaussian).square() + angles.sin().mean(dim=1).square()
    return latents.shape[1] * (errors * sigreg.weights).sum(dim=-1).mean()


def plain_loss(model: LeWM, batch: Batch) -> Tensor:
    """Returns the training loss, computed plainly."""
    latents = model.encode(batch.pixels)
    predicted = model.predict(latents[:, :-1], model.normalize_actions(batch.actions))
    error = (predicted - latents[:, 1:]).float().square().mean()
    return error + model.config.sigreg_weight * plain_sigreg(model, latents.transpose(0, 1))


def with_fused_attention(model: LeWM) -> LeWM:
    """Returns a copy of a model whose vision transformer uses torch's fused attention everywhere."""
    fused = copy.deepcopy(model)
    for module in fused.modules():
        if isinstance(module, ViTBlock):
            module.attend = torch.nn.functional.scaled_dot_product_attention
    return fused


class _Step:
    """One training step of a model: forward, backward, clip, AdamW."""

    def __init__(self, model: torch.nn.Module, loss: Callable[[], Tensor], precision: str, device: str) -> None:
        self.model, self.loss = model, loss
        self.autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def __call__(self) -> None:
        with self.autocast:
            value = self.loss()
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def _random_batch(model: LeWM, batch_size: int, device: str) -> Batch:
    config = model.config
    size = config.image_size
    pixels = torch.randint(0, 256, (batch_size, config.context + 1, size, size, 3), dtype=torch.uint8)
    actions = torch.rand(batch_size, config.context, config.action_block_size) * 2 - 1
    return Batch(pixels.to(device), actions.to(device))


def _parts(model: LeWM, batch: Batch, precision: str, device: str) -> dict[str, float]:
    """Returns the seconds of each part, forward and backward, one after another."""
    context = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
    with context:
        latents = model.encode(batch.pixels).detach().requires_grad_()
    actions = model.normalize_actions(batch.actions)

    def under(function: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            with context:
                value = function()
            value.float().sum().backward()

        return run

    parts = {
        "encoder": under(lambda: model.encode(batch.pixels)),
        "predictor": under(lambda: model.predict(latents[:, :-1], actions)),
        "sigreg": under(lambda: model.sigreg(latents.transpose(0, 1))),
        "optimizer": _Step(model, lambda: torch.zeros(()), precision, device).optimizer.step,
    }
    return {name: round(min(time_once(step, device) for _ in range(3)), 5) for name, step in parts.items()}


def peak_flops(precision: str, device: str, repeats: int = 3) -> float:
    """Returns the FLOP/s of this machine's fastest product of two large square matrices: what a step could reach."""
    size = 8192 if torch.device(device).type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(time_once(lambda: left @ right, device) for _ in range(repeats + 1))


def loading_seconds(config: LeWMConfig, batch_size: int, dataset: Path | None, n_batches: int = 8) -> float:
    """Returns the seconds per batch of the loader by itself; in training it works ahead, beside the step.

    Without a dataset a few episodes of Two-Room are collected. The mean is over `n_batches` after a first.
    """
    with tempfile.TemporaryDirectory() as folder:
        if dataset is None:
            dataset = Path(folder) / "two_room"
            collect("two_room", dataset, TOY_EPISODES, workers=1, pictures=False)
        n_frames, size = config.context + 1, config.image_size
        clips = ClipSampler(Dataset.open(dataset), None, n_frames, config.frame_skip, image_size=size)
        clips.preload()
        batches = iter(clips.batches(0, n_batches + 1, batch_size))
        next(batches)
        begun = time.perf_counter()
        for _ in batches:
            pass
        return (time.perf_counter() - begun) / n_batches
