"""Measures agents and what they know, and how fast things run; `report` shows what was measured as one page."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks import compare_cli, lab_cli, plan_cli, planning_cli, speed_data_cli, speed_plan_cli, suite_cli
from benchmarks import options as shared
from benchmarks.knowledge import cli as knowledge_cli
from lewm_gym import cli
from lewm_gym.progress import Bars
from lewm_gym.tasks import TASKS


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    return int(options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    plan_cli.add_command(commands)
    _add_speed(commands)
    compare_cli.add_command(commands)
    lab_cli.add_commands(commands)
    planning_cli.add_commands(commands)
    suite_cli.add_command(commands)
    knowledge_cli.add_commands(commands)
    report = commands.add_parser("report", help="render results as one page", description=REPORT_DESCRIPTION)
    report.set_defaults(command=_report)
    report.add_argument("results", type=Path, nargs="+", metavar="RESULTS", help="JSON files, or folders of them")
    report.add_argument(
        "--out", type=Path, metavar="FILE", help="page, HTML; Markdown goes beside it (default: <folder>/report.html)"
    )
    report.add_argument(
        "--title", default="LeWM-Gym report", metavar="TEXT", help="heading of the page (default: %(default)s)"
    )
    return parser


def _add_speed(commands: argparse._SubParsersAction[cli.Parser]) -> None:
    speed = commands.add_parser(
        "speed", help="measure how fast things run", description="Measures how fast things run."
    )
    subjects = speed.add_subparsers(required=True, metavar="WHAT")
    envs = subjects.add_parser("envs", help="time stepping and rendering each task", description=SPEED_ENVS_DESCRIPTION)
    envs.set_defaults(command=_speed_envs)
    envs.add_argument(
        "--tasks", nargs="+", choices=tuple(TASKS), default=tuple(TASKS), help="names (default: all)", metavar="TASK"
    )
    envs.add_argument(
        "--seconds", type=float, default=5.0, metavar="N", help="seconds for each figure (default: %(default)s)"
    )
    envs.add_argument("--quality", choices=("fast", "reference"), help="how carefully to draw (default: fast)")
    envs.add_argument(
        "--out",
        type=Path,
        default=Path("results/speed-envs.json"),
        metavar="FILE",
        help="record, JSON (default: %(default)s)",
    )

    speed_data_cli.add_command(subjects)
    speed_plan_cli.add_command(subjects)
    models = subjects.add_parser("train", help="time a training step of LeWM", description=SPEED_MODELS_DESCRIPTION)
    models.set_defaults(command=_speed_models)
    shared.add_timing(models, "speed-train.json")
    models.add_argument(
        "--batch-size", type=int, default=128, metavar="N", help="clips per step, of 4 frames (default: %(default)s)"
    )
    models.add_argument(
        "--precisions",
        nargs="+",
        default=["float32", "bf16"],
        choices=("float32", "bf16"),
        metavar="NAME",
        help="of the step (default: float32 bf16)",
    )
    models.add_argument(
        "--dataset", type=Path, metavar="FOLDER", help="whose loading is timed (default: 4 episodes of Two-Room)"
    )


SPEED_MODELS_DESCRIPTION = (
    "Times a training step of LeWM with random weights beside a plain implementation, and beside stable-worldmodel's "
    "where that is installed, in turn: medians. Writes JSON and prints a table."
)
SPEED_ENVS_DESCRIPTION = (
    "Steps and renders each task at 224 px on one core, in a process of its own: the median of five repeats, beside "
    "stable-worldmodel's in the same run where that is installed. Writes JSON and prints a table."
)
REPORT_DESCRIPTION = (
    "Renders result files as one self-contained HTML page and a Markdown file: success with Wilson 95 % intervals "
    "beside the published numbers, training curves, films, and what made each number."
)


def _report(options: argparse.Namespace) -> int:
    report = importlib.import_module("benchmarks.report")
    paths = report.find_results(options.results)
    out = options.out
    if out is None:
        folder = options.results[0] if options.results[0].is_dir() else options.results[0].parent
        out = folder / "report.html"
    page = report.write_report(paths, out, title=options.title)
    print(f"{len(paths)} {'result' if len(paths) == 1 else 'results'} -> {page} and {page.with_suffix('.md')}")
    return 0


def _speed_envs(options: argparse.Namespace) -> int:
    speed_envs = importlib.import_module("benchmarks.speed_envs")
    with Bars() as bars:
        rows = speed_envs.measure_envs(
            options.tasks,
            seconds=options.seconds,
            render_quality=options.quality,
            progress=lambda now, done, total: bars("speed", done, total, "figure", now),
        )
    speed_envs.save(options.out, rows)
    print(f"{speed_envs.table(rows)}\n\n{options.out}")
    return 0


def _speed_models(options: argparse.Namespace) -> int:
    speed = importlib.import_module("benchmarks.speed_models")
    device = importlib.import_module("agents.devices").choose_device(options.device)
    presets = importlib.import_module("agents.lewm").PRESETS
    for preset in options.presets:
        if preset not in presets:
            raise ValueError(f"unknown preset {preset!r}; expected some of: {', '.join(presets)}")
    if options.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {options.repeats}")
    if options.batch_size < 2:
        raise ValueError(f"--batch-size must be at least 2, got {options.batch_size}")
    figures = []
    for preset in options.presets:
        figures += speed.measure_training(
            preset, options.batch_size, tuple(options.precisions), options.repeats, device, print, options.dataset
        )
    speed.save(options.out, figures, device)
    print(f"\n{speed.table(figures)}\n\n{options.out}")
    return 0


def script() -> None:
    """Runs the command line as a program."""
    cli.run(main)


if __name__ == "__main__":
    script()
