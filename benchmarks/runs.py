"""Run folders as evaluation sees them: what trained them, what they weigh, and their training curves in short."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

CURVE_POINTS = 200  # of each training curve that a result carries: as many as a plot can show


def load_description(run: Path) -> dict[str, Any]:
    """Returns what `run.json` says.

    Raises:
        ValueError: If there is no run, it is not finished, or it does not say what it is.
    """
    if not run.is_dir():
        raise ValueError(f"there is no run folder {run}; train one with `python -m agents lewm DATASET`")
    description = importlib.import_module("lewm_gym.checkpoint").load_description(run)
    missing = [key for key in ("agent", "task") if key not in description]
    if missing:
        raise ValueError(f"{run / 'run.json'} does not say its {' and '.join(missing)}; train the run again")
    if description.get("finished") is False:
        raise ValueError(f"the training of {run} is not finished; run its command again, it resumes")
    return dict(description)


def describe(run: Path, description: dict[str, Any], weights: str) -> dict[str, Any]:
    """Returns what a result says of the run: folder, weights' hash, steps, seconds, description and curves."""
    rows = importlib.import_module("lewm_gym.training").read_log(run / "log.jsonl")
    last = rows[-1] if rows else {}
    return {
        "folder": str(run),
        "weights": weights,
        "steps": last.get("step"),
        "seconds": last.get("seconds"),
        "description": description,
        "curves": read_curves(rows),
    }


def dataset_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a description says of the training set; empty if nothing."""
    dataset = description.get("dataset")
    return dict(dataset) if isinstance(dataset, dict) else {}


def weights_hash(run: Path) -> str:
    """Returns the SHA-256 of the weights, or of `run.json` for an agent without any: what acts."""
    weights = run / "weights.safetensors"
    digest = hashlib.sha256()
    with (weights if weights.is_file() else run / "run.json").open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_curves(rows: Iterable[Mapping[str, Any]], points: int = CURVE_POINTS) -> dict[str, dict[str, list[float]]]:
    """Returns `{column: {"step": [...], "value": [...]}}` of a training log, at most `points` of each.

    Neighbouring rows are averaged, which keeps the trend of a noisy loss and loses none of its mass. Columns that
    are not numbers are left out, and rows without a column do not count in it (validation comes rarely).
    """
    columns: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        step = row.get("step")
        if not isinstance(step, int | float):
            continue
        for name, value in row.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name not in ("step", "seconds") and number and np.isfinite(value):
                columns.setdefault(name, []).append((step, value))
    curves = {}
    for name, samples in columns.items():
        bins = np.array_split(np.array(samples, float), min(points, len(samples)))
        means = [chunk.mean(axis=0) for chunk in bins]
        curves[name] = {
            "step": [round(float(step), 1) for step, _ in means],
            "value": [float(f"{value:.6g}") for _, value in means],
        }
    return curves
