"""Results put together as the page shows them: by task and distance, by agent and recipe, seeds side by side."""

from __future__ import annotations

import itertools
import math
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents import AGENTS
from benchmarks.report.plots import Bar, curve_panels
from benchmarks.report.published import Published, of_paper, offset_steps, published
from benchmarks.report.tables import Cell, Mark, Table, run_title, strong, task_title, theirs
from lewm_gym.plots import HELD_OUT, Panel, Series
from lewm_gym.results import METRICS, Outcome, Rate, Result, part_of, rates_of
from lewm_gym.tasks import TASKS

#: Columns of a training log that are not shown: they help to debug a training, not to judge it.
HIDDEN_CURVES = ("gradient_norm", "learning_rate", "lr", "epoch")
RANDOM = "random baseline"
PAIRS = {"heldout": "held-out"}  #  protocol -> what its pairs are called, if not as the protocol
WINDOW = 20  # neighbouring points of a training curve that are averaged; a fifth of a curve's points if it has few


def is_reference(agent: str) -> bool:
    """Returns whether an agent has learned nothing: it is no subject of a report."""
    return agent in AGENTS and not AGENTS[agent].learns


@dataclass(frozen=True)
class Entry:
    """A result with its place on the page and, if there is one, its film."""

    anchor: str
    path: Path
    result: Result
    film: Path | None

    @property
    def description(self) -> dict[str, Any]:
        """What the run says of itself."""
        return self.result.run.get("description") or {}

    @property
    def dataset(self) -> dict[str, Any]:
        """What the run says of its training set."""
        return part_of(self.description, "dataset")

    @property
    def training_seed(self) -> Any:
        """The seed of the run's training, None if the run does not say."""
        return part_of(self.description, "training").get("seed")

    @property
    def kind(self) -> str:
        """Agent and preset, e.g. `LeWM, laptop`."""
        return run_title(self.result.agent, self.description, with_seed=False)

    @property
    def kind_and_planner(self) -> str:
        """Agent and preset, and the planner if the evaluation chose another one than that of the preset's name."""
        chosen = dict(setting.split("=", 1) for setting in self.changes[1].split() if "=" in setting)
        planner = chosen.get("planner", "")
        return f"{self.kind}, {planner}" if planner and not self.kind.endswith(f", {planner}") else self.kind

    @property
    def title(self) -> str:
        """Agent, preset and training seed, e.g. `LeWM, laptop, seed 0`."""
        return run_title(self.result.agent, self.description)

    @property
    def changes(self) -> tuple[str, str]:
        """The settings of training, and of planning, that its commands gave."""
        return values_of(self.description.get("command", ""), "--set"), values_of(self.result.command, "--planning")

    @property
    def told(self) -> int | None:
        """The number of steps left that the agent was told, None if it was told none."""
        return self.result.metrics.get("steps_left")

    @property
    def note(self) -> str:
        """How it was trained and measured, in a line."""
        run, (changes, planning) = self.result.run, self.changes
        pairs = PAIRS.get(self.result.protocol, self.result.protocol)
        took = f" ({run['seconds'] / 60:.1f} min)" if run.get("seconds") else ""
        steps = _count(run.get("steps"), "steps") + took if run.get("steps") else ""
        recipe = " on ".join(filter(None, (steps, _count(self.dataset.get("episodes"), "episodes"))))
        parts = [
            f"trained {recipe}" + (f" with {changes}" if changes else "") if recipe else "",
            f"planned with {planning}" if planning else "",
            f"told {self.told} steps left" if self.told else "",
            f"{self.result.success.episodes} {pairs} pairs, budget {self.result.budget_steps} steps",
        ]
        return "; ".join(filter(None, parts))

    @property
    def recipe(self) -> tuple[Any, ...]:
        """What results must share to be of one kind, the training seed aside."""
        result = self.result
        evaluation = (result.protocol, result.budget_steps, result.success.episodes)
        return (self.kind, result.run.get("steps"), self.dataset.get("hash"), *self.changes, self.told, *evaluation)

    @property
    def curves(self) -> dict[str, Any]:
        """The run's training curves, those that are shown."""
        found = self.result.run.get("curves") or {}
        return {name: data for name, data in found.items() if name.removeprefix(HELD_OUT) not in HIDDEN_CURVES}

    def bar(self, kind: str) -> Bar:
        """Returns its success, for a drawing and a table."""
        rates = rates_of(self.result.outcomes)
        return _bar(self.title, rates, kind, self.note if kind != "seed" else "", self.anchor)


def _bar(label: str, rates: dict[str, Rate], kind: str, note: str, link: str) -> Bar:
    rate, strict = rates["success"], rates.get("strict")
    shares = {name: one.rate for name, one in rates.items()}
    return Bar(label, rate.rate, (rate.low, rate.high), kind, strict.rate if strict else None, note, link, shares)


def values_of(command: str, name: str) -> str:
    """Returns what a command gives an option of several values, or "" where it does not have it."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quotation that nobody closed
        words = command.split()
    if name not in words:
        return ""
    return " ".join(itertools.takewhile(lambda word: not word.startswith("--"), words[words.index(name) + 1 :]))


@dataclass(frozen=True)
class Kind:
    """Results of the same agent, recipe and protocol, one per training seed."""

    entries: tuple[Entry, ...]

    @property
    def first(self) -> Entry:
        """The first result, which speaks for what they share."""
        return self.entries[0]

    @property
    def title(self) -> str:
        """Agent and preset, with the seed if there is but one."""
        return self.first.title if len(self.entries) == 1 else self.first.kind

    @property
    def agent(self) -> str:
        """The agent's name in AGENTS."""
        return self.first.result.agent

    @property
    def is_heldout(self) -> bool:
        """Whether it was measured on held-out pairs."""
        return self.first.result.protocol == "heldout"

    @property
    def means(self) -> dict[str, float]:
        """Metric -> mean rate, in 0..1, of the metrics that are known of all."""
        rates = [rates_of(entry.result.outcomes) for entry in self.entries]
        return {
            name: statistics.fmean(r[name].rate for r in rates) for name in rates[0] if all(name in r for r in rates)
        }

    @property
    def mean(self) -> float:
        """The mean success rate, in 0..1."""
        return self.means["success"]

    @property
    def std(self) -> float | None:
        """The standard deviation over seeds, None for a single one."""
        rates = [entry.result.success.rate for entry in self.entries]
        return statistics.stdev(rates) if len(rates) > 1 else None

    @property
    def weight(self) -> tuple[int, int, int, str]:
        """Which of two kinds to show where there is place for one: the greater one. It does not look at success.

        By the number of seeds, then of pairs; then the one with fewer changed settings, then the latest.
        """
        results = [entry.result for entry in self.entries]
        changed = sum(len(settings.split()) for settings in self.first.changes)
        return len(results), results[0].success.episodes, -changed, max(result.started for result in results)

    def bars(self) -> list[Bar]:
        """Returns its mean, where there are several seeds, and each result."""
        if self.std is None:
            return [self.first.bar("ours")]
        label = f"{self.title}, mean of {len(self.entries)} seeds"
        note = f"standard deviation {100 * self.std:.1f} points; {self.first.note}"
        mean = Bar(label, self.mean, None, "ours", self.means.get("strict"), note, rates=self.means)
        return [mean, *(entry.bar("seed") for entry in self.entries)]


@dataclass(frozen=True)
class Group:
    """Results that belong on one scale: one task at one distance."""

    task: str
    offset_steps: int
    entries: tuple[Entry, ...]

    @property
    def task_title(self) -> str:
        """The task's name in tables."""
        return task_title(self.task)

    @property
    def title(self) -> str:
        """The heading, e.g. `Two-Room, goals 25 steps away`."""
        where = f"{self.offset_steps} steps away" if self.offset_steps else "sampled uniformly"
        return f"{self.task_title}, goals {where}"

    def measured(self) -> list[Bar]:
        """Returns the bars of what was measured here: kinds, each with its seeds, then action replay and random."""
        return [bar for kind in self.kinds() for bar in kind.bars()] + self._references()

    def kinds(self) -> list[Kind]:
        """Returns results that differ in the training seed alone together; the best mean first, references last."""
        kinds: dict[Any, list[Entry]] = {}
        for entry in self.entries:
            key = (*entry.recipe, None if entry.training_seed is not None else entry.anchor)
            kinds.setdefault(key, []).append(entry)
        split = []
        for entries in kinds.values():
            # The same seed twice is not a second seed: such results stand alone.
            together = len({entry.training_seed for entry in entries}) == len(entries)
            split += [Kind(tuple(entries))] if together else [Kind((entry,)) for entry in entries]
        return sorted(split, key=lambda kind: (is_reference(kind.agent), -kind.mean))

    def main_kind(self) -> Kind | None:
        """Returns the kind that stands for the group on a card, if the group is at the paper's distance.

        LeWM's, of the preset `guided` if there is one, of the most seeds and pairs; without LeWM, any other agent's.
        The rule does not look at success.
        """
        kinds = [kind for kind in self.kinds() if not is_reference(kind.agent)] or self.kinds()
        kinds = [kind for kind in kinds if kind.agent == "lewm"] or kinds
        kinds = [kind for kind in kinds if kind.first.told is None] or kinds
        if self.offset_steps != offset_steps():
            return None

        def is_guided(kind: Kind) -> bool:
            return kind.first.result.run.get("description", {}).get("preset") == "guided"

        return max(kinds, key=lambda kind: (kind.is_heldout, is_guided(kind), *kind.weight))

    def published(self) -> dict[str, list[Published]]:
        """Returns what others report for this task and distance, by who reports it."""
        blocks: dict[str, list[Published]] = {}
        for row in published(self.task) if self.offset_steps == offset_steps() else ():
            blocks.setdefault(row.block, []).append(row)
        return blocks

    def _references(self) -> list[Bar]:
        """Returns the references measured with the results: for each pair set the one of most pairs."""
        bars = []
        for name, note, kind in (
            ("action replay", "measured here on the same pairs: every goal is reachable", "replay"),
            (RANDOM, "measured here on the same pairs: success by chance", "random"),
        ):
            best: dict[Any, tuple[tuple[Outcome, ...], Entry]] = {}
            for entry in self.entries:
                outcomes, pairs = getattr(entry.result, kind), entry.result.pairs.get("hash")
                if _extent(outcomes) > _extent(best.get(pairs, ((), entry))[0]):
                    best[pairs] = outcomes, entry
            bars += [_bar(name, rates_of(found), kind, note, entry.anchor) for found, entry in best.values()]
        return bars


def _extent(outcomes: tuple[Outcome, ...]) -> tuple[int, int]:
    return len(outcomes), len(rates_of(outcomes))


def group_entries(entries: Sequence[Entry]) -> list[Group]:
    """Returns the groups in the order of TASKS, near goals before far ones, those drawn by the environment last."""
    order = list(TASKS)
    groups: dict[tuple[str, int], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.result.task, entry.result.offset_steps), []).append(entry)

    def rank(key: tuple[str, int]) -> tuple[int, str, float]:
        task, offset = key
        return order.index(task) if task in order else len(order), task, offset or math.inf

    return [Group(*key, tuple(groups[key])) for key in sorted(groups, key=rank)]


# Tables ------------------------------------------------------------------------------------------------------


def success_table(rows: Sequence[Bar]) -> Table:
    """Returns bars as a table with a column for every metric that one of them has."""
    names = [name for name in METRICS if any(name in (row.rates or {}) for row in rows)]
    more = [name for name in names if name != "success"]
    header = ["", "how", "success %", "Wilson 95 %", *(f"{METRICS[name].title} %" for name in more)]
    lines: list[list[Cell]] = []
    for row in rows:
        interval = f"{100 * row.interval[0]:.1f} to {100 * row.interval[1]:.1f}" if row.interval else ""
        shares = [f"{100 * row.rates[name]:.1f}" if row.rates and name in row.rates else "" for name in more]
        label = Mark(row.label, "link", row.link) if row.link else strong(row.label)
        lines.append([label, row.note, strong(f"{100 * row.rate:.1f}"), interval, *shares])
    return Table(header, lines, words=2)


def published_table(rows: Sequence[Published]) -> Table:
    """Returns published rates as a table; what they have in common is left out."""
    columns = [n for n in ("source", "protocol") if len({getattr(row, n) for row in rows}) > 1]
    lines: list[list[Cell]] = [
        [Mark(row.label, "theirs"), *(getattr(row, name) for name in columns), theirs(row.success),
         "" if row.spread is None else f"±{row.spread:g} over seeds"]
        for row in rows
    ]  # fmt: skip
    return Table(["published", *columns, "success %", ""], lines, words=1 + len(columns))


def overview(groups: Sequence[Group]) -> Table | None:
    """Returns agents by tasks at the paper's distance on held-out pairs; None without two numbers."""
    scenes = [group for group in groups if group.offset_steps == offset_steps()]
    cells: dict[str, dict[str, Kind]] = {}
    for group in scenes:
        for kind in sorted((kind for kind in group.kinds() if kind.is_heldout), key=lambda kind: kind.weight):
            # The random baseline has a row of its own: every result measures it on its pairs.
            if kind.agent != "random" and kind.first.told is None:
                cells.setdefault(kind.first.kind_and_planner, {})[group.task] = kind  # the last one stays
    if sum(map(len, cells.values())) < 2:
        return None
    known = list(AGENTS)

    def rank(title: str) -> tuple[bool, int]:
        agent = next(iter(cells[title].values())).agent
        return is_reference(agent), known.index(agent) if agent in known else len(known)

    rows: list[list[Cell]] = []
    for title in sorted(cells, key=rank):
        rows.append([strong(title), *(_overview_cell(cells[title].get(group.task), group.task) for group in scenes)])
    random = [_random_cell(group) for group in scenes]
    rows += [[RANDOM, *random]] if any(random) else []
    return Table(["agent", *(group.task_title for group in scenes)], rows)


def _overview_cell(kind: Kind | None, task: str) -> Cell:
    if kind is None:
        return ""
    std = f" ± {100 * kind.std:.1f}" if kind.std is not None else ""
    seconds = [entry.result.run["seconds"] for entry in kind.entries if entry.result.run.get("seconds")]
    minutes = f", {statistics.fmean(seconds) / 60:.2g} min" if seconds else ""
    return (strong(f"{100 * kind.mean:.1f}"), std, *_paper(kind.agent, task), minutes)


def _paper(agent: str, task: str) -> tuple[str | Mark, ...]:
    found = of_paper(task, agent)
    return () if found is None else (" ", Mark(f"({found:g})", "theirs"))


def _random_cell(group: Group) -> Cell:
    found = [entry.result for entry in group.entries if entry.result.protocol == "heldout" and entry.result.random]
    most = max((Rate.of(result.random) for result in found), key=lambda rate: rate.episodes, default=None)
    return (f"{100 * most.rate:.1f}", *_paper("random", group.task)) if most else ""


# Drawings ----------------------------------------------------------------------------------------------------


def distance_panels(groups: Sequence[Group]) -> list[Panel]:
    """Returns success against distance by task, for held-out results at two distances or more."""
    panels = []
    for task in dict.fromkeys(group.task for group in groups):
        lines: dict[str, dict[int, float]] = {}
        for group in (group for group in groups if group.task == task and group.offset_steps):
            for kind in (
                k for k in group.kinds() if k.is_heldout and k.first.told is None and not is_reference(k.agent)
            ):
                lines.setdefault(kind.first.kind, {}).setdefault(group.offset_steps, 100 * kind.mean)
                random = rates_of(kind.first.result.random).get("success")
                if random is not None:
                    lines.setdefault(RANDOM, {}).setdefault(group.offset_steps, 100 * random.rate)
        far = {name: (list(line), list(line.values())) for name, line in lines.items() if len(line) > 1}
        agents = [name for name in far if name != RANDOM]
        if agents:
            series = [Series(name, *far[name], colour=i, style="o-") for i, name in enumerate(agents)]
            series += [Series(RANDOM, *far[RANDOM], colour=None, style="--")] if RANDOM in far else []
            panels.append(Panel(task_title(task), series, "steps to the goal", "success %", log_y=False))
    return panels


def training_panels(entries: Sequence[Entry]) -> list[tuple[str, list[Panel]]]:
    """Returns (heading, training curves) of each task, agent and preset; runs share the panels."""
    runs: dict[str, Entry] = {}
    for entry in entries:  # a run evaluated at several distances has trained once
        runs.setdefault(str(entry.result.run.get("weights") or entry.anchor), entry)
    kinds: dict[str, list[Entry]] = {}
    for entry in runs.values():
        if entry.curves:
            kinds.setdefault(f"{task_title(entry.result.task)}: {entry.kind}", []).append(entry)
    named = {
        heading: zip(run_labels(group), (one.curves for one in group), strict=True) for heading, group in kinds.items()
    }
    return [(heading, curve_panels(runs, smooth)) for heading, runs in named.items()]


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


def _count(number: Any, unit: str) -> str:
    return f"{number:,} {unit}" if isinstance(number, int) else ""


#: What tells runs of one task, agent and preset from each other, the most telling first; the last one always does.
_DETAILS: tuple[Callable[[Entry], str], ...] = (
    lambda entry: "" if entry.training_seed is None else f"seed {entry.training_seed}",
    lambda entry: _count(entry.result.run.get("steps"), "steps"),
    lambda entry: _count(entry.dataset.get("episodes"), "episodes"),
    lambda entry: str(entry.result.run.get("folder") or ""),
    lambda entry: entry.path.stem,
    lambda entry: str(entry.path.parent),
)
