"""The command line of `python -m benchmarks compare`."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from benchmarks import options as shared
from lewm_gym import cli
from lewm_gym.progress import Bars

DESCRIPTION = (
    "Trains each agent on each dataset with each seed, evaluates it on the shipped held-out pairs beside a random "
    "floor and two ceilings, and writes tables. Says what it will cost before it starts; the same command resumes."
)

BUDGET_MIN = 10.0


def add_command(commands: argparse._SubParsersAction[cli.Parser]) -> None:
    """Adds the command `compare`."""
    p = commands.add_parser("compare", help="train, evaluate and tabulate agents side by side", description=DESCRIPTION)
    p.set_defaults(command=run)
    p.add_argument("datasets", type=Path, nargs="+", metavar="DATASET", help="dataset folders, each of another task")
    shared.add_several(p, "compare", f"{BUDGET_MIN:g}")
    p.add_argument(
        "--steps",
        nargs="+",
        default=[],
        metavar="N",
        help="optimiser steps instead: N for all, AGENT=N, TASK/AGENT=N",
    )
    shared.add_offset(p)
    p.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: a GPU if there is one)")
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")
    p.add_argument(
        "--out",
        type=Path,
        default=Path("results/compare"),
        metavar="FOLDER",
        help="results, calibration.json, compare.json and compare.md (default: %(default)s)",
    )
    p.add_argument("--dry-run", action="store_true", help="say what it would cost, and stop")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    steps = _steps(options.steps)
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {options.threads}")
        importlib.import_module("torch").set_num_threads(options.threads)
    comparison = importlib.import_module("benchmarks.comparison")
    settings = _settings(options.settings)
    agents = comparison.named_agents(options.agents, settings)
    if "dino_wm" not in agents and not {"all", "dino_wm"}.isdisjoint(options.agents):
        print("no DINOv2 weights here: random_vit, on the features of a random ViT, stands in for dino_wm")
    asked_for = comparison.Comparison(
        datasets=tuple(options.datasets),
        agents=agents,
        seeds=tuple(options.seeds),
        preset=options.preset,
        budget_min=BUDGET_MIN if options.budget_min is None else options.budget_min,
        steps=steps,
        offset_steps=options.offset,
        n_pairs=options.n_pairs,
        runs=options.runs,
        out=options.out,
        device=options.device,
        settings=settings,
    )
    with Bars() as bars:
        importlib.import_module("benchmarks.compare").compare(asked_for, print, bars, options.dry_run)
    return 0


def _steps(given: list[str]) -> dict[str, int]:
    """Returns steps by "task/agent", "agent", or "" for all."""
    steps = {}
    for text in given:
        key, _, number = text.rpartition("=")
        if not number.isdecimal() or int(number) < 1:
            raise ValueError(f"--steps takes N, AGENT=N or TASK/AGENT=N with N at least 1, got {text!r}")
        steps[key] = int(number)
    return steps


def _settings(given: list[str]) -> dict[str, dict[str, Any]]:
    """Returns settings by agent."""
    parse = importlib.import_module("agents.__main__").parse_settings
    settings: dict[str, dict[str, Any]] = {}
    for text in given:
        agent, dot, rest = text.partition(".")
        if not dot or "=" in agent:
            raise ValueError(f"--set takes AGENT.NAME=VALUE, got {text!r}")
        settings.setdefault(agent, {}).update(parse([rest]))
    return settings
