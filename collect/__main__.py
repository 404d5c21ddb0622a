"""The command line: `python -m collect TASK`, `python -m collect COMMAND`."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from collect.exchange import Export, Import, Pull, Push, summary
from lewm_gym.cli import run
from lewm_gym.commands import Command, argument, dispatch, option
from lewm_gym.files import make_folder
from lewm_gym.progress import Bars
from lewm_gym.tasks import TASKS, Task, get_task

WORKERS = "worker processes (default: one per core)"
PICTURE_EVERY = "render and store every N-th frame only; states and actions of all steps"


@dataclass(frozen=True, kw_only=True)
class Collecting(Command):
    """Options of every collection, under the names that `collect.collector.collect` has for them."""

    episodes: int = option(1000, "total number of episodes")
    out: Path | None = option(None, "dataset folder (default: data/ID)", metavar="FOLDER")
    first: int = option(0, "number of the first episode")
    seed: int = option(0, "seed of the whole collection")
    workers: int | None = option(None, WORKERS)
    ray: str | None = option(None, "use a Ray cluster: auto, ray://head:10001, or local (default: none)",
                             metavar="ADDRESS")  # fmt: skip
    picture_every: int = option(1, PICTURE_EVERY)
    pictures: bool = option(True, "write no contact sheet and no film", flag="--no-pictures")

    def options(self, kind: type[Collecting]) -> dict[str, Any]:
        """Returns the options of `kind`, this class or one between, but for `episodes` and `out`."""
        return {
            field.name: getattr(self, field.name) for field in fields(kind) if field.name not in ("episodes", "out")
        }


@dataclass(frozen=True, kw_only=True)
class Recipe(Collecting):
    """Further options of a task's collection."""

    policy: str | None = option(None, "behaviour policy; every task has 'random' (default: the task's first)")
    noise: float | None = option(None, "noise level, in the policy's unit (default: the policy's)")
    render_quality: str | None = option(None, "render quality (default: the task's first)")
    variations: str | None = option(
        None,
        "variations sampled per episode: all, or names such as agent_color,light_intensity (default: none)",
        metavar="NAMES",
    )
    states_only: bool = option(False, "store no frames; render them later with `render`")


def _of_task(task: Task) -> type[Command]:
    """Returns the command that collects a task."""

    @dataclass(frozen=True, kw_only=True)
    class CollectTask(Recipe):
        episodes: int = option(task.collect_episodes, "total number of episodes")
        out: Path = option(Path("data") / task.name, "dataset folder", metavar="FOLDER")

        def __call__(self) -> int:
            from collect.collector import collect

            with Bars() as bars:
                options = self.options(Recipe)
                dataset = collect(task.name, self.out, self.episodes, progress=bars.on_collect, **options)
            print(summary(dataset))
            return 0

    CollectTask.__doc__ = f"Collects {task.title} episodes. Existing episodes are kept; the same command resumes."
    return CollectTask


@dataclass(frozen=True, kw_only=True)
class CollectGym(Collecting):
    """Collects episodes of any Gymnasium environment with a bounded Box action and rgb_array rendering."""

    env: str = option(..., "environment id, such as Pendulum-v1 or my_package:MyEnv-v0", metavar="ID")
    policy: str = option(
        "random",
        "random, or package.module:factory, where factory(env, rng) returns act(observation) -> action",
        metavar="PATH",
    )
    sb3: Path | None = option(None, "stable-baselines3 checkpoint in place of --policy; needs --trust")
    trust: bool = option(False, "allow unpickling of the checkpoint, which can execute arbitrary code")
    noise: float = option(0.0, "standard deviation of action noise, as a fraction of half the range")

    def __call__(self) -> int:
        """Collects, with a progress bar."""
        from collect.gym_env import PolicyChoice, collect_gym

        if self.sb3 is not None and self.policy != "random":
            raise ValueError("--sb3 stands in place of --policy: give one of them")
        out = self.out or Path("data") / self.env.replace("/", "-").replace(":", "-")
        policy, options = PolicyChoice(self.policy, self.sb3, self.noise, self.trust), self.options(Collecting)
        with Bars() as bars:
            dataset = collect_gym(self.env, out, self.episodes, policy, progress=bars.on_collect, **options)
        print(summary(dataset))
        return 0


@dataclass(frozen=True, kw_only=True)
class Pairs(Command):
    """Creates evaluation pairs: starts and goals from held-out episodes, with the actions between."""

    task: str = argument(f"one of: {', '.join(TASKS)}")
    offsets: tuple[int, ...] = option(
        (), "distances from start to goal, environment steps (default: the task's)", metavar="STEPS"
    )
    count: int = option(200, "pairs per distance")
    policy: str | None = option(None, "behaviour policy of the episodes (default: the task's first)")
    out: Path = option(Path("pairs"), "folder for the files", metavar="FOLDER")

    def __call__(self) -> int:
        """Makes a file for each distance."""
        from collect.pairs import make_pairs

        offsets = self.offsets or get_task(self.task).goal_offsets
        make_folder(self.out)  # before minutes are spent
        suite = self.task if self.policy is None else f"{self.task}-{self.policy}"
        for offset in offsets:
            with Bars() as bars:
                advance = bars.of(f"pairs {self.task} {offset}", "pair")
                pairs = make_pairs(self.task, offset, self.count, progress=advance, policy=self.policy)
            path = self.out / f"{suite}-{offset}.json"
            pairs.save(path)
            size = f"{path.stat().st_size / 1e3:,.0f} kB"
            print(f"{path}: {len(pairs.pairs)} pairs, {size}, content {pairs.content_hash}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Phases(Command):
    """Adds phases to pair files from older versions; everything else is unchanged."""

    files: tuple[Path, ...] = argument("pair file from `python -m collect pairs`")

    def __call__(self) -> int:
        """Writes each file anew."""
        from collect.pairs import with_phases
        from lewm_gym.pairs import PairSet

        for path in self.files:
            with Bars() as bars:
                pairs = with_phases(PairSet.load(path), bars.of(f"phases {path}", "pair"))
            pairs.save(path)
            counts = Counter(pair.phase for pair in pairs.pairs)
            print(f"{path}: {', '.join(f'{count} {phase}' for phase, count in counts.most_common())}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Describe(Command):
    """Prints a dataset's recipe, lengths, sizes, success rate, and the statistics of every column."""

    folder: Path = argument("dataset")

    def __call__(self) -> int:
        """Prints them."""
        from lewm_gym.data import Dataset
        from lewm_gym.data.describe import describe

        print(describe(Dataset.open(self.folder)))
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify(Command):
    """Checks every hash, count and frame of a dataset; exit status 2 if anything is wrong."""

    folder: Path = argument("dataset")

    def __call__(self) -> int:
        """Prints what is wrong, a line each."""
        from lewm_gym.data import Dataset
        from lewm_gym.data.verify import verify

        with Bars() as bars:
            faults = verify(self.folder, bars.of(f"verify {self.folder}", "shard"))
        for fault in faults:
            print(f"error: {fault}", file=sys.stderr)
        if not faults:
            print("valid: " + summary(Dataset.open(self.folder)))
        return 2 if faults else 0


@dataclass(frozen=True, kw_only=True)
class Render(Command):
    """Renders the frames of a dataset collected with --states-only; the pixels are the same."""

    folder: Path = argument("states-only dataset")
    out: Path | None = option(
        None, "dataset folder (default: FOLDER without '-states', or with '-rendered')", metavar="FOLDER"
    )
    workers: int | None = option(None, WORKERS)
    picture_every: int = option(1, PICTURE_EVERY)

    def __call__(self) -> int:
        """Renders, with a progress bar."""
        from collect.render import render

        name = self.folder.name
        default = name.removesuffix("-states") if name.endswith("-states") else f"{name}-rendered"
        out = self.out or self.folder.with_name(default)
        with Bars() as bars:
            dataset = render(self.folder, out, self.workers, self.picture_every, bars.on_collect)
        print(summary(dataset))
        return 0


COMMANDS: dict[str, tuple[type[Command], str]] = {
    **{task.name: (_of_task(task), f"collect {task.title}") for task in TASKS.values()},
    "gym": (CollectGym, "collect any Gymnasium environment"),
    "pairs": (Pairs, "create evaluation pairs"),
    "phases": (Phases, "add phases to evaluation pairs"),
    "describe": (Describe, "print a dataset's statistics"),
    "verify": (Verify, "check a dataset"),
    "render": (Render, "render the frames of a states-only dataset"),
    "export": (Export, "export a dataset to another format"),
    "import": (Import, "import a dataset from another format"),
    "push": (Push, "upload a dataset to S3, the Hugging Face Hub, ..."),
    "pull": (Pull, "download a dataset from S3, the Hugging Face Hub, ..."),
}


def load_command(name: str) -> type[Command]:
    """Returns the class of the command called `name`."""
    return COMMANDS[name][0] if name in COMMANDS else _of_task(get_task(name))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    texts = {task.name: f"collect {task.title}" for task in TASKS.values()}  # with those added since the import
    texts |= {name: text for name, (_, text) in COMMANDS.items()}
    return dispatch("python -m collect", "Collects, checks and exchanges datasets.", texts, load_command, arguments)


def script() -> None:
    """Runs the command line as a program."""
    run(main)


if __name__ == "__main__":
    script()
