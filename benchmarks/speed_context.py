"""What a training step is measured beside: the machine's peak and the loader."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from agents.lewm import LeWMConfig
from benchmarks.speed import time_once
from collect.collector import collect
from lewm_gym.data.clips import ClipSampler
from lewm_gym.data.dataset import Dataset

TOY_EPISODES = 4  # of Two-Room, where no dataset is named


def peak_flops(precision: str, device: str, repeats: int = 3) -> float:
    """Returns the FLOP/s of this machine's fastest product of two large square matrices: what a step could reach."""
    size = 8192 if torch.device(device).type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(time_once(lambda: left @ right, device) for _ in range(repeats + 1))


def loading_seconds(config: LeWMConfig, batch_size: int, dataset: Path | None, n_batches: int = 8) -> float:
    """Returns the seconds per batch of the loader by itself; in training it works ahead, beside the step.

    Args:
        config: Whose clips.
        batch_size: Clips in a batch.
        dataset: Where from; None for a few episodes of Two-Room that are collected now.
        n_batches: How many to average over, after a first.
    """
    with tempfile.TemporaryDirectory() as folder:
        if dataset is None:
            dataset = Path(folder) / "two_room"
            collect("two_room", dataset, TOY_EPISODES, workers=1, pictures=False)
        clips = ClipSampler(
            Dataset.open(dataset),
            n_frames=config.context + 1,
            frame_skip=config.frame_skip,
            image_size=config.image_size,
        )
        clips.preload()
        batches = iter(clips.batches(0, n_batches + 1, batch_size))
        next(batches)
        begun = time.perf_counter()
        for _ in batches:
            pass
        return (time.perf_counter() - begun) / n_batches
