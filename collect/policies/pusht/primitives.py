"""The library of pushes of Push-T's expert: the effect of a resting agent that pushes the T at its outline.

Pushing is quasi-static and frictionless, so a push simulated once in the T's own frame has the same effect at any pose
away from walls. See `envs.pusht.geometry` for that frame; px, rad, steps.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.pusht.geometry import AGENT_RADIUS, BLOCK_SCALE, OUTLINE, distance
from envs.pusht.physics import advance

Position = NDArray[np.float64]

PX_PER_STEP = 40.66  # that an agent moves under a constant action of length 1
START_GAP = 1.5  # px between disc and T before a push
_SPACING = 6.0  # px between contacts along the outline
_ANGLES = (-0.6, -0.3, 0.0, 0.3, 0.6)  # rad, of a push against the inward normal
_SPEEDS = (4.0, 8.0, 13.0, 20.0)  # px per step
_STEPS = (1, 2, 3, 4, 6, 8, 11)  # of pushing; one step of braking follows
# A push whose T moves less than this part of the agent's way (less the gap and a little) slips off or grazes a corner:
# where it ends hangs on half a pixel at its beginning.
_GRIP = 0.25
_MIDDLE = 256.0  # px, where pushes are simulated, far from the walls


@dataclass(frozen=True)
class Primitives:
    """P pushes, one row each, in the frame of the T before the push.

    Attributes:
        contacts: (C, 2), where the agent rests before a push.
        contact: (P,) int, index into `contacts`.
        path: (P, 11, 2), where the agent is after each step of pushing; rows differ in length, see `steps`.
        steps: (P,) int, of pushing, without the one of braking.
        speed: (P,), px per step.
        turn: (P,), angle by which the T turns.
        moved: (P, 2), where the T's origin comes to rest.
        centroid: (P, 2), where the mean of its eight vertices comes to rest.
        agent: (P, 2), where the agent comes to rest.
    """

    contacts: NDArray[np.float64]
    contact: NDArray[np.int64]
    path: NDArray[np.float64]
    steps: NDArray[np.int64]
    speed: NDArray[np.float64]
    turn: NDArray[np.float64]
    moved: NDArray[np.float64]
    centroid: NDArray[np.float64]
    agent: NDArray[np.float64]


@functools.cache
def primitives() -> Primitives:
    """Returns the library: built once per process (two seconds), always the same."""
    contacts, normals = _contacts()
    # The T is its own mirror image: simulate one half, reflect the other.
    rows = [
        (index, speed, path, steps, *result)
        for index in np.flatnonzero(contacts[:, 0] > -1e-9)
        for speed, action in _actions(normals[index])
        for path, results in (_push(contacts[index], action),)
        for steps, result in zip(_STEPS, results, strict=True)
    ]
    kept = [row for row in rows if _takes(*row[2:])]
    contact, speed, path, steps, turn, moved, agent = (np.array(column) for column in zip(*kept, strict=True))
    mirror = np.array([-1.0, 1.0])
    reflected = np.array([int(np.argmin(np.hypot(*(contacts - contacts[c] * mirror).T))) for c in contact])
    turn = np.concatenate([turn, -turn])
    moved = np.concatenate([moved, moved * mirror])
    cos, sin = np.cos(turn), np.sin(turn)
    middle = (OUTLINE * BLOCK_SCALE).mean(axis=0)
    return Primitives(
        contacts=contacts,
        contact=np.concatenate([contact, reflected]),
        path=np.concatenate([path, path * mirror]),
        steps=np.concatenate([steps, steps]),
        speed=np.concatenate([speed, speed]),
        turn=turn,
        moved=moved,
        centroid=moved + np.stack([cos * middle[0] - sin * middle[1], sin * middle[0] + cos * middle[1]], axis=1),
        agent=np.concatenate([agent, agent * mirror]),
    )


def _takes(path: Position, steps: int, turn: float, moved: Position, agent: Position) -> bool:
    """Returns whether a push is useful to the expert."""
    effect = math.hypot(*moved) + abs(turn) * BLOCK_SCALE
    way = math.hypot(*(path[steps - 1] - path[0]))
    return effect > 0.3 and effect > _GRIP * way


def _contacts() -> tuple[Position, Position]:
    """Returns where a disc can rest against the outline, (C, 2), and the outward normals there, (C, 2)."""
    positions, normals = [], []
    vertices = OUTLINE * BLOCK_SCALE
    for begin, end in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        length = float(np.hypot(*(end - begin)))
        normal = np.array([end[1] - begin[1], begin[0] - end[0]]) / length
        count = max(round(length / _SPACING), 1)
        for i in range(count):
            position = begin + (end - begin) * (i + 0.5) / count + normal * (AGENT_RADIUS + START_GAP)
            if distance(position, (0.0, 0.0, 0.0)) >= AGENT_RADIUS + START_GAP - 1e-9:  # else in the corner
                positions.append(position)
                normals.append(normal)
    return np.array(positions), np.array(normals)


def _actions(normal: Position) -> list[tuple[float, Position]]:
    """Returns the pushes against a side: speed, px per step, and the constant action that has it."""
    inward = math.atan2(-normal[1], -normal[0])
    return [
        (speed, speed / PX_PER_STEP * np.array([math.cos(inward + angle), math.sin(inward + angle)]))
        for angle in _ANGLES
        for speed in _SPEEDS
    ]


def _push(contact: Position, action: Position) -> tuple[Position, list[tuple[float, Position, Position]]]:
    """Returns the agent's path, and turn, move of the T and the agent's end for each of `_STEPS` and one of braking."""
    state = [_MIDDLE + contact[0], _MIDDLE + contact[1], _MIDDLE, _MIDDLE, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    shift = np.zeros(2)
    path, results = [], []
    for step in range(1, _STEPS[-1] + 1):
        state = advance(state, action.tolist())
        drift = np.array(state[2:4]) - _MIDDLE  # undone at every step, to stay far from the walls
        shift = shift + drift
        state = [state[0] - drift[0], state[1] - drift[1], _MIDDLE, _MIDDLE, *state[4:]]
        path.append(shift + state[0:2] - _MIDDLE)
        if step in _STEPS:
            rest = advance(state, (0.0, 0.0))
            turn = (rest[4] + math.pi) % (2.0 * math.pi) - math.pi
            results.append((turn, shift + rest[2:4] - _MIDDLE, shift + rest[0:2] - _MIDDLE))
    return np.array(path), results
