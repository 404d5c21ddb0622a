"""The moves of Push-T's expert: following a path, or repeating a simulated push. Arena px and steps."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from envs.goal_env import State
from envs.pusht.physics import ACTION_SCALE

Points = NDArray[np.float64]

# One action takes the agent by _GAIN * action + _CARRY * velocity: PD control over ten substeps is linear.
_GAIN, _CARRY = 0.29567178591344156 * ACTION_SCALE, 0.0299318124665663
_TOUCHED = 1.0  # px that the block may move during a walk
_ARRIVED, _RESTING = 1.5, 30.0  # px and px/s at the end of a walk
_NEAR, _SETTLING = 6.0, 4  # px from the end of a walk, and the steps that it may take there against the noise


class Move(Protocol):
    """A part of a plan.

    Attributes:
        succeeded: False if the rest of the plan is no longer valid.
    """

    succeeded: bool

    def action(self, state: State) -> Points | None:
        """Returns the next action, (2,), or None when the move is over."""


class Walk:
    """Follows a path and rests at its end; ends early, without success, if the block is moved by chance.

    Args:
        way: The corners of the path, the end last.
        speed: px per step at most.
        state: At the beginning.
    """

    def __init__(self, way: list[Points], speed: float, state: State) -> None:
        self._way = list(way)
        self._speed = speed
        self._block = state[2:4].copy()
        self._settled = 0
        self.succeeded = True

    def action(self, state: State) -> Points | None:
        """Returns a step along the path."""
        if np.abs(state[2:4] - self._block).max() > _TOUCHED:
            self.succeeded = False
            return None
        off = math.hypot(*(self._way[-1] - state[:2]))
        if len(self._way) == 1 and off < _NEAR:
            self._settled += 1
            if (off < _ARRIVED and math.hypot(*state[5:7]) < _RESTING) or self._settled > _SETTLING:
                return None
        return step_towards(self._way, self._speed, state)


class Push:
    """Moves the agent along the path that a simulated push took, then brakes for one step.

    Args:
        path: (n, 2), the agent's positions after each step.
    """

    succeeded = True

    def __init__(self, path: Points) -> None:
        self._path = path
        self._step = 0

    def action(self, state: State) -> Points | None:
        """Returns the action that takes the agent to the path's next position."""
        self._step += 1
        if self._step <= len(self._path):
            return action_to(self._path[self._step - 1], state)
        return np.zeros(2) if self._step == len(self._path) + 1 else None


def step_towards(way: list[Points], speed: float, state: State) -> Points:
    """Returns the action that moves the agent `speed` px along a path, from which passed corners are removed."""
    position, left = state[:2], speed
    while True:
        length = math.hypot(*(way[0] - position))
        if length >= left:
            return action_to(position + (way[0] - position) * (left / length), state)
        position, left = way[0], left - length
        if len(way) == 1:
            return action_to(position, state)
        way.pop(0)


def action_to(position: Points, state: State) -> Points:
    """Returns the action after which the agent is at `position`, if it is within the bounds."""
    return (position - state[:2] - _CARRY * state[5:7]) / _GAIN
