"""The paper's comparison in one command: collects or reuses datasets, trains, evaluates, measures and reports.

The suite is a list of the other commands, each run in a process of its own and each resuming by itself, so that
whatever it does can be done by hand, and every result names the command that made it. Stages that are done are left
out; a stage that fails stops the suite, and the same command goes on there.
"""

from __future__ import annotations

import importlib
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import runs
from lewm_gym.data.format import MANIFEST_NAME
from lewm_gym.data.writer import PARTS
from lewm_gym.tasks import TASKS, Task, get_task

PRESETS = ("laptop", "paper")
#: Episodes of a dataset where none lies there yet; the paper's numbers are `Task.collect_episodes`.
LAPTOP_EPISODES = {"two_room": 300, "pusht": 1000, "cube": 500, "reacher": 500}
#: Seconds that an episode takes to collect, two workers on two cores of an AMD EPYC (docs/datasets.md).
COLLECT_SECONDS = {"two_room": 0.0126, "pusht": 0.066, "reacher": 0.40, "cube": 1.94}
#: Tasks for which there are trajectories that violate expectation (paper, section 5).
SURPRISING = ("two_room", "pusht", "cube")
#: The agent whose runs are also measured at other distances, by the published protocol, and for what they know.
SUBJECT = "lewm"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Suite:
    """What is asked for.

    Attributes:
        tasks: Names.
        agents: Names, or ("all",).
        seeds: Of training.
        preset: Of every agent, one of PRESETS.
        budget_min: Minutes of optimiser steps for each training; None for `steps`.
        steps: Optimiser steps; None for each preset's own.
        episodes: Of the datasets that have to be collected; None for the preset's.
        n_pairs: How many pairs, from the first; None for all.
        settings: AGENT.NAME=VALUE, as `compare --set` takes them.
        data: Folder of the datasets.
        runs: Folder of the run folders.
        out: Folder of results and report.
    """

    tasks: tuple[str, ...]
    agents: tuple[str, ...] = ("all",)
    seeds: tuple[int, ...] = (0, 1, 2)
    preset: str = "laptop"
    budget_min: float | None = None
    steps: int | None = None
    episodes: int | None = None
    n_pairs: int | None = None
    settings: tuple[str, ...] = ()
    data: Path = Path("data")
    runs: Path = Path("runs/suite")
    out: Path = Path("results/suite")

    def __post_init__(self) -> None:
        for task in self.tasks:
            get_task(task)
        if self.preset not in PRESETS:
            raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        for name, values in (("tasks", self.tasks), ("agents", self.agents), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"--{name} needs at least one, and none twice; got {' '.join(map(str, values))}")
        if min(self.seeds) < 0:
            raise ValueError(f"--seeds must not be negative, got {min(self.seeds)}")
        for option, value, least in (
            ("--episodes", self.episodes, 2),
            ("--n-pairs", self.n_pairs, 1),
            ("--steps", self.steps, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{option} must be at least {least}, got {value}")
        if self.budget_min is not None and not 0 < self.budget_min < math.inf:
            raise ValueError(f"--budget-min must be a positive number of minutes, got {self.budget_min:g}")
        for text in self.settings:
            if "=" not in text or "." not in text.partition("=")[0]:
                raise ValueError(f"--set takes AGENT.NAME=VALUE, got {text!r}")

    def episodes_of(self, task: Task) -> int:
        """Returns how many episodes a dataset gets that has to be collected."""
        if self.episodes is not None:
            return self.episodes
        return task.collect_episodes if self.preset == "paper" else LAPTOP_EPISODES[task.name]

    def trainings(self) -> tuple[str, ...]:
        """Returns the names of the agents that are trained."""
        if self.agents != ("all",):
            return self.agents
        agents: tuple[str, ...] = importlib.import_module("benchmarks.comparison").named_agents(self.agents)
        return agents


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: What it does, in words.
        words: `python -m` and these.
        done: Whether what it would leave is there already.
    """

    name: str
    words: tuple[str, ...]
    done: bool = False

    @property
    def command(self) -> str:
        """Returns what a user would type."""
        return f"python -m {shlex.join(self.words)}"


def collection(suite: Suite) -> Iterator[Stage]:
    """Yields the stages that collect what is not there yet; one that was interrupted, or is too small, goes on."""
    for name in suite.tasks:
        folder = suite.data / name
        wanted = suite.episodes_of(get_task(name))
        words = ("collect", name, "--episodes", str(wanted), "--out", str(folder))
        yield Stage(f"collect {TASKS[name].title}", words, collected(folder) >= wanted)


def training(suite: Suite) -> Stage:
    """Returns the stage that trains and evaluates every agent on every task with every seed."""
    words = ["benchmarks", "compare", *(str(suite.data / name) for name in suite.tasks), "--agents", *suite.agents]
    words += ["--seeds", *map(str, suite.seeds), "--preset", suite.preset]
    if suite.budget_min is not None:
        words += ["--budget-min", f"{suite.budget_min:g}"]
    else:
        words += ["--steps", *(f"{agent}={steps}" for agent, steps in steps_of(suite).items())]
    words += ["--runs", str(suite.runs), "--out", str(suite.out)]
    words += ["--n-pairs", str(suite.n_pairs)] if suite.n_pairs is not None else []
    words += ["--set", *suite.settings] if suite.settings else []
    return Stage("train and evaluate", tuple(words))


def steps_of(suite: Suite) -> dict[str, int]:
    """Returns the optimiser steps of each agent that is trained: those asked for, or its preset's."""
    agent_class = importlib.import_module("agents").agent_class
    presets = {name: agent_class(name).presets for name in suite.trainings()}
    lacking = [name for name, known in presets.items() if suite.preset not in known]
    if lacking:
        raise ValueError(f"no preset {suite.preset!r} for {', '.join(lacking)}")
    return {name: suite.steps or known[suite.preset].training.steps for name, known in presets.items()}


def measuring(suite: Suite) -> Iterator[Stage]:
    """Yields what is measured of the runs that the comparison left."""
    some = ("--n-pairs", str(suite.n_pairs)) if suite.n_pairs is not None else ()
    for task, run in subject_runs(suite):
        weights = runs.weights_hash(run)
        data = str(suite.data / task.name)
        for offset in task.goal_offsets[1:]:
            out = suite.out / f"{run.name}-{offset}.json"
            words = ("benchmarks", "plan", str(run), "--offset", str(offset), *some, "--out", str(out))
            yield Stage(f"{run.name}, goals {offset} steps away", words, _is_of(out, weights))
        out = suite.out / f"{run.name}-official.json"
        words = ("benchmarks", "plan", str(run), "--protocol", "official", "--dataset", data, *some, "--out", str(out))
        yield Stage(f"{run.name}, the published protocol", words, _is_of(out, weights))
    for task in map(get_task, suite.tasks):
        yield from _knowledge(suite, task)
    for task, run in subject_runs(suite):
        if run.name.endswith(f"seed{suite.seeds[0]}"):
            out = suite.out / f"shift-{run.name}.json"
            words = ("benchmarks", "shift", str(run), *some, "--out", str(out))
            yield Stage(f"{task.title} in a changed world", words, _is_of(out, runs.weights_hash(run)))


def _knowledge(suite: Suite, task: Task) -> Iterator[Stage]:
    """Yields what the first seed's world models know of a task: LeWM's beside PLDM's, where there is one."""
    models = [run for run in world_model_runs(suite, task) if run.name.endswith(f"seed{suite.seeds[0]}")]
    if not models:
        return
    data, weights = str(suite.data / task.name), runs.weights_hash(models[0])
    paths = tuple(map(str, models))
    stages = [
        ("probe", (*paths, data)),
        ("rollout", (*paths, data)),
        ("straightness", paths),
        ("curves", paths),
        *([("surprise", paths)] if task.name in SURPRISING else []),
    ]
    for verb, words in stages:
        out = suite.out / f"{verb}-{task.name}.json"
        yield Stage(f"{task.title}: {verb}", ("benchmarks", verb, *words, "--out", str(out)), _is_of(out, weights))


def subject_runs(suite: Suite) -> list[tuple[Task, Path]]:
    """Returns the tasks and run folders of the subject's trainings, as the comparison lists them."""
    return [(get_task(task), run) for task, agent, run in _compared(suite) if agent == SUBJECT]


def world_model_runs(suite: Suite, task: Task) -> list[Path]:
    """Returns the run folders of LeWM and PLDM on a task."""
    return [run for name, agent, run in _compared(suite) if name == task.name and agent in (SUBJECT, "pldm")]


def _compared(suite: Suite) -> list[tuple[str, str, Path]]:
    path = suite.out / "compare.json"
    if not path.is_file():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [
        (row["task"], row["agent"], suite.runs / f"{row['task']}-{row['agent']}-{row['steps']}steps-seed{seed['seed']}")
        for row in rows
        if row["steps"] is not None and row["task"] in suite.tasks
        for seed in row["seeds"]
    ]


def reporting(suite: Suite) -> Stage:
    """Returns the stage that writes the page."""
    out = suite.out / "report.html"
    title = f"LeWM-Gym: the suite, preset {suite.preset}"
    return Stage("report", ("benchmarks", "report", str(suite.out), "--out", str(out), "--title", title))


# Running it --------------------------------------------------------------------------------------------------


def cost(suite: Suite) -> str:
    """Returns what the suite will take, as far as it can be told before it starts."""
    lines = []
    for stage, name in zip(collection(suite), suite.tasks, strict=True):
        count = suite.episodes_of(get_task(name))
        if stage.done:
            lines.append(
                f"  {TASKS[name].title:12} reuse {collected(suite.data / name):,} episodes in {suite.data / name}"
            )
        else:
            taken = _duration(COLLECT_SECONDS[name] * (count - collected(suite.data / name)))
            lines.append(
                f"  {TASKS[name].title:12} collect {count:,} episodes: about {taken} on two cores of an AMD EPYC"
            )
    agents = suite.trainings()
    n = len(suite.tasks) * len(agents) * len(suite.seeds)
    lines.append(
        f"  {n} trainings: {', '.join(agents)}; seeds {', '.join(map(str, suite.seeds))}; preset {suite.preset}"
    )
    if suite.budget_min is not None:
        lines.append(f"  {n} x {suite.budget_min:g} min of optimiser steps = {_duration(60 * n * suite.budget_min)}")
    else:
        steps = ", ".join(f"{agent} {count:,}" for agent, count in steps_of(suite).items())
        lines.append(f"  optimiser steps: {steps}")
    pairs = suite.n_pairs or 200
    further = sum(len(get_task(name).goal_offsets[1:]) for name in suite.tasks) if SUBJECT in agents else 0
    lines.append(
        f"  {n} evaluations on {pairs} pairs beside random and two ceilings; {further * len(suite.seeds)} of LeWM at "
        f"longer distances, {len(suite.tasks) * len(suite.seeds) if SUBJECT in agents else 0} by the published protocol"
    )
    return "\n".join(["the suite:", *lines])


def run(suite: Suite, say: Say = print, dry_run: bool = False) -> int:
    """Returns the exit status after doing what is missing, stage by stage.

    Args:
        suite: What to do.
        say: Called with lines for the user.
        dry_run: Say what it will cost and which commands it would begin with, and do nothing.

    Raises:
        ValueError: If something does not fit.
    """
    say(cost(suite))
    if dry_run:
        for stage in (*collection(suite), training(suite), *measuring(suite), reporting(suite)):
            say(f"  {'done' if stage.done else '    '} {stage.command}")
        return 0
    # One after the other: what is measured depends on what the comparison left.
    for stages in (lambda: collection(suite), lambda: [training(suite)], lambda: measuring(suite)):
        for stage in stages():
            status = 0 if stage.done else _do(stage, say)
            if status:
                return status
    return _do(reporting(suite), say)


def _do(stage: Stage, say: Say) -> int:
    say(f"\n=== {stage.name}\n{stage.command}")
    return subprocess.run([sys.executable, "-m", *stage.words]).returncode


def collected(folder: Path) -> int:
    """Returns how many episodes lie in a folder, of a collection that was not interrupted."""
    if not (folder / MANIFEST_NAME).is_file() or (folder / PARTS).exists():
        return 0
    episodes: int = importlib.import_module("lewm_gym.data.dataset").Dataset.open(folder).n_episodes
    return episodes


def _is_of(out: Path, weights: str) -> bool:
    """Returns whether a result or record is there, and of these weights."""
    return out.is_file() and weights in out.read_text(encoding="utf-8")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
