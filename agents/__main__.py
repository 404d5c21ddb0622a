"""`python -m agents <agent> <dataset>`: trains an agent, or resumes. `python -m agents ship RUN`: see `COMMANDS`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agents import agent_class, learning
from lewm_gym import cli
from lewm_gym.commands import parse_settings
from lewm_gym.tasks import TASKS

#: What else can be done with a finished run: name -> (`module:class` of the `Command`, what it does).
COMMANDS = {
    "ship": ("agents.shipping:Ship", "add a finished run to the package, for LeWMAgent.from_pretrained"),
    "export": ("agents.export:Export", "export a finished run's networks as ONNX, to act without torch"),
}


def load_command(name: str) -> Any:
    """Returns the class of the command called `name`."""
    module, _, command = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(module), command)


def parser() -> argparse.ArgumentParser:
    """Returns the command line's parser."""
    p = cli.Parser(
        prog="python -m agents",
        description="Trains an agent on a dataset. Run the same command again to resume.\n"
        "On several GPUs or machines: torchrun --nproc-per-node N -m agents ...",
        epilog="\n".join(["further commands:", *(f"  {name:8} {text}" for name, (_, text) in COMMANDS.items())]),
        formatter_class=cli.RawText,
    )
    p.add_argument("agent", metavar="AGENT", help=f"one of: {', '.join(learning())}")
    p.add_argument(
        "dataset",
        type=Path,
        nargs="+",
        metavar="DATASET",
        help="dataset folder, e.g. data/two_room; several datasets of one task are combined",
    )
    p.add_argument(
        "--preset",
        default="laptop",
        metavar="NAME",
        help="laptop (for two CPU cores; default), paper (the paper's sizes, for a GPU), or, for lewm and pldm, "
        "guided (with an actor, by the task's recipe)",
    )
    p.add_argument("--out", type=Path, metavar="FOLDER", help="run folder (default: runs/<task>-<agent>-<seed>)")
    p.add_argument(
        "--seed", type=int, metavar="N", help="seed of weights, clips and SIGReg's directions (default: the preset's)"
    )
    p.add_argument("--steps", type=int, metavar="N", help="optimiser steps (default: the preset's)")
    p.add_argument("--batch-size", type=int, metavar="N", help="clips per step (default: the preset's)")
    p.add_argument("--precision", metavar="NAME", help="float32 or bf16 (default: the preset's)")
    p.add_argument(
        "--encoder",
        metavar="NAME",
        help="gcbc, gcivl, gciql: scratch, dino, auto, or lewm with --set encoder_run=RUN; lewm, pldm: vit, resnet18 "
        "or conv (default: the preset's)",
    )
    p.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: a GPU if there is one)")
    p.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads; the weights depend on their number (default: one per core)",
    )
    p.add_argument("--resume", action="store_true", help="fail if there is no run to resume")
    p.add_argument("--tensorboard", action="store_true", help="also log to TensorBoard in the run folder")
    p.add_argument("--wandb", metavar="PROJECT", help="also log to this Weights & Biases project")
    p.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="other settings of the model or the training, e.g. --set latent_size=64 sigreg_weight=0.1",
    )
    return p


def main(arguments: list[str] | None = None) -> int:
    """Trains, with a progress bar, or runs one of the further commands."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in COMMANDS:
        return int(load_command(words[0]).parse(words[1:], f"python -m agents {words[0]}")())
    p = parser()
    args = p.parse_args(words)
    kind = agent_class(args.agent)
    if not hasattr(kind, "presets"):
        raise ValueError(f"agent {args.agent!r} has nothing to train")

    import torch

    from agents.run import train_run
    from lewm_gym.data.union import open_datasets
    from lewm_gym.progress import Bars

    if args.threads is not None:
        if not 1 <= args.threads <= 1024:
            raise ValueError(f"--threads must be within 1..1024, got {args.threads}")
        torch.set_num_threads(args.threads)
    given = {name: getattr(args, name) for name in ("seed", "steps", "batch_size", "precision", "encoder")}
    overrides = {name: value for name, value in given.items() if value is not None} | parse_settings(args.settings)
    task = open_datasets(args.dataset).task
    name = task.removeprefix("gym:").replace("/", "-").replace(":", "-")  # as dataset folders are named
    seed = overrides.get("seed", kind.preset(args.preset, task).training.seed)
    folder = args.out or Path("runs") / f"{name}-{args.agent}-{seed}"
    if args.resume and not (folder / "run.json").exists():
        raise ValueError(f"there is no run in {folder} to resume")
    with _processes(args.device) as (device, first), Bars(disable=not first) as bars:
        begin = _beginning(args, kind, folder) if first else lambda description: ()
        train_run(kind, args.dataset, folder, args.preset, overrides, device, bars.on_log, bars.on_load, begin)
    if first:
        print(f"{folder} is ready. Next: " + _next_step(task, folder))
    return 0


def _next_step(task: str, folder: Path) -> str:
    """Returns the next step for a finished run; success is only measured on LeWM-Gym's tasks."""
    if task in TASKS:
        return f"python -m benchmarks plan {folder}"
    return f"agent = agents.load_agent({str(folder)!r}) in Python, then agent.act(obs)"


@contextmanager
def _processes(device: str | None) -> Iterator[tuple[str | None, bool]]:
    """Joins the processes of `torchrun`, if there are any; yields this one's device and whether it is the first."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device, True
        return
    import torch

    gpu = torch.cuda.is_available() and device != "cpu"
    local = int(os.environ["LOCAL_RANK"])
    if gpu:
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("nccl" if gpu else "gloo")
    try:
        yield (f"cuda:{local}" if gpu else "cpu"), torch.distributed.get_rank() == 0
        torch.distributed.barrier()  # one that leaves while others still talk to it can abort as it ends
    finally:
        torch.distributed.destroy_process_group()


def _beginning(args: argparse.Namespace, kind: Any, folder: Path) -> Callable[[dict[str, Any]], list[Any]]:
    """Returns a callback for the start of training: it prints the agent's features and returns further log sinks."""

    def begin(description: dict[str, Any]) -> list[Any]:
        """Returns the further log sinks of a training with this description."""
        from agents import sinks

        if description["preset"] == "guided":
            print(f"settings that differ from preset laptop: {_recipe(description, kind.presets['laptop'])}")
        if "features" in description:
            along = description["model"].get("encoder") == "scratch"
            frozen = "; for those of a frozen encoder: --encoder dino, or --encoder lewm --set encoder_run=RUN"
            print(f"features: {description['features']}{frozen if along else ''}")
        made = []
        if args.tensorboard:
            made.append(sinks.tensorboard(folder))
        if args.wandb:
            made.append(sinks.weights_and_biases(args.wandb, folder, description))
        return made

    return begin


def _recipe(description: dict[str, Any], other: Any) -> str:
    """Returns the settings of a run that differ from a preset's, and its planner."""
    from dataclasses import asdict

    settings = {**description["model"], **description["training"]}
    reference = {**asdict(other.model), **asdict(other.training)}
    changed = [f"{k}={v}" for k, v in settings.items() if v != reference[k] and k not in ("action_size", "seed")]
    return " ".join([*changed, f"planner={description['planning']['planner']}"])


def script() -> None:
    """Runs the command line as a program."""
    cli.run(main)


if __name__ == "__main__":
    script()
