"""The paper's comparison in one command: collects or reuses datasets, trains, evaluates, measures and reports.

The suite is a list of the other commands, each run in a process of its own and each resuming by itself, so that
whatever it does can be done by hand, and every result names the command that made it. Stages that are done are left
out; a stage that fails stops the suite, and the same command resumes there.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from agents import agent_class
from benchmarks.evaluation.runs import weights_hash
from benchmarks.options import BUDGET_MIN, OnCluster, OnTasks, Training
from benchmarks.registry import load_command
from benchmarks.report.records import naming
from benchmarks.report.tables import duration
from lewm_gym.commands import option
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.format.manifest import MANIFEST_NAME
from lewm_gym.data.writer import PARTS
from lewm_gym.results import Record
from lewm_gym.tasks import TASKS, Task, get_task

PRESETS = ("laptop", "paper")
#: The agent whose runs are also measured at other distances, by the published protocol, and for what they know.
SUBJECT = "lewm"
Say = Callable[[str], object]


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: What it does, in words.
        words: `python -m` and these.
        done: Whether what it would leave is there already.
        minutes: What it is expected to take, where that follows from what is asked; None if not.
        resumes: Whether it goes on in another turn; one that does not has failed if its time is over.
        allowed: Exit statuses that count as done.
    """

    name: str
    words: tuple[str, ...]
    done: bool = False
    minutes: float | None = None
    resumes: bool = False
    allowed: tuple[int, ...] = (0,)

    @property
    def command(self) -> str:
        """What a user would type."""
        return f"python -m {shlex.join(self.words)}"


@dataclass(frozen=True, kw_only=True)
class Suite(OnTasks, Training, OnCluster):
    """The paper's comparison in one command: collects or reuses a dataset of each task, trains and evaluates every
    agent with every seed, adds more distant goals, the published protocol, latent analysis and `shift`, and writes the
    report. Prints the estimated cost first. Run the same command again to resume.
    """  # noqa: D205

    preset: str = option("laptop", "preset of every agent", choices=PRESETS)
    steps: int | None = option(None, "optimiser steps for every agent, in place of --budget-min", least=1)
    episodes: int | None = option(
        None, "episodes of datasets that are still to be collected (default: the preset's)", least=2
    )
    data: Path = option(Path("data"), "folder of datasets", metavar="FOLDER")
    runs: Path = option(Path("runs/suite"), "run folders", metavar="FOLDER")
    out: Path = option(Path("results/suite"), "folder for results and report", metavar="FOLDER")
    dry_run: bool = option(False, "print the estimated cost and the commands, and stop")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget_min is not None and self.steps is not None:
            raise ValueError("give --budget-min or --steps, not both")
        _ = self.compared  # raises where the options do not fit

    @cached_property
    def compared(self) -> Any:
        """The command that trains and evaluates every agent on every task with every seed."""
        names = ("agents", "seeds", "preset", "n_pairs", "settings", "runs", "out", "ray", "ray_cpus", "ray_gpus")
        given = {name: getattr(self, name) for name in names} | {"budget_min": self.minutes}
        command = load_command("compare")(datasets=tuple(self.data / name for name in self.tasks), **given)
        if self.minutes is not None:
            return command
        presets = {name: agent_class(name).presets[self.preset] for name in command.names}
        steps = {name: self.steps or preset.training.steps for name, preset in presets.items()}
        return replace(command, steps=tuple(f"{name}={count}" for name, count in steps.items()))

    @property
    def minutes(self) -> float | None:
        """Minutes of optimiser steps for each training; None where steps decide."""
        if self.steps is not None or (self.budget_min is None and self.preset == "paper"):
            return None
        return BUDGET_MIN if self.budget_min is None else self.budget_min

    def episodes_of(self, task: Task) -> int:
        """Returns how many episodes a dataset gets that has to be collected."""
        return self.episodes or (task.collect_episodes if self.preset == "paper" else task.laptop_episodes)

    def __call__(self) -> int:
        """Runs the suite."""
        return self.run(lambda text: print(text, flush=True))

    def run(self, say: Say) -> int:
        """Returns the exit status after doing what is missing, stage by stage; `say` is called with lines for the user.

        Raises:
            ValueError: If something does not fit.
        """
        say(self.cost())
        if self.dry_run:
            for stage in (*self.collection(), self.comparison(), *self.measuring(), self.reporting()):
                say(f"  {'done' if stage.done else '    '} {stage.command}")
            return 0
        # One after the other: what is measured depends on what the comparison left.
        for stages in (self.collection, lambda: [self.comparison()], self.measuring):
            for stage in stages():
                status = 0 if stage.done else _do(stage, say)
                if status:
                    return status
        return _do(self.reporting(), say)

    # The stages ----------------------------------------------------------------------------------------------

    def collection(self) -> Iterator[Stage]:
        """Yields what collects the datasets; one that was interrupted, or is too small, goes on."""
        for name in self.tasks:
            folder, wanted = self.data / name, self.episodes_of(get_task(name))
            words = ("collect", name, "--episodes", str(wanted), "--out", str(folder))
            yield Stage(f"collect {TASKS[name].title}", words, collected(folder) >= wanted)

    def comparison(self) -> Stage:
        """Returns what trains and evaluates every agent on every task with every seed."""
        words = self.compared.words(
            "agents", "seeds", "preset", "budget_min", "steps", "runs", "out", "n_pairs", "settings",
            *(("ray", "ray_cpus", "ray_gpus") if self.ray else ()),
        )  # fmt: skip
        return Stage("train and evaluate", ("benchmarks", "compare", *words))

    def measuring(self) -> Iterator[Stage]:
        """Yields what is measured of the runs that the comparison left."""
        trained = self._trained()
        runs = [(get_task(task), run) for task, agent, run in trained if agent == SUBJECT]
        first = f"seed{self.seeds[0]}"
        for task, run in runs:
            data, weights = str(self.data / task.name), weights_hash(run)
            for offset in task.goal_offsets[1:]:
                words = ("plan", str(run), "--offset", str(offset), *self._some)
                yield self._stage(f"{run.name}, goals {offset} steps away", words, f"{run.name}-{offset}", weights)
            words = ("plan", str(run), "--protocol", "official", "--dataset", data, *self._some)
            yield self._stage(f"{run.name}, the published protocol", words, f"{run.name}-official", weights)
        for task in map(get_task, self.tasks):
            models = [run for name, agent, run in trained if name == task.name and agent in (SUBJECT, "pldm")]
            models = [run for run in models if run.name.endswith(first)]
            if models:
                paths, data = tuple(map(str, models)), str(self.data / task.name)
                verbs = {"probe": (*paths, data), "rollout": (*paths, data), "straightness": paths, "curves": paths}
                verbs |= {"surprise": paths} if task.env_class().event else {}
                for verb, words in verbs.items():
                    name = f"{verb}-{task.name}"
                    yield self._stage(f"{task.title}: {verb}", (verb, *words), name, weights_hash(models[0]))
        for task, run in runs:
            if run.name.endswith(first):
                words = ("shift", str(run), *self._some)
                yield self._stage(
                    f"{task.title} under distribution shift", words, f"shift-{run.name}", weights_hash(run)
                )

    def _stage(self, name: str, words: tuple[str, ...], file: str, weights: str) -> Stage:
        """Returns a stage whose record is there already if it is of the same weights."""
        out = self.out / f"{file}.json"
        done = out.is_file() and weights.encode() in out.read_bytes()
        again = ("--overwrite",) if words[0] == "plan" and out.is_file() else ()
        return Stage(name, ("benchmarks", *words, *again, "--out", str(out)), done)

    @property
    def _some(self) -> tuple[str, ...]:
        return () if self.n_pairs is None else ("--n-pairs", str(self.n_pairs))

    def _trained(self) -> list[tuple[str, str, Path]]:
        """Returns task, agent and run folder of each training, as the comparison lists them."""
        path = self.compared.path
        if not path.is_file():
            return []
        record = Record.load(path, "compare")
        with naming(record):
            rows = [row for row in record["rows"] if row["steps"] and row["task"] in self.tasks]
            return [
                (row["task"], row["agent"], self.runs / f"{row['task']}-{row['agent']}-{row['steps']}steps-seed{seed}")
                for row in rows
                for seed in (one["seed"] for one in row["seeds"])
            ]

    def reporting(self) -> Stage:
        """Returns what writes the page."""
        title = f"LeWM-Gym: the suite, preset {self.preset}"
        out = str(self.out / "report.html")
        return Stage("report", ("benchmarks", "report", str(self.out), "--out", out, "--title", title))

    def cost(self) -> str:
        """Returns what the suite will take, as far as it can be told before it starts."""
        lines, agents = [], self.compared.names
        for stage, task in zip(self.collection(), map(get_task, self.tasks), strict=True):
            folder, count = self.data / task.name, self.episodes_of(task)
            if stage.done:
                lines.append(f"  {task.title:12} reuse {collected(folder):,} episodes in {folder}")
            else:
                taken = duration(round(task.collect_seconds * (count - collected(folder))))
                lines.append(f"  {task.title:12} collect {count:,} episodes: about {taken} on two cores of an AMD EPYC")
        n, seeds = len(self.tasks) * len(agents) * len(self.seeds), ", ".join(map(str, self.seeds))
        lines.append(f"  {n} trainings: {', '.join(agents)}; seeds {seeds}; preset {self.preset}")
        if self.minutes is not None:
            lines.append(f"  {n} x {self.minutes:g} min of optimiser steps = {duration(60 * n * self.minutes)}")
        else:
            steps = ", ".join(f"{agent} {count:,}" for agent, count in self.compared.given_steps.items())
            lines.append(f"  optimiser steps: {steps}")
        subjects = len(self.seeds) if SUBJECT in agents else 0
        further = sum(len(get_task(name).goal_offsets[1:]) for name in self.tasks) * subjects
        lines.append(
            f"  {n} evaluations on {self.n_pairs or 200} pairs beside the references; {further} of LeWM at longer "
            f"distances, {len(self.tasks) * subjects} by the published protocol"
        )
        return "\n".join(["the suite:", *lines])


def _do(stage: Stage, say: Say) -> int:
    say(f"\n=== {stage.name}\n{stage.command}")
    return subprocess.run([sys.executable, "-m", *stage.words]).returncode


def collected(folder: Path) -> int:
    """Returns how many episodes lie in a folder, of a collection that was not interrupted."""
    if not (folder / MANIFEST_NAME).is_file() or (folder / PARTS).exists():
        return 0
    return Dataset.open(folder).n_episodes
