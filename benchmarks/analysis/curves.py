"""Losses and straightness over training, runs beside one another, from their logs (paper, figures 17 to 19)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evaluation.runs import read_curves, weights_hash
from benchmarks.report.plots import curve_panels
from benchmarks.report.published import sentence
from benchmarks.report.records import Measurement
from benchmarks.report.tables import Section, Table, run_title, task_title
from lewm_gym.checkpoint import LOG, load_description
from lewm_gym.commands import argument
from lewm_gym.plots import HELD_OUT, Figure, figure_of
from lewm_gym.results import Json, Record
from lewm_gym.training import read_log

#: Columns that are no part of a loss.
NOT_LOSSES = ("gradient_norm", "seconds", "latent_std", "effective_rank", "straightness")
VISIBLE = 0.02  # change of a mean cosine that counts as a rise


@dataclass(frozen=True, kw_only=True)
class Curves(Measurement):
    """Plots the losses over training from the logs of run folders, several agents side by side."""

    kind = "curves"

    runs: tuple[Path, ...] = argument("run folders")

    @staticmethod
    def wanted(column: str) -> bool:
        """Returns whether a column of the log is drawn."""
        return column not in NOT_LOSSES

    def measure(self, bars: Any) -> Json:
        """Returns the curves of each run.

        Raises:
            ValueError: If a run has no log, or nothing of the kind in it (a frozen encoder's latents stay straight).
        """
        models = [self._read(folder) for folder in self.runs]
        for model in models:
            if not model["curves"]:
                raise ValueError(f"the log of {model['folder']} has nothing on {self.kind}: was the run begun?")
        return {"tasks": list(dict.fromkeys(str(model["task"]) for model in models)), "models": models}

    def _read(self, folder: Path) -> Json:
        description = load_description(folder)
        curves = read_curves(read_log(folder / LOG))
        return {
            "folder": str(folder),
            "title": run_title(description["agent"], description),
            "agent": description["agent"],
            "task": description["task"],
            "weights": weights_hash(folder),
            "finished": bool(description.get("finished")),
            "curves": {name: curve for name, curve in curves.items() if self.wanted(name.removeprefix(HELD_OUT))},
        }

    @staticmethod
    def show(record: Record) -> Section:
        """Returns the losses over training, the runs beside one another."""
        text = "Losses over training, one colour per run; dotted: held-out episodes, with the batch's own statistics."
        return Section(f"Training losses: {_tasks(record)}", [text, _drawn(record)])


@dataclass(frozen=True, kw_only=True)
class Straightness(Curves):
    """Plots the straightness of latent paths over training from the logs of run folders, side by side."""

    kind = "straightness"

    @staticmethod
    def wanted(column: str) -> bool:
        """Returns whether a column of the log is drawn."""
        return column == "straightness"

    @staticmethod
    def show(record: Record) -> Section:
        """Returns the straightness of latent paths over training."""
        series = [next(iter(model["curves"].values()))["value"] for model in record["models"]]
        falls = record["tasks"] == ["two_room"] and all(values[-1] <= values[0] + VISIBLE for values in series)
        why = " Here it does not rise; the collection policy changes direction at every step." if falls else ""
        text = (
            "Mean cosine between consecutive steps of a path in latent space, on held-out episodes: 1 is a straight "
            f"line. {sentence('straightness')}{why}"
        )
        titles = [model["title"] for model in record["models"]]
        rows = [[title, f"{v[0]:.3f}", f"{v[-1]:.3f}"] for title, v in zip(titles, series, strict=True)]
        table = Table(["model", "first measured", "at the end"], rows)
        return Section(f"Straightness: {_tasks(record)}", [text, table, _drawn(record)])


def _tasks(record: Record) -> str:
    return ", ".join(map(task_title, record["tasks"]))


def _drawn(record: Record) -> Figure:
    panels = curve_panels((model["title"], model["curves"]) for model in record["models"])
    return figure_of("Over training; dotted on held-out episodes.", panels)
