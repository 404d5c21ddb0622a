"""The physics of Push-T: one action applied to a state, by pymunk (Chipmunk).

pymunk keeps contact caches and bias velocities that can be neither read nor set, so restoring positions and
velocities into a living Space repeats a recording exactly in 18 % of cases only. `advance` therefore builds the
Space afresh at every action: it is a function of state and action, and differs from a continuous Space by 0.12 px in
the median after 10 steps. `ContinuousSpace` is the reference's method.

Everything is in px, rad and seconds. A state is ten numbers: agent x, y; block x, y, angle; agent velocity x, y;
block velocity x, y; block angular velocity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pymunk

from envs.pusht.geometry import (
    AGENT_RADIUS,
    BLOCK_SCALE,
    BOXES,
    CENTRE,
    CIRCUMRADIUS,
    WALL_HIGH,
    WALL_LOW,
    Point,
    centre_of_gravity,
    gaps,
    wall_overlap,
)

ACTION_SCALE = 100.0  # px from the agent to its target at |action| = 1
TIME_STEP = 0.01  # s
SUBSTEPS = 10  # per action
_STIFFNESS, _DAMPING = 100.0, 20.0  # of the agent's PD control
_MAX_MOVE = 60.0  # px that agent or block can move within one action, rounded up (41 per axis at constant |action| 1)
_JAM = 1.0  # px that the block may reach into a wall before the agent stops pushing it further
_DEEP = 6.0  # px that the agent may reach into the block near a wall; a first contact at full speed gives 5
_MAX_SPEED, _MAX_SPIN = 600.0, 6.0  # px/s, rad/s of the block; the agent's own pushes give at most 526 and 4.8
_THICK = 100.0  # px, half thickness of the walls; their inner faces lie where the reference's are
_TURN = 2.0 * math.pi


@dataclass(frozen=True)
class Sizes:
    """The variable sizes of the bodies.

    Attributes:
        agent_radius: px.
        block_scale: px, thickness of the T's bar and stem.
    """

    agent_radius: float = AGENT_RADIUS
    block_scale: float = BLOCK_SCALE


DEFAULT_SIZES = Sizes()


def advance(state: Sequence[float], action: Sequence[float], sizes: Sizes = DEFAULT_SIZES) -> list[float]:
    """Returns the state after one action (100 ms).

    Two differences from the reference, in which the agent passes through walls and the block can leave the arena
    for good: the agent's disc stops at the walls (from beyond, it can only come back), and the agent does not push
    a block further that already overlaps a wall by 1 px. Both matter near walls only.
    """
    x, y = state[:2]
    centre = centre_of_gravity(state[2:5], sizes.block_scale)
    reach = CIRCUMRADIUS * sizes.block_scale
    near_wall = not all(WALL_LOW + reach + _MAX_MOVE < c < WALL_HIGH - reach - _MAX_MOVE for c in centre)
    target = x + ACTION_SCALE * float(action[0]), y + ACTION_SCALE * float(action[1])
    if _block_rests(state, near_wall, sizes):
        moved = _move_freely(state, target, centre, reach + sizes.agent_radius + 1.0, sizes)
        if moved is not None:
            return moved
    space, agent, block = _build(state, sizes, walls=_THICK if near_wall else None)
    velocity_x, velocity_y = state[5], state[6]
    for _ in range(SUBSTEPS):
        velocity_x, velocity_y = _controlled(x, y, velocity_x, velocity_y, target)
        if near_wall:
            velocity_x, velocity_y = _without_jamming((x, y), (velocity_x, velocity_y), block, sizes)
        velocity_x = _stopped_at_walls(x, velocity_x, sizes.agent_radius)
        velocity_y = _stopped_at_walls(y, velocity_y, sizes.agent_radius)
        agent.velocity = velocity_x, velocity_y
        space.step(TIME_STEP)
        if near_wall:
            _slow_down(block)
        x, y = x + velocity_x * TIME_STEP, y + velocity_y * TIME_STEP  # as pymunk does, without asking it
    return _read(agent, block)


class ContinuousSpace:
    """One Space for a whole episode, as in the reference: inexact when restored or pickled.

    Restoring takes the reference's seven numbers (the block's velocity is lost) and runs one physics step.
    """

    def __init__(self, state: Sequence[float], sizes: Sizes = DEFAULT_SIZES) -> None:
        self._space, self._agent, self._block = _build([*state[:7], 0.0, 0.0, 0.0], sizes, walls=2.0)
        self._space.step(TIME_STEP)

    def advance(self, action: Sequence[float]) -> list[float]:
        """Returns the state after one action; agent and block pass through walls as in the reference."""
        x, y = self._agent.position
        target = x + ACTION_SCALE * float(action[0]), y + ACTION_SCALE * float(action[1])
        for _ in range(SUBSTEPS):
            self._agent.velocity = _controlled(*self._agent.position, *self._agent.velocity, target)
            self._space.step(TIME_STEP)
        return self.state()

    def state(self) -> list[float]:
        """Returns the current state."""
        return _read(self._agent, self._block)


def _build(state: Sequence[float], sizes: Sizes, walls: float | None) -> tuple[pymunk.Space, pymunk.Body, pymunk.Body]:
    """Returns a new Space with its bodies; `walls` is their half thickness, None where the block cannot meet one."""
    space = pymunk.Space()
    space.damping = 0.0  # quasi-static: the block moves only while it is pushed
    if walls is not None:
        low, high = WALL_LOW - walls, WALL_HIGH + walls
        corners = (low, low), (high, low), (high, high), (low, high)
        space.add(*(pymunk.Segment(space.static_body, corners[i - 1], corners[i], walls) for i in range(4)))
    agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
    agent.position = state[0], state[1]
    agent.velocity = state[5], state[6]
    scale = sizes.block_scale
    # The reference takes the bar's moment of inertia, about the T's origin, for the stem too.
    block = pymunk.Body(1.0, 2.0 * _bar_moment(scale))
    block.center_of_gravity = 0.0, CENTRE * scale
    block.angle = state[4]  # before the position: the other order turns the T about its centre of gravity
    block.position = state[2], state[3]
    block.velocity = state[7], state[8]
    block.angular_velocity = state[9]
    polygons = (pymunk.Poly(block, _box_corners(i, scale)) for i in range(len(BOXES)))
    space.add(agent, pymunk.Circle(agent, sizes.agent_radius), block, *polygons)
    return space, agent, block


def _read(agent: pymunk.Body, block: pymunk.Body) -> list[float]:
    angle = block.angle % _TURN
    return [*agent.position, *block.position, angle, *agent.velocity, *block.velocity, block.angular_velocity]


def _bar_moment(scale: float) -> float:
    """Returns the moment of inertia of the bar, mass 1, about the T's origin."""
    width, height = 4.0 * scale, scale
    return (width**2 + height**2) / 12.0 + (0.5 * height) ** 2


def _box_corners(index: int, scale: float) -> list[tuple[float, float]]:
    x, y, half_width, half_height = (scale * value for value in BOXES[index])
    left, right, top, bottom = x - half_width, x + half_width, y - half_height, y + half_height
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _controlled(x: float, y: float, velocity_x: float, velocity_y: float, target: tuple[float, float]) -> Point:
    """Returns the agent's velocity after one substep of PD control."""
    return (
        velocity_x + (_STIFFNESS * (target[0] - x) - _DAMPING * velocity_x) * TIME_STEP,
        velocity_y + (_STIFFNESS * (target[1] - y) - _DAMPING * velocity_y) * TIME_STEP,
    )


def _stopped_at_walls(position: float, velocity: float, radius: float) -> float:
    """Returns the velocity along one axis that keeps the disc between the walls; beyond, only the way back is free."""
    lowest = min(WALL_LOW + radius, position)
    highest = max(WALL_HIGH - radius, position)
    return min(max(velocity, (lowest - position) / TIME_STEP), (highest - position) / TIME_STEP)


def _without_jamming(position: Point, velocity: Point, block: pymunk.Body, sizes: Sizes) -> Point:
    """Returns the agent's velocity without the part that pushes a jammed block into a wall, or the agent into it."""
    pose = (*block.position, block.angle)
    jammed = wall_overlap(pose, sizes.block_scale) > _JAM
    velocity_x, velocity_y = velocity
    for distance, normal_x, normal_y in gaps(position, pose, sizes.block_scale):
        gap = distance - sizes.agent_radius
        if jammed or gap < -_DEEP:
            excess = -(velocity_x * normal_x + velocity_y * normal_y) - max(gap, 0.0) / TIME_STEP
            if excess > 0.0:
                velocity_x, velocity_y = velocity_x + excess * normal_x, velocity_y + excess * normal_y
    return velocity_x, velocity_y


def _slow_down(block: pymunk.Body) -> None:
    """Limits the block's speed to what pushes can cause; squeezed against a wall, it could otherwise cross it."""
    speed = block.velocity.length
    if speed > _MAX_SPEED:
        block.velocity = block.velocity * (_MAX_SPEED / speed)
    if abs(block.angular_velocity) > _MAX_SPIN:
        block.angular_velocity = math.copysign(_MAX_SPIN, block.angular_velocity)


def _block_rests(state: Sequence[float], near_wall: bool, sizes: Sizes) -> bool:
    """Returns whether the block stays exactly where it is unless the agent meets it."""
    if any(state[7:10]):
        return False
    return not near_wall or wall_overlap(state[2:5], sizes.block_scale) < 0.0


def _move_freely(
    state: Sequence[float],
    target: Point,
    centre: Point,
    keep_off: float,
    sizes: Sizes,
) -> list[float] | None:
    """Returns the state after an action that keeps the agent `keep_off` px from the block's centre, or None.

    The same as pymunk at a tenth of its cost: a resting block without contact does not move.
    """
    x, y, velocity_x, velocity_y = state[0], state[1], state[5], state[6]
    if math.hypot(x - centre[0], y - centre[1]) < keep_off:
        return None
    for _ in range(SUBSTEPS):
        velocity_x, velocity_y = _controlled(x, y, velocity_x, velocity_y, target)
        velocity_x = _stopped_at_walls(x, velocity_x, sizes.agent_radius)
        velocity_y = _stopped_at_walls(y, velocity_y, sizes.agent_radius)
        x, y = x + velocity_x * TIME_STEP, y + velocity_y * TIME_STEP
        if math.hypot(x - centre[0], y - centre[1]) < keep_off:
            return None
    return [x, y, *state[2:4], state[4] % _TURN, velocity_x, velocity_y, 0.0, 0.0, 0.0]
