"""The command line: `python -m collect TASK`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collect.exchange import add_commands
from lewm_gym.cli import Parser, run
from lewm_gym.files import make_folder
from lewm_gym.tasks import TASKS, Task, get_task

if TYPE_CHECKING:
    from collect.collector import Progress
    from lewm_gym.data import Dataset


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = Parser(prog="python -m collect", description="Collects, checks and exchanges datasets.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for task in TASKS.values():
        _add_task(commands, task)
    _add_gym(commands)
    _add_pairs(commands)
    _add_phases(commands)
    _add_describe(commands)
    _add_verify(commands)
    _add_render(commands)
    add_commands(commands, _bar, _summary)
    options = parser.parse_args(arguments)
    return int(options.main(options) or 0)


def _add_task(commands: argparse._SubParsersAction[Parser], task: Task) -> None:
    parser = commands.add_parser(
        task.name,
        help=f"collect {task.title}",
        description=f"Collects {task.title} episodes. Existing episodes are kept; the same command resumes.",
    )
    parser.set_defaults(main=_collect, task=task.name)
    add = parser.add_argument
    add(
        "--episodes",
        type=int,
        default=task.collect_episodes,
        metavar="N",
        help="total number of episodes (default: %(default)s)",
    )
    add(
        "--out",
        type=Path,
        default=Path("data") / task.name,
        metavar="FOLDER",
        help="dataset folder (default: %(default)s)",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the whole collection (default: %(default)s)")
    add("--first", type=int, default=0, metavar="N", help="number of the first episode (default: %(default)s)")
    add("--workers", type=int, metavar="N", help="worker processes (default: one per core)")
    add("--ray", metavar="ADDRESS", help="use a Ray cluster: auto, ray://head:10001, or local (default: none)")
    add("--policy", metavar="NAME", help="behaviour policy; every task has 'random' (default: the task's first)")
    add("--noise", type=float, metavar="X", help="noise level, in the policy's unit (default: the policy's)")
    add("--render-quality", metavar="NAME", help="render quality (default: the task's first)")
    add(
        "--variations",
        metavar="NAMES",
        help="variations sampled per episode: all, or names such as agent_color,light_intensity (default: none)",
    )
    add("--states-only", action="store_true", help="store no frames; render them later with `render`")
    _add_picture_every(parser)
    add("--no-pictures", action="store_true", help="write no contact sheet and no film")


def _add_gym(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "gym",
        help="collect any Gymnasium environment",
        description="Collects episodes of any Gymnasium environment with a bounded Box action and rgb_array rendering.",
    )
    parser.set_defaults(main=_collect_gym)
    add = parser.add_argument
    add("--env", required=True, metavar="ID", help="environment id, such as Pendulum-v1 or my_package:MyEnv-v0")
    add("--episodes", type=int, default=1000, metavar="N", help="total number of episodes (default: %(default)s)")
    add("--out", type=Path, metavar="FOLDER", help="dataset folder (default: data/ID)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the whole collection (default: %(default)s)")
    add("--first", type=int, default=0, metavar="N", help="number of the first episode (default: %(default)s)")
    add("--workers", type=int, metavar="N", help="worker processes (default: one per core)")
    add("--ray", metavar="ADDRESS", help="use a Ray cluster: auto, ray://head:10001, or local (default: none)")
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument(
        "--policy",
        default="random",
        metavar="PATH",
        help="random, or package.module:factory, where factory(env, rng) returns act(observation) -> action",
    )
    policy.add_argument(
        "--sb3", type=Path, metavar="FILE", help="stable-baselines3 checkpoint in place of --policy; needs --trust"
    )
    add("--trust", action="store_true", help="allow unpickling of the checkpoint, which can execute arbitrary code")
    add(
        "--noise",
        type=float,
        default=0.0,
        metavar="X",
        help="standard deviation of action noise, as a fraction of half the range",
    )
    _add_picture_every(parser)
    add("--no-pictures", action="store_true", help="write no contact sheet and no film")


def _collect_gym(options: argparse.Namespace) -> None:
    from collect.gym_env import PolicyChoice, collect_gym

    out = options.out or Path("data") / options.env.replace("/", "-").replace(":", "-")
    with _episode_bar(f"collect {options.env}") as progress:
        dataset = collect_gym(
            options.env,
            out,
            options.episodes,
            PolicyChoice(options.policy, options.sb3, options.noise, options.trust),
            first=options.first,
            seed=options.seed,
            workers=options.workers,
            ray=options.ray,
            pictures=not options.no_pictures,
            picture_every=options.picture_every,
            progress=progress,
        )
    print(_summary(dataset))


def _add_pairs(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "pairs",
        help="create evaluation pairs",
        description="Creates evaluation pairs: starts and goals from held-out episodes, with the actions between.",
    )
    parser.set_defaults(main=_pairs)
    add = parser.add_argument
    add("task", metavar="TASK", help=f"one of: {', '.join(TASKS)}")
    add(
        "--offsets",
        type=int,
        nargs="+",
        metavar="STEPS",
        help="distances from start to goal, environment steps (default: the task's)",
    )
    add("--count", type=int, default=200, metavar="N", help="pairs per distance (default: %(default)s)")
    add("--policy", metavar="NAME", help="behaviour policy of the episodes (default: the task's first)")
    add("--out", type=Path, default=Path("pairs"), metavar="FOLDER", help="folder for the files (default: %(default)s)")


def _pairs(options: argparse.Namespace) -> None:
    from collect.pairs import make_pairs

    offsets = options.offsets or get_task(options.task).goal_offsets
    make_folder(options.out)  # before minutes are spent
    for offset in offsets:
        with _bar(f"pairs {options.task} {offset}", "pair") as advance:
            pairs = make_pairs(options.task, offset, options.count, progress=advance, policy=options.policy)
        suite = options.task if options.policy is None else f"{options.task}-{options.policy}"
        path = options.out / f"{suite}-{offset}.json"
        pairs.save(path)
        print(f"{path}: {len(pairs.pairs)} pairs, {path.stat().st_size / 1e3:,.0f} kB, content {pairs.content_hash}")


def _add_phases(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "phases",
        help="add phases to evaluation pairs",
        description="Adds phases to pair files from older versions; everything else is unchanged.",
    )
    parser.set_defaults(main=_phases)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="pair file from `python -m collect pairs`")


def _phases(options: argparse.Namespace) -> None:
    from collect.pairs import with_phases
    from lewm_gym.pairs import PairSet

    for path in options.files:
        with _bar(f"phases {path}", "pair") as advance:
            pairs = with_phases(PairSet.load(path), advance)
        pairs.save(path)
        counts = Counter(pair.phase for pair in pairs.pairs)
        print(f"{path}: {', '.join(f'{count} {phase}' for phase, count in counts.most_common())}")


def _add_describe(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "describe",
        help="print a dataset's statistics",
        description="Prints a dataset's recipe, lengths, sizes, success rate, and the statistics of every column.",
    )
    parser.set_defaults(main=_describe)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="dataset")


def _describe(options: argparse.Namespace) -> None:
    from lewm_gym.data import Dataset
    from lewm_gym.data.describe import describe

    print(describe(Dataset.open(options.folder)))


def _add_verify(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "verify",
        help="check a dataset",
        description="Checks every hash, count and frame of a dataset; exit status 2 if anything is wrong.",
    )
    parser.set_defaults(main=_verify)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="dataset")


def _add_render(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "render",
        help="render the frames of a states-only dataset",
        description="Renders the frames of a dataset collected with --states-only; the pixels are the same.",
    )
    parser.set_defaults(main=_render)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="states-only dataset")
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="dataset folder (default: FOLDER without '-states', or with '-rendered')",
    )
    add("--workers", type=int, metavar="N", help="worker processes (default: one per core)")
    _add_picture_every(parser)


def _add_picture_every(parser: Parser) -> None:
    parser.add_argument(
        "--picture-every",
        type=int,
        default=1,
        metavar="N",
        help="render and store every N-th frame only; states and actions of all steps (default: %(default)s)",
    )


def _verify(options: argparse.Namespace) -> int:
    from lewm_gym.data import Dataset
    from lewm_gym.data.verify import verify

    with _bar(f"verify {options.folder}", "shard") as advance:
        faults = verify(options.folder, advance)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if faults:
        return 2
    print("valid: " + _summary(Dataset.open(options.folder)))
    return 0


def _render(options: argparse.Namespace) -> None:
    from collect.render import render

    name = options.folder.name
    default = name.removesuffix("-states") if name.endswith("-states") else f"{name}-rendered"
    out = options.out or options.folder.with_name(default)
    with _episode_bar(f"render {options.folder}") as progress:
        dataset = render(options.folder, out, options.workers, options.picture_every, progress)
    print(_summary(dataset))


@contextlib.contextmanager
def _bar(title: str, unit: str) -> Iterator[Callable[..., None]]:
    """Yields a callback (done, total, note) that shows progress and time left."""
    from tqdm import tqdm

    with contextlib.ExitStack() as stack:
        bar: Any = None

        def advance(done: int, total: int, note: Callable[[float], str] | None = None) -> None:
            nonlocal bar  # made when there is something to show: an error before leaves no empty bar
            if bar is None:
                bar = stack.enter_context(tqdm(total=total, unit=unit, desc=title, mininterval=0.5))
            if note is not None:
                bar.set_postfix_str(note(max(bar.format_dict["elapsed"], 1e-3)), refresh=False)
            bar.update(done - bar.n)

        yield advance


@contextlib.contextmanager
def _episode_bar(title: str) -> Iterator[Progress]:
    """Yields a callback that shows episodes done, time left and frames per second."""
    with _bar(title, "episode") as advance:
        yield lambda done, frames, total: advance(done, total, lambda seconds: f"{frames / seconds:,.0f} frames/s")


def _summary(dataset: Dataset) -> str:
    megabytes = sum(shard.bytes for shard in dataset.manifest.shards) / 1e6
    return (
        f"{dataset.folder}: {dataset.n_episodes:,} episodes, {dataset.n_frames:,} frames "
        f"(mean length {dataset.lengths.mean():.1f}), {megabytes:,.1f} MB, content {dataset.content_hash}"
    )


def _collect(options: argparse.Namespace) -> None:
    from collect.collector import collect

    with _episode_bar(f"collect {options.task}") as progress:
        dataset = collect(
            options.task,
            options.out,
            options.episodes,
            first=options.first,
            seed=options.seed,
            workers=options.workers,
            ray=options.ray,
            policy=options.policy,
            noise=options.noise,
            render_quality=options.render_quality,
            states_only=options.states_only,
            variations=options.variations,
            pictures=not options.no_pictures,
            picture_every=options.picture_every,
            progress=progress,
        )
    print(_summary(dataset))


def script() -> None:
    """Runs the command line as a program."""
    run(main)


if __name__ == "__main__":
    script()
