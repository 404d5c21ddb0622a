"""`python -m agents <agent> <dataset>`: trains an agent, or resumes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from agents import AGENTS, agent_class
from lewm_gym import cli


def parser() -> argparse.ArgumentParser:
    """Returns the command line's parser."""
    p = cli.Parser(
        prog="python -m agents",
        description="Train an agent on a dataset. The same command resumes a run that was stopped.",
    )
    trainable = [name for name in AGENTS if name != "random"]
    p.add_argument("agent", help=f"one of: {', '.join(trainable)}")
    p.add_argument("dataset", type=Path, help="folder that `python -m collect` wrote, e.g. data/two_room")
    p.add_argument(
        "--preset",
        default="laptop",
        help="recipe: laptop (minutes on two CPU cores; default) or paper (hours on a GPU)",
    )
    p.add_argument("--out", type=Path, help="run folder [runs/<task>-<agent>-<seed>]")
    p.add_argument("--seed", type=int, help="seed of weights, clips and SIGReg's directions [the preset's]")
    p.add_argument("--steps", type=int, help="optimiser steps [the preset's]")
    p.add_argument("--batch-size", type=int, help="clips per step [the preset's]")
    p.add_argument("--precision", help="float32 or bf16 [the preset's]")
    p.add_argument("--device", help="cpu, cuda, cuda:1 ... [a GPU if there is one]")
    p.add_argument("--threads", type=int, help="CPU threads [one per core]; the same number gives the same weights")
    p.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", dest="settings",
        help="any other setting of the model or the training, e.g. --set latent_size=64 sigreg_weight=0.1",
    )  # fmt: skip
    return p


def main(arguments: list[str] | None = None) -> int:
    """Trains, with a progress bar."""
    p = parser()
    args = p.parse_args(arguments)
    kind = agent_class(args.agent)
    if not hasattr(kind, "presets"):
        raise ValueError(f"agent {args.agent!r} has nothing to train")

    import torch

    from agents.run import train_run
    from lewm_gym.data.dataset import Dataset
    from lewm_gym.progress import Bars

    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    overrides = {
        name: value
        for name in ("seed", "steps", "batch_size", "precision")
        if (value := getattr(args, name)) is not None
    } | _parse_settings(args.settings)
    task = Dataset.open(args.dataset).task
    folder = args.out or Path("runs") / f"{task}-{args.agent}-{overrides.get('seed', 0)}"
    with Bars() as bars:
        train_run(kind, args.dataset, folder, args.preset, overrides, args.device, bars.on_log, bars.on_load)
    print(f"{folder} is ready: python -m benchmarks plan {folder}")
    return 0


def _parse_settings(settings: list[str]) -> dict[str, Any]:
    """Returns NAME=VALUE pairs as a dictionary; numbers and JSON lists are read as such, anything else as text."""
    import json

    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, got {setting!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        values[name] = tuple(value) if isinstance(value, list) else value
    return values


if __name__ == "__main__":
    cli.run(main)
