"""`python -m agents <agent> <dataset>`: trains an agent, or resumes. `python -m agents ship RUN`: see `COMMANDS`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from agents import agent_class, learning
from lewm_gym import cli
from lewm_gym.commands import Command, Settings, argument, option
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


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Trains an agent on a dataset. Run the same command again to resume.
    On several GPUs or machines: torchrun --nproc-per-node N -m agents ...
    """  # noqa: D205

    epilog = "\n".join(["further commands:", *(f"  {name:8} {text}" for name, (_, text) in COMMANDS.items())])

    agent: str = argument(f"one of: {', '.join(learning())}")
    dataset: tuple[Path, ...] = argument(
        "dataset folder, e.g. data/two_room; several datasets of one task are combined"
    )
    preset: str = option(
        "laptop",
        "laptop (for two CPU cores), paper (the paper's sizes, for a GPU), or, for lewm and pldm, guided (with an "
        "actor, by the task's recipe)",
    )
    out: Path | None = option(None, "run folder (default: runs/<task>-<agent>-<seed>)", metavar="FOLDER")
    seed: int | None = option(None, "seed of weights, clips and SIGReg's directions (default: the preset's)")
    steps: int | None = option(None, "optimiser steps (default: the preset's)")
    batch_size: int | None = option(None, "clips per step (default: the preset's)")
    precision: str | None = option(None, "float32 or bf16 (default: the preset's)")
    encoder: str | None = option(
        None,
        "gcbc, gcivl, gciql: scratch, dino, auto, or lewm with --set encoder_run=RUN; lewm, pldm: vit, resnet18 or "
        "conv (default: the preset's)",
    )
    device: str | None = option(None, "cpu, cuda, ... (default: a GPU if there is one)")
    threads: int | None = option(
        None, "CPU threads; the weights depend on their number (default: one per core)", least=1, most=1024
    )
    resume: bool = option(False, "fail if there is no run to resume")
    tensorboard: bool = option(False, "also log to TensorBoard in the run folder")
    wandb: str | None = option(None, "also log to this Weights & Biases project", metavar="PROJECT")
    settings: Settings = option(
        {},
        "other settings of the model or the training, e.g. --set latent_size=64 sigreg_weight=0.1",
        flag="--set",
    )

    def __call__(self) -> int:
        """Trains, with a progress bar."""
        kind = agent_class(self.agent)
        if not hasattr(kind, "presets"):
            raise ValueError(f"agent {self.agent!r} has nothing to train")

        import torch

        from agents.run import train_run
        from lewm_gym.data.union import open_datasets
        from lewm_gym.progress import Bars

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        given = {name: getattr(self, name) for name in ("seed", "steps", "batch_size", "precision", "encoder")}
        overrides = {name: value for name, value in given.items() if value is not None} | self.settings
        datasets = list(self.dataset)
        task = open_datasets(datasets).task
        name = task.removeprefix("gym:").replace("/", "-").replace(":", "-")  # as dataset folders are named
        seed = overrides.get("seed", kind.preset(self.preset, task).training.seed)
        folder = self.out or Path("runs") / f"{name}-{self.agent}-{seed}"
        if self.resume and not (folder / "run.json").exists():
            raise ValueError(f"there is no run in {folder} to resume")
        with _processes(self.device) as (device, first), Bars(disable=not first) as bars:
            begin = partial(self._begin, kind, folder, first)
            train_run(kind, datasets, folder, self.preset, overrides, device, bars.on_log, bars.on_load, begin)
        if first:
            print(f"{folder} is ready. Next: " + _next_step(task, folder))
        return 0

    def _begin(self, kind: Any, folder: Path, first: bool, description: dict[str, Any]) -> list[Any]:
        """Prints the agent's features as its training begins, and returns further log sinks: the first process does."""
        from agents import sinks

        if not first:
            return []
        if description["preset"] == "guided":
            print(f"settings that differ from preset laptop: {_recipe(description, kind.presets['laptop'])}")
        if "features" in description:
            along = description["model"].get("encoder") == "scratch"
            frozen = "; for those of a frozen encoder: --encoder dino, or --encoder lewm --set encoder_run=RUN"
            print(f"features: {description['features']}{frozen if along else ''}")
        made = [sinks.tensorboard(folder)] if self.tensorboard else []
        return made + ([sinks.weights_and_biases(self.wandb, folder, description)] if self.wandb else [])


def main(arguments: list[str] | None = None) -> int:
    """Trains, or runs one of the further commands; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in COMMANDS:
        return int(load_command(words[0]).parse(words[1:], f"python -m agents {words[0]}")())
    return Train.parse(words, "python -m agents")()


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


def _recipe(description: dict[str, Any], other: Any) -> str:
    """Returns the settings of a run that differ from a preset's, and its planner."""
    settings = {**description["model"], **description["training"]}
    reference = {**asdict(other.model), **asdict(other.training)}
    changed = [f"{k}={v}" for k, v in settings.items() if v != reference[k] and k not in ("action_size", "seed")]
    return " ".join([*changed, f"planner={description['planning']['planner']}"])


def script() -> None:
    """Runs the command line as a program."""
    cli.run(main)


if __name__ == "__main__":
    script()
