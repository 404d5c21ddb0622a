"""The command `speed data`: how fast training clips are drawn from datasets."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

from lewm_gym import cli
from lewm_gym.progress import Bars
from lewm_gym.tasks import TASKS

DESCRIPTION = (
    "Draws shuffled batches of training clips (4 frames 5 steps apart, uint8 at 224 px) from datasets, beside plain "
    "readers of the same frames (raw, HDF5, PNG) in the same run. Writes JSON and prints a table."
)


def add_command(subjects: argparse._SubParsersAction[cli.Parser]) -> None:
    """Adds the command `data` to the subjects of `speed`."""
    parser = subjects.add_parser("data", help="time drawing training clips from datasets", description=DESCRIPTION)
    parser.set_defaults(command=_run)
    add = parser.add_argument
    add("datasets", type=Path, nargs="*", metavar="DATASET", help="folders (default: those of the tasks in data/)")
    add("--seconds", type=float, default=3.0, metavar="N", help="seconds for each figure (default: %(default)s)")
    add("--batch-size", type=int, default=128, metavar="N", help="clips in a batch (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="threads that draw batches ahead (default: one per core, at most 4)")
    add(
        "--plain-episodes",
        type=int,
        default=6,
        metavar="N",
        help="episodes written out for the plain readers, 0 for none (default: %(default)s)",
    )
    add(
        "--out",
        type=Path,
        default=Path("results/speed-data.json"),
        metavar="FILE",
        help="record, JSON (default: %(default)s)",
    )


def _run(options: argparse.Namespace) -> int:
    folders = options.datasets or [folder for name in TASKS if (folder := Path("data") / name).is_dir()]
    if not folders:
        raise ValueError("there is no dataset in data/: name one, or make one with python -m collect")
    if options.threads is not None and options.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {options.threads}")
    threads = options.threads or min(4, os.cpu_count() or 1)
    speed_data = importlib.import_module("benchmarks.speed_data")
    with Bars() as bars:
        rows = speed_data.measure_data(
            folders,
            seconds=options.seconds,
            batch_size=options.batch_size,
            threads=threads,
            plain_episodes=options.plain_episodes,
            progress=lambda now, done, total: bars("speed", done, total, "figure", now),
        )
    speed_data.save(options.out, rows, threads, options.batch_size)
    print(f"{speed_data.table(rows)}\n\n{options.out}")
    return 0
