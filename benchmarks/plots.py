"""What the report draws of results: training curves, and success against distance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.charts import Line
from benchmarks.groups import REFERENCES, Entry, Group, training_seed
from lewm_gym.tasks import TASKS

#: Columns of a training log that are not shown: they help to debug a training, not to judge it.
HIDDEN_CURVES = ("gradient_norm", "learning_rate", "lr", "epoch")
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
    for colour, entry in enumerate(entries):
        seed = training_seed(entry.result)
        run = f"seed {seed}" if seed is not None else Path(str(entry.result.run.get("folder", "run"))).name
        for name, data in entry.result.run["curves"].items():
            column = name.removeprefix("validation_").removeprefix("val_")
            if column in HIDDEN_CURVES:
                continue
            held_out = column != name
            line = Line("training" if len(entries) == 1 else run, data["step"], data["value"], colour, held_out)
            columns.setdefault(column, []).append(line)
    return list(columns.items())


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
