"""Behaviour policies for Push-T: a scripted expert in place of human demonstrations, and a weak one.

The expert has a library of the effects of some 9,000 short pushes on the T (`primitives`). It repeatedly selects
the one that brings the T nearest to its goal, slightly discounted by its duration (`planner`), moves around the T
to the start of that push (`routes`), pushes and brakes (`pusht_moves`). If this makes no progress, it tries
random pushes. To resemble human demonstrations, its speed varies and it makes detours.

Measured over 500 episodes, published figures (human demonstrations replayed with noise) in brackets; again with
`PYTHONPATH=. python tests/test_pusht_expert.py 500`: 98.8 % reach coverage above 0.95 (98.2 % with starts and goals
uniform over the arena), mean length 179 steps, action std 0.201, 0.194 (0.202, 0.200), velocity std 75, 72 (75, 74),
state mean 253, 257, 253, 261 (237, 265, 255, 266) and std 92, 87, 53, 60 (101, 87, 53, 58), 3,900 steps per second
of one core including planning, without rendering. The block moves in 64 % of 25-step windows; 0.7 % of them start at
their goal.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from collect.policies.pusht.moves import Move, step_towards
from collect.policies.pusht.planner import ExpertConfig, Planner, misplacement
from collect.policies.pusht.routes import Pose
from envs.goal_env import State
from envs.pusht.geometry import AGENT_RADIUS, centre_of_gravity, coverage, distance, wall_overlap
from lewm_gym.types import BehaviourPolicy, Info, Obs

COVERED = 0.95  # of the goal's T: the block is in place
_NEARLY = 12.0  # px of misplacement below which the expert is careful
_CENTRE = (252.0, 264.0)  # px, of the blocks that do not start anywhere
_AGENTS, _BLOCKS = (50.0, 450.0), (100.0, 400.0)  # px per axis, where the reference draws agent and block


class Expert:
    """Pushes the T to its goal pose, then moves the agent to its goal position.

    Args:
        config: See `ExpertConfig`.
    """

    max_steps = 300

    def __init__(self, config: ExpertConfig | None = None) -> None:
        self.config = config or ExpertConfig()
        self.noise = self.config.noise

    def begin(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> tuple[Obs, dict[str, Any]]:
        """Resets `env` to a random start and a random goal."""
        self._prepare(rng)
        return self._reset(env, *draw_start_and_goal(self.config, rng))

    def pursue(
        self, env: gymnasium.Env[Any, Any], rng: np.random.Generator, start: State, goal: State
    ) -> tuple[Obs, dict[str, Any]]:
        """Resets `env` to a start and a goal, (10,), which `act` then pursues."""
        self._prepare(rng)
        return self._reset(env, start, goal)

    def _prepare(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._planner = Planner(self.config, rng)
        self._moves: list[Move] = []
        self._placed = False
        self._step = 0

    @staticmethod
    def _reset(env: gymnasium.Env[Any, Any], start: State, goal: State) -> tuple[Obs, dict[str, Any]]:
        return env.reset(options={"state": start, "goal_state": goal})

    def act(self, info: Info) -> NDArray[np.float32]:
        """Returns the next action of the current plan, and replans at its end."""
        state, goal = info["state"], info["goal_state"]
        self._placed = self._placed or coverage(state[2:5], goal[2:5]) > COVERED
        action = self._moves[0].action(state) if self._moves else None
        while action is None:
            rest = self._moves[1:] if self._moves and self._moves[0].succeeded else []
            self._moves = rest or self._planner.plan(state, goal, self._placed, self._step)
            action = self._moves[0].action(state)
        self._step += 1
        nearly = misplacement(Pose(*state[2:5]), goal)[0] < _NEARLY
        noise = self.noise * (self.config.careful_noise if nearly else 1.0)
        return np.clip(action + self._rng.normal(0.0, noise, 2), -1.0, 1.0).astype(np.float32)

    def done(self, info: Info) -> bool:
        """Returns whether the block was put in place (coverage above 0.95) and the goal state is reached."""
        self._placed = self._placed or coverage(info["state"][2:5], info["goal_state"][2:5]) > COVERED
        return self._placed and bool(info["is_success"])


class Weak:
    """Moves to random points, mostly near the block, which it pushes by chance.

    Args:
        noise: Standard deviation of the noise added to each action.

    Raises:
        ValueError: For a negative noise.
    """

    max_steps = 200

    def __init__(self, noise: float = 0.1) -> None:
        if not noise >= 0.0:
            raise ValueError(f"noise must be at least 0, got {noise}")
        self.noise = noise

    def begin(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> tuple[Obs, dict[str, Any]]:
        """Resets `env` to a random start and a random goal, which the policy ignores."""
        self._rng = rng
        self._left = 0
        start, goal = draw_start_and_goal(ExpertConfig(), rng)
        return env.reset(options={"state": start, "goal_state": goal})

    def act(self, info: Info) -> NDArray[np.float32]:
        """Returns a step towards the current point."""
        state, rng = info["state"], self._rng
        if self._left == 0:
            self._left = int(rng.integers(4, 16))
            self._speed = float(rng.uniform(5.0, 25.0))  # px per step
            near_block = centre_of_gravity(state[2:5]) + rng.normal(0.0, 50.0, 2)
            self._point = near_block if rng.uniform() < 0.75 else rng.uniform(*_AGENTS, 2)
        self._left -= 1
        action = step_towards([self._point], self._speed, state)
        return np.clip(action + rng.normal(0.0, self.noise, 2), -1.0, 1.0).astype(np.float32)

    def done(self, info: Info) -> bool:
        """Returns False: episodes have a fixed length."""
        return False


def draw_start_and_goal(config: ExpertConfig, rng: np.random.Generator) -> tuple[State, State]:
    """Returns a random start and goal state."""
    while True:
        start = _draw_state(rng, config.start_spread, config.wide_starts)
        goal = _draw_state(rng, config.goal_spread, config.wide_goals)
        if misplacement(Pose(*start[2:5]), goal)[0] > config.least_task:
            return start, goal


def _draw_state(rng: np.random.Generator, spread: tuple[float, float], wide: float) -> State:
    """Returns a resting state: the block anywhere with probability `wide`, else about the centre."""
    anywhere = rng.uniform() < wide
    while True:
        agent = rng.uniform(*_AGENTS, 2)
        block = rng.uniform(*_BLOCKS, 2) if anywhere else rng.normal(_CENTRE, spread, 2)
        pose = (*block, rng.uniform(0.0, 2.0 * np.pi))
        if wall_overlap(pose) <= 0.0 and distance(agent, pose) > AGENT_RADIUS + 1.0:
            return np.array([*agent, *pose, *np.zeros(5)])


def _expert(noise: float | None = None) -> Expert:
    return Expert() if noise is None else Expert(ExpertConfig(noise=float(noise)))


def _weak(noise: float | None = None) -> Weak:
    return Weak() if noise is None else Weak(float(noise))


#: name -> factory of (noise); the first is the default.
POLICIES: dict[str, Callable[..., BehaviourPolicy]] = {"expert": _expert, "weak": _weak}
#: What pursues a goal as well as it can: at full speed, without noise, whims and detours.
goal_expert = partial(
    Expert, ExpertConfig(noise=0.0, whim=0.0, detours=0.0, leisure=0, speeds=(17.0, 17.0), speed_drift=0.0)
)
