"""The behaviour policy for Cube: OGBench's scripted oracle, which carries the cube from one random place to the next.

As OGBench made its `noisy` datasets (arXiv 2410.20092): `CubeMarkovOracle` looks at the present state only; each
episode draws a noise level from U(0, 0.1) and adds Gaussian noise to every action (three times as much to yaw, ten
times to the gripper), so that the data hold failures and recoveries; when the oracle is done, a new target is drawn.
stable-worldmodel collects the same way but repeats the first target for the whole episode.

The oracle sees what follows from a state, not what the environment remembers: actions are a function of the recorded
states and the random stream.

`wandering` is for world models that are planned with. The oracle hardly ever closes its gripper on nothing or lets go
half-way, so that a model of its episodes believes that the cube follows the hand, and a planner makes use of that
(docs/evaluation.md). This policy leaves the oracle's path again and again for a stretch of other actions.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.cube import CubeEnv
from envs.cube_models import CUBE_HALF_SIZE
from envs.cube_simulation import ARM_STARTS, CUBE_POSITION, CUBE_QUATERNION, CUBE_STARTS, quaternion_yaw
from envs.goal_env import State
from lewm_gym.types import BehaviourPolicy, Info, Obs

NOISE = 0.1  # highest noise level of an episode
NOISE_SHAPE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])  # of x, y, z, yaw, gripper
MIN_NORM = 0.4  # of a movement, as OGBench's command lines have it
MOST_STRETCHES = 0.125  # of `wandering`: highest probability that a step of the oracle's becomes a stretch of others


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
        self._prepare(rng)
        self._draw_target()
        return self._started(env, env.reset(seed=int(rng.integers(2**31))))

    def pursue(
        self, env: gymnasium.Env[Any, Any], rng: np.random.Generator, start: State, goal: State
    ) -> tuple[Obs, dict[str, Any]]:
        """Resets `env` to a start and a goal, (61,); `act` then carries the cube to where it is in the goal."""
        self._prepare(rng)
        self._set_target(goal[CUBE_POSITION], quaternion_yaw(goal[CUBE_QUATERNION]))
        return self._started(env, env.reset(options={"state": start, "goal_state": goal}))

    def _prepare(self, rng: np.random.Generator) -> None:
        oracle = importlib.import_module("ogbench.manipspace.oracles.markov.cube_markov").CubeMarkovOracle
        self._rng = rng
        self._level = rng.uniform(0.0, self.noise)
        self._oracle = oracle(env=_Workspace, min_norm=MIN_NORM)

    def _started(self, env: gymnasium.Env[Any, Any], begun: tuple[Obs, dict[str, Any]]) -> tuple[Obs, dict[str, Any]]:
        assert isinstance(env.unwrapped, CubeEnv)
        self._simulation = env.unwrapped.simulation
        return begun

    def act(self, info: Info) -> NDArray[np.float32]:
        """Returns the oracle's action (5,) with noise; draws a new target if the oracle is done."""
        seen = self._see(info["state"])
        action = self._oracle.select_action(None, seen) + self._rng.normal(0.0, self._level * NOISE_SHAPE)
        if self._oracle.done:
            self._draw_target()
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def done(self, info: Info) -> bool:
        """Returns False: an episode lasts `max_steps`."""
        return False

    def _see(self, state: NDArray[np.float64]) -> dict[str, Any]:
        """Returns what the oracle looks at, in OGBench's words."""
        effector = self._simulation.effector(state)
        return {
            "proprio/effector_pos": effector.position,
            "proprio/effector_yaw": [effector.yaw],
            "proprio/gripper_opening": [effector.closed],
            "proprio/gripper_contact": self._simulation.grip(state),
            "privileged/target_block": 0,
            "privileged/block_0_pos": state[CUBE_POSITION],
            "privileged/block_0_yaw": [quaternion_yaw(state[CUBE_QUATERNION])],
            "privileged/target_block_pos": self._target[0],
            "privileged/target_block_yaw": [self._target[1]],
        }

    def _draw_target(self) -> None:
        position = np.array([*self._rng.uniform(*CUBE_STARTS), CUBE_HALF_SIZE])
        self._set_target(position, self._rng.uniform(0.0, 2.0 * np.pi))

    def _set_target(self, position: NDArray[np.float64], yaw: float) -> None:
        self._target = position, yaw
        with _global_seed(int(self._rng.integers(2**32))):
            self._oracle.reset(None, None)


class WanderingPolicy(OraclePolicy):
    """The oracle with stretches of 5 to 15 steps in which the gripper goes somewhere else, open, closed or as it is.

    In a stretch the movement is constant, uniform within the bounds, the gripper's command -1, 0 or 1, and the oracle's
    noise comes on top; afterwards the oracle goes on from where it is. An episode draws how often that happens, up to
    one step in eight that begins a stretch, so that episodes lie between the oracle's own and ones that mostly wander.
    """

    def _prepare(self, rng: np.random.Generator) -> None:
        super()._prepare(rng)
        self._rate = rng.uniform(0.0, MOST_STRETCHES)
        self._left = 0

    def act(self, info: Info) -> NDArray[np.float32]:
        """Returns the present stretch's action (5,) with noise, or the oracle's."""
        rng = self._rng
        if self._left == 0 and rng.uniform() < self._rate:
            self._left = int(rng.integers(5, 16))
            self._stretch = np.append(rng.uniform(-1.0, 1.0, 4), rng.integers(-1, 2))
        if self._left == 0:
            return super().act(info)
        self._left -= 1
        action = self._stretch + rng.normal(0.0, self._level * NOISE_SHAPE)
        return np.clip(action, -1.0, 1.0).astype(np.float32)


class _Workspace:
    """All that the oracle asks an environment for: where to go when the cube is in place."""

    unwrapped: ClassVar[Any]
    _arm_sampling_bounds = ARM_STARTS


_Workspace.unwrapped = _Workspace


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seeds numpy's global generator, from which the oracle draws where it goes in the end, and puts it back after."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


POLICIES: dict[str, Callable[..., BehaviourPolicy]] = {"oracle": OraclePolicy, "wandering": WanderingPolicy}
#: What pursues a goal as well as it can.
PURSUER = partial(OraclePolicy, noise=0.0)
