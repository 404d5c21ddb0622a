"""How fast LeWM trains, beside a plain implementation of the same computation, in one run.

The plain one is what one writes down first: SIGReg by autograd with all its intermediates, torch's fused attention
everywhere. It gives the same numbers (`tests/test_benchmarks_speed_models.py`). Where stable-worldmodel is installed,
its own step stands beside them. For planning see `speed_plan.py`.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from agents.lewm import PRESETS, LeWM
from benchmarks import speed_context
from benchmarks.speed import time_once
from benchmarks.speed_reference import reference_model
from lewm_gym import provenance
from lewm_gym.nn import vit
from lewm_gym.results import write_json
from lewm_gym.types import Batch

FORMAT = "lewm-gym model speed"
SCHEMA = 1


@dataclass(frozen=True)
class Figure:
    """One measured time.

    Attributes:
        what: "train" or "plan".
        preset: Of LeWM.
        how: "ours", "plain" or "reference" (stable-worldmodel).
        precision: "float32" or "bf16".
        seconds: Median per step or per plan.
        fastest: Fastest repeat.
        repeats: How many there were.
        per: Clips in a step, or environments in a plan.
        flops: Of matrix products and convolutions in one step or plan, as the plain implementation makes them.
        parts: Seconds by part of a training step, for "ours"; loading goes on beside the others.
        peak: FLOP/s of a product of large matrices on the same machine, in the same run and precision.
    """

    what: str
    preset: str
    how: str
    precision: str
    seconds: float
    fastest: float
    repeats: int
    per: int
    flops: float
    parts: dict[str, float]
    peak: float


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


@contextmanager
def fused_attention() -> Iterator[None]:
    """Lets the vision transformer use torch's fused attention everywhere."""
    ours, vit._attend = vit._attend, torch.nn.functional.scaled_dot_product_attention
    try:
        yield
    finally:
        vit._attend = ours


def measure_training(
    preset: str,
    batch_size: int,
    precisions: tuple[str, ...],
    repeats: int,
    device: str,
    report: Callable[[str], None],
    dataset: Path | None = None,
) -> list[Figure]:
    """Returns the time of a training step (forward, backward, clip, AdamW) on random clips, ours and others in turn.

    Loading is measured by itself, from `dataset` or else a few episodes of Two-Room.
    """
    torch.manual_seed(0)
    model = LeWM(PRESETS[preset].model).to(device).train()
    theirs = reference_model(model.config, device)
    batch = _random_batch(model, batch_size, device)
    with FlopCounterMode(display=False) as counter, fused_attention():
        plain_loss(model, batch).backward()
    report(f"train {preset}: loading")
    loading = speed_context.loading_seconds(model.config, batch_size, dataset)
    figures = []
    for precision in precisions:
        report(f"train {preset} {precision}")
        ours = _Step(model, lambda: model.loss(batch)[0], precision, device)
        plain = _Step(model, lambda: plain_loss(model, batch), precision, device)
        steps: dict[str, Callable[[], None]] = {"ours": ours, "plain": lambda plain=plain: _fused(plain)}  # type: ignore[misc]
        if theirs is not None:
            reference, loss = theirs
            steps["reference"] = _Step(reference, lambda loss=loss: loss(batch), precision, device)  # type: ignore[misc]
        times = in_turn(steps, repeats, device)
        parts = {"loading": round(loading, 5), **_parts(model, batch, ours.optimizer, precision, device)}
        peak = speed_context.peak_flops(precision, device)
        for how, seconds in times.items():
            shown = parts if how == "ours" else {}
            figures.append(_figure("train", preset, how, precision, seconds, batch_size, counter, shown, peak))
    return figures


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


def _fused(step: Callable[[], None]) -> None:
    with fused_attention():
        step()


def _random_batch(model: LeWM, batch_size: int, device: str) -> Batch:
    config = model.config
    size = config.image_size
    pixels = torch.randint(0, 256, (batch_size, config.context + 1, size, size, 3), dtype=torch.uint8)
    actions = torch.rand(batch_size, config.context, config.action_block_size) * 2 - 1
    return Batch(pixels.to(device), actions.to(device))


def in_turn(steps: dict[str, Any], repeats: int, device: str) -> dict[str, list[float]]:
    """Returns the times of each, measured in turn so that other work on the machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            seconds = time_once(step, device)
            if repeat:  # the first call warms up
                times[name].append(seconds)
    return times


def _parts(model: LeWM, batch: Batch, optimizer: Any, precision: str, device: str) -> dict[str, float]:
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
        "optimizer": optimizer.step,
    }
    return {name: round(min(time_once(step, device) for _ in range(3)), 5) for name, step in parts.items()}


def _figure(
    what: str,
    preset: str,
    how: str,
    precision: str,
    seconds: list[float],
    per: int,
    counter: Any,
    parts: dict[str, float],
    peak: float,
) -> Figure:
    flops = float(counter.get_total_flops())
    median, fastest = statistics.median(seconds), min(seconds)
    return Figure(what, preset, how, precision, median, fastest, len(seconds), per, flops, parts, peak)


def table(figures: list[Figure]) -> str:
    """Returns the figures as a Markdown table."""
    rows = [
        "| | preset | precision | | seconds | per second | GFLOP/s | of peak | against plain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    plain = {(f.what, f.preset, f.precision): f.seconds for f in figures if f.how == "plain"}
    for f in figures:
        ratio = f"{plain[f.what, f.preset, f.precision] / f.seconds:.2f}x" if f.how != "plain" else ""
        rows.append(
            f"| {f.what} | {f.preset} | {f.precision} | {f.how} | {f.seconds:.3f} | {f.per / f.seconds:,.1f} clips "
            f"| {f.flops / f.seconds / 1e9:,.0f} | {f.flops / f.seconds / f.peak:.0%} | {ratio} |"
        )
    for f in figures:
        if f.parts:
            listed = ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in f.parts.items())
            beside = f"peak {f.peak / 1e9:,.0f} GFLOP/s; loading goes on beside the step"
            rows += ["", f"{f.preset}, {f.precision}, by parts, forward and backward: {listed} ({beside})"]
    return "\n".join(rows)


def save(path: str | Path, figures: list[Figure], device: str) -> None:
    """Writes the figures, with the machine and the versions they were measured with."""
    head = {"format": FORMAT, "schema": SCHEMA, **provenance.describe()}
    rows = [dataclasses.asdict(figure) for figure in figures]
    write_json(Path(path), {**head, "device": device, "threads": torch.get_num_threads(), "figures": rows})
