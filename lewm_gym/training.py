"""One training loop for every learner.

Everything random in step k is a function of (seed, k): the clips, the directions of SIGReg, dropout. A run that is
stopped and resumed therefore goes on exactly as if it had not been (bit-equal on the CPU with the same threads).
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lewm_gym import checkpoint
from lewm_gym.types import Batch

SCHEDULES = ("paper", "cosine", "constant")
PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True)
class TrainingConfig:
    """How a learner is trained; the defaults are the paper's where it names one."""

    steps: int  # optimiser steps
    batch_size: int = 128  # clips
    learning_rate: float = 5e-5
    weight_decay: float = 1e-3  # on all parameters
    clip_norm: float = 1.0  # of the whole gradient
    # paper: warm-up over 1 % and cosine over ten times the steps that are trained (the authors configure 100 epochs
    # and stop at 10), so the rate ends at 0.98x; cosine: the same shape over the steps trained, down to 0
    schedule: str = "paper"
    precision: str = "float32"  # bf16: autocast
    seed: int = 0
    log_every_steps: int = 10
    validate_every_steps: int = 100
    checkpoint_every_s: float = 120.0
    recalibration_batches: int = 16  # over which BatchNorm's statistics are averaged for the saved weights

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {SCHEDULES}, not {self.schedule!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, not {self.precision!r}")
        if self.steps < 1 or self.batch_size < 2:
            raise ValueError(f"steps must be >= 1 and batch_size >= 2, got {self.steps} and {self.batch_size}")

    def rate_factor(self, step: int) -> float:
        """Returns the factor on the learning rate at `step`."""
        if self.schedule == "constant":
            return 1.0
        length = self.steps * (10 if self.schedule == "paper" else 1)
        warmup = max(1, round(0.01 * length if self.schedule == "paper" else 0.05 * length))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, length - warmup)))


class Clips(Protocol):
    """Where batches come from: each a function of its number."""

    def batch(self, step: int, batch_size: int) -> Batch:
        """Returns the batch of a step."""

    def batches(self, start_step: int, n_steps: int, batch_size: int) -> Iterator[Batch]:
        """Yields the batches of consecutive steps, prepared ahead."""


class WithLoss(nn.Module):
    """A learner whose loss is its forward pass, as DistributedDataParallel wants it."""

    def __init__(self, learner: nn.Module) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns `learner.loss(batch)`."""
        return self.learner.loss(batch)  # type: ignore[operator]


class TrainingDiverged(ValueError):
    """The loss is not a number any more."""


def train(
    learner: nn.Module,
    clips: Clips,
    validation: Clips | None,
    config: TrainingConfig,
    folder: Path,
    device: str | torch.device = "cpu",
    on_log: Callable[[int, int, dict[str, float]], None] | None = None,
) -> float:
    """Trains `learner`, or goes on where the folder's checkpoint stands, and saves its weights.

    Args:
        learner: A module with `loss(batch)` and `after_step()`; moved to `device` and changed in place.
        clips: Training clips.
        validation: Clips of held-out episodes, or None.
        config: How.
        folder: The run folder; it receives `log.jsonl`, `checkpoint.safetensors` and `weights.safetensors`.
        device: Where to compute.
        on_log: Called after every step with (steps done, steps in all, latest logs).

    Returns:
        Seconds spent in training steps, those before a resume included.

    Raises:
        TrainingDiverged: If a loss is NaN or infinite.
    """
    learner.to(device).train()
    optimizer = torch.optim.AdamW(
        learner.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    start, seconds = _resume(folder, learner, optimizer)
    log = _Log(folder / checkpoint.LOG, start)
    latest: dict[str, float] = {}
    saved = tick = time.monotonic()
    for step, batch in enumerate(clips.batches(start, config.steps - start, config.batch_size), start):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * config.rate_factor(step)
        torch.manual_seed(step_seed(config.seed, step))
        with _autocast(device, config.precision):
            loss, parts = learner.loss(_to_device(batch, device))  # type: ignore[operator]
        _check_finite(loss, step, folder)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(learner.parameters(), config.clip_norm)
        optimizer.step()
        learner.after_step()  # type: ignore[operator]

        done, now = step + 1, time.monotonic()
        seconds, tick = seconds + now - tick, now
        if done % config.log_every_steps == 0 or done in (1, config.steps):
            latest = {"loss": loss.item(), **{k: v.item() for k, v in parts.items()}, "gradient_norm": norm.item()}
            if validation is not None and (done % config.validate_every_steps == 0 or done == config.steps):
                latest |= _validate(learner, validation, config, device)
            log.write(done, latest | {"seconds": round(seconds, 3)})
        if on_log:
            on_log(done, config.steps, latest)
        if done < config.steps and now - saved > config.checkpoint_every_s:
            _save_checkpoint(folder, learner, optimizer, done, seconds)
            saved = time.monotonic()
        tick = time.monotonic()  # validation and checkpoints are not training
    _save_checkpoint(folder, learner, optimizer, config.steps, seconds)
    acting = recalibrated(learner, clips, config, device)
    checkpoint.save_tensors(folder / checkpoint.WEIGHTS, acting.state_dict())
    return seconds


def step_seed(*key: int) -> int:
    """Returns a well-mixed seed for whole numbers such as (seed, step)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1


@torch.no_grad()
def recalibrated(learner: nn.Module, clips: Clips, config: TrainingConfig, device: str | torch.device) -> nn.Module:
    """Returns a copy whose BatchNorm statistics are averages over training clips, as acting needs them.

    The running averages of training can be far off (validation losses up to 300x have been reported). On a copy, so
    that training resumes exactly.
    """
    acting = copy.deepcopy(learner).eval()
    norms = [m for m in acting.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches that follow
        norm.train()
    if norms:
        for batch in clips.batches(config.steps, config.recalibration_batches, config.batch_size):
            acting.loss(_to_device(batch, device))  # type: ignore[operator]
    return acting.eval()


@torch.no_grad()
def _validate(
    learner: nn.Module, clips: Clips, config: TrainingConfig, device: str | torch.device, n_batches: int = 4
) -> dict[str, float]:
    """Returns the mean losses on the same few held-out batches each time.

    BatchNorm uses the batch's own statistics, as in training, without touching the running ones.
    """
    probe = copy.deepcopy(learner).eval()
    for module in probe.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    totals: dict[str, float] = {}
    state = torch.get_rng_state()
    for k in range(n_batches):
        torch.manual_seed(step_seed(config.seed, k))
        loss, parts = probe.loss(_to_device(clips.batch(k, config.batch_size), device))  # type: ignore[operator]
        for name, value in {"loss": loss, **parts}.items():
            totals[name] = totals.get(name, 0.0) + value.item() / n_batches
    torch.set_rng_state(state)
    return {f"validation_{name}": value for name, value in totals.items()}


def _to_device(batch: Any, device: str | torch.device) -> Any:
    return type(batch)(*(t.to(device, non_blocking=True) for t in batch))


def _autocast(device: str | torch.device, precision: str) -> Any:
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


def _check_finite(loss: Tensor, step: int, folder: Path) -> None:
    if torch.isfinite(loss):
        return
    kept = folder / checkpoint.CHECKPOINT
    good = f"the last good checkpoint is {kept}" if kept.exists() else "there is no earlier checkpoint"
    raise TrainingDiverged(
        f"the loss is {loss.item()} at step {step} (batch {step} of this seed); {good}; "
        "lower the learning rate, or check the dataset with `python -m collect verify`"
    )


def _save_checkpoint(
    folder: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    tensors = {f"learner/{name}": t for name, t in learner.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": t for name, t in slots.items()}
    progress = {"progress/step": torch.tensor(step), "progress/seconds": torch.tensor(seconds, dtype=torch.float64)}
    checkpoint.save_tensors(folder / checkpoint.CHECKPOINT, tensors | progress)


def _resume(folder: Path, learner: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Returns (steps done, seconds spent) after loading the folder's checkpoint, if it has one."""
    path = folder / checkpoint.CHECKPOINT
    if not path.exists():
        return 0, 0.0
    tensors = checkpoint.load_tensors(path)
    part = {name.removeprefix("learner/"): t for name, t in tensors.items() if name.startswith("learner/")}
    checkpoint.load_weights(learner, part, str(path))
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, slot = name.split("/")
            state.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(tensors["progress/step"]), float(tensors["progress/seconds"])


class _Log:
    """Appends JSON lines; what was logged after the checkpoint that training resumes from is dropped."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        kept = [row for row in read_log(path) if row["step"] <= start]
        checkpoint.write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def write(self, step: int, values: dict[str, float]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def read_log(path: str | Path) -> list[dict[str, float]]:
    """Returns the rows of a `log.jsonl`; a last line cut off by a kill is left out, a missing file has no rows."""
    rows = []
    if Path(path).exists():
        for line in Path(path).read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows
