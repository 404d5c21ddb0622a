"""The report: one self-contained HTML page and a Markdown file from result files alone.

`python -m benchmarks report` and the demo both call `write_report`. What is shown is gathered here; how it looks is
in `benchmarks.page` and `benchmarks.charts`.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import page, paper
from benchmarks.charts import Bar, Line
from lewm_gym.files import atomic_file, make_folder
from lewm_gym.results import Rate, Result, is_result
from lewm_gym.tasks import TASKS

#: Columns of a training log that are not shown: they help to debug a training, not to judge it.
HIDDEN_CURVES = ("gradient_norm", "learning_rate", "lr", "epoch")
AGENT_TITLES = {
    "lewm": "LeWM",
    "pldm": "PLDM",
    "dino_wm": "DINO-WM",
    "gcbc": "GCBC",
    "gcivl": "GCIVL",
    "gciql": "GCIQL",
    "random": "random policy",
}


@dataclass(frozen=True)
class Entry:
    """A result with its place on the page and, if there is one, its film."""

    anchor: str
    path: Path
    result: Result
    film: Path | None

    @property
    def kind(self) -> str:
        """Returns agent and preset, e.g. `LeWM, laptop`."""
        preset = (self.result.run.get("description") or {}).get("preset")
        return ", ".join(filter(None, (AGENT_TITLES.get(self.result.agent, self.result.agent), preset and str(preset))))

    @property
    def title(self) -> str:
        """Returns agent, preset and training seed, e.g. `LeWM, laptop, seed 0`."""
        seed = training_seed(self.result)
        return self.kind if seed is None else f"{self.kind}, seed {seed}"

    @property
    def note(self) -> str:
        """Returns how it was measured, in a line."""
        result = self.result
        return f"{result.success.episodes} {result.protocol} pairs, budget {result.budget_steps} steps"


def write_report(
    results: Sequence[str | Path],
    out: str | Path,
    film: str | Path | None = None,
    title: str = "LeWM-Gym report",
    intro: str | None = None,
) -> Path:
    """Writes the page to `out` and Markdown beside it (`.md`); returns the page's path.

    Args:
        results: Result files; a film that a result names is embedded if it lies beside it.
        out: The page, HTML, self-contained.
        film: An mp4 to show, if no result names one.
        title: Heading.
        intro: A paragraph of plain text above the results, e.g. what was run.

    Raises:
        ValueError: Without results, for a file that is not a result of this schema, or a film that does not exist.
        OSError: If a file cannot be read or written.
    """
    if not results:
        raise ValueError("no results to report; make one with `python -m benchmarks plan RUN`")
    out = Path(out)
    if film is not None and not Path(film).is_file():
        raise ValueError(f"there is no film {film}")
    entries = _entries([Path(path) for path in results], Path(film) if film else None)
    groups = group_entries(entries)
    _write(out, page.render(title, intro, groups, curves(entries)))
    _write(out.with_suffix(".md"), markdown(title, intro, groups, out.parent))
    return out


def find_results(paths: Iterable[str | Path]) -> list[Path]:
    """Returns the result files among `paths`: files as they are, folders searched; other JSON in folders is skipped.

    Raises:
        ValueError: If a path does not exist, a file is damaged, or nothing is found.
    """
    found: list[Path] = []
    given = [Path(path) for path in paths]
    for path in given:
        if path.is_dir():
            found += sorted(file for file in path.rglob("*.json") if is_result(file))
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"there is no file or folder {path}")
    if not found:
        raise ValueError(
            f"no results in {', '.join(map(str, given))}; make one with `python -m benchmarks plan RUN --out FILE`"
        )
    return list(dict.fromkeys(found))


def training_seed(result: Result) -> Any:
    """Returns the seed of the run's training, None if the run does not say."""
    training = (result.run.get("description") or {}).get("training")
    return training.get("seed") if isinstance(training, dict) else None


@dataclass(frozen=True)
class Kind:
    """Results of the same agent, preset and protocol, one per training seed."""

    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        """Returns agent and preset, with the seed if there is but one."""
        return self.entries[0].title if len(self.entries) == 1 else self.entries[0].kind

    @property
    def mean(self) -> float:
        """Returns the mean success rate, in 0..1."""
        return statistics.fmean(entry.result.success.rate for entry in self.entries)

    @property
    def std(self) -> float | None:
        """Returns the standard deviation over seeds, None for a single one."""
        if len(self.entries) == 1:
            return None
        return statistics.stdev(entry.result.success.rate for entry in self.entries)


@dataclass(frozen=True)
class Block:
    """Published numbers under one heading; `source` and `protocol` are empty where they differ from row to row."""

    heading: str
    source: str
    protocol: str
    bars: list[Bar]


@dataclass(frozen=True)
class Group:
    """Results that belong on one scale: one task at one distance."""

    task: str
    offset_steps: int
    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        """Returns the heading, e.g. `Two-Room, goals 25 steps away`."""
        name = TASKS[self.task].title if self.task in TASKS else self.task
        return f"{name}, goals {self.offset_steps} steps away"

    def measured(self) -> list[Bar]:
        """Returns the bars of what was measured here: every result, means over training seeds, the random floors."""
        rows = []
        for entry in self.entries:
            rate = entry.result.success
            rows.append(Bar(entry.title, rate.rate, (rate.low, rate.high), "ours", entry.note, entry.anchor))
        for kind in self.kinds():
            if kind.std is not None:
                note = f"standard deviation {100 * kind.std:.1f} points"
                label = f"{kind.title}, mean of {len(kind.entries)} seeds"
                rows.append(Bar(label, kind.mean, None, "ours", note))
        return rows + self._floors()

    def kinds(self) -> list[Kind]:
        """Returns the results by what they are results of: those that differ in the training seed alone together."""
        kinds: dict[Any, list[Entry]] = {}
        for entry in self.entries:
            result = entry.result
            kind = (entry.kind, result.protocol, result.budget_steps, result.success.episodes)
            key = (*kind, None if training_seed(result) is not None else entry.anchor)
            kinds.setdefault(key, []).append(entry)
        split = []
        for entries in kinds.values():
            seeds = {training_seed(entry.result) for entry in entries}
            # The same seed twice is not a second seed: such results stand alone.
            together = len(seeds) == len(entries)
            split += [Kind(tuple(entries))] if together else [Kind((entry,)) for entry in entries]
        return split

    def published(self) -> list[Block]:
        """Returns what others report for this task and distance, by who reports it."""
        known = paper.published(self.task) if self.offset_steps == paper.OFFSET_STEPS else ()
        blocks = []
        for heading in paper.BLOCKS:
            rows = [row for row in known if row.block == heading]
            if rows:
                blocks.append(_block(heading, rows))
        return blocks

    def _floors(self) -> list[Bar]:
        floors: dict[tuple[Any, ...], tuple[Rate, Entry]] = {}
        for entry in self.entries:
            rate = entry.result.floor_success
            if rate is not None:
                floors.setdefault((entry.result.pairs.get("hash"), entry.result.floor), (rate, entry))
        return [
            Bar(
                "random policy",
                rate.rate,
                (rate.low, rate.high),
                "floor",
                "measured here, the same pairs",
                entry.anchor,
            )
            for rate, entry in floors.values()
        ]


def _block(heading: str, rows: Sequence[paper.Published]) -> Block:
    """Returns the rows under a heading; what they have in common is said once, what differs beside each."""
    sources = {row.source for row in rows}
    protocols = {row.protocol for row in rows}
    bars = []
    for row in rows:
        notes = (
            row.source if len(sources) > 1 else "",
            row.protocol if len(protocols) > 1 else "",
            f"±{row.spread:g} over seeds" if row.spread is not None else "",
        )
        bars.append(Bar(row.label, row.success / 100, None, "theirs", ", ".join(filter(None, notes))))
    source, protocol = (next(iter(values)) if len(values) == 1 else "" for values in (sources, protocols))
    return Block(heading, source, protocol, bars)


def group_entries(entries: Sequence[Entry]) -> list[Group]:
    """Returns the groups in the order of TASKS, near goals before far ones."""
    order = {name: place for place, name in enumerate(TASKS)}
    keys = {(entry.result.task, entry.result.offset_steps) for entry in entries}
    return [
        Group(task, offset, tuple(e for e in entries if (e.result.task, e.result.offset_steps) == (task, offset)))
        for task, offset in sorted(keys, key=lambda key: (order.get(key[0], len(order)), key))
    ]


def curves(entries: Sequence[Entry]) -> list[tuple[str, list[tuple[str, list[Line]]]]]:
    """Returns (heading, [(column, lines)]) of the training curves: one heading per task, agent and preset."""
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


def markdown(title: str, intro: str | None, groups: Sequence[Group], folder: Path) -> str:
    """Returns the report as Markdown: the tables, links to films relative to `folder`, and what made each number."""
    lines = [f"# {_plain(title)}", "", " ".join(page.ABOUT), ""]
    if intro:
        lines += [_plain(intro), ""]
    for group in groups:
        lines += [f"## {_plain(group.title)}", "", "| | success % | Wilson 95 % | how |", "|---|---|---|---|"]
        lines += [_table_row(bar) for bar in group.measured()]
        for block in group.published():
            common = [_plain(text) for text in (block.source, block.protocol) if text]
            lines += ["", "; ".join([f"{block.heading} (published, not measured here)", *common]) + ":", ""]
            lines += ["| | success % | Wilson 95 % | how |", "|---|---|---|---|", *map(_table_row, block.bars)]
        lines.append("")
    lines += ["## What made each number", ""]
    for entry in (entry for group in groups for entry in group.entries):
        lines += [f"### {_plain(entry.title)}: {_plain(entry.path.name)}", ""]
        lines += [f"- {name}: {_plain(value)}" for name, value in page.facts(entry)]
        if entry.film is not None:
            where = os.path.relpath(entry.film, folder).replace(" ", "%20")
            lines.append(f"- film: [{_plain(entry.film.name)}]({where})")
        lines.append("")
    return "\n".join(lines)


def _table_row(bar: Bar) -> str:
    interval = f"{100 * bar.interval[0]:.1f} to {100 * bar.interval[1]:.1f}" if bar.interval else ""
    name = f"*{_plain(bar.label)}* (published)" if bar.kind == "theirs" else f"**{_plain(bar.label)}**"
    return f"| {name} | {100 * bar.rate:.1f} | {interval} | {_plain(bar.note)} |"


def _plain(text: str) -> str:
    """Returns text that Markdown shows as it is, on one line."""
    escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for character in "\\`*_[]|":
        escaped = escaped.replace(character, "\\" + character)
    return escaped


def _entries(paths: Sequence[Path], film: Path | None) -> list[Entry]:
    entries = []
    for number, path in enumerate(paths, 1):
        result = Result.load(path)
        own = path.parent / Path(result.film).name if result.film else None  # a name, never a way out of the folder
        if own is None or not own.is_file():
            own = film if number == 1 else None
        entries.append(Entry(f"result-{number}", path, result, own))
    return entries


def _write(path: Path, text: str) -> None:
    make_folder(path.parent)
    with atomic_file(path) as file:
        file.write(text.encode())
