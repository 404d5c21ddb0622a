"""How fast LeWM trains and plans, beside a plain implementation of the same computation, in one run.

The plain ones are what one writes down first: SIGReg by autograd with all its intermediates, torch's fused attention
everywhere, and a rollout that recomputes its whole window at every step. They give the same numbers
(`tests/test_benchmarks_speed_models.py`).
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from agents.lewm import PRESETS, LeWM
from lewm_gym import provenance
from lewm_gym.nn import vit
from lewm_gym.planning import CEM, CEMConfig
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
        how: "ours" or "plain".
        precision: "float32" or "bf16".
        seconds: Median per step or per plan.
        fastest: Fastest repeat.
        repeats: How many there were.
        per: Clips in a step, or environments in a plan.
        flops: Of matrix products and convolutions in one step or plan, as the plain implementation makes them.
        parts: Seconds by part of a training step, for "ours".
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


def plain_rollout(model: LeWM, latents: Tensor, actions: Tensor) -> Tensor:
    """Returns predicted latents (B, S, H, Z) from (B, 1, Z) and (B, S, H, A), each window computed afresh."""
    n_envs, n_samples, horizon, _ = actions.shape
    blocks = actions.flatten(0, 1)
    frames = latents.repeat_interleave(n_samples, dim=0)
    for end in range(1, horizon + 1):
        window = slice(max(0, end - model.config.context), end)
        frames = torch.cat([frames, model.predict(frames[:, window], blocks[:, window])[:, -1:]], dim=1)
    return frames[:, 1:].unflatten(0, (n_envs, n_samples))


@contextmanager
def fused_attention() -> Iterator[None]:
    """Lets the vision transformer use torch's fused attention everywhere."""
    ours, vit._attend = vit._attend, torch.nn.functional.scaled_dot_product_attention
    try:
        yield
    finally:
        vit._attend = ours


def measure_training(
    preset: str, batch_size: int, precisions: tuple[str, ...], repeats: int, device: str, report: Callable[[str], None]
) -> list[Figure]:
    """Returns the time of a training step (forward, backward, clip, AdamW) on random clips, ours and plain in turn."""
    torch.manual_seed(0)
    model = LeWM(PRESETS[preset].model).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    size = model.config.image_size
    pixels = torch.randint(0, 256, (batch_size, model.config.context + 1, size, size, 3), dtype=torch.uint8)
    actions = torch.rand(batch_size, model.config.context, model.config.action_block_size) * 2 - 1
    batch = Batch(pixels.to(device), actions.to(device))
    with FlopCounterMode(display=False) as counter, fused_attention():
        plain_loss(model, batch).backward()
    figures = []
    for precision in precisions:

        def step(loss: Callable[[], Tensor], precision: str = precision) -> None:
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
                value = loss()
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        def plain(step: Callable[..., None] = step) -> None:
            with fused_attention():
                step(lambda: plain_loss(model, batch))

        report(f"train {preset} {precision}")
        times = _in_turn(
            {"ours": lambda step=step: step(lambda: model.loss(batch)[0]), "plain": plain}, repeats, device
        )
        for how, seconds in times.items():
            parts = _parts(model, batch, optimizer, precision, device) if how == "ours" else {}
            figures.append(_figure("train", preset, how, precision, seconds, batch_size, counter, parts))
    return figures


def measure_planning(
    preset: str, n_envs: int, search: CEMConfig, repeats: int, device: str, report: Callable[[str], None]
) -> list[Figure]:
    """Returns the time of one CEM plan (encoding aside), ours and plain in turn, with random weights."""
    torch.manual_seed(0)
    model = LeWM(PRESETS[preset].model).to(device).eval()
    planning = PRESETS[preset].planning
    goal = torch.randn(n_envs, 1, 1, model.config.latent_size, device=device)
    start = torch.randn(n_envs, 1, model.config.latent_size, device=device)
    shape = (n_envs, planning.horizon_blocks, model.config.action_block_size)

    def plan(rollout: Callable[[Tensor, Tensor], Tensor], config: CEMConfig = search) -> None:
        generators = [torch.Generator().manual_seed(i) for i in range(n_envs)]
        mean, std = torch.zeros(shape, device=device), torch.ones(shape, device=device)
        with torch.inference_mode():
            CEM(config).plan(
                lambda a: (rollout(start, a)[:, :, -1:] - goal).square().sum(dim=(-2, -1)), mean, std, generators
            )

    def plain(latents: Tensor, actions: Tensor) -> Tensor:
        return plain_rollout(model, latents, actions)

    report(f"plan {preset}")
    with FlopCounterMode(display=False) as counter:
        plan(plain, dataclasses.replace(search, n_iterations=1))
    times = _in_turn({"ours": lambda: plan(model.rollout), "plain": lambda: plan(plain)}, repeats, device)
    return [
        _figure("plan", preset, how, "float32", seconds, n_envs, counter, {}, search.n_iterations)
        for how, seconds in times.items()
    ]


def _in_turn(steps: dict[str, Any], repeats: int, device: str) -> dict[str, list[float]]:
    """Returns the times of each, measured in turn so that other work on the machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            seconds = _time(step, device)
            if repeat:  # the first call warms up
                times[name].append(seconds)
    return times


def _time(step: Callable[[], object], device: str) -> float:
    synchronize = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    synchronize()
    begun = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - begun


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
    return {name: round(_time(step, device), 5) for name, step in parts.items()}


def _figure(
    what: str,
    preset: str,
    how: str,
    precision: str,
    seconds: list[float],
    per: int,
    counter: Any,
    parts: dict[str, float],
    times: int = 1,
) -> Figure:
    flops = float(times * counter.get_total_flops())
    return Figure(
        what, preset, how, precision, statistics.median(seconds), min(seconds), len(seconds), per, flops, parts
    )


def table(figures: list[Figure]) -> str:
    """Returns the figures as a Markdown table."""
    rows = [
        "| | preset | precision | | seconds | per second | GFLOP/s | against plain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    plain = {(f.what, f.preset, f.precision): f.seconds for f in figures if f.how == "plain"}
    for f in figures:
        unit = "clips" if f.what == "train" else "plans"
        ratio = f"{plain[f.what, f.preset, f.precision] / f.seconds:.2f}x" if f.how == "ours" else ""
        rows.append(
            f"| {f.what} | {f.preset} | {f.precision} | {f.how} | {f.seconds:.3f} | {f.per / f.seconds:,.1f} {unit} "
            f"| {f.flops / f.seconds / 1e9:,.0f} | {ratio} |"
        )
    for f in figures:
        if f.parts:
            listed = ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in f.parts.items())
            rows += ["", f"{f.preset}, {f.precision}, one step by parts, forward and backward: {listed}"]
    return "\n".join(rows)


def save(path: str | Path, figures: list[Figure], device: str) -> None:
    """Writes the figures, with the machine and the versions they were measured with."""
    head = {"format": FORMAT, "schema": SCHEMA, **provenance.describe()}
    rows = [dataclasses.asdict(figure) for figure in figures]
    write_json(Path(path), {**head, "device": device, "threads": torch.get_num_threads(), "figures": rows})
