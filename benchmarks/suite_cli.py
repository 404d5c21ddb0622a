"""The command line of `python -m benchmarks suite`."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks import options as shared
from benchmarks.compare_cli import BUDGET_MIN
from lewm_gym import cli
from lewm_gym.tasks import TASKS

DESCRIPTION = (
    "The paper's comparison in one command: collects or reuses a dataset of each task, trains and evaluates every "
    "agent with every seed, measures further distances, the published protocol, what models know and changed worlds, "
    "and writes the report. Says what it will cost before it starts; the same command resumes."
)


def add_command(commands: argparse._SubParsersAction[cli.Parser]) -> None:
    """Adds `suite`."""
    p = commands.add_parser("suite", help="collect, train, measure and report in one command", description=DESCRIPTION)
    p.set_defaults(command=_run)
    p.add_argument("--tasks", nargs="+", default=["all"], metavar="TASK", help="all (default), or names")
    shared.add_several(p, "suite", f"{BUDGET_MIN:g} for laptop; the preset's steps for paper")
    p.add_argument("--steps", type=int, metavar="N", help="optimiser steps instead, for every agent")
    p.add_argument("--episodes", type=int, metavar="N", help="of datasets still to collect (default: the preset's)")
    p.add_argument("--data", type=Path, default=Path("data"), metavar="FOLDER", help="datasets (default: %(default)s)")
    p.add_argument(
        "--out", type=Path, default=Path("results/suite"), metavar="FOLDER", help="results (default: %(default)s)"
    )
    p.add_argument("--dry-run", action="store_true", help="say what it would cost and which commands, and stop")


def _run(options: argparse.Namespace) -> int:
    suite = importlib.import_module("benchmarks.suite")
    if options.budget_min is not None and options.steps is not None:
        raise ValueError("give --budget-min or --steps, not both")
    by_time = options.budget_min is not None or (options.preset == "laptop" and options.steps is None)
    asked = suite.Suite(
        tasks=tuple(TASKS) if options.tasks == ["all"] else tuple(options.tasks),
        agents=tuple(options.agents),
        seeds=tuple(options.seeds),
        preset=options.preset,
        budget_min=(BUDGET_MIN if options.budget_min is None else options.budget_min) if by_time else None,
        steps=options.steps,
        episodes=options.episodes,
        n_pairs=options.n_pairs,
        settings=tuple(options.settings),
        data=options.data,
        runs=options.runs,
        out=options.out,
    )
    return int(suite.run(asked, lambda text: print(text, flush=True), options.dry_run))
