"""The planner of Push-T's expert: which known push brings the T nearest to its goal, and the path to its start."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collect.policies.pusht.moves import Move, Points, Push, Walk, action_to
from collect.policies.pusht.primitives import primitives
from collect.policies.pusht.routes import Pose, Routes, inside_arena, last_legs
from envs.goal_env import State
from envs.pusht.geometry import BLOCK_SCALE, OUTLINE, WALL_HIGH, WALL_LOW, Triple, centre_of_gravity, wall_overlap
from envs.pusht.physics import advance

Indices = NDArray[np.integer]

_MIDDLE = OUTLINE.mean(axis=0) * BLOCK_SCALE  # of the vertices, in the T's frame
_SPREAD_SQUARED = float(((OUTLINE * BLOCK_SCALE - _MIDDLE) ** 2).sum(axis=1).mean())
_CHEAPEST = 200  # pushes that are looked at closely
_PATIENCE = 3  # plans without progress after which a push is chosen at random
_PROGRESS = 0.05  # part of the misplacement, and at least 0.3 px
_UNHURRIED = 20.0  # px of misplacement below which time counts less and whims are over
_ROOM = 32.0  # px between T and wall that let the agent pass
_SQUEEZE = 40.0  # px of overlap with a wall in foresight that are worth a simulation, since the wall will turn the T
_OFF_WALL = 110.0  # px between the centre of gravity and a wall that leave the T free
_TIGHT = 5.0  # px from a wall
_SIMULATED = 32  # pushes, of which the best is taken against a wall
_CROWDING = 0.5  # px of distance to the goal that a px less of that room is worth
_PLACES = (25.0, 90.0), (485.0, 420.0)  # px, lowest and highest place of a detour; wide, as in the published data


@dataclass(frozen=True)
class ExpertConfig:
    """The expert's behaviour, and the starts and goals of its episodes; fitted to the published data's statistics."""

    noise: float = 0.03  # std of what is added to each action (0.01 is 1 px of the agent's target)
    careful_noise: float = 0.3  # part of it that remains while the block is nearly in place
    speeds: tuple[float, float] = (6.0, 17.0)  # px per step, range of the cap on walking
    speed_drift: float = 3.0  # px per step, std of the cap's change from one plan to the next
    step_cost: float = 0.15  # px of distance to the goal that a step is worth
    vigour: float = 1.3  # pushes are at most this much faster than walks
    whim: float = 0.03  # std of what is added to a push's cost, as part of the present misplacement
    detours: float = 0.4  # probability, at each plan, of walking to a random place first
    leisure: int = 135  # steps after which there are no more detours and no slow walks
    least_task: float = 60.0  # px, RMS distance of the T's vertices between start and goal
    start_spread: tuple[float, float] = (26.0, 40.0)  # px, std of the block's start about the centre
    goal_spread: tuple[float, float] = (22.0, 38.0)  # px, std of the block's goal about the centre
    wide_starts: float = 0.3  # part of the starts that are uniform over the arena instead
    wide_goals: float = 0.3  # part of the goals likewise

    def __post_init__(self) -> None:
        """Raises ValueError for a negative noise."""
        if not self.noise >= 0.0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")


class Planner:
    """Selects moves, and tracks their progress.

    Args:
        config: Of the expert.
        rng: The episode's random stream.
    """

    def __init__(self, config: ExpertConfig, rng: np.random.Generator) -> None:
        self._config, self._rng = config, rng
        self._library = primitives()
        self._legs = last_legs(self._library.contacts)
        self._speed = float(rng.uniform(*config.speeds))
        self._best = math.inf  # px, the least misplacement since the last random choice
        self._idle = 0  # plans since it last improved
        self._wildness = _CHEAPEST  # pushes among which the last random choice fell

    def plan(self, state: State, goal: State, placed: bool, step: int) -> list[Move]:
        """Returns the next moves.

        Args:
            state: The current state.
            goal: The goal state.
            placed: Whether the block is in place, so that only the agent has to go to its goal.
            step: Of the episode.
        """
        pose = Pose(*state[2:5])
        routes = Routes(pose, state[:2])
        late = step > self._config.leisure
        self._drift_speed(late)
        if placed:
            return [Walk(routes.way(pose.local(goal[:2])), self._speed, state)]
        if not late and self._rng.uniform() < self._config.detours:
            place = pose.local(self._rng.uniform(*_PLACES))
            if math.isfinite(routes.lengths(place[None])[0]):
                return [Walk(routes.way(place), self._speed, state)]
        push = self._choose(pose, routes, goal)
        if push is None:  # hemmed in between block and wall: straight through the block
            return [Walk([self._rng.uniform(*_PLACES)], self._speed, state)]
        library = self._library
        way = routes.way(library.contacts[library.contact[push]])
        path = pose.arena(library.path[push, : library.steps[push]])
        return [Walk(way, self._speed, state), Push(path)]

    def _drift_speed(self, late: bool) -> None:
        slowest, fastest = self._config.speeds
        speed = self._speed + self._rng.normal(0.0, self._config.speed_drift)
        self._speed = float(np.clip(speed, 0.5 * (slowest + fastest) if late else slowest, fastest))

    def _choose(self, pose: Pose, routes: Routes, goal: State) -> int | None:
        """Returns the index of the next push, or None if no reachable one ends within the walls."""
        library = self._library
        now, middle, turn = misplacement(pose, goal)
        cost = _rms(library.centroid - middle, library.turn - turn)
        walks = np.where(
            inside_arena(pose.arena(library.contacts)), routes.lengths(library.contacts, self._legs), np.inf
        )
        # The nearer the goal, the more a small improvement is worth a long walk.
        step_cost = self._config.step_cost * min(max(now / _UNHURRIED, 0.1), 1.0)
        cost += step_cost * ((walks / self._speed)[library.contact] + library.steps)
        cost[library.speed > self._config.vigour * self._speed] = np.inf
        if now > _UNHURRIED:
            cost += self._rng.normal(0.0, self._config.whim * now, len(cost))
        stuck = self._is_stuck(now)
        count = self._wildness if stuck else _CHEAPEST
        pushes, overlap = self._fitting(pose, np.argpartition(cost, count)[:count], cost, 0.0)
        tight = wall_overlap([*pose.origin, pose.angle]) > max(-_TIGHT, wall_overlap(goal[2:5]))
        if tight or not len(pushes):
            return self._squeeze(pose, goal, cost)
        if stuck:
            return int(self._rng.choice(pushes))
        return int(pushes[np.argmin(cost[pushes] + _crowding(overlap, goal))])

    def _squeeze(self, pose: Pose, goal: State, cost: Points) -> int | None:
        """Returns a push that rotates a T at a wall, found by simulating some that are not in the library."""
        pushes, _ = self._fitting(pose, np.arange(len(cost)), cost, _SQUEEZE)
        if not len(pushes):
            return None
        pushes = self._rng.choice(pushes, min(_SIMULATED, len(pushes)), replace=False)
        ends = [self._simulate(pose, push) for push in pushes]
        left = np.array([misplacement(Pose(*end), goal)[0] for end in ends])
        off_wall = np.array([_off_wall(end) for end in ends])
        return int(pushes[np.argmin(left + np.maximum(min(_OFF_WALL, _off_wall(goal[2:5])) - off_wall, 0.0))])

    def _simulate(self, pose: Pose, push: int) -> list[float]:
        """Returns the T's x, y, angle after a push, walls included."""
        library = self._library
        contact = pose.arena(library.contacts[library.contact[push]])
        state = [*contact.tolist(), *pose.origin.tolist(), pose.angle, 0.0, 0.0, 0.0, 0.0, 0.0]
        for position in pose.arena(library.path[push, : library.steps[push]]):
            state = advance(state, np.clip(action_to(position, np.array(state)), -1.0, 1.0).tolist())
        return advance(state, (0.0, 0.0))[2:5]

    def _is_stuck(self, now: float) -> bool:
        """Returns whether to try a random push; each time from twice as many."""
        if now < self._best - max(0.3, _PROGRESS * now):
            self._best, self._idle = now, 0
            self._wildness = max(self._wildness // 2, _CHEAPEST)
        else:
            self._idle += 1
        if self._idle < _PATIENCE:
            return False
        self._best, self._idle = math.inf, 0
        self._wildness = min(2 * self._wildness, len(self._library.turn) // 2)
        return True

    def _fitting(self, pose: Pose, pushes: Indices, cost: Points, most: float) -> tuple[Indices, Points]:
        """Returns the reachable ones of `pushes` that end within the walls, and how far the T then overlaps a wall.

        Args:
            pose: Of the T.
            pushes: (n,) int.
            cost: (P,) of all pushes; infinite where the push cannot be reached.
            most: px that the T may overlap a wall.
        """
        library = self._library
        pushes = pushes[np.isfinite(cost[pushes]) & inside_arena(pose.arena(library.agent[pushes]))]
        ends = pose.arena(library.moved[pushes]).tolist()
        angles = (pose.angle + library.turn[pushes]).tolist()
        overlap = np.array([wall_overlap((*end, angle)) for end, angle in zip(ends, angles, strict=True)])
        return pushes[overlap < most], overlap[overlap < most]


def misplacement(pose: Pose, goal: State) -> tuple[float, Points, float]:
    """Returns the RMS distance of the T's vertices from the goal's, and the goal's middle and turn in the T's frame."""
    middle = pose.local(Pose(*goal[2:5]).arena(_MIDDLE))
    turn = goal[4] - pose.angle
    return float(_rms(middle - _MIDDLE, turn)), middle, turn


def _off_wall(pose: Triple) -> float:
    """Returns how far the T's centre of gravity is from the nearest wall, px; it grows as a T turns on a wall."""
    centre = centre_of_gravity(pose)
    return min(*(c - WALL_LOW for c in centre), *(WALL_HIGH - c for c in centre))


def _crowding(overlap: Points, goal: State) -> Points:
    """Returns the cost, (n,) px, of a T near a wall, where it is hard to push, unless its goal is there."""
    room = max(wall_overlap(goal[2:5]) + _ROOM, 0.0)
    return _CROWDING * np.maximum(np.maximum(overlap + _ROOM, 0.0) - room, 0.0)


def _rms(apart: Points, turn: Points | float) -> Points:
    """Returns the RMS distance of the vertices of T's whose middles are `apart` (..., 2) and that differ by `turn`."""
    return np.sqrt((apart**2).sum(axis=-1) + 2.0 * _SPREAD_SQUARED * (1.0 - np.cos(turn)))
