"""The one way to draw: lines in panels, as a PNG beside a file or as SVG within a page.

Figures are drawn when they are asked for, by matplotlib, in a few named colours. Within a page those become the page's
CSS variables, so that a drawing follows its light and dark appearance.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lewm_gym.files import atomic_path, make_folder

COLOURS = ("#0f766e", "#c2410c", "#4f46e5", "#a21caf", "#b45309", "#0369a1", "#be123c", "#4d7c0f")
INK, QUIET, LINE = "#1c1917", "#6b645f", "#e7e5e4"
LOG_RATIO = 20  # values that span more than this factor get a logarithmic axis
STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
    "axes.grid": True,
    "grid.color": LINE,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 130,
    "svg.fonttype": "none",
    "svg.hashsalt": "lewm-gym",
}


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes:
        caption: What it shows, plain text.
        draw: Draws into a matplotlib figure.
        width: Inches.
        height: Inches.
    """

    caption: str
    draw: Callable[[Any], None]
    width: float
    height: float

    def save(self, path: Path) -> None:
        """Writes a PNG, atomically."""
        make_folder(path.parent)
        with atomic_path(path) as temporary:
            self._print(temporary, "png")

    def svg(self) -> str:
        """Returns an SVG element for a page: no addresses, no ids but those it refers to itself."""
        text = io.StringIO()
        self._print(text, "svg", transparent=True, metadata={"Date": None, "Creator": None})
        svg = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.S)
        svg = re.sub(r'<g id="[^"]*"', "<g", svg[svg.index("<svg") :])
        svg = re.sub(r' (xmlns(:xlink)?|width|height|version)="[^"]*"', "", svg, count=5)
        names = {colour: f"var(--c{number})" for number, colour in enumerate(COLOURS)}
        names |= {INK: "var(--ink)", QUIET: "var(--quiet)", LINE: "var(--line)", "#000000": "var(--ink)"}
        svg = re.sub("#[0-9a-f]{6}", lambda colour: names.get(colour[0], colour[0]), svg)
        return svg.replace("<svg", f'<svg role="img" style="max-width:{self.width:g}in"', 1)

    def _print(self, target: Any, form: str, **options: Any) -> None:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas

        with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
            figure = Canvas(figsize=(self.width, self.height), layout="constrained")
            FigureCanvasAgg(figure)
            self.draw(figure)
            figure.savefig(target, format=form, **options)


@dataclass(frozen=True)
class Series:
    """A line, or dots: `y` against `x`, with the ends of its interval as a band (of dots: as bars) where it has one.

    `colour` is a number in COLOURS, None for a quiet one; `style` is matplotlib's.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    colour: int | None = 0
    style: str = "-"


@dataclass(frozen=True)
class Panel:
    """Series over a common pair of axes.

    `log_y` of None means: where the values span more than LOG_RATIO. `x_mark` and `y_mark` are dotted lines.
    """

    title: str
    series: Sequence[Series]
    x_label: str = "training step"
    y_label: str = ""
    log_x: bool = False
    log_y: bool | None = None
    x_mark: float | None = None
    y_mark: float | None = None
    y_limits: tuple[float, float] | None = None

    @property
    def is_logarithmic(self) -> bool:
        """Whether the vertical axis is logarithmic."""
        values = [value for one in self.series for value in one.y]
        wide = bool(values) and min(values) > 0 and max(values) > LOG_RATIO * min(values)
        return wide if self.log_y is None else self.log_y


def colour_of(number: int | None) -> str:
    """Returns a colour by its number, a quiet one for None."""
    return QUIET if number is None else COLOURS[number % len(COLOURS)]


def figure_of(caption: str, panels: Sequence[Panel], columns: int = 3, title: str = "") -> Figure:
    """Returns panels side by side; one legend below where all panels would have the same."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    legends = [tuple(one.label for one in panel.series) for panel in panels]
    shared = len(panels) > 1 and set(legends) == {max(legends, key=len)}

    height = 0.3 * bool(title) + 2.7 * rows + (0.2 + 0.25 * -(-len(legends[0]) // 3)) * shared

    def draw(figure: Any) -> None:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, panel in zip(axes, panels, strict=False):
            _draw_panel(axis, panel, legend=not shared)
        for axis in axes[len(panels) :]:
            axis.remove()
        if shared:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5)
        if title:
            figure.suptitle(title, fontsize=11, x=0.01, ha="left", fontweight="bold")

    return Figure(caption, draw, max(4.6, 3.6 * columns), height)


def _draw_panel(axis: Any, panel: Panel, legend: bool) -> None:
    for one in panel.series:
        colour = colour_of(one.colour)
        dots = one.style in ("o", "x", "+", "s")
        if one.low is not None and one.high is not None and not dots:
            axis.fill_between(one.x, one.low, one.high, color=colour, alpha=0.18, linewidth=0)
        if one.low is not None and one.high is not None and dots:
            bars = [[y - low for y, low in zip(one.y, one.low, strict=True)]]
            bars += [[high - y for y, high in zip(one.y, one.high, strict=True)]]
            axis.errorbar(one.x, one.y, bars, fmt="none", ecolor=colour, elinewidth=0.8)
        style = one.style if len(one.x) > 1 or dots else "o"
        axis.plot(one.x, one.y, style, color=colour, markersize=4, linewidth=1.4, label=one.label)
    for mark, line in ((panel.x_mark, axis.axvline), (panel.y_mark, axis.axhline)):
        if mark is not None:
            line(mark, color=QUIET, linewidth=0.8, linestyle=":")
    axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    if panel.is_logarithmic:
        axis.set_yscale("log")
    if panel.log_x:
        axis.set_xscale("log")
    if panel.y_limits is not None:
        axis.set_ylim(panel.y_limits)
    if legend and len(panel.series) > 1:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), fontsize=8, ncols=2)  # "best" takes seconds


# A training run ----------------------------------------------------------------------------------------------

#: column of the log -> title; others that are no part of a loss are not drawn beside a run
COLUMNS = {
    "loss": "loss",
    "prediction": "prediction loss, mean squared latent error",
    "sigreg": "SIGReg, 1.05 on a perfect Gaussian",
    "reconstruction": "squared error of decoded frames",
    "latent_std": "standard deviation of latents",
    "effective_rank": "effective rank of latents",
    "straightness": "straightness of latent paths",
}
HELD_OUT = "validation_"


def save_curves(rows: Sequence[Mapping[str, float]], path: str | Path, title: str) -> None:
    """Draws losses over training, held-out episodes dotted, into a PNG.

    Args:
        rows: Of a `log.jsonl`.
        path: Where to write.
        title: Heading of the image.
    """
    panels = []
    for name, heading in COLUMNS.items():
        series: list[Series] = []
        for column, style, label in ((name, "-", "training"), (HELD_OUT + name, "o:", "held-out episodes")):
            points = [(row["step"], row[column]) for row in rows if column in row]
            if points:
                x, y = zip(*points, strict=True)
                series.append(Series(label, x, y, style=style, colour=len(series)))
        if series:
            panels.append(Panel(heading, series))
    figure_of(title, panels, title=title).save(Path(path))
