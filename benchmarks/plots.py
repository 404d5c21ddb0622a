"""What the report draws of results: training curves, and success against distance."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.charts import Line
from benchmarks.groups import REFERENCES, Entry, Group, training_seed
from benchmarks.runs import dataset_of
from lewm_gym.tasks import TASKS

#: Columns of a training log that are not shown: they help to debug a training, not to judge it.
HIDDEN_CURVES = ("gradient_norm", "learning_rate", "lr", "epoch")
WINDOW = 20  # neighbouring points of a training curve that are averaged; a fifth of a curve's points if it has few
#: (heading, [(column, lines)]) of curves that stand together.
Curves = list[tuple[str, list[tuple[str, list[Line]]]]]


def training_curves(entries: Sequence[Entry]) -> Curves:
    """Returns the training curves: one heading per task, agent and preset."""
    runs: dict[str, Entry] = {}
    for entry in entries:  # a run evaluated at several distances has trained once
        runs.setdefault(str(entry.result.run.get("weights") or entry.anchor), entry)
    kinds: dict[str, list[Entry]] = {}
    for entry in runs.values():
        if entry.result.run.get("curves"):
            task = TASKS[entry.result.task].title if entry.result.task in TASKS else entry.result.task
            kinds.setdefault(f"{task}: {entry.kind}", []).append(entry)
    return [(heading, _columns(group)) for heading, group in kinds.items()]


def _columns(entries: Sequence[Entry]) -> list[tuple[str, list[Line]]]:
    columns: dict[str, list[Line]] = {}
    for colour, (entry, run) in enumerate(zip(entries, run_labels(entries), strict=True)):
        for name, data in entry.result.run["curves"].items():
            column = name.removeprefix("validation_").removeprefix("val_")
            if column in HIDDEN_CURVES:
                continue
            held_out = column != name
            only = "held-out episodes" if held_out else "training"
            steps, values = (data[key] if held_out else smooth(data[key]) for key in ("step", "value"))
            line = Line(only if len(entries) == 1 else run, steps, values, colour, held_out)
            columns.setdefault(column, []).append(line)
    return list(columns.items())


def smooth(values: Sequence[float]) -> list[float]:
    """Returns the running mean over WINDOW neighbours, fewer at the ends; to be taken of steps and values alike."""
    window = max(1, min(WINDOW, len(values) // 5))
    before, after = window // 2, window - window // 2
    return [statistics.fmean(values[max(0, i - before) : i + after]) for i in range(len(values))]


def run_labels(entries: Sequence[Entry]) -> list[str]:
    """Returns a label of its own for each run: its seed, and of what else differs as much as it takes."""
    labels = [""] * len(entries)
    for detail in _DETAILS:
        for label in set(labels):
            same = [i for i, other in enumerate(labels) if other == label]
            details = [detail(entries[i]) for i in same]
            if len(set(details)) > 1 or not label:
                for i, text in zip(same, details, strict=True):
                    labels[i] = ", ".join(filter(None, (label, text)))
    return labels


def _seed(entry: Entry) -> str:
    seed = training_seed(entry.result)
    return "" if seed is None else f"seed {seed}"


def _count(number: Any, unit: str) -> str:
    return f"{number:,} {unit}" if isinstance(number, int) else ""


#: What tells runs of one task, agent and preset from each other, the most telling first; the last one always does.
_DETAILS: tuple[Callable[[Entry], str], ...] = (
    _seed,
    lambda entry: _count(entry.result.run.get("steps"), "steps"),
    lambda entry: _count(dataset_of(entry.result.run.get("description") or {}).get("episodes"), "episodes"),
    lambda entry: str(entry.result.run.get("folder") or ""),
    lambda entry: entry.path.stem,
    lambda entry: str(entry.path.parent),
)


def by_distance(groups: Sequence[Group]) -> list[tuple[str, list[Line]]]:
    """Returns (task, lines) of success against distance, for audited results at two distances or more."""
    drawings = []
    for task in dict.fromkeys(group.task for group in groups):
        mine = [group for group in groups if group.task == task and group.offset_steps]
        points: dict[str, dict[int, float]] = {}
        floor: dict[int, float] = {}
        for group in mine:
            for kind in group.kinds():
                result = kind.entries[0].result
                if result.protocol == "audited" and kind.agent not in REFERENCES:
                    points.setdefault(kind.entries[0].kind, {}).setdefault(group.offset_steps, 100 * kind.mean)
                    if result.floor_success is not None:
                        floor.setdefault(group.offset_steps, 100 * result.floor_success.rate)
        lines = [
            Line(name, list(values), list(values.values()), colour)
            for colour, (name, values) in enumerate(points.items())
            if len(values) > 1
        ]
        if lines:
            below = [Line("random policy", list(floor), list(floor.values()), 0, dashed=True)] if len(floor) > 1 else []
            drawings.append((mine[0].task_title, lines + below))
    return drawings
