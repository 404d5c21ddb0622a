"""`python -m lewm_gym`: the whole line on Two-Room, from nothing to a film of a planning agent.

Collects episodes, trains LeWM from their pixels, evaluates it on held-out pairs beside the random policy, and leaves
film, curves, page and results in one folder. Each stage resumes where it was stopped.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Any

from lewm_gym import cli
from lewm_gym.progress import Bars

TASK = "two_room"
OFFSET_STEPS = 25


def parser() -> argparse.ArgumentParser:
    """Returns the command line's parser."""
    p = cli.Parser(
        prog="python -m lewm_gym",
        description="Collects Two-Room episodes, trains LeWM from their pixels, evaluates it, and shows it in a film.",
        epilog="Ctrl-C keeps what is finished; the same command resumes.",
    )
    p.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="FOLDER", help="for everything (default: %(default)s)"
    )
    p.add_argument("--episodes", type=int, default=300, metavar="N", help="to collect (default: %(default)s)")
    p.add_argument("--steps", type=int, metavar="N", help="optimiser steps (default: the laptop preset's)")
    p.add_argument(
        "--pairs",
        type=int,
        default=100,
        metavar="N",
        help="held-out start/goal pairs to evaluate, at most 200 (default: %(default)s)",
    )
    p.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of collection, training and planning (default: %(default)s)"
    )
    p.add_argument("--workers", type=int, metavar="N", help="processes that collect (default: one per core)")
    p.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: a GPU if there is one)")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser().parse_args(arguments[1:] if arguments[:1] == ["demo"] else arguments)
    _check(args)
    begin = time.monotonic()
    folder: Path = args.out
    print(f"LeWM on Two-Room, from nothing to a planning agent, in {folder}/", flush=True)

    print(f"\n1/4  collect {args.episodes} episodes of a noisy heuristic: pixels and actions", flush=True)
    data = _collect(folder / "data", args)

    print("\n2/4  train the world model from pixels: prediction loss + SIGReg, nothing else", flush=True)
    _train(data, folder, args)

    print(
        f"\n3/4  plan towards {args.pairs} held-out goals, {OFFSET_STEPS} steps away, none solved at the start",
        flush=True,
    )
    result = _evaluate(folder, args)

    print("\n4/4  write the page", flush=True)
    page = importlib.import_module("benchmarks.report").write_report(
        [folder / "result.json"], folder / "index.html", title="LeWM-Gym demo: Two-Room"
    )
    floor = result.floor_success
    print(
        f"\nLeWM reaches its goal in {result.success} of pairs (Wilson 95 % interval, "
        f"{result.success.successes} of {result.success.episodes});\n"
        f"the random policy, on the same pairs, in {floor}.\n"
        f"\n  page     {page}\n  film     {folder / 'result.mp4'}\n  curves   {folder / 'curves.png'}\n"
        f"  numbers  {folder / 'result.json'}\n"
        f"\nThis call took {(time.monotonic() - begin) / 60:.1f} min. In Python: LeWMAgent.load({str(folder)!r})"
    )
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuses wrong arguments before minutes are spent on the right ones."""
    available = len(importlib.import_module("lewm_gym.pairs").load_shipped(TASK, OFFSET_STEPS).pairs)
    if not 1 <= args.pairs <= available:
        raise ValueError(f"--pairs must be within 1 and {available}, got {args.pairs}")
    if args.episodes < 2:
        raise ValueError(f"--episodes must be at least 2, one of them held out; got {args.episodes}")
    if args.steps is not None and args.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {args.steps}")
    if args.seed < 0:
        raise ValueError(f"--seed must not be negative, got {args.seed}")
    _check_folder(args)
    importlib.import_module("agents.devices").choose_device(args.device)


def _check_folder(args: argparse.Namespace) -> None:
    """Refuses the folder of another demo before anything in it is changed."""
    if not (args.out / "run.json").exists():
        return
    found = importlib.import_module("lewm_gym.checkpoint").load_description(args.out)
    there = {"episodes": found["dataset"]["episodes"], **{k: found["training"][k] for k in ("seed", "steps")}}
    asked = {"episodes": args.episodes, "seed": args.seed, "steps": args.steps or there["steps"]}
    if there != asked:
        raise ValueError(f"{args.out} holds a demo with {there}, not {asked}; choose another --out, or delete it")


def _collect(folder: Path, args: argparse.Namespace) -> Path:
    collect = importlib.import_module("collect.collector").collect
    with Bars() as bars:
        collect(TASK, folder, args.episodes, seed=args.seed, workers=args.workers, progress=bars.on_collect)
    return folder


def _train(data: Path, folder: Path, args: argparse.Namespace) -> None:
    overrides = {"seed": args.seed} | ({"steps": args.steps} if args.steps is not None else {})
    train_run = importlib.import_module("agents.run").train_run
    agent_class = importlib.import_module("agents").agent_class("lewm")
    with Bars() as bars:
        train_run(agent_class, data, folder, "laptop", overrides, args.device, bars.on_log, bars.on_load)


def _evaluate(folder: Path, args: argparse.Namespace) -> Any:
    """Returns the result, from disk if these weights have been evaluated on as many pairs before."""
    path = folder / "result.json"
    measure = importlib.import_module("benchmarks.measure")
    known = None
    if path.exists():
        result = importlib.import_module("lewm_gym.results").Result.load(path)
        same = (result.run["weights"], result.success.episodes, result.seed)
        known = result if same == (measure.weights_hash(folder), args.pairs, args.seed) else None
    if known and all(path.with_suffix(suffix).is_file() for suffix in (".mp4", ".png")):
        return known
    agent = importlib.import_module("agents").load_agent(folder, device=args.device)
    with Bars() as bars:

        def progress(stage: str, done: int, total: int) -> None:
            bars(stage, done, total, "episode")

        if known:  # its film was deleted
            return measure.refilm(folder, path, agent=agent, progress=progress)
        options = {"offset_steps": OFFSET_STEPS, "episodes": args.pairs, "seed": args.seed}
        return measure.measure(folder, out=path, film=True, progress=progress, agent=agent, **options)


def script() -> None:
    """Runs the command line as a program."""
    cli.run(main)


if __name__ == "__main__":
    script()
