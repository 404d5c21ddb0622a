"""Losses and straightness over training, runs beside one another, from their logs (paper, figures 17 to 19)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.knowledge import pictures
from benchmarks.knowledge.records import Json, Record
from benchmarks.knowledge.worlds import title_of_run
from benchmarks.runs import read_curves, weights_hash
from lewm_gym.checkpoint import LOG, load_description
from lewm_gym.training import read_log

#: Columns that are no part of a loss.
_NOT_LOSSES = ("gradient_norm", "seconds")
_STATISTICS = ("latent_std", "effective_rank", "straightness")


def record_curves(runs: Sequence[str | Path], *, out: Path) -> Json:
    """Returns the record of the losses of runs over training, after writing it and its picture.

    Raises:
        ValueError: If a run has no log.
        OSError: If a run is missing or the record cannot be written.
    """
    return _record("curves", runs, out, lambda column: column not in (*_NOT_LOSSES, *_STATISTICS))


def record_straightness(runs: Sequence[str | Path], *, out: Path) -> Json:
    """Returns the record of the straightness of latent paths over training, after writing it and its picture.

    Raises:
        ValueError: If a run has no log, or measured no straightness (a frozen encoder's stays what it is).
        OSError: If a run is missing or the record cannot be written.
    """
    return _record("straightness", runs, out, lambda column: column == "straightness")


def _record(kind: str, runs: Sequence[str | Path], out: Path, wanted: Callable[[str], bool]) -> Json:
    record = Record(kind)
    folders = [Path(run) for run in runs]
    models = [_read(folder, wanted) for folder in folders]
    for model in models:
        if not model["curves"]:
            raise ValueError(f"the log of {model['folder']} has nothing on {kind}: was the run begun?")
    tasks = [str(model["task"]) for model in models]
    picture = out.with_suffix(".png")
    saved = record.save(out, {"tasks": list(dict.fromkeys(tasks)), "picture": picture.name, "models": models})
    pictures.draw_curves(saved, picture)
    return saved


def _read(folder: Path, wanted: Callable[[str], bool]) -> Json:
    description = load_description(folder)
    curves = read_curves(read_log(folder / LOG))
    return {
        "folder": str(folder),
        "title": title_of_run(description),
        "agent": description["agent"],
        "task": description["task"],
        "weights": weights_hash(folder),
        "finished": bool(description.get("finished")),
        "curves": {name: curve for name, curve in curves.items() if wanted(name.removeprefix("validation_"))},
    }
