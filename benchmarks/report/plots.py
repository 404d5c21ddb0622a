"""The drawing of success rates: bars with their intervals; lines in panels are `lewm_gym.plots`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lewm_gym.plots import COLOURS, HELD_OUT, INK, LINE, QUIET, Figure, Panel, Series

#: kind of a bar -> matplotlib's options
LOOKS: dict[str, dict[str, Any]] = {
    "ours": {"color": COLOURS[0], "height": 0.62},
    "seed": {"color": COLOURS[0], "height": 0.36, "alpha": 0.5},
    "replay": {"facecolor": "none", "edgecolor": QUIET, "hatch": "////", "height": 0.62},
    "random": {"color": QUIET, "height": 0.62, "alpha": 0.6},
    "theirs": {"facecolor": "none", "edgecolor": COLOURS[4], "height": 0.4},
}


@dataclass(frozen=True)
class Bar:
    """A rate to draw, in 0..1.

    Attributes:
        label: What it is of.
        rate: Length of the bar.
        interval: (low, high), or None where there is none.
        kind: One of LOOKS.
        mark: A second rate, a diamond: of strict success; or None.
        note: How it came about, in a table.
        link: Anchor on the page with what made the number, in a table.
        rates: Metric -> rate in 0..1, in a table.
    """

    label: str
    rate: float
    interval: tuple[float, float] | None
    kind: str = "ours"
    mark: float | None = None
    note: str = ""
    link: str = ""
    rates: Mapping[str, float] | None = None

    @classmethod
    def of(cls, label: str, rate: Mapping[str, Any], kind: str = "ours") -> Bar:
        """Returns the bar of a stored `Rate`."""
        return cls(label, rate["rate"], (rate["low"], rate["high"]), kind)


def rate_series(label: str, x: Sequence[float], rates: Sequence[Mapping[str, Any]], colour: int) -> Series:
    """Returns stored rates as dots with their intervals, in percent."""
    y, low, high = ([100 * rate[key] for rate in rates] for key in ("rate", "low", "high"))
    return Series(label, x, y, low, high, colour, "o")


def band(label: str, x: Sequence[float], line: Mapping[str, Any], colour: int | None) -> Series:
    """Returns a stored line of means with its intervals: value, low and high, a number for each of `x`."""
    return Series(label, x, line["value"], line["low"], line["high"], colour, "o-")


def curve_panels(
    runs: Iterable[tuple[str, Mapping[str, Any]]], smooth: Callable[[Sequence[float]], Sequence[float]] = list
) -> list[Panel]:
    """Returns a panel for each column of training logs, a colour per run, held-out episodes dotted.

    Args:
        runs: Label of each run, and its curves: column -> {"step", "value"}.
        smooth: Taken of steps and values alike, but of held-out episodes'.
    """
    panels: dict[str, list[Series]] = {}
    for colour, (run, curves) in enumerate(runs):
        for name, curve in curves.items():
            column = name.removeprefix(HELD_OUT)
            if column == name:
                one = Series(run or "training", smooth(curve["step"]), smooth(curve["value"]), colour=colour)
            else:
                label = ", ".join(filter(None, (run, "held-out episodes")))
                one = Series(label, curve["step"], curve["value"], colour=colour, style="o:")
            panels.setdefault(column, []).append(one)
    return [Panel(name.replace("_", " "), series) for name, series in panels.items()]


def bars(caption: str, rows: Sequence[Bar]) -> Figure:
    """Returns one bar per row on a common scale of 0..100 %, whiskers for the intervals."""

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for kind in dict.fromkeys(row.kind for row in rows):
            mine = [(place, 100 * row.rate) for place, row in enumerate(rows) if row.kind == kind]
            axis.barh(*zip(*mine, strict=True), **LOOKS[kind])
        known = [(100 * row.rate, place, row.interval) for place, row in enumerate(rows) if row.interval is not None]
        if known:
            rates, places, intervals = zip(*known, strict=True)
            below = [max(0.0, rate - 100 * low) for rate, (low, _) in zip(rates, intervals, strict=True)]
            above = [max(0.0, 100 * high - rate) for rate, (_, high) in zip(rates, intervals, strict=True)]
            axis.errorbar(rates, places, xerr=[below, above], fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
        marks = [(100 * row.mark, place) for place, row in enumerate(rows) if row.mark is not None]
        if marks:
            axis.plot(*zip(*marks, strict=True), "D", color=INK, markerfacecolor="white", markersize=5)
        axis.set(xlim=(0, 104), ylim=(len(rows) - 0.4, -0.6), yticks=range(len(rows)), xlabel="success %")
        axis.set_yticklabels([row.label for row in rows], color=INK)
        axis.grid(axis="y", visible=False)
        axis.grid(axis="x", color=LINE)

    return Figure(caption, draw, 7.5, 0.75 + 0.27 * len(rows))
