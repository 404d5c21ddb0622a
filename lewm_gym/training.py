"""One training loop for every learner.

Everything random in step k is a function of (seed, k): the clips, the directions of SIGReg, dropout. A run that is
stopped and resumed therefore continues exactly as if it had not been (bit-equal on the CPU with the same threads).
"""

from __future__ import annotations

import copy
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lewm_gym import checkpoint, processes
from lewm_gym.diagnostics import collapse_warning, latent_statistics
from lewm_gym.nn.distributed import all_mean, alone, is_first, wait_for_all, world_size
from lewm_gym.types import Batch

#: Called after every step with (steps done, steps in all, latest logs).
OnLog = Callable[[int, int, dict[str, float]], None]
#: Called with (step, logs) of every logged row.
Sink = Callable[[int, dict[str, float]], None]

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
        for name in ("log_every_steps", "validate_every_steps", "recalibration_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if not 0 < self.learning_rate < math.inf or self.weight_decay < 0 or self.clip_norm <= 0:
            raise ValueError(
                "learning_rate and clip_norm must be positive and weight_decay not negative, got "
                f"{self.learning_rate}, {self.clip_norm} and {self.weight_decay}"
            )

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

    def batches(
        self, start_step: int, n_steps: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """Yields the batches of consecutive steps, prepared ahead; of several processes, each gets its part."""


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
    on_log: OnLog | None = None,
    sinks: Sequence[Sink] = (),
    run: str = "",
) -> float:
    """Trains `learner`, or continues where the folder's checkpoint stands, and saves its weights.

    Under `torchrun` every process calls this with the same arguments (but for the device): they share each batch.

    Args:
        learner: A module with `loss(batch)` and `after_step()`; moved to `device` and changed in place.
        clips: Training clips.
        validation: Clips of held-out episodes, or None.
        config: How.
        folder: The run folder; it receives `log.jsonl`, `checkpoint.safetensors` and `weights.safetensors`.
        device: Where to compute.
        on_log: Called after every step with (steps done, steps in all, latest logs).
        sinks: Where else logged rows go, such as TensorBoard.
        run: Names all that determines the result; a checkpoint of another run is rejected.

    Returns:
        Seconds spent in training steps, those before a resume included.

    Raises:
        TrainingDiverged: If a loss is NaN or infinite.
        ValueError: If the folder's checkpoint is damaged, or another run's.
        KeyboardInterrupt: After a checkpoint was saved.
    """
    trainer = _Trainer(learner, config, folder, device, sinks, run)
    trainer.run(clips, validation, on_log)
    if trainer.first:
        with alone():
            acting = recalibrated(learner, clips, config, device)
        checkpoint.save_tensors(folder / checkpoint.WEIGHTS, acting.state_dict(), run)
    wait_for_all()
    return trainer.seconds


class _Trainer:
    """The state of a training run: learner, optimiser, progress and log."""

    def __init__(
        self,
        learner: nn.Module,
        config: TrainingConfig,
        folder: Path,
        device: str | torch.device,
        sinks: Sequence[Sink],
        run: str,
    ) -> None:
        self.learner, self.config, self.folder, self.device = learner.to(device).train(), config, folder, device
        self.run_name = run
        self.optimizer = torch.optim.AdamW(
            learner.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.done, self.seconds = _resume(folder, learner, self.optimizer, run)
        self.world_size = world_size()
        self.rank = torch.distributed.get_rank() if self.world_size > 1 else 0
        self.first = is_first()
        self.forward: nn.Module = WithLoss(learner)
        if self.world_size > 1:
            self.forward = nn.parallel.DistributedDataParallel(self.forward)
        self.log = _Log(folder / checkpoint.LOG, self.done, sinks) if self.first else None
        self.latest: dict[str, float] = {}
        self._first_bad = torch.full((2,), -1.0, device=device)  # step and loss of the first that is not finite

    def run(self, clips: Clips, validation: Clips | None, on_log: OnLog | None) -> None:
        """Trains up to the configured number of steps; Ctrl-C and SIGTERM count after the step, once it is saved."""
        config = self.config
        batches = clips.batches(
            self.done, config.steps - self.done, config.batch_size, rank=self.rank, world_size=self.world_size
        )
        with processes.stops_noted() as stops:
            saved = tick = time.monotonic()
            for batch in batches:
                loss, parts, norm = self.step(batch)
                now = time.monotonic()
                self.seconds += now - tick
                if self.done % config.log_every_steps == 0 or self.done in (1, config.steps):
                    self.report({"loss": loss, **parts, "gradient_norm": norm}, validation)
                if on_log:
                    on_log(self.done, config.steps, self.latest)
                due = now - saved > config.checkpoint_every_s or self.done == config.steps
                if self.first and (due or stops):
                    self.save()
                    saved = time.monotonic()
                if stops:
                    return
                tick = time.monotonic()  # validation and checkpoints are not training

    def _note(self, loss: Tensor) -> None:
        """Notes on the device whether a loss is finite: asking at every step would wait for a GPU at every step."""
        now = torch.stack([torch.full_like(self._first_bad[0], self.done), loss.detach().float()])
        is_first = (self._first_bad[0] < 0) & ~torch.isfinite(now[1])
        self._first_bad = torch.where(is_first, now, self._first_bad)

    def _check(self) -> None:
        """Raises TrainingDiverged if a loss since the start was not finite."""
        step, loss = self._first_bad.tolist()
        if step < 0:
            return
        kept = self.folder / checkpoint.CHECKPOINT
        good = f"the last good checkpoint is {kept}" if kept.exists() else "there is no earlier checkpoint"
        raise TrainingDiverged(
            f"the loss is {loss} at step {step:.0f} (batch {step:.0f} of this seed); {good}; "
            "lower the learning rate, or check the dataset with `python -m collect verify`"
        )

    def save(self) -> None:
        """Writes the checkpoint, never one after a loss that was not finite."""
        self._check()
        _save_checkpoint(self.folder, self.learner, self.optimizer, self.done, self.seconds, self.run_name)

    def report(self, values: dict[str, Tensor], validation: Clips | None) -> None:
        """Logs values, averaged over the processes, and validates where it is time to."""
        self._check()
        means = all_mean(torch.stack([value.detach().float() for value in values.values()])).tolist()
        if self.log is None:
            return
        config = self.config
        self.latest = dict(zip(values, means, strict=True))
        if validation is not None and (self.done % config.validate_every_steps == 0 or self.done == config.steps):
            with alone():
                self.latest |= validate(self.learner, validation, config, self.device)
        self.log.write(self.done, self.latest | {"seconds": round(self.seconds, 3)})

    def step(self, batch: Any) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Makes one optimiser step; returns the loss, its parts and the gradient's norm."""
        config, step = self.config, self.done
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * config.rate_factor(step)
        # Dropout differs between processes; SIGReg's directions come from the first one.
        torch.manual_seed(step_seed(config.seed, step, self.rank) if self.rank else step_seed(config.seed, step))
        with _autocast(self.device, config.precision):
            loss, parts = self.forward(_to_device(batch, self.device))
        self._note(loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), config.clip_norm)
        self.optimizer.step()
        self.learner.after_step()  # type: ignore[operator]
        self.done += 1
        return loss, parts, norm


def step_seed(*key: int) -> int:
    """Returns a well-mixed seed for integers such as (seed, step)."""
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
def validate(
    learner: nn.Module, clips: Clips, config: TrainingConfig, device: str | torch.device, n_batches: int = 4
) -> dict[str, float]:
    """Returns the mean losses on the same few held-out batches each time, and statistics of a world model's latents.

    BatchNorm uses the batch's own statistics, as in training, without touching the running ones. Collapsed latents
    are warned of.
    """
    probe = copy.deepcopy(learner).eval()
    for module in probe.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    totals: dict[str, float] = {}
    latents = []
    for k in range(n_batches):
        torch.manual_seed(step_seed(config.seed, k))  # the next training step sets its own
        batch = _to_device(clips.batch(k, config.batch_size), device)
        with _autocast(device, config.precision):
            loss, parts = probe.loss(batch)  # type: ignore[operator]
            if hasattr(probe, "encode") and not getattr(probe, "encoder_is_frozen", False):
                latents.append(probe.encode(batch.pixels))  # type: ignore[operator]
        for name, value in {"loss": loss, **parts}.items():
            totals[name] = totals.get(name, 0.0) + value.item() / n_batches
    logs = {f"validation_{name}": value for name, value in totals.items()}
    if latents:
        statistics = latent_statistics(torch.cat(latents))
        warning = collapse_warning(statistics) if getattr(probe, "latents_have_unit_scale", True) else None
        if warning:
            warnings.warn(warning, RuntimeWarning, stacklevel=2)
        logs |= {f"validation_{name}": value for name, value in statistics.items()}
    return logs


def _to_device(batch: Any, device: str | torch.device) -> Any:
    return type(batch)(*(t.to(device, non_blocking=True) for t in batch))


def _autocast(device: str | torch.device, precision: str) -> Any:
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


def _save_checkpoint(
    folder: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float, run: str
) -> None:
    tensors = {f"learner/{name}": t for name, t in learner.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": t for name, t in slots.items()}
    progress = {"progress/step": torch.tensor(step), "progress/seconds": torch.tensor(seconds, dtype=torch.float64)}
    checkpoint.save_tensors(folder / checkpoint.CHECKPOINT, tensors | progress, run)


def _resume(folder: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, run: str) -> tuple[int, float]:
    """Returns (steps done, seconds spent) after loading the folder's checkpoint, if it has one."""
    path = folder / checkpoint.CHECKPOINT
    if not path.exists():
        return 0, 0.0
    tensors = checkpoint.load_tensors(path, run)
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

    def __init__(self, path: Path, start: int, sinks: Sequence[Sink]) -> None:
        self.path, self.sinks = path, sinks
        kept = [row for row in read_log(path) if row["step"] <= start]
        checkpoint.write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def write(self, step: int, values: dict[str, float]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for sink in self.sinks:
            sink(step, values)


def read_log(path: str | Path) -> list[dict[str, float]]:
    """Returns the rows of a `log.jsonl`; a last line cut off by a kill is left out, a missing file has no rows.

    Raises:
        ValueError: If another line is no row of numbers.
    """
    rows: list[dict[str, float]] = []
    lines = Path(path).read_bytes().splitlines() if Path(path).exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not all(type(v) in (int, float) for v in row.values()) or "step" not in row:
                raise ValueError("not a row of numbers with their step")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}, is damaged ({error}): delete the file") from None
        rows.append(row)
    return rows
