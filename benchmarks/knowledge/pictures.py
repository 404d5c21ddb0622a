"""The PNG beside each record, drawn from the record alone where it holds all that is shown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.charts import LOG_RATIO
from benchmarks.knowledge.paper import PROBED
from lewm_gym.files import atomic_path, make_folder
from lewm_gym.tasks import TASKS

COLOURS = ("#0f766e", "#c2410c", "#4f46e5", "#a21caf")  # as on the report's page
QUIET = "#6b645f"
ROUNDED_TO_ZERO = 5e-4  # where an error published as 0.000 stands on a logarithmic axis: the most that it can be
PLACE_UNITS = {"two_room": "px", "pusht": "px of the arena", "cube": "m", "reacher": "lengths of a link"}
STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#a8a29e",
    "axes.grid": True,
    "grid.color": "#e7e5e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 130,
}


@contextmanager
def figure(path: Path, rows: int, columns: int, width: float, height: float, title: str = "") -> Iterator[Any]:
    """Yields matplotlib's (figure, axes (rows, columns)) and writes the PNG, whole or not at all, when the block ends.

    Args:
        path: Where to.
        rows: Of axes.
        columns: Of axes.
        width: Inches.
        height: Inches.
        title: Above everything.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        drawn, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
        try:
            if title:
                drawn.suptitle(title, fontsize=11, x=0.01, ha="left", fontweight="bold")
            yield drawn, axes
            make_folder(path.parent)
            with atomic_path(path) as temporary:
                drawn.savefig(temporary, format="png")
        finally:
            plt.close(drawn)


def name_of(quantity: str) -> str:
    """Returns the name of a quantity in words."""
    return quantity.replace("_", " ")


def title_of(task: str) -> str:
    """Returns the name of a task in words."""
    return TASKS[task].title if task in TASKS else task


def draw_probes(record: dict[str, Any], path: Path) -> None:
    """Draws correlation and error of every probe, the paper's beside them."""
    models = record["models"]
    names = list(dict.fromkeys(name for model in models for name in model["quantities"]))
    known = PROBED.get(record["task"], {})
    height = 1.5 + len(names) * (0.28 + 0.2 * len(models))
    with figure(path, 1, 2, 9.5, height, f"{title_of(record['task'])}: what a frozen latent tells") as (drawn, axes):
        drawn.get_layout_engine().set(wspace=0.06)
        errors = "mean squared error on standardised targets,\nlog scale; the mean has 1"
        if any(0.0 in figures for figures in known.values()):
            errors += f", published 0.000 stands at {ROUNDED_TO_ZERO:g}"
        for axis, key, label in zip(axes[0], ("r", "mse"), ("Pearson's correlation r", errors), strict=True):
            for row, name in enumerate(names):
                _dots(axis, row, key, [model["quantities"].get(name) for model in models])
                if name in known:
                    _published(axis, row, key, known[name])
            axis.set(xlabel=label, yticks=range(len(names)), ylim=(len(names) - 0.4, -0.6))
            axis.set_yticklabels([name_of(name) for name in names] if axis is axes[0][0] else [])
            axis.grid(axis="y", visible=False)
        axes[0][0].set_xlim(min(0.5, axes[0][0].get_xlim()[0]), 1.02)
        axes[0][1].axvline(1.0, color=QUIET, linewidth=0.8, linestyle=":")
        axes[0][1].set_xscale("log")
        axes[0][1].set_xlim(right=max(1.5, axes[0][1].get_xlim()[1]))
        drawn.legend(handles=_probe_legend(models, bool(known)), loc="outside lower center", ncols=4)


def _dots(axis: Any, row: int, key: str, scores: Sequence[dict[str, Any] | None]) -> None:
    for number, score in enumerate(scores):
        if score is None:
            continue
        for probe, filled in (("linear", False), ("mlp", True)):
            value, low, high = score[probe][key]
            at = row + 0.44 * ((2 * number + filled + 0.5) / (2 * len(scores)) - 0.5) * 1.5
            colour = COLOURS[number % len(COLOURS)]
            axis.plot((low, high), (at, at), color=colour, linewidth=1.4, solid_capstyle="butt")
            axis.plot(value, at, "o", color=colour, markerfacecolor=colour if filled else "white", markersize=5)


def _published(axis: Any, row: int, key: str, figures: Any) -> None:
    lowest = ROUNDED_TO_ZERO if key == "mse" else -1.0
    for probe, marker in (("linear", "x"), ("mlp", "+")):
        value = getattr(figures, f"{probe}_{key}")
        if value is not None:
            at = max(value, lowest), row + 0.42
            axis.plot(*at, marker, color=QUIET, markersize=5.5, markeredgewidth=1.2, clip_on=False)


def _probe_legend(models: Sequence[dict[str, Any]], published: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], marker="s", linestyle="", label=model["title"])
        for i, model in enumerate(models)
    ]
    empty = {"color": "#1c1917", "linestyle": "", "markersize": 5}
    handles.append(Line2D([], [], marker="o", markerfacecolor="white", label="linear probe", **empty))  # type: ignore[arg-type]
    handles.append(Line2D([], [], marker="o", label="MLP probe", **empty))  # type: ignore[arg-type]
    if published:
        quiet = {"color": QUIET, "linestyle": "", "markersize": 6}
        handles.append(Line2D([], [], marker="x", label="paper's LeWM, linear", **quiet))  # type: ignore[arg-type]
        handles.append(Line2D([], [], marker="+", label="paper's LeWM, MLP", **quiet))  # type: ignore[arg-type]
    return handles


def wrapped(text: str, width: int = 110) -> str:
    """Returns text broken into lines for a picture."""
    return "\n".join(textwrap.wrap(text, width))


def draw_surprise(record: dict[str, Any], path: Path) -> None:
    """Draws surprise over time for each model: a line per variant, its interval as a band."""
    models = record["models"]
    skip, event = record["frame_skip"], record["event_block"]
    title = f"{title_of(record['task'])}: surprise when the {record['object']} changes colour or is teleported"
    with figure(path, 1, len(models), max(6.6, 4.4 * len(models)), 3.4, title) as (drawn, axes):
        for axis, model in zip(axes[0], models, strict=True):
            for colour, (name, line) in zip((QUIET, COLOURS[2], COLOURS[1]), model["surprise"].items(), strict=True):
                steps = [skip * k for k in range(1, len(line["value"]) + 1)]
                axis.fill_between(steps, line["low"], line["high"], color=colour, alpha=0.18, linewidth=0)
                axis.plot(steps, line["value"], color=colour, marker="o", markersize=3, label=_tested(name, model))
            axis.axvline(skip * event, color=QUIET, linewidth=0.8, linestyle=":")
            axis.set(title=model["title"], xlabel="environment step", yscale="log")
            axis.set_ylim(top=6 * axis.get_ylim()[1])  # room for the legend
            axis.legend(loc="upper left", fontsize=8.5)
        axes[0][0].set_ylabel("surprise: squared error of\nthe predicted latent, log scale")


def _tested(name: str, model: dict[str, Any]) -> str:
    test = model["tests"].get(name)
    return name if test is None else f"{name}: {probability(test['p'])}"


def probability(p: float | None) -> str:
    """Returns a p-value as text."""
    return "p unknown" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def draw_rollout_error(record: dict[str, Any], path: Path) -> None:
    """Draws open-loop error against the horizon for each model, beside the copy of the last frame."""
    models = record["models"]
    steps = [record["frame_skip"] * (k + 1) for k in range(record["horizon_blocks"])]
    title = f"{title_of(record['task'])}: error of open-loop prediction"
    with figure(path, 1, len(models), max(5.2, 4.2 * len(models)), 3.4, title) as (drawn, axes):
        for axis, model in zip(axes[0], models, strict=True):
            for name, label, colour in (("copy", "the last frame again", QUIET), ("prediction", "model", COLOURS[0])):
                line = model[name]
                axis.fill_between(steps, line["low"], line["high"], color=colour, alpha=0.18, linewidth=0)
                axis.plot(steps, line["value"], color=colour, marker="o", markersize=3, label=label)
            axis.axhline(1.0, color=QUIET, linewidth=0.8, linestyle=":")
            axis.set(title=model["title"], xlabel="environment steps ahead", ylim=(0, 1.28 * axis.get_ylim()[1]))
            axis.legend(loc="upper left", fontsize=8.5)
        axes[0][0].set_ylabel("squared latent error,\n1 = two random frames")


def draw_curves(record: dict[str, Any], path: Path) -> None:
    """Draws each column of the logs, the runs that have it beside one another."""
    models = record["models"]
    names = list(dict.fromkeys(name.removeprefix("validation_") for model in models for name in model["curves"]))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    task = ", ".join(title_of(task) for task in record["tasks"])
    with figure(path, rows, columns, max(5.6, 3.7 * columns), 0.9 + 2.5 * rows, f"{task}: training") as (drawn, axes):
        flat = axes.ravel()
        for axis, name in zip(flat, names, strict=False):
            values: list[float] = []
            for number, model in enumerate(models):
                values += _curve(axis, model["curves"], name, COLOURS[number % len(COLOURS)])
            axis.set(title=name_of(name), xlabel="training step")
            if min(values) > 0 and max(values) > LOG_RATIO * min(values):
                axis.set_yscale("log")
        for axis in flat[len(names) :]:
            axis.set_visible(False)
        drawn.legend(handles=_curve_legend(models), loc="outside lower center", ncols=3)


def _curve(axis: Any, curves: dict[str, Any], name: str, colour: str) -> list[float]:
    """Draws a column and the same on held-out episodes; returns the values drawn."""
    values: list[float] = []
    for column, style in ((name, "-"), (f"validation_{name}", "--")):
        if column in curves:
            axis.plot(curves[column]["step"], curves[column]["value"], style, color=colour, linewidth=1.3)
            values += curves[column]["value"]
    return values


def _curve_legend(models: Sequence[dict[str, Any]]) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=COLOURS[i % len(COLOURS)], label=m["title"]) for i, m in enumerate(models)]
    if any(column.startswith("validation_") for model in models for column in model["curves"]):
        handles.append(Line2D([], [], color=QUIET, linestyle="--", label="held-out episodes"))
    return handles


def draw_map(record: dict[str, Any], path: Path) -> None:
    """Draws the layout once for each place that points are coloured by, with the colours' key beside it."""
    import numpy as np

    layout = np.array(record["layout"])
    places = {name: np.array(values) for name, values in record["places"].items()}
    title = f"{title_of(record['task'])}, {record['models'][0]['title']}: map of the latents ({record['method']})"
    size = 9 if len(layout) < 800 else 4
    with figure(path, 1, 2 * len(places), max(9.5, 6.4 * len(places)), 4.8, wrapped(title, 90)) as (drawn, axes):
        for number, (name, values) in enumerate(places.items()):
            key, axis = axes[0][2 * number], axes[0][2 * number + 1]
            colours = plane_colours(values)
            key.scatter(*values.T, c=colours, s=26, marker="s", linewidths=0)
            unit = PLACE_UNITS.get(record["task"], "")
            key.set(title=f"where the {name} is", xlabel=f"x, {unit}", ylabel=f"y, {unit}", aspect="equal")
            if record["task"] in ("two_room", "pusht"):  # pictures have y downwards
                key.invert_yaxis()
            axis.scatter(*layout.T, c=colours, s=size, linewidths=0)
            axis.set(title=f"latents, coloured by the {name}", xticks=[], yticks=[])
            axis.set_aspect("equal", adjustable="datalim")
            axis.grid(visible=False)


def plane_colours(places: Any) -> Any:
    """Returns colours (n, 3) of places (n, 2): one hue along x, another along y, so that each place has its own."""
    import numpy as np

    unit = (places - places.min(axis=0)) / np.maximum(np.ptp(places, axis=0), 1e-9)
    corners = np.array([[[0.06, 0.46, 0.43], [0.31, 0.27, 0.90]], [[0.98, 0.75, 0.14], [0.85, 0.12, 0.36]]])
    across, up = unit[:, :1], unit[:, 1:]
    low = corners[0, 0] * (1 - up) + corners[0, 1] * up
    high = corners[1, 0] * (1 - up) + corners[1, 1] * up
    return low * (1 - across) + high * across


def draw_strips(strips: Sequence[Any], path: Path, title: str) -> None:
    """Draws rows of frames over time, one block of rows per `decode.Strip`."""
    from PIL import Image, ImageDraw, ImageFont

    side, gap, left, top, between = 96, 4, 74, 46, 14
    columns = max(len(strip.columns) for strip in strips)
    height = top + sum(18 + len(strip.rows) * (side + gap) + between for strip in strips)
    sheet = Image.new("RGB", (left + columns * (side + gap) + gap, height), "#fafaf9")
    draw = ImageDraw.Draw(sheet)
    bold, small = ImageFont.load_default(16), ImageFont.load_default(12)
    draw.text((12, 12), title, "#1c1917", bold)
    y = top
    for strip in strips:
        for column, text in enumerate(strip.columns):
            draw.text((left + column * (side + gap) + side // 2, y), text, QUIET, small, anchor="ma")
        y += 18
        for label, frames in strip.rows:
            draw.text((left - 8, y + side // 2), label, "#1c1917", small, anchor="rm")
            for column, frame in enumerate(frames):
                picture = Image.fromarray(frame).resize((side, side), Image.Resampling.LANCZOS)
                x = left + column * (side + gap)
                draw.rectangle((x - 1, y - 1, x + side, y + side), "#d6d3d1")
                sheet.paste(picture, (x, y))
            y += side + gap
        y += between
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
