"""LeWM-Gym: environments, datasets, world-model agents and benchmarks around LeWorldModel (arXiv 2603.19312).

Importing this package registers every task with Gymnasium, so that `gym.make("lewm/TwoRoom-v0")` works, and imports
neither a simulator nor torch; `gym.make("lewm_gym:lewm/TwoRoom-v0")` imports it automatically.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

import gymnasium

from lewm_gym import neighbours
from lewm_gym.tasks import TASKS, Task, get_task

if TYPE_CHECKING:
    LeWMAgent: Any

__version__ = "0.1.0"
__all__ = ["TASKS", "LeWMAgent", "Task", "get_task"]


def _register_tasks() -> None:
    for task in TASKS.values():
        if task.env_id not in gymnasium.registry:
            gymnasium.register(
                id=task.env_id,
                entry_point=task.entry_point,
                vector_entry_point=task.vector_entry_point,
                max_episode_steps=task.max_episode_steps,
            )


def _warn_of_intruders() -> None:
    for name in neighbours.NAMES:
        if line := neighbours.intruder(name):
            warnings.warn(line, RuntimeWarning, stacklevel=3)


_register_tasks()
_warn_of_intruders()


def __getattr__(name: str) -> Any:
    if name == "LeWMAgent":  # torch is imported only by those who ask for the agent
        return importlib.import_module("agents.lewm").LeWMAgent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
