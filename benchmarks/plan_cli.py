"""`python -m benchmarks plan RUN`: the command line of planning success."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import options as shared
from lewm_gym import cli
from lewm_gym.progress import Bars

if TYPE_CHECKING:
    from lewm_gym.results import Rate, Result

DESCRIPTION = (
    "Puts the agent of a run at the start of start/goal pairs and counts how many goals it meets within the budget; "
    "the random policy and a replay of the recorded actions get the same pairs. The same command resumes."
)


def add_command(commands: argparse._SubParsersAction[cli.Parser]) -> None:
    """Adds `plan`."""
    plan = commands.add_parser("plan", help="measure planning success", description=DESCRIPTION)
    plan.set_defaults(command=_plan)
    plan.add_argument("run", type=Path, metavar="RUN", help="run folder, e.g. runs/two_room-lewm-0")
    plan.add_argument(
        "--protocol",
        default="audited",
        metavar="NAME",
        help="audited: held-out pairs, none solved at the start, a random stream each, strict success too (default); "
        "official: as published, 50 rows of the training set under the reference's rules",
    )
    plan.add_argument(
        "--sampled-goals",
        nargs="?",
        const="uniform",
        metavar="KIND",
        help="goals that no dataset holds; uniform (default): start and goal drawn over all of the task's states; "
        "walk: where a random walk of --offset steps leads from the shipped pairs' starts",
    )
    plan.add_argument(
        "--pairs",
        type=Path,
        metavar="NAME",
        help="another suite that ships (cube: markov), or a file of pairs (default: the task's own suite)",
    )
    plan.add_argument("--dataset", type=Path, metavar="FOLDER", help="where the training set lies now (official)")
    plan.add_argument(
        "--offset",
        type=int,
        nargs="+",
        default=[25],
        metavar="STEPS",
        help="distances of the shipped pairs, environment steps, a result each (default: 25)",
    )
    plan.add_argument(
        "--budget", type=int, metavar="STEPS", help="environment steps allowed (default: twice the distance)"
    )
    shared.add_evaluation(plan)
    plan.add_argument(
        "--no-strict",
        action="store_true",
        help="end each episode at its success, without judging whether the goal is held; saves up to half of the plans",
    )
    plan.add_argument(
        "--planning",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="plan in another way than the run says, e.g. --planning cost=sum execute_blocks=1 n_iterations=30",
    )
    plan.add_argument(
        "--out", type=Path, metavar="FILE", help="result, JSON (default: results/<run>-<distance>-seed<seed>.json)"
    )
    plan.add_argument("--film", action="store_true", help="film six episodes, beside the result (.mp4 and .png)")


def _plan(options: argparse.Namespace) -> int:
    protocol = options.protocol
    if options.sampled_goals is not None:
        if protocol != "audited":
            raise ValueError("--sampled-goals is a protocol of its own; leave out --protocol")
        protocol = "sampled"
    if options.out is not None and len(options.offset) > 1:
        raise ValueError("--out names one result; with several --offset each gets its own name in results/")
    is_suite = importlib.import_module("benchmarks.protocols").is_suite
    if options.pairs is not None and len(options.offset) > 1 and not is_suite(options.pairs):
        raise ValueError("--pairs names a file of pairs of one distance; leave out --offset")
    planning = importlib.import_module("agents.__main__").parse_settings(options.planning)
    measure = importlib.import_module("benchmarks.measure").measure
    for offset in options.offset:
        with Bars() as bars:
            request = {"planning": planning, **_request(options, protocol, offset)}
            result = measure(options.run, progress=bars.on_episodes, **request)
        print(summary(result))
    return 0


def _request(options: argparse.Namespace, protocol: str, offset: int) -> dict[str, Any]:
    return {
        **({"sampled_goals": options.sampled_goals} if options.sampled_goals is not None else {}),
        "protocol": protocol,
        "pairs": options.pairs,
        "dataset": options.dataset,
        "offset_steps": offset,
        "budget_steps": options.budget,
        "strict": not options.no_strict,
        "out": options.out,
        "film": options.film,
        **shared.evaluation(options),
    }


def summary(result: Result) -> str:
    """Returns the result in a few lines for a terminal."""
    title = importlib.import_module("lewm_gym.tasks").get_task(result.task).title
    agent = importlib.import_module("benchmarks.report").AGENT_TITLES.get(result.agent, result.agent)
    where = f"goals {result.offset_steps} steps away" if result.offset_steps else "goals drawn uniformly"
    if result.protocol == "sampled" and result.offset_steps:
        where = f"goals {result.offset_steps} steps of a random walk away"
    rates = result.rates()
    pairs = "held-out pairs" if result.protocol == "audited" else "pairs"
    lines = [
        f"{title}, {agent}: {where}, budget {result.budget_steps} steps, protocol {result.protocol}",
        _line("success", result.success, f"of {result.success.episodes} {pairs} (Wilson 95 %)"),
        _line("strict", rates["strict_success"], "held for 5 steps"),
        _line("random", rates["floor_success"], "the same pairs"),
        _line("replay", rates["ceiling_success"], "the recorded actions"),
        *_phase_lines(result),
    ]
    per_plan = result.timing.get("seconds_per_plan")
    lines.append(f"  time     {result.seconds:.0f} s" + (f", {per_plan:.2f} s per plan" if per_plan else ""))
    return "\n".join(line for line in lines if line)


def _phase_lines(result: Result) -> list[str]:
    """Returns a line for each phase of the pairs; where they have none, and could, one that says how to add them."""
    phases = result.by_phase()
    if not phases and result.protocol == "audited":
        return ["  phases   unknown: the pairs are of an older version (python -m collect phases FILE adds them)"]
    lines = []
    for phase, rates in phases.items():
        strict, floor = rates["strict_success"], rates["floor_success"]
        parts = [f"{rate.successes} {name}" for rate, name in ((strict, "strict"), (floor, "random")) if rate]
        rate = rates["success"]
        assert rate is not None
        lines.append(f"    {phase:<18} {rate}  {rate.successes} of {rate.episodes} ({', '.join(parts)})")
    return lines


def _line(name: str, rate: Rate | None, note: str) -> str:
    return "" if rate is None else f"  {name:<8} {rate}  {rate.successes} {note}"
