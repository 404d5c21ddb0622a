"""Planning in bf16 beside float32: the same run, pairs and random streams, and the paired difference in success."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from benchmarks import runs
from benchmarks.measure import measure
from benchmarks.session import Stage
from lewm_gym.paired import Difference, compare
from lewm_gym.results import Result

PRECISIONS = ("float32", "bf16")


def measure_precision(
    run: str | Path, folder: str | Path, progress: Stage | None = None, **request: Any
) -> tuple[dict[str, Result], Difference]:
    """Returns the result of each precision, and how much more often bf16 succeeds than float32.

    Results are written into the folder, `<run>-<precision>.json`; a killed measurement resumes.

    Args:
        run: Run folder of a planning agent.
        folder: Where results go.
        progress: Called with (stage, done, total).
        request: Fields of `benchmarks.protocols.Request`.

    Raises:
        ValueError: If the run does not plan.
        OSError: If the run is missing or a result cannot be written.
    """
    run = Path(run)
    description = runs.load_description(run)
    agent = importlib.import_module("agents").load_agent(run)
    if not hasattr(agent, "planning"):
        raise ValueError(f"{run} holds {description['agent']!r}, which does not plan")
    results = {}
    for precision in PRECISIONS:
        planning = dataclasses.replace(agent.planning, precision=precision)
        searcher = type(agent)(agent.model, planning, agent.description, agent.device)
        out = Path(folder, f"{run.resolve().name}-{precision}.json")
        results[precision] = measure(run, out=out, agent=searcher, progress=progress, **request)
    return results, compare(*results.values())
