"""The behaviour policies for Cube: OGBench's scripted oracles, which carry the cube from one random place to the next.

`plan`, the default, is what the published Cube set of LeWM (arXiv 2603.19312) was collected with: OGBench's
`CubePlanOracle` (arXiv 2410.20092, its `play` sets) places keyframes about 0.4 s apart from the positions of arm and
cube, connects them by straight lines, adds smoothed noise, and follows this plan at fixed times: a cycle of reaching,
carrying and leaving takes about 88 steps. At its end, a new target is sampled and the next plan starts from the current
state. `plan_fixed_target` keeps the first target for the whole episode, as stable-worldmodel did, so the second cycle
puts the cube down where it already is.

`markov` is the policy of OGBench's `noisy` sets: `CubeMarkovOracle` uses the current state only and is nearly
bang-bang, so a whole pick, carry and place fits into 25 to 50 steps. Each episode samples a noise level from
U(0, 0.1) and adds Gaussian noise to every action (three times as much to yaw, ten times to the gripper), so the
data contain failures and recoveries; when the oracle is done, a new target is sampled. `markov:p_random_action=0.1`
replaces one action in ten by a random one, as OGBench's `noisy` sets also did.

`wandering` gives world models for planning more varied data. The Markov oracle rarely closes its gripper on nothing or
releases the cube half-way. This policy leaves the oracle's path repeatedly for stretches of other actions.

The oracles only see what follows from a state: actions are a function of the recorded states and the random stream.
"""

from __future__ import annotations

import contextlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.cube import CubeEnv
from envs.cube.models import CUBE_HALF_SIZE
from envs.cube.simulation import (
    ACTION_RANGE,
    ARM_STARTS,
    CONTROL_TIMESTEP,
    CUBE_POSITION,
    CUBE_QUATERNION,
    CUBE_STARTS,
    quaternion_yaw,
)
from envs.goal_env import State
from lewm_gym.types import BehaviourPolicy, Info, Obs

NOISE = 0.1  # of the plan; of `markov`, the highest level of an episode
NOISE_SMOOTHING = 0.5  # steps, std of the filter over the plan's noise, as OGBench's command lines have it
NOISE_SHAPE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])  # of x, y, z, yaw, gripper
MIN_NORM = 0.4  # of a movement of the Markov oracle's, as OGBench's command lines have it
MOST_STRETCHES = 0.125  # of `wandering`: highest probability that a step of the oracle's becomes a stretch of others


class OraclePolicy(ABC):
    """What the policies share: one of OGBench's oracles, a target for the cube, and 200 steps.

    Args:
        noise: Noise level; None for 0.1.
        p_random_action: Probability that an action is replaced by a random one, uniform within the bounds.

    Raises:
        ValueError: If either is outside [0, 1].
    """

    max_steps = 200
    _rng: np.random.Generator  # of the episode

    def __init__(self, noise: float | None = None, p_random_action: float = 0.0) -> None:
        if noise is not None and not 0.0 <= noise <= 1.0:
            raise ValueError(f"noise must lie within [0, 1], got {noise}")
        if not 0.0 <= p_random_action <= 1.0:
            raise ValueError(f"p_random_action must lie within [0, 1], got {p_random_action}")
        self.noise = NOISE if noise is None else noise
        self.p_random_action = p_random_action

    def begin(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> tuple[Obs, dict[str, Any]]:
        """Resets `env` to a random state and samples the first target."""
        self._prepare(rng)
        self._draw_target()
        return self._started(env, env.reset(seed=int(rng.integers(2**31))))

    def pursue(
        self, env: gymnasium.Env[Any, Any], rng: np.random.Generator, start: State, goal: State
    ) -> tuple[Obs, dict[str, Any]]:
        """Resets `env` to a start and a goal, (61,); `act` then carries the cube to its position in the goal."""
        self._prepare(rng)
        self._set_target(goal[CUBE_POSITION], quaternion_yaw(goal[CUBE_QUATERNION]))
        return self._started(env, env.reset(options={"state": start, "goal_state": goal}))

    def act(self, info: Info) -> NDArray[np.float32]:
        """Returns the next action (5,)."""
        action = self._choose(info["state"])
        if self.p_random_action and self._rng.uniform() < self.p_random_action:
            action = self._rng.uniform(-1.0, 1.0, 5)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def done(self, info: Info) -> bool:
        """Returns False: an episode lasts `max_steps`."""
        return False

    @abstractmethod
    def _prepare(self, rng: np.random.Generator) -> None:
        """Creates the oracle of an episode, and stores its random stream as `_rng`."""

    @abstractmethod
    def _choose(self, state: State) -> NDArray[np.float64]:
        """Returns the oracle's action (5,), which may be out of bounds; samples a new target when it is done."""

    def _started(self, env: gymnasium.Env[Any, Any], begun: tuple[Obs, dict[str, Any]]) -> tuple[Obs, dict[str, Any]]:
        assert isinstance(env.unwrapped, CubeEnv)
        self._simulation = env.unwrapped.simulation
        return begun

    def _see(self, state: State) -> dict[str, Any]:
        """Returns the inputs of the oracles, under OGBench's names."""
        effector = self._simulation.effector(state)
        return {
            "proprio/effector_pos": effector.position,
            "proprio/effector_yaw": [effector.yaw],
            "proprio/gripper_opening": [effector.closed],
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


class PlanPolicy(OraclePolicy):
    """OGBench's plan oracle: a noisy plan through keyframes at fixed times, then a new target and a new plan.

    Args:
        noise: Noise level of the plan, in units of a full action; None for 0.1.
        p_random_action: Probability that a step's action is a random one.
        new_targets: Whether a new target is sampled at the end of a plan; else the first one is kept.
    """

    def __init__(self, noise: float | None = None, p_random_action: float = 0.0, *, new_targets: bool = True) -> None:
        super().__init__(noise, p_random_action)
        self._new_targets = new_targets

    def _prepare(self, rng: np.random.Generator) -> None:
        oracle = importlib.import_module("ogbench.manipspace.oracles.plan.cube_plan").CubePlanOracle
        self._rng = rng
        self._oracle = oracle(env=_Workspace, noise=self.noise, noise_smoothing=NOISE_SMOOTHING)
        self._step, self._planned = 0, False

    def _choose(self, state: State) -> NDArray[np.float64]:
        if self._oracle.done and self._new_targets:
            self._draw_target()
        seen = {**self._see(state), "time": [self._step * CONTROL_TIMESTEP]}
        self._step += 1
        if self._oracle.done or not self._planned:
            with _global_seed(int(self._rng.integers(2**32))):
                self._oracle.reset(None, seen)
            self._planned = True
        return np.asarray(self._oracle.select_action(None, seen))


class MarkovPolicy(OraclePolicy):
    """OGBench's Markov oracle, a function of the current state, with noise on every action."""

    def _prepare(self, rng: np.random.Generator) -> None:
        oracle = importlib.import_module("ogbench.manipspace.oracles.markov.cube_markov").CubeMarkovOracle
        self._rng = rng
        self._level = rng.uniform(0.0, self.noise)
        self._oracle = oracle(env=_Workspace, min_norm=MIN_NORM)
        self._last: tuple[State, NDArray[np.float32]] | None = None

    def act(self, info: Info) -> NDArray[np.float32]:
        """Returns the next action (5,)."""
        action = self._act(info)
        self._last = info["state"], action
        return action

    def _act(self, info: Info) -> NDArray[np.float32]:
        return super().act(info)

    def _see(self, state: State) -> dict[str, Any]:
        control = np.zeros(7) if self._last is None else self._simulation.control(*self._last)
        return {**super()._see(state), "proprio/gripper_contact": self._simulation.grip(state, control)}

    def _choose(self, state: State) -> NDArray[np.float64]:
        oracle_action = self._oracle.select_action(None, self._see(state))
        action = np.asarray(oracle_action + self._rng.normal(0.0, self._level * NOISE_SHAPE))
        if self._oracle.done:
            self._draw_target()
        return action

    def _set_target(self, position: NDArray[np.float64], yaw: float) -> None:
        super()._set_target(position, yaw)
        with _global_seed(int(self._rng.integers(2**32))):
            self._oracle.reset(None, None)


class WanderingPolicy(MarkovPolicy):
    """The Markov oracle with stretches of 5 to 15 steps of other movements and gripper commands.

    In a stretch the movement is constant, uniform within the bounds, the gripper's command -1, 0 or 1, plus the
    oracle's noise; afterwards the oracle continues from the current state. Each episode samples the probability that a
    step starts a stretch, up to one in eight, so episodes range from the oracle's own to mostly wandering.
    """

    def _prepare(self, rng: np.random.Generator) -> None:
        super()._prepare(rng)
        self._rate = rng.uniform(0.0, MOST_STRETCHES)
        self._left = 0

    def _act(self, info: Info) -> NDArray[np.float32]:
        """Returns the current stretch's action (5,) with noise, or the oracle's."""
        rng = self._rng
        if self._left == 0 and rng.uniform() < self._rate:
            self._left = int(rng.integers(5, 16))
            self._stretch = np.append(rng.uniform(-1.0, 1.0, 4), rng.integers(-1, 2))
        if self._left == 0:
            return super()._act(info)
        self._left -= 1
        action = self._stretch + rng.normal(0.0, self._level * NOISE_SHAPE)
        return np.clip(action, -1.0, 1.0).astype(np.float32)


class _Workspace:
    """What the oracles need of an environment: the next target, the time, and the units."""

    unwrapped: ClassVar[Any]
    _arm_sampling_bounds = ARM_STARTS
    _control_timestep = CONTROL_TIMESTEP

    @staticmethod
    def normalize_action(action: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns a movement (m, m, m, rad, share of the gripper's way) as an action within [-1, 1]."""
        return np.clip(2.0 * (action - -ACTION_RANGE) / (ACTION_RANGE - -ACTION_RANGE) - 1.0, -1.0, 1.0)


_Workspace.unwrapped = _Workspace


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seeds numpy's global generator, which the oracles use, and restores it afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


POLICIES: dict[str, Callable[..., BehaviourPolicy]] = {
    "plan": PlanPolicy,
    "plan_fixed_target": partial(PlanPolicy, new_targets=False),
    "markov": MarkovPolicy,
    "wandering": WanderingPolicy,
}
#: What pursues a goal as well as it can.
goal_expert = partial(MarkovPolicy, noise=0.0)
