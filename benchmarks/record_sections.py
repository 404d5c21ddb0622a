"""What the report shows of measurements that are not planning success: speeds, comparisons, and what others offer.

A *record* is a JSON file whose field `format` says what it is. `section_makers` gathers, by format, the functions that
turn one into a `Section`: those below and those of every module in `PROVIDERS`, each of which has a table `FORMATS`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import statistics
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import charts, paper
from benchmarks.charts import Bar
from benchmarks.groups import AGENT_TITLES
from benchmarks.knowledge.section import Section, plain, table
from lewm_gym.tasks import TASKS

Record = dict[str, Any]
Maker = Callable[[Record, Path], Section]
#: Modules with a table `FORMATS` of their own; one that is not there is left out.
PROVIDERS = (
    "benchmarks.knowledge",
    "benchmarks.tradeoff",
    "benchmarks.shift",
    "benchmarks.tune_lambda",
    "benchmarks.ablate",
    "benchmarks.equal_flops",
)
SCHEMA = 1  # of the formats below


class Shown(NamedTuple):
    """A record with its place on the page."""

    anchor: str
    path: Path
    record: Record
    section: Section


@lru_cache(maxsize=1)
def section_makers() -> Mapping[str, Maker]:
    """Returns format -> what makes a section of a record of that format."""
    makers = dict(FORMATS)
    for name in PROVIDERS:
        if importlib.util.find_spec(name) is not None:
            makers.update(importlib.import_module(name).FORMATS)
    return makers


def is_record(path: Path) -> bool:
    """Returns whether a JSON file is a record that the report can show.

    Raises:
        ValueError: If it is not JSON.
    """
    record = _read(path)
    return isinstance(record, dict) and record.get("format") in section_makers()


def load(path: Path, number: int) -> Shown:
    """Returns a record with its section.

    Raises:
        ValueError: If it is of another schema, or lacks what its section shows.
    """
    record = _read(path)
    schema = record.get("schema", SCHEMA)
    if schema != SCHEMA:
        age = "a newer" if isinstance(schema, int) and schema > SCHEMA else "an older"
        raise ValueError(f"{path} has {age} schema ({schema}; this version reads {SCHEMA}): run the benchmark again")
    try:
        section = section_makers()[record["format"]](record, path.parent)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is damaged or of another version ({error!r}): run the benchmark again") from None
    return Shown(f"record-{number}", path, record, section)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); it may be cut off") from None


# Speed -------------------------------------------------------------------------------------------------------

_WHAT = {
    "ours": "step + picture",
    "batched": "steps of many at once, states only",
    "reference": "stable-worldmodel: step + picture",
}


def environments_section(record: Record, folder: Path) -> Section:
    """Returns how fast each task steps and draws."""
    rows = []
    for row in record["rows"]:
        speed, title = row["speed"], TASKS[row["task"]].title if row["task"] in TASKS else row["task"]
        what = plain(_WHAT.get(row["what"], row["what"]))
        if speed is None and row["what"] == "ours":
            rows.append([plain(title), what, f"not measured: {plain(row['why_not'])}", ""])
        elif speed is not None:
            spread = f"{speed['low']:,.0f} to {speed['high']:,.0f}"
            rows.append([plain(title), what, f"{speed['median']:,.0f}", spread])
    text = (
        "Environment steps per second on one core, with a 224 px picture each: the median of repeats, and their range."
    )
    return Section("Environments", f"{text}\n\n{table(['task', 'what', 'steps per second', 'range'], rows)}", [])


#: What `how` of a figure means.
HOW = {"ours": "this repository", "plain": "a plain implementation", "reference": "stable-worldmodel"}


def models_section(record: Record, folder: Path) -> Section:
    """Returns how long training steps or plans take, beside a plain implementation; published plans as theirs."""
    figures = record["figures"]
    training = bool(figures) and figures[0]["what"] == "train"
    rows = []
    for figure in figures:
        flops = f"{figure['flops'] / figure['seconds'] / 1e9:,.0f}" if figure.get("flops") else ""
        size = [f"{figure['per']:,}"] if training else [_search(figure), f"{figure['per']:,}"]
        rows.append(
            [
                plain(" ".join(str(figure[key]) for key in ("agent", "preset") if key in figure)),
                *size,
                HOW[figure["how"]],
                plain(figure["precision"]),
                f"{1000 * figure['seconds']:,.0f}",
                f"{1000 * figure['fastest']:,.0f}",
                str(figure["repeats"]),
                flops,
            ]
        )
    size = ["clips"] if training else ["search", "environments"]
    header = ["preset", *size, "of", "precision", "median ms", "fastest ms", "repeats", "GFLOP/s"]
    names = ", ".join(sorted({" ".join(filter(None, (f.get("agent"), f["preset"]))) for f in figures}))
    if training:
        text = "An optimiser step, with so many clips of 4 frames."
        return Section(f"A training step: {plain(names)}", f"{text} {_where(record)}\n\n{table(header, rows)}", [])
    text = (
        "One plan, from an observation and a goal to actions; where several environments are planned for in one call, "
        "the time of each. Numbers of different tables were not measured in one run."
    )
    if any(figure["measured"] != [figure["candidates"], figure["iterations"]] for figure in figures):
        text += " \\*: extrapolated linearly from fewer candidates or iterations."
    return Section(f"A plan: {plain(names)}", f"{text} {_where(record)}\n\n{table(header, rows)}", [])


def _search(figure: Record) -> str:
    size = f"{plain(figure['planner'])} {figure['candidates']} x {figure['iterations']}"
    candidates, iterations = figure["measured"]
    whole = figure["measured"] == [figure["candidates"], figure["iterations"]]
    return size if whole else f"{size}, \\* of {candidates} x {iterations}"


def published_latencies() -> str:
    """Returns, as Markdown, how long others say a plan takes."""
    rows = [
        [f"*{plain(one.method)}*", f"{one.seconds:g} s", plain(one.hardware), plain(one.source)]
        for one in paper.LATENCIES
    ]
    text = "A plan, published by others, on their hardware; not measured here:"
    return f"{text}\n\n{table(['method', 'a plan', 'hardware', 'source'], rows)}"


def _where(record: Record) -> str:
    threads = f", {record['threads']} threads" if record.get("threads") else ""
    return f"Measured on {plain(record.get('device', 'cpu'))}{threads}."


# Comparisons -------------------------------------------------------------------------------------------------


def comparison_section(record: Record, folder: Path) -> Section:
    """Returns agents side by side, a table and a chart per task; the paper's numbers in italics."""
    header = ["", "success %", "std", "each seed, Wilson 95 %", "steps", "training", "act, per pair", "*paper*"]
    parts: list[str] = []
    pictures: list[tuple[str, str | bytes]] = []
    for task in dict.fromkeys(row["task"] for row in record["rows"]):
        mine = [row for row in record["rows"] if row["task"] == task]
        mine.sort(key=lambda row: (row["steps"] is None, -row["success_mean"]))
        title = TASKS[task].title if task in TASKS else task
        parts += [f"**{plain(title)}**", table(header, [_compared(row) for row in mine])]
        pictures.append((f"{title}: mean over seeds, with the range of the seeds' Wilson intervals", _bars(mine)))
    options = record.get("options", {})
    missing = f"Unfinished: {record['missing']} rows are missing. " if record.get("missing") else ""
    budget = options.get("budget_min")
    fitted = f"{budget:g} minutes" if budget else "the budget"
    text = (
        f"{missing}Every agent with the same preset ({plain(options.get('preset', '?'))}), data and pairs, "
        f"{options.get('offset_steps', '?')} steps apart; the steps of each training are what a calibration fitted "
        f"into {fitted} of optimiser steps (what they took: under training). Below, the floor and the ceilings. In "
        "italics the paper's number, under its own protocol and at its own scale. Again, with the same steps: "
        f"`{record.get('repeat', '')}`"
    )
    diverged = [f"{plain(name)} diverged: {plain(why)}" for name, why in record.get("diverged", {}).items()]
    return Section("Agents side by side", "\n\n".join([text, *parts, *diverged]), pictures)


def _compared(row: Record) -> list[str]:
    seeds = row["seeds"]
    times = [seed["training_seconds"] for seed in seeds if seed.get("training_seconds")]
    acts = statistics.fmean(seed["act_seconds_per_pair"] for seed in seeds)
    return [
        plain(AGENT_TITLES.get(row["agent"], row["agent"])),
        f"**{100 * row['success_mean']:.1f}**",
        "" if row["success_std"] is None else f"{100 * row['success_std']:.1f}",
        "; ".join(f"{100 * s['rate']:.1f} \\[{100 * s['low']:.1f}, {100 * s['high']:.1f}\\]" for s in seeds),
        f"{row['steps']:,}" if row["steps"] else "",
        f"{statistics.fmean(times) / 60:.1f} min" if times else "",
        f"{acts:.2f} s" if row["steps"] else "",
        "" if row["published"] is None else f"*{row['published']:g}*",
    ]


def _bars(rows: list[Record]) -> str:
    bars = []
    for row in rows:
        interval = (min(seed["low"] for seed in row["seeds"]), max(seed["high"] for seed in row["seeds"]))
        kind = "ours" if row["steps"] else "floor" if row["agent"] == "random" else "ceiling"
        name = str(row["agent"])
        bars.append(Bar(AGENT_TITLES.get(name, name), row["success_mean"], interval, kind))
    return charts.bars(bars)


FORMATS: dict[str, Maker] = {
    "lewm-gym speed": environments_section,
    "lewm-gym model speed": models_section,
    "lewm-gym comparison": comparison_section,
}
#: Format -> the part of the page that it stands in; others stand under "What the models know".
PARTS = {
    "lewm-gym speed": "Latency and throughput",
    "lewm-gym model speed": "Latency and throughput",
    "lewm-gym data speed": "Latency and throughput",
    "lewm-gym comparison": "Comparison",
    "lewm-gym tradeoff": "Success against latency",
    "lewm-gym equal flops": "Success against latency",
    "lewm-gym shift": "Robustness",
    "lewm-gym ablation": "Ablations",
    "lewm-gym lambda": "Ablations",
}
OTHER_PART = "What the models know"
#: Part of the page -> what others report, as Markdown, below our own.
PUBLISHED: dict[str, Callable[[], str]] = {"Latency and throughput": published_latencies}
ORDER = (
    "Comparison",
    "Success against latency",
    "Latency and throughput",
    OTHER_PART,
    "Robustness",
    "Ablations",
)


def by_part(records: list[Shown]) -> list[tuple[str, list[Shown]]]:
    """Returns (part of the page, its records), in the order of the page."""
    parts: dict[str, list[Shown]] = {part: [] for part in ORDER}
    for shown in records:
        parts[PARTS.get(shown.record["format"], OTHER_PART)].append(shown)
    return [(part, mine) for part, mine in parts.items() if mine]
