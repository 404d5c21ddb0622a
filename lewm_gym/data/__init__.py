"""Datasets: episodes on disk, and training clips from them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lewm_gym.data.dataset import Dataset
from lewm_gym.data.episode import Episode
from lewm_gym.data.union import DatasetUnion, open_datasets

if TYPE_CHECKING:
    from lewm_gym.data.clips import ClipSampler

__all__ = ["ClipSampler", "Dataset", "DatasetUnion", "Episode", "open_datasets"]


def __getattr__(name: str) -> Any:
    if name == "ClipSampler":  # torch is imported only by those who train
        return importlib.import_module("lewm_gym.data.clips").ClipSampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
