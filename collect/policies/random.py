"""The random policy, for every task: uniform actions from random starts."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lewm_gym.tasks import get_task
from lewm_gym.types import Info, Obs


class RandomPolicy:
    """Samples every action uniformly from the environment's bounds, for a fixed number of steps.

    Args:
        max_steps: Environment steps per episode.
    """

    noise: float | None = None

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def begin(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> tuple[Obs, dict[str, Any]]:
        """Resets the environment with a seed from `rng`."""
        self._rng = rng
        self._low, self._high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
        return env.reset(seed=int(rng.integers(2**31)))

    def act(self, info: Info) -> NDArray[np.float32]:
        """Returns a uniform random action."""
        return self._rng.uniform(self._low, self._high).astype(np.float32)

    def done(self, info: Info) -> bool:
        """Returns False: an episode ends after `max_steps`."""
        return False


def make_random(task: str, noise: float | None) -> RandomPolicy:
    """Returns the random policy of a task.

    Raises:
        ValueError: If a noise level is given: uniform actions have none.
    """
    if noise is not None:
        raise ValueError("the random policy takes no noise level")
    return RandomPolicy(get_task(task).max_episode_steps)
