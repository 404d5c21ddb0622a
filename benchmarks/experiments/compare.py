"""Agents side by side: trains each on each dataset with each seed, evaluates it on the held-out pairs, and tabulates.

Everything goes on where it was stopped: finished trainings and evaluations are not repeated, killed ones resume. A
budget in minutes becomes a number of optimiser steps by a short calibration (`calibrate.py`) that is written down and
used again, so that the same command gives the same steps, and `--steps` repeats them elsewhere.
"""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from agents import agent_class, agent_title, learning, references
from agents.devices import choose_device
from benchmarks.experiments.calibrate import Calibration, calibrate
from benchmarks.experiments.references import make_reference
from benchmarks.experiments.trial import Trial, describe, mean_of, minutes_of
from benchmarks.options import OnDevice, Training
from benchmarks.report.plots import Bar, bars
from benchmarks.report.published import of_paper, offset_steps
from benchmarks.report.records import Measurement
from benchmarks.report.tables import Block, Cell, Mark, Section, Table, duration, percents, strong, task_title, theirs
from lewm_gym import checkpoint
from lewm_gym.commands import argument, format_settings, option, parse_settings
from lewm_gym.data.dataset import Dataset
from lewm_gym.files import make_folder, read_json
from lewm_gym.nn import dino
from lewm_gym.pairs import PairSet, load_shipped
from lewm_gym.progress import Bars
from lewm_gym.results import Clock, Json, Record, Result, write_json
from lewm_gym.training import TrainingDiverged

BUDGET_MIN = 10.0
EVALUATION_SEED = 0
TOLD_BY = {"seed": "--seeds", "steps": "--steps or --budget-min"}  # which say what the settings may not
ANEW = "delete it, and it is made anew"  # what to do with a damaged file of a comparison
Say = Callable[[str], None]


@dataclass(frozen=True)
class Scene:
    """A dataset with the pairs of its task that agents are measured on, the first `n_pairs` of them."""

    dataset: Dataset
    pairs: PairSet
    n_pairs: int

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.dataset.task

    @property
    def budget_steps(self) -> int:
        """Environment steps allowed for a pair."""
        return 2 * self.pairs.offset_steps


@dataclass(frozen=True)
class Entrant:
    """One training and its evaluation, or one reference's.

    Attributes:
        scene: Dataset and pairs.
        agent: Its name.
        seed: Of the training; None for a reference.
        steps: Optimiser steps; None for a reference.
        calibration: None where there was nothing to time.
    """

    scene: Scene
    agent: str
    seed: int | None = None
    steps: int | None = None
    calibration: Calibration | None = None

    @property
    def name(self) -> str:
        """Name of the run folder and of the result file."""
        parts = [self.scene.task, self.agent]
        return "-".join(parts if self.seed is None else [*parts, f"{self.steps}steps", f"seed{self.seed}"])


@dataclass(frozen=True, kw_only=True)
class Compare(Training, OnDevice, Measurement):
    """Trains each agent on each dataset with each seed, evaluates it on the shipped held-out pairs, compares it with
    the random baseline, action replay and the expert, and writes tables. Prints the estimated cost first. Run the
    same command again to resume.
    """  # noqa: D205

    kind = "compare"

    datasets: tuple[Path, ...] = argument("dataset folders, each of a different task")
    steps: tuple[str, ...] = option(
        (), "optimiser steps in place of --budget-min: N for all, AGENT=N, or TASK/AGENT=N", metavar="N"
    )
    offset: int = option(25, "distance from start to goal (environment steps)", metavar="STEPS")
    threads: int | None = option(None, "CPU threads (default: one per core)", least=1)
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
        """Returns the results of all entrants after doing what is missing, and writes the tables.

        Args:
            say: Called with lines for the user.
            shown: A `Bars`, for progress.

        Raises:
            ValueError: If something does not fit.
            OSError: If a dataset is missing, or a folder cannot be written.
        """
        scenes, shown, clock = self.scenes(), shown or Bars(disable=True), Clock()
        self._check_out({scene.task for scene in scenes})
        calibrations = Calibrations(self)
        say(self.expected_cost(scenes, calibrations))
        if self.dry_run:
            return []
        for folder in (self.runs, self.out):
            make_folder(folder)
        entrants = list(self.entrants(scenes, calibrations, shown))
        results = {one.name: found for one in entrants if (found := self.trial(one).known()) is not None}
        say(cost([one for one in entrants if one.name not in results], len(entrants)))
        diverged: dict[str, str] = {}
        self.tabulate(entrants, results, diverged, clock)
        for number, one in enumerate(entrants, start=1):
            if one.name in results:
                continue
            say(f"[{number}/{len(entrants)}] {one.name}")
            try:
                results[one.name] = self.do(one, shown)
            except TrainingDiverged as error:  # the others are still worth their time
                say(f"  {error}")
                diverged[one.name] = str(error)
            self.tabulate(entrants, results, diverged, clock)
        say(self.show(Record.load(self.path)).text())
        return [results[one.name] for one in entrants if one.name in results]

    def scenes(self) -> list[Scene]:
        """Returns the datasets with their pairs.

        Raises:
            FileNotFoundError: If there is no dataset.
            ValueError: If two are of the same task, or there are no pairs at the distance, or not as many; if steps
                are given for a task of which there is no dataset, or a setting does not fit.
        """
        scenes: list[Scene] = []
        for folder in self.datasets:
            dataset = Dataset.open(folder)
            if dataset.task in [scene.task for scene in scenes]:
                raise ValueError(f"{folder} is a second dataset of {dataset.task}: compare them in two calls")
            pairs = load_shipped(dataset.task, self.offset)
            wanted = len(pairs.pairs) if self.n_pairs is None else self.n_pairs
            if wanted > len(pairs.pairs):
                raise ValueError(f"--n-pairs must be within 1 and {len(pairs.pairs)}, got {wanted}")
            scenes.append(Scene(dataset, pairs, wanted))
        tasks = [scene.task for scene in scenes]
        for key in self.given_steps:
            if "/" in key and key.rpartition("/")[0] not in tasks:
                raise ValueError(f"steps of {key!r}, but the datasets are of {', '.join(tasks)}")
        for scene in scenes:
            for agent in self.names:  # now, not when its turn comes after hours
                trial = self.trial(Entrant(scene, agent, self.seeds[0], 1))
                replace(trial, run=self.out / "no such folder").is_trained()
        return scenes

    def entrants(self, scenes: list[Scene], calibrations: Calibrations, shown: Any) -> Iterator[Entrant]:
        """Yields all entrants, references first, calibrating where it has not been done."""
        for scene in scenes:
            yield from (Entrant(scene, name) for name in references())
            for agent in self.names:
                given, timed = self.steps_of(scene.task, agent), calibrations.known(scene, agent)
                if timed is None and given is None:
                    on_load = lambda n, of, a=agent: shown(f"load for {a}", n, of, "episode")  # noqa: E731
                    timed = calibrations.measure(scene, agent, on_load)
                steps = given or timed.steps_within(self.minutes)  # type: ignore[union-attr]  # one of them is there
                yield from (Entrant(scene, agent, seed, steps, timed) for seed in self.seeds)

    def trial(self, one: Entrant) -> Trial:
        """Returns the training and evaluation of an entrant; for a reference, other pairs are another run."""
        name = f"{one.name}-{self.offset}" + ("" if self.n_pairs is None else f"-{self.n_pairs}pairs")
        settings = (
            {} if one.seed is None else {**self.by_agent.get(one.agent, {}), "seed": one.seed, "steps": one.steps}
        )
        run = self.runs / (name if one.seed is None else one.name)
        asked = {"n_pairs": self.n_pairs, "seed": EVALUATION_SEED, "workers": 1}
        return Trial(one.agent, one.scene.dataset, self.preset, settings, run, self.out / f"{name}.json",
                     one.scene.pairs, asked, self.device)  # fmt: skip

    def do(self, one: Entrant, shown: Any) -> Result:
        """Returns the result of an entrant, trained and measured now."""
        trial, scene = self.trial(one), one.scene
        if one.seed is None:
            pairs = scene.pairs.pairs[: scene.n_pairs]
            make_reference(one.agent, trial.run, scene.task, pairs, EVALUATION_SEED, scene.budget_steps)
        return trial.result(shown)

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
        n = len(scenes) * len(self.names) * len(self.seeds)
        data = ", ".join(f"{scene.dataset.folder} ({scene.dataset.n_episodes} episodes)" for scene in scenes)
        lines = [f"{n} trainings: {', '.join(self.names)}; seeds {', '.join(map(str, self.seeds))}; on {data}"]
        if self.given_steps:
            given = ", ".join(f"{key or 'each'} {steps}" for key, steps in self.given_steps.items())
            lines.append(f"training: optimiser steps as given ({given})")
        limited = [(s, agent) for s in scenes for agent in self.names if self.steps_of(s.task, agent) is None]
        if limited:
            n = len(limited) * len(self.seeds)
            lines.append(f"training: {n} x {self.minutes:g} min = {duration(60 * n * self.minutes)}")
        unknown = [f"{scene.task}/{agent}" for scene, agent in limited if calibrations.known(scene, agent) is None]
        if unknown:
            lines.append(f"calibration first, under a minute each: {', '.join(unknown)}")
        pairs = ", ".join(f"{scene.n_pairs} pairs of {scene.task}" for scene in scenes)
        lines.append(f"evaluation of each on {pairs}, {self.offset} steps apart, beside {', '.join(references())}")
        return "\n".join(lines)

    # The record ----------------------------------------------------------------------------------------------

    def tabulate(
        self, entrants: Sequence[Entrant], results: Mapping[str, Result], diverged: Mapping[str, str], clock: Clock
    ) -> None:
        """Writes what there is so far, as JSON and as Markdown."""
        groups: dict[tuple[str, str], list[Entrant]] = {}
        for one in entrants:
            if one.name in results:
                groups.setdefault((one.scene.task, one.agent), []).append(one)
        rows = [self._row(group, [results[one.name] for one in group]) for group in groups.values()]
        missing = len(entrants) - len(results) - len(diverged)
        body = {"options": self.to_json(), "repeat": self.repeat(rows), "rows": rows, "missing": missing}
        record = self.save({**body, "diverged": dict(diverged)}, clock)
        section = self.show(record)
        text = f"# {section.title}\n\n{section.markdown(self.out)}\n"
        checkpoint.write_atomically(self.out / "compare.md", text.encode())

    def _row(self, group: Sequence[Entrant], results: Sequence[Result]) -> Json:
        first, seeds = group[0], describe(results)
        for seed, one in zip(seeds, group, strict=True):
            seed["seed"] = one.seed
        mean, std = mean_of(seeds)
        features = results[0].run["description"].get("features", None if first.seed is None else "trained along")
        return {
            "task": first.scene.task,
            "agent": first.agent,
            "features": features,
            "steps": first.steps,
            "calibration": None if first.calibration is None else first.calibration.to_json(),
            "success_mean": mean,
            "success_std": std,
            "seeds": seeds,
            "published": of_paper(first.scene.task, first.agent) if self.offset == offset_steps() else None,
        }

    def repeat(self, rows: Sequence[Json]) -> str:
        """Returns the command that repeats the comparison elsewhere, without calibration."""
        steps = [f"{row['task']}/{row['agent']}={row['steps']}" for row in rows if row["steps"] is not None]
        words = [*map(str, self.datasets), "--agents", *self.names, "--seeds", *map(str, self.seeds)]
        words += ["--preset", self.preset, "--offset", str(self.offset), *(["--steps", *steps] if steps else [])]
        words += ["--threads", str(torch.get_num_threads())]
        words += [] if self.n_pairs is None else ["--n-pairs", str(self.n_pairs)]
        settings = [f"{agent}.{text}" for agent, values in self.by_agent.items() for text in format_settings(values)]
        words += ["--set", *settings] if settings else []
        return f"python -m benchmarks compare {shlex.join(words)}"

    @staticmethod
    def show(record: Record) -> Section:
        """Returns a table and a drawing per task, the best mean first and the references last."""
        options = record["options"]
        missing = (
            f"Unfinished: {record['missing']} rows are missing; the same command goes on. " if record["missing"] else ""
        )
        budget = options.get("budget_min") or BUDGET_MIN
        text = (
            f"{missing}Every agent with the same preset ({options['preset']}), data and pairs, {options['offset']} "
            f"steps apart; the steps of each training are what a calibration fitted into {budget:g} minutes of "
            "optimiser "
            "steps, or those given (what they took: under training, wall-clock). Below, the references. In italics "
            "the paper's number, under its own protocol and at its own scale: a guide. Again, with the same steps:"
        )
        header: list[Cell] = ["", "features", "success %", "std", "each seed, Wilson 95 %", "steps", "training"]
        header += ["choosing actions, per pair", "paper"]
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


class Calibrations:
    """The calibrations of a comparison, on disk: what was timed once is used again."""

    def __init__(self, comparison: Compare) -> None:
        self.path = comparison.out / "calibration.json"
        self._comparison = comparison
        self._known = read_json(self.path, ANEW) if self.path.is_file() else {}

    def known(self, scene: Scene, agent: str) -> Calibration | None:
        """Returns the calibration of an agent on a dataset, None if it has not been timed under these conditions.

        Raises:
            ValueError: If the file holds something else.
        """
        entry = self._known.get(f"{scene.task}/{agent}")
        if entry is None:
            return None
        try:
            return Calibration(**entry["timed"]) if entry["of"] == self._conditions(scene, agent) else None
        except (KeyError, TypeError):
            raise ValueError(f"{self.path} holds no calibration of {scene.task}/{agent}: {ANEW}") from None

    def measure(self, scene: Scene, agent: str, on_load: Any) -> Calibration:
        """Returns the same, timed now if it has to be."""
        asked, folder = self._comparison, scene.dataset.folder
        settings = asked.by_agent.get(agent, {})
        made = calibrate(agent_class(agent), folder, asked.preset, settings, asked.device, on_load).to_json()
        self._known[f"{scene.task}/{agent}"] = {"of": self._conditions(scene, agent), "timed": made}
        write_json(self.path, self._known)
        return Calibration(**made)

    def _conditions(self, scene: Scene, agent: str) -> Json:
        conditions = {
            "dataset": scene.dataset.content_hash,
            "preset": self._comparison.preset,
            "settings": self._comparison.by_agent.get(agent, {}),
            "device": self._comparison.device,
            "threads": torch.get_num_threads(),
        }
        return dict(json.loads(json.dumps(conditions)))


def cost(left: Sequence[Entrant], n_entrants: int) -> str:
    """Returns what the entrants that are left will cost, by agent and in all, as timed."""
    trained = [one for one in left if one.calibration is not None]
    lines, total = [], 0.0
    for key in dict.fromkeys((one.scene.task, one.agent) for one in trained):
        mine = [one for one in trained if (one.scene.task, one.agent) == key]
        first = mine[0]
        assert first.calibration is not None and first.steps is not None
        training = first.steps * first.calibration.seconds_per_step
        evaluation = first.calibration.evaluation_seconds(first.scene.n_pairs, first.scene.budget_steps)
        total += len(mine) * (training + evaluation)
        lines.append(
            f"  {'/'.join(key):22} {len(mine)} x ({first.steps:,} steps, {duration(training)}; "
            f"evaluation up to {duration(evaluation)})"
        )
    lines.append(f"left to do: {len(left)} of {n_entrants}, about {duration(total)} as timed here, loading aside")
    return "\n".join(lines)
