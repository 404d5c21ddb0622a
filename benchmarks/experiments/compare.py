"""Agents side by side: trains each on each dataset with each seed, evaluates it on the held-out pairs, and tabulates.

Everything resumes: finished trainings and evaluations are not repeated, killed ones continue. A
budget in minutes becomes a number of optimiser steps by a short calibration (`calibrate.py`) that is stored and
reused, so that the same command gives the same steps, and `--steps` repeats them elsewhere.
"""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from agents import agent_class, agent_title, learning, references
from agents.devices import choose_device
from benchmarks.experiments.calibrate import Calibration, calibrate
from benchmarks.experiments.trial import Trial, check_count, describe, mean_of, minutes_of, share
from benchmarks.options import BUDGET_MIN, OnCluster, OnDevice, Training
from benchmarks.report.plots import Bar, bars
from benchmarks.report.published import of_paper, offset_steps
from benchmarks.report.records import Measurement
from benchmarks.report.tables import Block, Cell, Mark, Section, Table, duration, percents, strong, task_title, theirs
from lewm_gym import checkpoint
from lewm_gym.commands import argument, option, parse_settings
from lewm_gym.data.dataset import Dataset
from lewm_gym.files import exclusive, make_folder, read_json, remove_stale
from lewm_gym.nn import dino
from lewm_gym.pairs import PairSet, load_shipped
from lewm_gym.progress import Bars
from lewm_gym.results import Clock, Json, Record, Result, write_json
from lewm_gym.training import TrainingDiverged

EVALUATION_SEED = 0
TOLD_BY = {"seed": "--seeds", "steps": "--steps or --budget-min"}  # which say what the settings may not
ANEW = "delete it, and it is made anew"  # what to do with a damaged file of a comparison
Say = Callable[[str], None]
Scene = tuple[Dataset, PairSet]  # a dataset, and the pairs of its task that agents are measured on


@dataclass(frozen=True, kw_only=True)
class Compare(Training, OnDevice, OnCluster, Measurement):
    """Trains each agent on each dataset with each seed, evaluates it on the shipped held-out pairs, compares it with
    the random baseline, action replay and the expert, and writes tables. Prints the estimated cost first. Run the
    same command again to resume, or several times at once to divide the trainings.
    """  # noqa: D205

    kind = "compare"

    datasets: tuple[Path, ...] = argument("dataset folders, each of a different task")
    steps: tuple[str, ...] = option(
        (), "optimiser steps in place of --budget-min: N for all, AGENT=N, or TASK/AGENT=N", metavar="N"
    )
    offset: int = option(25, "distance from start to goal (environment steps)", metavar="STEPS")
    threads: int | None = option(None, "CPU threads (default: one per core)", least=1, most=1024)
    runs: Path = option(Path("runs/compare"), "run folders", metavar="FOLDER")
    out: Path = option(  # type: ignore[assignment]  # a folder here
        Path("results/compare"), "folder for results, calibration.json, compare.json and compare.md", metavar="FOLDER"
    )
    dry_run: bool = option(False, "print the estimated cost, and stop")

    def __post_init__(self) -> None:
        super(Measurement, self).__post_init__()  # type: ignore[misc]  # whose `out` is a file
        known = learning()
        for name in self.names:
            if name not in known:
                raise ValueError(f"unknown agent {name!r}; expected all, or some of: {', '.join(known)}")
            if self.preset not in agent_class(name).presets:
                raise ValueError(f"agent {name!r} has no preset {self.preset!r}")
        for what, values in (("dataset", self.datasets), ("agent", self.names), ("seed", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"expected at least one {what}, and none twice; got {', '.join(map(str, values))}")
        for key in (*self.given_steps, *self.by_agent):
            if key and key.rpartition("/")[2] not in self.names:
                raise ValueError(f"steps or settings of {key!r}, which is not compared: {', '.join(self.names)}")
        for agent, settings in self.by_agent.items():
            for name in sorted({"seed", "steps"} & set(settings)):
                raise ValueError(f"{agent}.{name} is not a setting of a comparison: {TOLD_BY[name]} says it")
        object.__setattr__(self, "device", choose_device(self.device))

    @property
    def path(self) -> Path:
        """Where the record goes."""
        return self.out / "compare.json"

    @property
    def minutes(self) -> float:
        """Minutes of optimiser steps for each training."""
        return BUDGET_MIN if self.budget_min is None else self.budget_min

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The agents that are compared."""
        return named_agents(self.agents, self.by_agent)

    @cached_property
    def by_agent(self) -> dict[str, dict[str, Any]]:
        """Agent -> settings in place of its preset's."""
        settings: dict[str, dict[str, Any]] = {}
        for text in self.settings:
            agent, dot, rest = text.partition(".")
            if not dot or "=" in agent:
                raise ValueError(f"--set takes AGENT.NAME=VALUE, got {text!r}")
            settings.setdefault(agent, {}).update(parse_settings([rest]))
        return settings

    @cached_property
    def given_steps(self) -> dict[str, int]:
        """Optimiser steps by "task/agent", by "agent", or for all under ""."""
        steps = {}
        for text in self.steps:
            key, _, number = text.rpartition("=")
            if not number.isdecimal() or int(number) < 1:
                raise ValueError(f"--steps takes N, AGENT=N or TASK/AGENT=N with N at least 1, got {text!r}")
            steps[key] = int(number)
        return steps

    def steps_of(self, task: str, agent: str) -> int | None:
        """Returns the steps asked for, None where the budget decides."""
        known = self.given_steps
        return next((known[key] for key in (f"{task}/{agent}", agent, "") if key in known), None)

    def __call__(self) -> int:
        """Compares, with progress bars."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if "dino_wm" not in self.names and not {"all", "dino_wm"}.isdisjoint(self.agents):
            print("no DINOv2 weights here: random_vit, on the features of a random ViT, stands in for dino_wm")
        with Bars() as shown:
            self.compare(print, shown)
        return 0

    def compare(self, say: Say = print, shown: Any = None) -> list[Result]:
        """Returns the results of all trials after doing what is missing, and writes the tables.

        Lines for the user go to `say`, progress to `shown`, a `Bars`.

        Raises:
            ValueError: If something does not fit.
            OSError: If a dataset is missing, or a folder cannot be written.
        """
        scenes, shown, clock = self.scenes(), shown or Bars(disable=True), Clock()
        self._check_out({dataset.task for dataset, _ in scenes})
        calibrations = Calibrations(self)
        say(self.expected_cost(scenes, calibrations))
        if self.dry_run:
            return []
        for folder in (self.runs, self.out):
            make_folder(folder)
        trials = list(self.trials(scenes, calibrations, shown))
        results = {one.name: found for one in trials if (found := one.known()) is not None}
        say(self.cost([one for one in trials if one.name not in results], len(trials), calibrations))
        diverged: dict[str, str] = {}
        self.tabulate(trials, results, diverged, clock, calibrations)
        left = [one for one in trials if one.name not in results]
        numbers = {one.name: number for number, one in enumerate(trials, start=1)}

        def do(one: Trial) -> None:
            say(f"[{numbers[one.name]}/{len(trials)}] {one.name}")
            try:
                results[one.name] = one.result(shown)
            except TrainingDiverged as error:  # the others are still worth their time
                say(f"  {error}")
                diverged[one.name] = str(error)
            others = {other.name: other.known() for other in left if other.name not in results}  # of other processes
            results.update({name: found for name, found in others.items() if found is not None})
            self.tabulate(trials, results, diverged, clock, calibrations)

        share(left, do, shown, self)
        say(self.show(Record.load(self.path)).text())
        return [results[one.name] for one in trials if one.name in results]

    def scenes(self) -> list[Scene]:
        """Returns the datasets with their pairs.

        Raises:
            FileNotFoundError: If there is no dataset.
            ValueError: If two are of the same task, or there are no pairs at the distance, or not as many; if steps
                are given for a task of which there is no dataset, or a setting does not fit.
        """
        scenes: dict[str, Scene] = {}
        for folder in self.datasets:
            dataset = Dataset.open(folder)
            if dataset.task in scenes:
                raise ValueError(f"{folder} is a second dataset of {dataset.task}: compare them in two calls")
            pairs = load_shipped(dataset.task, self.offset)
            check_count(self.n_pairs, pairs)
            scenes[dataset.task] = dataset, pairs
        for key in self.given_steps:
            if "/" in key and key.rpartition("/")[0] not in scenes:
                raise ValueError(f"steps of {key!r}, but the datasets are of {', '.join(scenes)}")
        for scene in scenes.values():
            for agent in self.names:  # now, not when its turn comes after hours
                replace(self.trial(scene, agent, self.seeds[0], 1), run=self.out / "no such folder").is_trained()
        return list(scenes.values())

    def trials(self, scenes: list[Scene], calibrations: Calibrations, shown: Any) -> Iterator[Trial]:
        """Yields all trials, references first, calibrating where it has not been done."""
        for scene in scenes:
            dataset = scene[0]
            yield from (self.trial(scene, name) for name in references())
            for agent in self.names:
                given, timed = self.steps_of(dataset.task, agent), calibrations.known(dataset, agent)
                if timed is None and given is None:
                    on_load = lambda n, of, a=agent: shown(f"load for {a}", n, of, "episode")  # noqa: E731
                    timed = calibrations.measure(dataset, agent, on_load)
                steps = given or timed.steps_within(self.minutes)  # type: ignore[union-attr]  # one of them is there
                yield from (self.trial(scene, agent, seed, steps) for seed in self.seeds)

    def trial(self, scene: Scene, agent: str, seed: int | None = None, steps: int | None = None) -> Trial:
        """Returns the training and evaluation of an agent; of a reference, where other pairs are another run."""
        dataset, pairs = scene
        settings = {} if seed is None else {**self.by_agent.get(agent, {}), "seed": seed, "steps": steps}
        run = f"{dataset.task}-{agent}" + ("" if seed is None else f"-{steps}steps-seed{seed}")
        out = f"{run}-{self.offset}" + ("" if self.n_pairs is None else f"-{self.n_pairs}pairs")
        asked = {"n_pairs": self.n_pairs, "seed": EVALUATION_SEED, "workers": 1}
        return Trial(agent, dataset, self.preset, settings, self.runs / (out if seed is None else run),
                     self.out / f"{out}.json", pairs, asked, self.device)  # fmt: skip

    def _check_out(self, tasks: set[str]) -> None:
        """Refuses to write over a comparison of tasks that this one does not have."""
        if not self.path.exists():
            return
        try:
            others = {row["task"] for row in read_json(self.path, ANEW)["rows"]} - tasks
        except (KeyError, TypeError):
            raise ValueError(f"{self.path} is not the record of a comparison: {ANEW}") from None
        if others:
            raise ValueError(
                f"{self.path} compares {', '.join(sorted(others))}: name the datasets together, or choose another --out"
            )

    # What it will cost ---------------------------------------------------------------------------------------

    def expected_cost(self, scenes: Sequence[Scene], calibrations: Calibrations) -> str:
        """Returns what the whole will cost at most, before anything is timed."""
        data = ", ".join(f"{dataset.folder} ({dataset.n_episodes} episodes)" for dataset, _ in scenes)
        count = len(scenes) * len(self.names) * len(self.seeds)
        lines = [f"{count} trainings: {', '.join(self.names)}; seeds {', '.join(map(str, self.seeds))}; on {data}"]
        if self.given_steps:
            given = ", ".join(f"{key or 'each'} {steps}" for key, steps in self.given_steps.items())
            lines.append(f"training: optimiser steps as given ({given})")
        limited = [(d, agent) for d, _ in scenes for agent in self.names if self.steps_of(d.task, agent) is None]
        if limited:
            n = len(limited) * len(self.seeds)
            lines.append(f"training: {n} x {self.minutes:g} min = {duration(60 * n * self.minutes)}")
        unknown = [f"{data.task}/{agent}" for data, agent in limited if calibrations.known(data, agent) is None]
        if unknown:
            lines.append(f"calibration first, under a minute each: {', '.join(unknown)}")
        pairs = ", ".join(f"{self.n_pairs or len(pairs.pairs)} pairs of {pairs.task}" for _, pairs in scenes)
        lines.append(f"evaluation of each on {pairs}, {self.offset} steps apart, beside {', '.join(references())}")
        return "\n".join(lines)

    def cost(self, left: Sequence[Trial], count: int, calibrations: Calibrations) -> str:
        """Returns what is left of `count` trials will cost, by agent and in all, as timed."""
        lines, total = [], 0.0
        for (task, agent), mine in grouped(left).items():
            timed = calibrations.known(mine[0].dataset, agent)
            if mine[0].steps is None or timed is None:
                continue
            training = mine[0].steps * timed.seconds_per_step
            evaluation = timed.evaluation_seconds(mine[0].n_pairs, 2 * self.offset)
            total += len(mine) * (training + evaluation)
            lines.append(
                f"  {f'{task}/{agent}':22} {len(mine)} x ({mine[0].steps:,} steps, {duration(training)}; "
                f"evaluation up to {duration(evaluation)})"
            )
        lines.append(f"left to do: {len(left)} of {count}, about {duration(total)} as timed here, loading aside")
        return "\n".join(lines)

    # The record ----------------------------------------------------------------------------------------------

    def tabulate(
        self, trials: Sequence[Trial], results: Mapping[str, Result], diverged: Mapping[str, str], clock: Clock,
        calibrations: Calibrations,
    ) -> None:  # fmt: skip
        """Writes what there is so far, as JSON and as Markdown."""
        rows = []
        for (task, agent), mine in grouped(one for one in trials if one.name in results).items():
            seeds = describe([results[one.name] for one in mine])
            for seed, one in zip(seeds, mine, strict=True):
                seed["seed"] = one.settings.get("seed")
            mean, std = mean_of(seeds)
            timed = calibrations.known(mine[0].dataset, agent) if mine[0].steps else None
            trained = "trained along" if mine[0].steps else None
            row = {
                "task": task,
                "agent": agent,
                "features": results[mine[0].name].run["description"].get("features", trained),
                "steps": mine[0].steps,
                "calibration": None if timed is None else timed.to_json(),
                "success_mean": mean,
                "success_std": std,
                "seeds": seeds,
                "published": of_paper(task, agent) if self.offset == offset_steps() else None,
            }
            rows.append(row)
        missing = len(trials) - len(results) - len(diverged)
        body = {"options": self.to_json(), "repeat": self.repeat(rows), "rows": rows, "missing": missing}
        record = self.save({**body, "diverged": dict(diverged)}, clock)
        section = self.show(record)
        text = f"# {section.title}\n\n{section.markdown(self.out)}\n"
        remove_stale(self.out / "compare.md")
        checkpoint.write_atomically(self.out / "compare.md", text.encode())

    def repeat(self, rows: Sequence[Json]) -> str:
        """Returns the command that repeats the comparison elsewhere, without calibration."""
        steps = tuple(f"{row['task']}/{row['agent']}={row['steps']}" for row in rows if row["steps"] is not None)
        again = replace(self, agents=self.names, steps=steps, threads=torch.get_num_threads())
        told = again.words("agents", "seeds", "preset", "offset", "steps", "threads", "n_pairs", "settings")
        return f"python -m benchmarks compare {shlex.join(told)}"

    @staticmethod
    def show(record: Record) -> Section:
        """Returns a table and a drawing per task, the best mean first and the references last."""
        options = record["options"]
        missing = (
            f"Unfinished: {record['missing']} rows are missing; run the same command again to resume. "
            if record["missing"]
            else ""
        )
        budget = options.get("budget_min") or BUDGET_MIN
        text = (
            f"{missing}Every agent with the same preset ({options['preset']}), data and pairs, {options['offset']} "
            f"steps apart. Each training has as many steps as fit into {budget:g} minutes by a calibration, or as "
            "were given; the column training shows their wall-clock time. References are at the bottom. Italics: the "
            "paper's number, under its own protocol and at its own scale. To repeat with the same steps:"
        )
        header: list[Cell] = ["", "features", "success %", "std", "each seed, Wilson 95 %", "steps", "training"]
        header += ["acting, per pair", "paper"]
        blocks: list[Block] = [text, Mark(record["repeat"], "code")]
        for task in dict.fromkeys(row["task"] for row in record["rows"]):
            mine = [row for row in record["rows"] if row["task"] == task]
            mine.sort(key=lambda row: (row["steps"] is None, -row["success_mean"]))
            title = f"{task_title(task)}, {mine[0]['seeds'][0]['episodes']} pairs"
            drawn = [_bar(row) for row in mine]
            caption = f"{title}: mean over seeds, with the range of the seeds' Wilson intervals."
            blocks += [strong(title), Table(header, [_cells(row) for row in mine], 2), bars(caption, drawn)]
        blocks += [f"{name} diverged: {why}" for name, why in record["diverged"].items()]
        return Section("Comparison of agents", blocks)


def _cells(row: Json) -> list[Cell]:
    seeds = row["seeds"]
    return [
        agent_title(row["agent"]),
        row["features"] or "",
        strong(f"{100 * row['success_mean']:.1f}"),
        "" if row["success_std"] is None else f"{100 * row['success_std']:.1f}",
        percents(seeds),
        f"{row['steps']:,}" if row["steps"] else "",
        minutes_of(seeds),
        duration(statistics.fmean(s["act_seconds_per_pair"] for s in seeds)) if row["steps"] else "",
        theirs(row["published"]),
    ]


def _bar(row: Json) -> Bar:
    interval = (min(seed["low"] for seed in row["seeds"]), max(seed["high"] for seed in row["seeds"]))
    kind = "ours" if row["steps"] else "random" if row["agent"] == "random" else "replay"
    return Bar(agent_title(row["agent"]), row["success_mean"], interval, kind)


def named_agents(asked: Sequence[str], settings: Mapping[str, Mapping[str, Any]] | None = None) -> tuple[str, ...]:
    """Returns the agents that are meant, `random_vit` in the place of `dino_wm` where there are no DINOv2 weights.

    Args:
        asked: Names, or "all" alone, which has `random_vit`, a control, only where it stands in.
        settings: Agent -> settings; `dino_weights` of `dino_wm` names a file to use.
    """
    names = tuple(asked)
    if names == ("all",):
        names = tuple(name for name in learning() if name != "random_vit")
    if "dino_wm" not in names or (settings or {}).get("dino_wm", {}).get("dino_weights") or dino.available():
        return names
    return tuple(dict.fromkeys("random_vit" if name == "dino_wm" else name for name in names))


def grouped(trials: Iterable[Trial]) -> dict[tuple[str, str], list[Trial]]:
    """Returns task and agent -> its trials, a training seed each."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for one in trials:
        groups.setdefault((one.dataset.task, one.agent), []).append(one)
    return groups


class Calibrations:
    """The calibrations of a comparison, on disk: what was timed once is used again."""

    def __init__(self, comparison: Compare) -> None:
        self.path = comparison.out / "calibration.json"
        self._comparison = comparison
        self._known = self._read()

    def _read(self) -> Json:
        return read_json(self.path, ANEW) if self.path.is_file() else {}

    def known(self, dataset: Dataset, agent: str) -> Calibration | None:
        """Returns the calibration of an agent on a dataset, None if it has not been timed under these conditions.

        Raises:
            ValueError: If the file holds something else.
        """
        entry = self._known.get(f"{dataset.task}/{agent}")
        if entry is None:
            return None
        try:
            return Calibration(**entry["timed"]) if entry["of"] == self._conditions(dataset, agent) else None
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{self.path} holds no calibration of {dataset.task}/{agent}: {ANEW}") from None

    def measure(self, dataset: Dataset, agent: str, on_load: Any) -> Calibration:
        """Returns the same, timed now, or by another process while this one waits for it."""
        with exclusive(self.path, wait=True):
            self._known = self._read()
            known = self.known(dataset, agent)
            if known is not None:
                return known
            asked, conditions = self._comparison, self._conditions(dataset, agent)
            settings = asked.by_agent.get(agent, {})
            timed = calibrate(agent_class(agent), dataset.folder, asked.preset, settings, asked.device, on_load)
            self._known[f"{dataset.task}/{agent}"] = {"of": conditions, "timed": timed.to_json()}
            write_json(self.path, self._known)
            return Calibration(**timed.to_json())

    def _conditions(self, dataset: Dataset, agent: str) -> Json:
        asked = self._comparison
        conditions: Json = {"dataset": dataset.content_hash, "preset": asked.preset, "device": asked.device}
        conditions |= {"settings": asked.by_agent.get(agent, {}), "threads": torch.get_num_threads()}
        return dict(json.loads(json.dumps(conditions)))
