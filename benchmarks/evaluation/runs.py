"""Run folders, as what is measured of a run reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lewm_gym import checkpoint
from lewm_gym.results import Json
from lewm_gym.training import read_log

CURVE_POINTS = 200  # of each training curve that a result carries: as many as a drawing can show


def planner_of(agent: Any, run: Path) -> Any:
    """Returns the agent.

    Raises:
        ValueError: If it does not plan.
    """
    if not hasattr(agent, "with_planning"):
        raise ValueError(f"{run} holds {getattr(agent, 'name', type(agent).__name__)!r}, which does not plan")
    return agent


def load_description(run: Path) -> Json:
    """Returns what `run.json` says.

    Raises:
        ValueError: If there is no run, it is not finished, or it does not say what it is.
    """
    if not run.is_dir():
        raise ValueError(f"there is no run folder {run}; train one with `python -m agents lewm DATASET`")
    description = checkpoint.load_description(run)
    missing = [key for key in ("agent", "task") if key not in description]
    if missing:
        raise ValueError(f"{run / 'run.json'} does not say its {' and '.join(missing)}; train the run again")
    if description.get("finished") is False:
        raise ValueError(f"the training of {run} is not finished; run its command again, it resumes")
    return dict(description)


def describe_run(run: Path, description: Json, weights: str) -> Json:
    """Returns what a result says of the run: folder, weights' hash, steps, seconds, description and curves."""
    rows = read_log(run / checkpoint.LOG)
    last = rows[-1] if rows else {}
    seconds = description.get("training_seconds", last.get("seconds"))  # the log holds the first stage's only
    known = {"steps": last.get("step"), "seconds": seconds, "description": description}
    return {"folder": str(run), "weights": weights, **known, "curves": read_curves(rows)}


def describe_agent(run: Path, description: Json) -> Json:
    """Returns what other records say of it: agent, preset, folder and weights' hash."""
    folder = {"folder": str(run), "weights": weights_hash(run)}
    return {"agent": description["agent"], "preset": description.get("preset"), "run": folder}


def weights_hash(run: Path) -> str:
    """Returns the SHA-256 of the weights, or of `run.json` for an agent without any: what acts."""
    weights = run / checkpoint.WEIGHTS
    with (weights if weights.is_file() else run / checkpoint.DESCRIPTION).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_curves(rows: Iterable[Mapping[str, Any]], points: int = CURVE_POINTS) -> dict[str, dict[str, list[float]]]:
    """Returns `{column: {"step": [...], "value": [...]}}` of a training log, at most `points` of each.

    Neighbouring rows are averaged, which keeps the trend of a noisy loss and loses none of its mass. Columns that
    are not numbers are left out, and rows without a column do not count in it (validation comes rarely).
    """
    columns: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        numbers = {name: value for name, value in row.items() if type(value) in (int, float) and np.isfinite(value)}
        for name in numbers if "step" in numbers else ():
            if name not in ("step", "seconds"):
                columns.setdefault(name, []).append((numbers["step"], numbers[name]))
    curves = {}
    for name, samples in columns.items():
        means = [chunk.mean(axis=0) for chunk in np.array_split(np.array(samples, float), min(points, len(samples)))]
        steps, values = [round(float(step), 1) for step, _ in means], [float(f"{value:.6g}") for _, value in means]
        curves[name] = {"step": steps, "value": values}
    return curves
