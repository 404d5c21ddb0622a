"""`tradeoff RUN`, `precision RUN` and `compare-results A B`: the command lines of what planning costs and loses."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from benchmarks import options as shared
from lewm_gym import cli
from lewm_gym.progress import Bars

TRADEOFF = (
    "Measures success and the time of a plan over planners, candidates and iterations, on the same pairs, and draws "
    "one against the other with Wilson 95 % intervals (JSON, and a PNG beside it). The same command resumes; a "
    "larger grid adds to what is there."
)
PRECISION = "Measures planning success in float32 and in bf16 on the same pairs, and the paired difference."
COMPARE = "Prints the paired difference in success of two results on the same pairs, with its 95 % interval."


def add_commands(commands: argparse._SubParsersAction[cli.Parser]) -> None:
    """Adds the three verbs."""
    tradeoff = commands.add_parser("tradeoff", help="measure success against latency", description=TRADEOFF)
    tradeoff.set_defaults(command=_tradeoff)
    tradeoff.add_argument("run", type=Path, metavar="RUN", help="run folder")
    tradeoff.add_argument(
        "--planners",
        nargs="+",
        default=["cem", "icem", "mppi"],
        metavar="NAME",
        help="cem, icem, mppi, gradient (default: cem icem mppi)",
    )
    for name, default in (("candidates", [30, 100, 300]), ("iterations", [1, 3, 10, 30])):
        shown = " ".join(map(str, default))
        tradeoff.add_argument(
            f"--{name}", type=int, nargs="+", default=default, metavar="N", help=f"of a plan (default: {shown})"
        )
    tradeoff.add_argument("--precision", default="float32", metavar="NAME", help="float32 (default) or bf16")
    shared.add_evaluation(tradeoff)
    tradeoff.add_argument(
        "--out", type=Path, metavar="FILE", help="record, JSON (default: results/tradeoff-<run>.json)"
    )

    precision = commands.add_parser("precision", help="measure planning in bf16 against float32", description=PRECISION)
    precision.set_defaults(command=_precision)
    precision.add_argument("run", type=Path, metavar="RUN", help="run folder")
    shared.add_evaluation(precision)
    precision.add_argument(
        "--out", type=Path, default=Path("results"), metavar="FOLDER", help="of both results (default: %(default)s)"
    )

    compare = commands.add_parser("compare-results", help="compare two results on the same pairs", description=COMPARE)
    compare.set_defaults(command=_compare)
    compare.add_argument("first", type=Path, metavar="A.json", help="result of `plan`")
    compare.add_argument(
        "second", type=Path, metavar="B.json", help="another, on the same pairs; the difference is B - A"
    )


def _tradeoff(options: argparse.Namespace) -> int:
    module = importlib.import_module("benchmarks.tradeoff")
    grid = module.Grid(tuple(options.planners), tuple(options.candidates), tuple(options.iterations), options.precision)
    out = options.out or Path("results", f"tradeoff-{options.run.resolve().name}.json")
    with Bars() as bars:
        record = module.measure_tradeoff(
            options.run, out, grid, progress=bars.on_episodes, **shared.evaluation(options)
        )
    section = module.section(record, out.parent)
    print(f"{section.title}\n\n{section.markdown}\n\n{out} and {out.with_suffix('.png')}")
    return 0


def _precision(options: argparse.Namespace) -> int:
    module = importlib.import_module("benchmarks.precision")
    with Bars() as bars:
        results, difference = module.measure_precision(
            options.run, options.out, bars.on_episodes, strict=False, **shared.evaluation(options)
        )
    for name, result in results.items():
        plan = result.timing["seconds_per_plan"]
        print(f"{name:8} {result.success}, {1000 * plan:.0f} ms per plan")
    _tell(difference, "bf16", "float32")
    return 0


def _compare(options: argparse.Namespace) -> int:
    load = importlib.import_module("lewm_gym.results").Result.load
    first, second = load(options.first), load(options.second)
    for path, result in ((options.first, first), (options.second, second)):
        print(f"{path}: {result.agent}, {result.success}")
    _tell(importlib.import_module("lewm_gym.paired").compare(first, second), "the second", "the first")
    return 0


def _tell(difference: Any, one: str, other: str) -> None:
    print(
        f"{one} against {other}: {difference} (paired, Newcombe 95 %); "
        f"{difference.second_only} pairs solved by {one} alone, {difference.first_only} by {other} alone"
    )
