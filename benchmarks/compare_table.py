"""How a comparison looks: what it will cost, and the table of what it found, as Markdown and JSON."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import paper
from benchmarks.report import AGENT_TITLES
from lewm_gym import provenance
from lewm_gym.results import Result
from lewm_gym.tasks import TASKS

if TYPE_CHECKING:
    from benchmarks.comparison import Calibrations, Cell, Comparison, Scene

TITLES = AGENT_TITLES | {
    "random_vit": "random-ViT",
    "oracle": "oracle: recorded actions again",
    "expert": "expert: the collector's policy, on states",
}
HEADINGS = (
    "success % (mean of seeds)",
    "std",
    "each seed [Wilson 95 %]",
    "features",
    "steps",
    "training",
    "choosing actions, per pair",
    "paper",
)


def expected_cost(comparison: Comparison, scenes: Sequence[Scene], calibrations: Calibrations) -> str:
    """Returns what the whole will cost at most, before anything is timed."""
    n = len(scenes) * len(comparison.agents) * len(comparison.seeds)
    lines = [
        f"{n} trainings: {', '.join(comparison.agents)}; seeds {', '.join(map(str, comparison.seeds))}; on "
        f"{', '.join(f'{scene.folder} ({scene.dataset.n_episodes} episodes)' for scene in scenes)}"
    ]
    if comparison.steps:
        told = ", ".join(f"{key or 'each'} {steps}" for key, steps in comparison.steps.items())
        lines.append(f"training: optimiser steps as given ({told})")
    limited = [
        (s, agent) for s in scenes for agent in comparison.agents if comparison.given_steps(s.task, agent) is None
    ]
    if limited:
        n = len(limited) * len(comparison.seeds)
        lines.append(f"training: {n} x {comparison.budget_min:g} min = {duration(60 * n * comparison.budget_min)}")
    unknown = [f"{scene.task}/{agent}" for scene, agent in limited if calibrations.known(scene, agent) is None]
    if unknown:
        lines.append(f"calibration first, under a minute each: {', '.join(unknown)}")
    pairs = ", ".join(f"{scene.n_pairs} pairs of {scene.task}" for scene in scenes)
    lines.append(
        f"evaluation of each on {pairs}, {comparison.offset_steps} steps apart, beside random and two ceilings"
    )
    return "\n".join(lines)


def cost(left: Sequence[Cell], n_cells: int) -> str:
    """Returns what the cells that are left will cost, by agent and in all, as timed."""
    trained = [cell for cell in left if cell.calibration is not None]
    lines, total = [], 0.0
    for key in dict.fromkeys((cell.scene.task, cell.agent) for cell in trained):
        cells = [cell for cell in trained if (cell.scene.task, cell.agent) == key]
        first = cells[0]
        assert first.calibration is not None and first.steps is not None
        training = first.steps * first.calibration.seconds_per_step
        evaluation = first.calibration.evaluation_seconds(first.scene.n_pairs, first.scene.budget_steps)
        total += len(cells) * (training + evaluation)
        lines.append(
            f"  {'/'.join(key):22} {len(cells)} x ({first.steps:,} steps, {duration(training)}; "
            f"evaluation up to {duration(evaluation)})"
        )
    lines.append(f"left to do: {len(left)} of {n_cells}, about {duration(total)} as timed here, loading aside")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Returns seconds in words: s, min or h."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 100 * 60 else f"{seconds / 3600:.3g} h"


def rows(cells: Sequence[Cell], results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """Returns a row for each task and agent of which there are results, seeds together."""
    groups: dict[tuple[str, str], list[tuple[Cell, Result]]] = {}
    for cell in cells:
        if cell.name in results:
            groups.setdefault((cell.scene.task, cell.agent), []).append((cell, results[cell.name]))
    return [_row(task, agent, group) for (task, agent), group in groups.items()]


def _row(task: str, agent: str, group: Sequence[tuple[Cell, Result]]) -> dict[str, Any]:
    cell, result = group[0]
    rates = [result.success.rate for _, result in group]
    description = result.run["description"]
    papers = [p.success for p in paper.published(task) if p.agent == agent and p.block == paper.BLOCKS[0]]
    return {
        "task": task,
        "agent": agent,
        "features": description.get("features", "trained along" if cell.seed is not None else None),
        "steps": cell.steps,
        "calibration": None if cell.calibration is None else cell.calibration.to_json(),
        "success_mean": statistics.fmean(rates),
        "success_std": statistics.stdev(rates) if len(rates) > 1 else None,
        "seeds": [_seed(cell, result) for cell, result in group],
        "published": papers[0] if papers and result.offset_steps == paper.OFFSET_STEPS else None,
    }


def _seed(cell: Cell, result: Result) -> dict[str, Any]:
    rate = result.success
    return {
        "seed": cell.seed,
        "successes": rate.successes,
        "episodes": rate.episodes,
        "rate": rate.rate,
        "low": rate.low,
        "high": rate.high,
        "training_seconds": result.run["seconds"],
        "act_seconds_per_pair": result.timing["act_seconds"] / rate.episodes,
    }


def to_json(
    comparison: Comparison, table: Sequence[dict[str, Any]], n_missing: int, diverged: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the table with what made it."""
    from benchmarks.compare import options_json

    return {
        "format": "lewm-gym comparison",
        **provenance.describe(),
        "options": options_json(comparison),
        "repeat": repeat(comparison, table),
        "rows": list(table),
        "missing": n_missing,
        "diverged": dict(diverged),
    }


def repeat(comparison: Comparison, table: Sequence[dict[str, Any]]) -> str:
    """Returns the options that repeat the comparison elsewhere, without calibration."""
    steps = [f"{row['task']}/{row['agent']}={row['steps']}" for row in table if row["steps"] is not None]
    words = [*map(str, comparison.datasets), "--agents", *comparison.agents]
    words += ["--seeds", *map(str, comparison.seeds), "--preset", comparison.preset]
    words += ["--offset", str(comparison.offset_steps)] + (["--steps", *steps] if steps else [])
    words += ["--threads", str(torch.get_num_threads())]
    words += [] if comparison.n_pairs is None else ["--n-pairs", str(comparison.n_pairs)]
    settings = [f"{a}.{k}={json.dumps(v)}" for a, values in comparison.settings.items() for k, v in values.items()]
    words += ["--set", *settings] if settings else []
    return f"python -m benchmarks compare {shlex.join(words)}"


def markdown(
    comparison: Comparison, table: Sequence[dict[str, Any]], n_missing: int, diverged: Mapping[str, str]
) -> str:
    """Returns the tables, one for each task, the best mean first and the references last."""
    lines = ["# Comparison", ""]
    if n_missing:
        lines += [f"Unfinished: {n_missing} rows are missing; the same command goes on.", ""]
    for task in dict.fromkeys(row["task"] for row in table):
        mine = [row for row in table if row["task"] == task]
        mine.sort(key=lambda row: (row["steps"] is None, -row["success_mean"]))
        counts = mine[0]["seeds"][0]["episodes"]
        title = TASKS[task].title
        lines += [f"## {title}: {counts} pairs, {comparison.offset_steps} steps apart, preset {comparison.preset}", ""]
        lines += ["| | " + " | ".join(HEADINGS) + " |", "|---" * (len(HEADINGS) + 1) + "|"]
        lines += [f"| {TITLES.get(row['agent'], row['agent'])} | " + " | ".join(_texts(row)) + " |" for row in mine]
        lines.append("")
    for name, why in diverged.items():
        lines += [f"{name} diverged: {why}", ""]
    machine = provenance.hardware()
    lines += [
        f"Hardware: {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, GPU: {machine['gpu']}. "
        "Training: wall-clock seconds of optimiser steps. The column `paper` is another protocol (50 pairs) and "
        "another scale: a guide. Again, with the same steps:",
        "",
        f"    {repeat(comparison, table)}",
        "",
    ]
    return "\n".join(lines)


def _texts(row: Mapping[str, Any]) -> list[str]:
    seeds = row["seeds"]
    each = "; ".join(f"{100 * s['rate']:.1f} [{100 * s['low']:.1f}, {100 * s['high']:.1f}]" for s in seeds)
    times = [s["training_seconds"] for s in seeds if s["training_seconds"] is not None]
    return [
        f"{100 * row['success_mean']:.1f}",
        "" if row["success_std"] is None else f"{100 * row['success_std']:.1f}",
        each,
        row["features"] or "",
        "" if row["steps"] is None else f"{row['steps']:,}",
        duration(statistics.fmean(times)) if times else "",
        "" if row["steps"] is None else duration(statistics.fmean(s["act_seconds_per_pair"] for s in seeds)),
        "" if row["published"] is None else f"{row['published']:g}",
    ]
