"""Options that several commands have: one name and one meaning each."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def add_n_pairs(parser: argparse.ArgumentParser) -> None:
    """Adds `--n-pairs`."""
    parser.add_argument("--n-pairs", type=int, metavar="N", help="number of pairs, from the first (default: all)")


def add_offset(parser: argparse.ArgumentParser) -> None:
    """Adds `--offset`, of a command that measures at one distance."""
    parser.add_argument(
        "--offset",
        type=int,
        default=25,
        metavar="STEPS",
        help="distance of the pairs, environment steps (default: %(default)s)",
    )


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """Adds what every evaluation of finished runs takes; `evaluation` returns it."""
    add_n_pairs(parser)
    # Its first name, which the commands of older results bear.
    parser.add_argument("--episodes", type=int, dest="n_pairs", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the agent's random streams (default: %(default)s)"
    )
    parser.add_argument(
        "--n-envs",
        type=int,
        default=16,
        metavar="N",
        help="environments evaluated at once; changes the speed, not the outcomes (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that the environments live in; likewise (default: one per core)",
    )


def evaluation(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the values of `add_evaluation`, as keyword arguments of the measuring functions."""
    return {"episodes": options.n_pairs, **{name: getattr(options, name) for name in ("seed", "n_envs", "workers")}}


def add_several(parser: argparse.ArgumentParser, name: str, budget_default: str) -> None:
    """Adds what commands that train several agents take, and the folders they write.

    Args:
        parser: The command's.
        name: Of the command, and of its folders.
        budget_default: What the help says of the default of `--budget-min`.
    """
    parser.add_argument("--agents", nargs="+", default=["all"], metavar="NAME", help="all (default), or names")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="of training (default: 0 1 2)"
    )
    parser.add_argument("--preset", default="laptop", metavar="NAME", help="of every agent (default: %(default)s)")
    parser.add_argument(
        "--budget-min",
        type=float,
        metavar="MINUTES",
        help=f"of optimiser steps for each training; a calibration turns them into steps (default: {budget_default})",
    )
    add_n_pairs(parser)
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        dest="settings",
        metavar="AGENT.NAME=VALUE",
        help="a setting of an agent in place of its preset's, e.g. gcbc.learning_rate=0.001",
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs", name), metavar="FOLDER", help="run folders (default: %(default)s)"
    )


def add_timing(parser: argparse.ArgumentParser, out: str) -> None:
    """Adds what every measurement of a model's speed takes.

    Args:
        parser: The command's.
        out: Name of the record in results/ by default.
    """
    parser.add_argument(
        "--presets", nargs="+", default=["laptop", "paper"], metavar="NAME", help="sizes (default: laptop paper)"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        metavar="N",
        help="timings of each figure, after a warm-up (default: %(default)s)",
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results", out),
        metavar="FILE",
        help="record, JSON (default: %(default)s)",
    )
