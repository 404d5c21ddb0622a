"""Behaviour policies for Two-Room: through the door to a target in the other room, with strong noise.

From the description of the reference's collector (stable-worldmodel): way-point = the door's centre until within 10.5
px of it, then the target; action = unit direction + N(0, 2.0) per axis, clipped; 5 % of actions repeat the previous
one; at most 100 steps. Targets are in the opposite room, at least 25 steps away, which gives the paper's mean length of
92 frames (targets anywhere would give 60).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.goal_env import State
from envs.two_room.rooms import CENTRE, Rooms
from lewm_gym.types import BehaviourPolicy, Info, Obs

NOISE = 2.0  # standard deviation of the noise added to each coordinate of the unit direction
REPEAT = 0.05  # probability of repeating the previous action
AT_DOOR = 10.5  # px from the door's centre at which the target becomes the way-point
MIN_STEPS = 25  # at full speed from start to target through the door
MAX_STEPS = 100
_SPEED = Rooms().speed  # px per step by default; where it varies, distances stay


class ThroughTheDoor:
    """Walks to a target in the other room, through the door nearest to the start.

    Args:
        noise: Standard deviation of the noise added to each coordinate of the unit direction; None is 2.0.

    Raises:
        ValueError: For a negative noise.
    """

    max_steps = MAX_STEPS

    def __init__(self, noise: float | None = None) -> None:
        self.noise = NOISE if noise is None else float(noise)
        if not self.noise >= 0.0:
            raise ValueError(f"noise must be at least 0, got {noise}")

    def begin(self, env: gymnasium.Env[Any, Any], rng: np.random.Generator) -> tuple[Obs, dict[str, Any]]:
        """Resets `env` to a random start and a random target in the other room."""
        rooms: Rooms = env.rooms  # type: ignore[attr-defined]
        start = _random_position(rng, rooms)
        while True:
            target = _random_position(rng, rooms)
            door = _nearest_door(start, rooms)
            walk = np.linalg.norm(start - door) + np.linalg.norm(target - door)
            if not _same_room(start, target, rooms) and walk >= MIN_STEPS * _SPEED:
                break
        return self.pursue(env, rng, start, target)

    def pursue(
        self, env: gymnasium.Env[Any, Any], rng: np.random.Generator, start: State, goal: State
    ) -> tuple[Obs, dict[str, Any]]:
        """Resets `env` to a start and a goal, (2,) px; `act` then moves there, straight within a room."""
        rooms: Rooms = env.rooms  # type: ignore[attr-defined]
        self._rng = rng
        self._door, self._target = _nearest_door(start, rooms), goal
        self._passed_door = _same_room(start, goal, rooms)
        self._last: NDArray[np.float32] | None = None
        return env.reset(options={"state": start, "goal_state": goal})

    def act(self, info: Info) -> NDArray[np.float32]:
        """Returns the noisy step towards the way-point."""
        if self._last is not None and self._rng.random() < REPEAT:
            return self._last
        position = info["state"]
        if np.linalg.norm(self._door - position) < AT_DOOR:
            self._passed_door = True
        direction = (self._target if self._passed_door else self._door) - position
        direction = direction / max(float(np.linalg.norm(direction)), 1e-9)
        noisy = direction + self._rng.normal(0.0, self.noise, 2)
        self._last = np.clip(noisy, -1.0, 1.0).astype(np.float32)
        return self._last

    def done(self, info: Info) -> bool:
        """Returns whether the target is reached."""
        return bool(info["is_success"])


def _nearest_door(position: State, rooms: Rooms) -> State:
    doors = [np.array([CENTRE, along] if rooms.vertical else [along, CENTRE]) for along, _ in rooms.doors]
    return min(doors, key=lambda door: float(np.linalg.norm(position - door)))


def _same_room(one: State, other: State, rooms: Rooms) -> bool:
    across = 0 if rooms.vertical else 1
    return bool((one[across] < CENTRE) == (other[across] < CENTRE))


def _random_position(rng: np.random.Generator, rooms: Rooms) -> State:
    while True:
        position = rng.uniform(rooms.low, rooms.high, 2)
        if not rooms.near <= position[0 if rooms.vertical else 1] <= rooms.far:
            return position


POLICIES: dict[str, Callable[[float | None], BehaviourPolicy]] = {"heuristic": ThroughTheDoor}
#: What pursues a goal as well as it can.
goal_expert = partial(ThroughTheDoor, noise=0.0)
