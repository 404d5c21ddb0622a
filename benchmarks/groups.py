"""Results put together as the report shows them: by task and distance, by agent and recipe, seeds side by side."""

from __future__ import annotations

import itertools
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import paper
from benchmarks.charts import Bar
from lewm_gym.results import Outcome, Rate, Result
from lewm_gym.tasks import TASKS

AGENT_TITLES = {
    "lewm": "LeWM",
    "pldm": "PLDM",
    "dino_wm": "DINO-WM",
    "random_vit": "random ViT",
    "gcbc": "GCBC",
    "gcivl": "GCIVL",
    "gciql": "GCIQL",
    "oracle": "oracle: the recorded actions again",
    "expert": "expert: the collector's policy, on states",
    "random": "random policy",
}
#: Agents that have learned nothing and are not the subject of a report: floors and ceilings.
REFERENCES = ("oracle", "expert", "random")


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
        """Returns how it was trained and measured, in a line."""
        result = self.result
        description = result.run.get("description") or {}
        dataset = description.get("dataset")
        episodes = dataset.get("episodes") if isinstance(dataset, dict) else None
        took = f" ({result.run['seconds'] / 60:.1f} min)" if result.run.get("seconds") else ""
        trained = [
            f"{result.run['steps']:,} steps{took}" if result.run.get("steps") else "",
            f"{episodes:,} episodes" if isinstance(episodes, int) else "",
        ]
        recipe = " on ".join(filter(None, trained))
        parts = [
            f"trained {recipe}" + (f" with {self.training_changes}" if self.training_changes else "") if recipe else "",
            f"planned with {self.planning_changes}" if self.planning_changes else "",
            f"{result.success.episodes} {result.protocol} pairs, budget {result.budget_steps} steps",
        ]
        return "; ".join(filter(None, parts))

    @property
    def training_changes(self) -> str:
        """Returns the settings that the training had in place of its preset's, as its command names them."""
        return values_of((self.result.run.get("description") or {}).get("command", ""), "--set")

    @property
    def planning_changes(self) -> str:
        """Returns the settings of planning in place of the run's own, as the evaluation's command names them."""
        return values_of(self.result.command, "--planning")

    @property
    def recipe(self) -> tuple[Any, ...]:
        """Returns what results must share to be of one kind, the training seed aside."""
        result = self.result
        dataset = (result.run.get("description") or {}).get("dataset")
        data = dataset.get("hash") if isinstance(dataset, dict) else None
        evaluation = (result.protocol, result.budget_steps, result.success.episodes)
        return (
            self.kind,
            result.run.get("steps"),
            data,
            self.training_changes,
            self.planning_changes,
            *evaluation,
        )


def values_of(command: str, option: str) -> str:
    """Returns what a command gives an option of several values, or "" where it does not have it."""
    words = shlex.split(command)
    if option not in words:
        return ""
    rest = words[words.index(option) + 1 :]
    return " ".join(itertools.takewhile(lambda word: not word.startswith("--"), rest))


def training_seed(result: Result) -> Any:
    """Returns the seed of the run's training, None if the run does not say."""
    training = (result.run.get("description") or {}).get("training")
    return training.get("seed") if isinstance(training, dict) else None


@dataclass(frozen=True)
class Kind:
    """Results of the same agent, recipe and protocol, one per training seed."""

    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        """Returns agent and preset, with the seed if there is but one."""
        return self.entries[0].title if len(self.entries) == 1 else self.entries[0].kind

    @property
    def agent(self) -> str:
        """Returns the agent's name in AGENTS."""
        return self.entries[0].result.agent

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

    @property
    def strict(self) -> float | None:
        """Returns the mean rate of strict success, None if it was not judged for all."""
        rates = [Rate.strictly(entry.result.outcomes) for entry in self.entries]
        return None if None in rates else statistics.fmean(rate.rate for rate in rates if rate)


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
    def task_title(self) -> str:
        """Returns the task's name in tables."""
        return TASKS[self.task].title if self.task in TASKS else self.task

    @property
    def title(self) -> str:
        """Returns the heading, e.g. `Two-Room, goals 25 steps away`."""
        where = f"{self.offset_steps} steps away" if self.offset_steps else "drawn uniformly"
        return f"{self.task_title}, goals {where}"

    def measured(self) -> list[Bar]:
        """Returns the bars of what was measured here: kinds, each with its seeds, then ceilings and floors."""
        rows = []
        for kind in self.kinds():
            if kind.std is not None:
                note = f"standard deviation {100 * kind.std:.1f} points; {kind.entries[0].note}"
                label = f"{kind.title}, mean of {len(kind.entries)} seeds"
                rows.append(Bar(label, kind.mean, None, "ours", note, strict=kind.strict))
            rows += [_bar(entry, "seed" if kind.std is not None else "ours") for entry in kind.entries]
        return rows + self._references()

    def kinds(self) -> list[Kind]:
        """Returns the results by what they are results of, the best mean first: those that differ in the training seed
        alone together, references last.
        """  # noqa: D205
        kinds: dict[Any, list[Entry]] = {}
        for entry in self.entries:
            key = (*entry.recipe, None if training_seed(entry.result) is not None else entry.anchor)
            kinds.setdefault(key, []).append(entry)
        split = []
        for entries in kinds.values():
            seeds = {training_seed(entry.result) for entry in entries}
            # The same seed twice is not a second seed: such results stand alone.
            together = len(seeds) == len(entries)
            split += [Kind(tuple(entries))] if together else [Kind((entry,)) for entry in entries]
        return sorted(split, key=lambda kind: (kind.agent in REFERENCES, -kind.mean))

    def published(self) -> list[Block]:
        """Returns what others report for this task and distance, by who reports it."""
        known = paper.published(self.task) if self.offset_steps == paper.OFFSET_STEPS else ()
        blocks = []
        for heading in paper.BLOCKS:
            rows = [row for row in known if row.block == heading]
            if rows:
                blocks.append(_block(heading, rows))
        return blocks

    def _references(self) -> list[Bar]:
        """Returns the floors and ceilings measured with the results: for each pair set the one of most pairs."""
        bars = []
        for name, note, kind in (
            ("replay of the recorded actions", "measured here, the same pairs: what there is to reach", "ceiling"),
            ("random policy", "measured here, the same pairs: what luck alone reaches", "floor"),
        ):
            best: dict[Any, tuple[tuple[Outcome, ...], Entry]] = {}
            for entry in self.entries:
                outcomes = entry.result.ceiling if kind == "ceiling" else entry.result.floor
                known = best.get(entry.result.pairs.get("hash"), ((), entry))[0]
                if _extent(outcomes) > _extent(known):
                    best[entry.result.pairs.get("hash")] = outcomes, entry
            for outcomes, entry in best.values():
                rate, strict = Rate.of(outcomes), Rate.strictly(outcomes)
                share = strict.rate if strict else None
                bars.append(Bar(name, rate.rate, (rate.low, rate.high), kind, note, entry.anchor, share))
        return bars


def _extent(outcomes: tuple[Outcome, ...]) -> tuple[int, bool]:
    return len(outcomes), Rate.strictly(outcomes) is not None


def _bar(entry: Entry, kind: str) -> Bar:
    rate, strict = entry.result.success, Rate.strictly(entry.result.outcomes)
    share = strict.rate if strict else None
    note = entry.note if kind != "seed" else ""
    return Bar(entry.title, rate.rate, (rate.low, rate.high), kind, note, entry.anchor, share)


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
    """Returns the groups in the order of TASKS, near goals before far ones, those drawn by the environment last."""
    order = {name: place for place, name in enumerate(TASKS)}
    keys = {(entry.result.task, entry.result.offset_steps) for entry in entries}
    return [
        Group(task, offset, tuple(e for e in entries if (e.result.task, e.result.offset_steps) == (task, offset)))
        for task, offset in sorted(keys, key=lambda key: (order.get(key[0], len(order)), key[0], key[1] or 10**9))
    ]
