"""The oracle: replays recorded actions, whatever the observation. An upper reference for success rates.

It needs the actions that led from the start to the goal, for each seed that `reset` names for an environment:

    seeds = [stream_seed(seed, index) for index in range(len(pairs))]           # benchmarks.plan
    oracle = OracleAgent({s: pair.actions for s, pair in zip(seeds, pairs)})

If an environment restores its states exactly, every pair is solved after the recorded number of steps. A rate
below 1 indicates a problem of the environment or the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from agents.random import Blind
from lewm_gym import checkpoint
from lewm_gym.tasks import get_task


class OracleAgent(Blind):
    """Replays actions, then takes zero actions.

    Attributes:
        name: The agent's name in AGENTS and in run folders.

    Args:
        plans: Seed of an environment -> the actions to take in it, (steps, action_size).
        action_size: Length of an action; that of the plans by default.

    Raises:
        ValueError: If there is no plan, or plans are of other shapes.
    """

    name: ClassVar[str] = "oracle"

    def __init__(self, plans: Mapping[int, NDArray[np.float32]], action_size: int | None = None) -> None:
        self.recorded = {int(seed): np.array(plan, np.float32) for seed, plan in plans.items()}
        sizes = {plan.shape[1:] for plan in self.recorded.values()}
        if len(sizes) != 1 or len(next(iter(sizes))) != 1 or (action_size and sizes != {(action_size,)}):
            raise ValueError(f"plans must be arrays (steps, {action_size or 'action_size'}), got shapes (.., {sizes})")
        super().__init__(next(iter(sizes))[0])

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None, seed: int = 0) -> Self:
        """Returns the oracle that `save` wrote; `device` and `seed` have no effect.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is damaged, or of another agent.
        """
        description = checkpoint.load_description(folder)
        if description["agent"] != cls.name:
            raise ValueError(f"{folder} holds a run of agent {description['agent']!r}, not of {cls.name!r}")
        tensors = checkpoint.load_weights_of(Path(folder), description)
        plans = {int(name): tensor.numpy() for name, tensor in tensors.items()}
        return cls(plans, get_task(str(description["task"])).action_size)

    def save(self, folder: str | Path, task: str) -> None:
        """Writes a run folder that `load` reads, for a task."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {str(seed): torch.from_numpy(plan) for seed, plan in self.recorded.items()}
        checkpoint.save_tensors(folder / checkpoint.WEIGHTS, tensors)
        checkpoint.save_description(folder, {"agent": self.name, "task": get_task(task).name, "finished": True})

    def reset(self, seeds: list[int] | None = None) -> None:
        """Starts the plan of each environment.

        Raises:
            ValueError: If a seed has no plan.
        """
        unknown = [seed for seed in seeds or [] if seed not in self.recorded]
        if unknown:
            raise ValueError(f"the oracle has plans for {len(self.recorded)} seeds, none for {unknown[:3]}")
        self._memory = [list(self.recorded[seed]) for seed in seeds or []]

    def _next(self, memory: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        return memory.pop(0) if memory else np.zeros(self.action_size, np.float32)


class ExpertAgent(OracleAgent):
    """Replays the actions of the collection policy from the same start to the same goal (benchmarks/references.py).

    A second upper reference: a policy that sees states and knows the task, but not the recorded actions.
    """

    name = "expert"
