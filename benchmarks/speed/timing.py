"""How fast something runs: the median of repeats, and how much of a core the process really had."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WHOLE_CORE = 0.9  # a process that used less of its core shared it with other work, or waited for a GPU
#: What `how` of a figure means.
HOW = {
    "ours": "this repository",
    "graphs": "this repository, CUDA graphs",
    "compiled": "this repository, torch.compile",
    "onnx": "onnxruntime",
    "plain": "a plain implementation",
    "reference": "stable-worldmodel",
}


@dataclass(frozen=True)
class Speed:
    """Iterations per second of wall-clock time.

    Attributes:
        median: Median of the repeats.
        low: Slowest repeat.
        high: Fastest repeat.
        repeats: How many there were.
        core_share: CPU seconds used per wall-clock second; 1 is a whole core.
    """

    median: float
    low: float
    high: float
    repeats: int
    core_share: float

    @property
    def disturbed(self) -> bool:
        """Whether other work (or waiting for a GPU) took part of the core's time."""
        return self.core_share < WHOLE_CORE


def measure(step: Callable[[], object], seconds: float, repeats: int = 5, weight: int = 1) -> Speed:
    """Returns how often `step` runs per second, after a warm-up of one tenth of the time.

    Args:
        step: What is timed.
        seconds: Duration of all repeats together.
        repeats: Into how many parts, each a figure of its own.
        weight: Iterations that one call counts for.

    Raises:
        ValueError: If there is no time or no repeat.
    """
    if not seconds > 0 or repeats < 1:
        raise ValueError(f"seconds and repeats must be positive, got {seconds} and {repeats}")
    _run(step, seconds / 10)
    cpu, begun = time.process_time(), time.perf_counter()
    rates = [weight * _run(step, seconds / repeats) for _ in range(repeats)]
    share = (time.process_time() - cpu) / (time.perf_counter() - begun)
    return Speed(statistics.median(rates), min(rates), max(rates), repeats, share)


def _run(step: Callable[[], object], seconds: float) -> float:
    count, begun = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds or not count:
        step()
        count += 1
    return count / elapsed


def time_once(step: Callable[[], object], device: str) -> float:
    """Returns the seconds that one call takes, work on a GPU included."""
    import torch

    synchronize = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    synchronize()
    begun = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - begun


def flops_of(step: Callable[[], object]) -> float:
    """Returns the floating-point operations of one call: those of matrix products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counted:
        step()
    return float(counted.get_total_flops())


def in_turn(steps: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Returns the times of each, measured in turn so that other work on the machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            seconds = time_once(step, device)
            if repeat:  # the first call warms up
                times[name].append(seconds)
    return times


def use_one_core() -> bool:
    """Confines this process and its threads, a software rasteriser's too, to one core; returns whether that worked."""
    if not hasattr(os, "sched_setaffinity"):
        return False
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    return True


def spread(speed: Mapping[str, Any]) -> list[str]:
    """Returns a stored `Speed` as two cells: the median, and the range."""
    return [f"{speed['median']:,.0f}", f"{speed['low']:,.0f} to {speed['high']:,.0f}"]


def where(record: Any) -> str:
    """Returns on what a record of model speeds was measured, in words."""
    return f"Measured on {record.get('device', 'cpu')}, {record.get('threads', '?')} threads."


def against_plain(figures: Sequence[Mapping[str, Any]], *keys: str) -> list[str]:
    """Returns how many times as fast each figure is as the plain one that has the same `keys`."""
    plain = {tuple(f[key] for key in keys): f["seconds"] for f in figures if f["how"] == "plain"}
    known = [plain.get(tuple(f[key] for key in keys)) if f["how"] != "plain" else None for f in figures]
    return [f"{seconds / f['seconds']:.2f}x" if seconds else "" for f, seconds in zip(figures, known, strict=True)]


def milliseconds(figure: Mapping[str, Any]) -> list[str]:
    """Returns a figure's times as three cells: median and fastest, in ms, and how many there were."""
    return [f"{1000 * figure['seconds']:,.0f}", f"{1000 * figure['fastest']:,.0f}", str(figure["repeats"])]
