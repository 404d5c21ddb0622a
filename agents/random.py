"""The random policy: uniform actions, whatever the observation. The random baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_gym.files import read_json
from lewm_gym.tasks import get_task
from lewm_gym.types import Obs


class Blind:
    """What agents share that look at no frame: an action for each environment, from its own memory.

    A subclass says in `_next` what each does, and `_memory` has an entry per environment.
    """

    proprioception = False
    plans = 0

    def __init__(self, action_size: int) -> None:
        self.action_size = action_size
        self._memory: list[Any] = []

    def reset(self, seeds: list[int] | None = None) -> None:
        """Starts anew: by `seeds`, one per environment."""
        raise NotImplementedError

    def _next(self, memory: Any) -> NDArray[np.float32]:
        raise NotImplementedError

    def select_envs(self, rows: list[int]) -> None:
        """Continues with the environments in `rows` only, in that order."""
        self._memory = [self._memory[row] for row in rows]

    def needs_frame(self) -> list[bool]:
        """Returns that it needs no frames."""
        return [False] * len(self._memory)

    def share_rng(self) -> None:
        """Does nothing: environments are independent."""

    def act(self, obs: Obs) -> NDArray[np.float32]:
        """Returns an action (action_size,) for one observation, (B, action_size) for a stacked one.

        Raises:
            ValueError: For another number of environments than at the last `reset`.
        """
        stacked = np.ndim(obs["pixels"]) == 4
        count = len(obs["pixels"]) if stacked else 1
        if len(self._memory) != count:
            raise ValueError(f"the agent was reset for {len(self._memory)} environments, not {count}; call reset first")
        actions = np.stack([self._next(memory) for memory in self._memory])
        return actions if stacked else actions[0]

    def predict(
        self,
        observation: Obs,
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], Any]:
        """Returns (action, state) in stable-baselines3's form; only `reset` starts anew."""
        return self.act(observation), state


class RandomAgent(Blind):
    """Acts uniformly within [-1, 1], with one random stream per environment; needs neither torch nor pixels.

    Args:
        action_size: Length of an action.
        seed: Seed of the streams when `reset` is not given any.

    Raises:
        ValueError: If `action_size` is not positive.
    """

    def __init__(self, action_size: int, seed: int = 0) -> None:
        if action_size < 1:
            raise ValueError(f"action_size must be at least 1, got {action_size}")
        super().__init__(action_size)
        self.seed = seed

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None, seed: int = 0) -> RandomAgent:
        """Returns the random policy for the task of a run folder.

        Args:
            folder: A folder with `{"agent": "random", "task": ...}` in `run.json`.
            device: No effect.
            seed: As for the class.

        Raises:
            ValueError: If the folder names no task that exists.
            OSError: If it has no `run.json`.
        """
        description = read_json(Path(folder, "run.json"), "make it again")
        return cls(get_task(str(description.get("task"))).action_size, seed)

    def reset(self, seeds: list[int] | None = None) -> None:
        """Starts new streams: by `seeds`, one per environment, or derived from the agent's seed."""
        self._memory = [np.random.default_rng(seed) for seed in seeds or []]

    def act(self, obs: Obs) -> NDArray[np.float32]:
        """Returns an action (action_size,) for one observation, (B, action_size) for a stacked one."""
        if not self._memory:
            count = len(obs["pixels"]) if np.ndim(obs["pixels"]) == 4 else 1
            self._memory = [np.random.default_rng([self.seed, row]) for row in range(count)]
        return super().act(obs)

    def _next(self, memory: np.random.Generator) -> NDArray[np.float32]:
        return memory.uniform(-1.0, 1.0, self.action_size).astype(np.float32)
