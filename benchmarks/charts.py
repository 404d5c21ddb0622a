"""The two kinds of chart on the page: rates with their intervals (HTML bars) and training curves (inline SVG).

Both take their colours from the page's CSS variables, so that they follow its light and dark appearance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 380, 220  # of a curve's drawing, scaled to its place on the page
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 10, 34  # margins
COLOURS = 8  # classes c0 to c7 of the page's style
LOG_RATIO = 20  # a curve that spans more than this factor gets a logarithmic axis


@dataclass(frozen=True)
class Bar:
    """A rate to draw, in 0..1.

    Attributes:
        label: What it is of.
        rate: Length of the bar.
        interval: (low, high), or None where there is none.
        kind: "ours", "seed", "ceiling", "floor" or "theirs"; decides the look.
        note: Small print below the label.
        link: Anchor on the page with what made the number, or None.
        strict: Rate of strict success, in 0..1, or None.
    """

    label: str
    rate: float
    interval: tuple[float, float] | None
    kind: str
    note: str = ""
    link: str | None = None
    strict: float | None = None


@dataclass(frozen=True)
class Line:
    """A curve: `steps` and `values` of the same length; `dashed` where it was measured on held-out episodes."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: int = 0
    dashed: bool = False


def bars(rows: Sequence[Bar]) -> str:
    """Returns HTML: one bar per row on a common scale of 0..100 %, whiskers for the intervals."""
    parts = ['<div class="bars">']
    for row in rows:
        label = escape(row.label)
        if row.link:
            label = f'<a href="#{escape(row.link, quote=True)}">{label}</a>'
        note = f"<small>{escape(row.note)}</small>" if row.note else ""
        whisker = ""
        text = f"{100 * row.rate:.1f}"
        if row.interval:
            low, high = row.interval
            whisker = f'<i style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></i>'
            text += f" <small>[{100 * low:.1f}, {100 * high:.1f}]</small>"
        if row.strict is not None:
            whisker += f'<s style="left:{100 * row.strict:.2f}%"></s>'
            text += f'<small class="strict">strict {100 * row.strict:.1f}</small>'
        parts.append(
            f'<div class="row {escape(row.kind, quote=True)}"><div class="label">{label}{note}</div>'
            f'<div class="track"><b style="width:{100 * row.rate:.2f}%"></b>{whisker}</div>'
            f'<div class="value">{text}</div></div>'
        )
    parts.append('<div class="row scale"><div></div><div class="ticks"><span>0</span><span>50</span><span>100 %</span>')
    parts.append("</div><div></div></div></div>")
    return "".join(parts)


def curve(title: str, lines: Sequence[Line], x_label: str = "training step") -> str:
    """Returns an SVG figure of `lines` over a common pair of axes; the vertical one is logarithmic for a wide span."""
    values = [value for line in lines for value in line.values]
    steps = [step for line in lines for step in line.steps]
    if not values:
        return ""
    log = min(values) > 0 and max(values) / min(values) > LOG_RATIO
    low, high = _bounds(min(values), max(values), log)
    x_high = max(steps)
    x_low = min(0.0, min(steps))

    def place(step: float, value: float) -> tuple[float, float]:
        across = (step - x_low) / (x_high - x_low or 1)
        up = (math.log(value / low) / math.log(high / low)) if log else (value - low) / (high - low)
        x = LEFT + across * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">']
    for tick in _log_ticks(low, high) if log else _ticks(low, high):
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(x_low, x_high, 4):
        x, _ = place(tick, high)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{escape(x_label)}</text>')
    for line in lines:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, line.steps, line.values))
        style = f"c{line.colour % COLOURS}" + (" dashed" if line.dashed else "")
        if len(line.steps) == 1:
            at = 'cx="{}" cy="{}"'.format(*points.split(","))
            parts.append(f'<circle class="{style}" {at} r="3"><title>{escape(line.label)}</title></circle>')
        else:
            parts.append(f'<polyline class="{style}" points="{points}"><title>{escape(line.label)}</title></polyline>')
    parts.append("</svg>")
    legend = _legend(lines)
    notes = ["held-out episodes"] * all(line.dashed for line in lines) + ["log scale"] * log
    heading = escape(title) + (f" <small>{', '.join(notes)}</small>" if notes else "")
    return f'<figure class="curve"><h4>{heading}</h4>{"".join(parts)}<figcaption>{legend}</figcaption></figure>'


def _legend(lines: Sequence[Line]) -> str:
    """Returns what each line is; a dashed one of a solid one's name is what that was on held-out episodes.

    Those share one entry, in grey, since each has the colour of its solid line.
    """
    solid = [line for line in lines if not line.dashed]
    known = {line.label for line in solid}
    alone = [line for line in lines if line.dashed and line.label not in known]
    entries = [(f"c{line.colour % COLOURS}" + " dashed" * line.dashed, line.label) for line in [*solid, *alone]]
    if len(solid) + len(alone) < len(lines):
        entries.append(("grey dashed", "held-out episodes"))
    return "".join(f'<span class="{style}">{escape(label)}</span>' for style, label in entries)


def _bounds(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        return low / 1.1, high * 1.1
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    margin = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    return (low if low == 0 else low - margin), high + margin


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns round numbers within [low, high], about `count` of them."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= count)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{k * step:.10g}") for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    factors = (1, 2, 5) if high / low < 1e3 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{factor * 10.0**power:.10g}") for power in powers for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]
