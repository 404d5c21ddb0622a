"""Agents side by side: trains each on each dataset with each seed, evaluates it on the audited pairs, and tabulates.

Everything goes on where it was stopped: finished trainings and evaluations are not repeated, killed ones resume. A
budget in minutes becomes a number of optimiser steps by a short calibration (`benchmarks.calibrate`) that is written
down and used again, so that the same command gives the same steps, and `--steps` repeats them elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agents import agent_class
from agents.run import train_run
from benchmarks import compare_table
from benchmarks.comparison import ANEW, Calibrations, Cell, Comparison, lay_out, open_scenes
from benchmarks.measure import measure, weights_hash
from benchmarks.references import make_reference
from lewm_gym import checkpoint
from lewm_gym.files import make_folder, read_json
from lewm_gym.progress import Bars
from lewm_gym.results import Result, write_json
from lewm_gym.training import TrainingDiverged

RECORD = "compare.json"  # in the folder of results
EVALUATION_SEED = 0
Say = Callable[[str], None]


def compare(comparison: Comparison, say: Say = print, bars: Any = None, dry_run: bool = False) -> list[Result]:
    """Returns the results of all cells after doing what is missing, and writes the tables.

    Args:
        comparison: What to compare.
        say: Called with lines for the user.
        bars: A `Bars`, for progress.
        dry_run: Say what it will cost, and do nothing.

    Raises:
        ValueError: If something does not fit.
        OSError: If a dataset is missing, or a folder cannot be written.
    """
    scenes = open_scenes(comparison)
    _check_out(comparison.out / RECORD, {scene.task for scene in scenes})
    calibrations = Calibrations(comparison)
    bars = bars or Bars(disable=True)
    if dry_run:
        say(compare_table.expected_cost(comparison, scenes, calibrations))
        return []
    for folder in (comparison.runs, comparison.out):
        make_folder(folder)
    say(compare_table.expected_cost(comparison, scenes, calibrations))
    cells = list(lay_out(comparison, scenes, calibrations, bars))
    results = {cell.name: found for cell in cells if (found := find_result(comparison, cell)) is not None}
    say(compare_table.cost([cell for cell in cells if cell.name not in results], len(cells)))
    diverged: dict[str, str] = {}
    _tabulate(comparison, cells, results, diverged)
    for number, cell in enumerate(cells, start=1):
        if cell.name in results:
            continue
        say(f"[{number}/{len(cells)}] {cell.name}")
        try:
            results[cell.name] = _do(comparison, cell, bars)
        except TrainingDiverged as error:  # the others are still worth their time
            say(f"  {error}")
            diverged[cell.name] = str(error)
        _tabulate(comparison, cells, results, diverged)
    say((comparison.out / "compare.md").read_text())
    return [results[cell.name] for cell in cells if cell.name in results]


def find_result(comparison: Comparison, cell: Cell) -> Result | None:
    """Returns the stored result of a cell, None if it is missing or not what would be measured now.

    Raises:
        ValueError: If the cell's run folder holds another training: on other data, or with other settings.
    """
    path, run = _paths(comparison, cell)
    if cell.seed is not None and not cell.is_trained(comparison, run):
        return None
    if not path.is_file() or not (run / checkpoint.DESCRIPTION).is_file():
        return None
    result, scene = Result.load(path), cell.scene
    wanted = (weights_hash(run), scene.pairs.content_hash, scene.n_pairs, scene.budget_steps)
    stored = (result.run["weights"], result.pairs["hash"], result.success.episodes, result.budget_steps)
    return result if stored == wanted else None


def _do(comparison: Comparison, cell: Cell, bars: Any) -> Result:
    path, run = _paths(comparison, cell)
    scene, agent = cell.scene, None
    if cell.seed is None:
        pairs = scene.pairs.pairs[: scene.n_pairs]
        make_reference(cell.agent, run, scene.task, pairs, EVALUATION_SEED, scene.budget_steps)
    else:
        kind, settings = agent_class(cell.agent), cell.settings(comparison)
        agent = train_run(
            kind, scene.folder, run, comparison.preset, settings, comparison.device, bars.on_log, bars.on_load
        )
    return measure(
        run,
        offset_steps=comparison.offset_steps,
        episodes=scene.n_pairs,
        seed=EVALUATION_SEED,
        out=path,
        agent=agent,
        progress=lambda stage, done, total: bars(stage, done, total, "episode"),
    )


def _paths(comparison: Comparison, cell: Cell) -> tuple[Path, Path]:
    """Returns the files of a cell: its result, and its run folder.

    A reference's plans are those of its pairs, so that other pairs are another run.
    """
    distance = f"-{comparison.offset_steps}"
    some = "" if comparison.n_pairs is None else f"-{comparison.n_pairs}pairs"
    run = cell.name + (distance + some if cell.seed is None else "")
    return comparison.out / f"{cell.name}{distance}{some}.json", comparison.runs / run


def _check_out(record: Path, tasks: set[str]) -> None:
    """Refuses to write over a comparison of tasks that this one does not have."""
    if not record.exists():
        return
    try:
        others = {row["task"] for row in read_json(record, ANEW)["rows"]} - tasks
    except (KeyError, TypeError):
        raise ValueError(f"{record} is not the record of a comparison: {ANEW}") from None
    if others:
        raise ValueError(
            f"{record} compares {', '.join(sorted(others))}: name the datasets together, or choose another --out"
        )


def _tabulate(
    comparison: Comparison, cells: list[Cell], results: Mapping[str, Result], diverged: Mapping[str, str]
) -> None:
    rows = compare_table.rows(cells, results)
    n_missing = len(cells) - len(results) - len(diverged)
    write_json(comparison.out / RECORD, compare_table.to_json(comparison, rows, n_missing, diverged))
    text = compare_table.markdown(comparison, rows, n_missing, diverged)
    checkpoint.write_atomically(comparison.out / "compare.md", text.encode())


def options_json(comparison: Comparison) -> dict[str, Any]:
    """Returns what was asked for, ready for JSON."""
    values = dataclasses.asdict(comparison)
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()} | {
        "datasets": [str(folder) for folder in comparison.datasets]
    }
