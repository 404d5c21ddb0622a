"""Options that several commands have: one name and one meaning each."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

from lewm_gym.commands import Command, option
from lewm_gym.tasks import TASKS, get_task

BUDGET_MIN = 10.0  # of a training, unless something else is asked for


@dataclass(frozen=True, kw_only=True)
class Evaluating(Command):
    """Options of every evaluation of finished runs."""

    n_pairs: int | None = option(None, "number of pairs, from the first (default: all)", least=1, most=100_000)
    seed: int = option(0, "planner seed", least=0)
    n_envs: int = option(16, "environments evaluated at once; changes the speed, not the outcomes", least=1)
    workers: int = option(
        os.cpu_count() or 1, "processes for the environments; changes the speed, not the outcomes", least=1, most=1024
    )

    def evaluating(self) -> dict[str, Any]:
        """Returns these options, for another command that has them."""
        return {field.name: getattr(self, field.name) for field in fields(Evaluating)}


@dataclass(frozen=True, kw_only=True)
class OnDevice(Command):
    """The option of everything that computes with a model."""

    device: str | None = option(None, "cpu, cuda, ... (default: a GPU if there is one)")


@dataclass(frozen=True, kw_only=True)
class OnTasks(Command):
    """The option of what is done for several tasks; a call without names is of all."""

    tasks: tuple[str, ...] = option(("all",), "all, or a list of names")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tasks", tuple(TASKS) if self.tasks == ("all",) else self.tasks)
        for task in self.tasks:
            get_task(task)


@dataclass(frozen=True, kw_only=True)
class Training(Command):
    """Options of commands that train several agents."""

    agents: tuple[str, ...] = option(("all",), "all, or a list of names")
    seeds: tuple[int, ...] = option((0, 1, 2), "training seeds", least=0)
    preset: str = option("laptop", "preset of every agent")
    budget_min: float | None = option(
        None,
        "training budget per run (minutes), converted to steps by timing (default: 10; preset paper: its own steps)",
        metavar="MINUTES",
        least=1e-6,
    )
    n_pairs: int | None = option(None, "number of pairs, from the first (default: all)", least=1, most=100_000)
    settings: tuple[str, ...] = option(
        (),
        "settings of agents that replace their preset's, e.g. gcbc.learning_rate=0.001",
        flag="--set",
        metavar="AGENT.NAME=VALUE",
    )


@dataclass(frozen=True, kw_only=True)
class OnCluster(Command):
    """Options of commands that may run each training, with its evaluation, as a task of a Ray cluster."""

    ray: str | None = option(
        None, "use a Ray cluster: auto, ray://head:10001, or local (default: none)", metavar="ADDRESS"
    )
    ray_cpus: int | None = option(
        None, "with --ray: CPUs of each training, and its threads (default: as many as here)", least=1, most=1024
    )
    ray_gpus: float = option(0.0, "with --ray: GPUs of each training, such as 0.5", least=0.0, most=1024)


@dataclass(frozen=True, kw_only=True)
class Timing(OnDevice):
    """Options of every measurement of a model's speed."""

    presets: tuple[str, ...] = option(("laptop", "paper"), "presets to time")
    compiled: bool = option(False, "also time what torch.compile makes of ours")
    repeats: int = option(5, "repetitions of each timing, after a warm-up", least=1)
