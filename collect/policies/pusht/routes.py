"""Shortest paths of Push-T's agent around the T: a visibility graph over six way-points, in the T's own frame.

The way-points are at the T's six convex vertices, with a clearance. Their mutual visibility never changes, so a query
costs one 6 x 6 shortest-path table, without those outside the arena.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from envs.pusht.geometry import AGENT_RADIUS, BLOCK_SCALE, BOXES, WALL_HIGH, WALL_LOW

Points = NDArray[np.float64]

_STAND_OFF = AGENT_RADIUS + 7.0  # px from the T's sides to a way-point
_CLEARANCE = AGENT_RADIUS + 1.0  # px that a way keeps from the T's sides
_LEAVE = AGENT_RADIUS + 3.0  # px to which an agent first backs away that touches the T
_WALL_MARGIN = 1.0  # px between disc and wall

_S, _M = BLOCK_SCALE, _STAND_OFF
_NODES = np.array(
    [
        (-2 * _S - _M, -_M),
        (2 * _S + _M, -_M),
        (2 * _S + _M, _S + _M),
        (0.5 * _S + _M, 4 * _S + _M),
        (-0.5 * _S - _M, 4 * _S + _M),
        (-2 * _S - _M, _S + _M),
    ]
)


class Pose:
    """The T's pose: converts arena coordinates to the T's frame and back.

    Args:
        x, y, angle: Pose of the T in the arena, px and rad.
    """

    def __init__(self, x: float, y: float, angle: float) -> None:
        self.origin = np.array([x, y])
        cos, sin = math.cos(angle), math.sin(angle)
        self.rotation = np.array([[cos, -sin], [sin, cos]])
        self.angle = angle

    def local(self, points: Points) -> Points:
        """Returns arena points (..., 2) in the T's frame."""
        return (points - self.origin) @ self.rotation

    def arena(self, points: Points) -> Points:
        """Returns points (..., 2) of the T's frame in the arena."""
        return points @ self.rotation.T + self.origin


class Routes:
    """The paths for the current positions of agent and T.

    Args:
        pose: Of the T.
        agent: (2,) arena coordinates.
    """

    def __init__(self, pose: Pose, agent: Points) -> None:
        self._pose = pose
        self._start = _backed_away(pose.local(agent))
        self._usable = inside_arena(pose.arena(_NODES))
        self._table = _shortest(np.where(self._usable[:, None] & self._usable, _SEEN, np.inf))
        legs = np.hypot(*(_NODES - self._start).T)
        first = np.where(self._usable & ~_blocked(self._start[None], _NODES)[0], legs, np.inf)
        self._to_nodes = (first[:, None] + self._table).min(axis=0)
        self._first = first
        self._back_off = float(np.hypot(*(self._start - pose.local(agent))))

    def lengths(self, ends: Points, from_nodes: Points | None = None) -> Points:
        """Returns the length of the shortest path to each of `ends` (n, 2) in the T's frame; inf where there is none.

        Args:
            ends: In the T's frame.
            from_nodes: (6, n), what `last_legs` gives for them, if at hand.
        """
        from_nodes = last_legs(ends) if from_nodes is None else from_nodes
        around = (self._to_nodes[:, None] + from_nodes).min(axis=0)
        straight = np.where(_blocked(self._start[None], ends)[0], np.inf, np.hypot(*(ends - self._start).T))
        return self._back_off + np.minimum(straight, around)

    def way(self, end: Points) -> list[Points]:
        """Returns the corners of the shortest path to `end` (2,) in the T's frame, in arena coordinates, with `end`."""
        ways = [self._start]
        if _blocked(self._start[None], end[None])[0, 0]:
            last = last_legs(end[None])[:, 0]
            through = int(np.argmin(self._to_nodes + last))
            node = int(np.argmin(self._first + self._table[:, through]))
            ways.append(_NODES[node])
            while node != through:
                steps = np.where(np.arange(len(_NODES)) == node, np.inf, _SEEN[node]) + self._table[:, through]
                node = int(np.argmin(np.where(self._usable, steps, np.inf)))
                ways.append(_NODES[node])
        return [self._pose.arena(point) for point in [*ways, end]]


def inside_arena(points: Points) -> NDArray[np.bool_]:
    """Returns which of `points` (n, 2), arena coordinates, an agent can stand on."""
    margin = AGENT_RADIUS + _WALL_MARGIN
    return np.logical_and.reduce((points >= WALL_LOW + margin) & (points <= WALL_HIGH - margin), axis=-1)


def last_legs(ends: Points) -> Points:
    """Returns (6, n): the distance from each way-point to each visible end, inf to the others."""
    lengths = np.hypot(ends[None, :, 0] - _NODES[:, None, 0], ends[None, :, 1] - _NODES[:, None, 1])
    return np.where(_blocked(_NODES, ends), np.inf, lengths)


def _backed_away(agent: Points) -> Points:
    """Returns the first position of an agent (T's frame) that touches the T: away from the nearest line of a box."""
    agent = agent.copy()
    for x, y, half_width, half_height in BOXES:
        off = agent - (x * _S, y * _S)
        beyond = np.abs(off) - np.array([half_width, half_height]) * _S
        axis = int(np.argmax(beyond))
        if beyond[axis] < _LEAVE:
            agent[axis] += math.copysign(_LEAVE - beyond[axis], off[axis])
    return agent


def _blocked(starts: Points, ends: Points) -> NDArray[np.bool_]:
    """Returns (m, n): whether the T, widened by the clearance, blocks the line between each start and each end."""
    blocked = np.zeros((len(starts), len(ends)), bool)
    delta = ends[None] - starts[:, None]
    delta = np.where(np.abs(delta) < 1e-9, 1e-9, delta)
    for x, y, half_width, half_height in BOXES:
        centre = np.array([x, y]) * _S
        half = np.array([half_width, half_height]) * _S + _CLEARANCE
        low, high = (centre - half - starts[:, None]) / delta, (centre + half - starts[:, None]) / delta
        enter = np.minimum(low, high).max(axis=-1)
        leave = np.maximum(low, high).min(axis=-1)
        blocked |= (np.maximum(enter, 0.0) < np.minimum(leave, 1.0)) & (leave > enter)
    return blocked


def _shortest(table: Points) -> Points:
    """Returns all shortest distances of a graph given by its edges' lengths (Floyd-Warshall)."""
    table = table.copy()
    np.fill_diagonal(table, 0.0)
    for k in range(len(table)):
        np.minimum(table, table[:, k : k + 1] + table[k : k + 1], out=table)
    return table


_SEEN = last_legs(_NODES)
