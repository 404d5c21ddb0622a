"""`python -m benchmarks speed plan`: the command line of planning speed."""

from __future__ import annotations

import argparse
import importlib
import itertools
from typing import Any

from benchmarks import options as shared
from lewm_gym import cli

DESCRIPTION = (
    "Times a plan, from two pictures to actions, with random weights, beside plain implementations of the same, in "
    "turn: medians. Writes JSON and prints a table."
)


def add_command(subjects: argparse._SubParsersAction[cli.Parser]) -> None:
    """Adds `plan`."""
    plan = subjects.add_parser(
        "plan", help="time a plan, by agent, planner, precision and number of environments", description=DESCRIPTION
    )
    plan.set_defaults(command=_run)
    lists: dict[str, tuple[list[Any], type, str]] = {
        "agents": (["lewm"], str, "agents that plan: lewm, pldm, dino_wm"),
        "planners": (["cem"], str, "cem, icem, mppi, gradient; each with its default settings"),
        "precisions": (["float32", "bf16"], str, "of the rollout"),
        "n-envs": ([1], int, "environments planned for in one call"),
    }
    for name, (default, kind, text) in lists.items():
        shown = " ".join(map(str, default))
        plan.add_argument(
            f"--{name}",
            nargs="+",
            type=kind,
            default=default,
            metavar="N" if kind is int else "NAME",
            help=f"{text} (default: {shown})",
        )
    for name in ("candidates", "iterations"):
        plan.add_argument(
            f"--{name}",
            type=int,
            metavar="N",
            help="time only so many, and extrapolate linearly (default: all; on a CPU as many as take seconds)",
        )
    shared.add_timing(plan, "speed-plan.json")


def _run(options: argparse.Namespace) -> int:
    if options.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {options.repeats}")
    planners = importlib.import_module("lewm_gym.planning").PLANNERS
    precisions = importlib.import_module("agents.planning").PRECISIONS
    known = (("planner", options.planners, planners), ("precision", options.precisions, precisions))
    for what, chosen, allowed in known:
        for name in chosen:
            if name not in allowed:
                raise ValueError(f"unknown {what} {name!r}; expected some of: {', '.join(allowed)}")
    device = importlib.import_module("agents.devices").choose_device(options.device)
    speed = importlib.import_module("benchmarks.speed_plan")
    choices = itertools.product(options.agents, options.presets, options.planners, options.precisions, options.n_envs)
    jobs = [speed.Job(*choice, options.candidates, options.iterations) for choice in choices]
    for job in jobs:
        speed.check(job)
    figures = []
    for job in jobs:
        print(f"{job.agent} {job.preset} {job.planner} {job.precision}, environments: {job.n_envs}", flush=True)
        figures += speed.measure(job, options.repeats, device)
        speed.save(options.out, figures, device)
    print(f"\n{speed.table(figures)}\n\n{options.out}")
    return 0
