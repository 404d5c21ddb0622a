"""The behaviour policy for Cube: OGBench's scripted oracle, which carries the cube from one random place to the next.

As OGBench made its `noisy` datasets (arXiv 2410.20092): `CubeMarkovOracle` looks at the present state only; each
episode draws a noise level from U(0, 0.1) and adds Gaussian noise to every action (three times as much to yaw, ten
times to the gripper), so that the data hold failures and recoveries; when the oracle is done, a new target is drawn.
stable-worldmodel collects the same way but repeats the first target for the whole episode.

The oracle sees a state through `Simulation.observe`, not through the environment's memory: actions are a function of
the recorded states and the random stream.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.cube import CubeEnv
from envs.cube_models import ogbench_cube
from lewm_gym.types import BehaviourPolicy, Info, Obs

NOISE = 0.1  # highest noise level of an episode
NOISE_SHAPE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])  # of x, y, z, yaw, gripper
MIN_NORM = 0.4  # of a movement, as OGBench's command lines have it


class OraclePolicy:
    """OGBench's oracle with noise, for 200 steps.

    Args:
        noise: Highest noise level, from which each episode draws its own; None for 0.1.

    Raises:
        ValueError: If `noise` is outside [0, 1].
    """

    max_steps = 200

    def __init__(self, noise: float | None = None) -> None:
        if noise is not None and not 0.0 <= noise <= 1.0:
            raise ValueError(f"noise must lie within [0, 1], got {noise}")
        self.noise = NOISE if noise is None else noise

    def begin(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> tuple[Obs, dict[str, Any]]:
        """Resets `env` to a random state, draws the episode's noise level and the first target."""
        oracle = importlib.import_module("ogbench.manipspace.oracles.markov.cube_markov").CubeMarkovOracle
        self._rng = rng
        self._level = rng.uniform(0.0, self.noise)
        self._oracle = oracle(env=ogbench_cube(), min_norm=MIN_NORM)
        self._draw_target()
        started = env.reset(seed=int(rng.integers(2**31)))
        assert isinstance(env.unwrapped, CubeEnv)
        self._simulation = env.unwrapped.simulation
        return started

    def act(self, info: Info) -> NDArray[np.float32]:
        """Returns the oracle's action (5,) with noise; draws a new target if the oracle is done."""
        seen = self._simulation.observe(info["state"], contact=True)
        seen["privileged/target_block_pos"], seen["privileged/target_block_yaw"] = self._target
        seen["privileged/target_block"] = 0
        action = self._oracle.select_action(None, seen) + self._rng.normal(0.0, self._level * NOISE_SHAPE)
        if self._oracle.done:
            self._draw_target()
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def done(self, info: Info) -> bool:
        """Returns False: an episode lasts `max_steps`."""
        return False

    def _draw_target(self) -> None:
        position = np.array([*self._rng.uniform(*ogbench_cube()._target_sampling_bounds), 0.02])
        self._target = position, np.array([self._rng.uniform(0.0, 2.0 * np.pi)])
        with _global_seed(int(self._rng.integers(2**32))):
            self._oracle.reset(None, None)


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seeds numpy's global generator, from which the oracle draws where it goes in the end, and puts it back after."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


POLICIES: dict[str, Callable[..., BehaviourPolicy]] = {"oracle": OraclePolicy}
