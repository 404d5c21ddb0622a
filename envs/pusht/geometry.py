"""The geometry of Push-T, in pixels of the 512x512 arena (origin top left, x right, y down).

The T's own frame has its origin in the middle of the bar's outer edge: at scale s the bar fills x -2s..2s,
y 0..s and the stem x -s/2..s/2, y s..4s; its centre of gravity lies at (0, 1.5 s). The reference's scale is 30.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Pair = Sequence[float] | NDArray[np.float64]  # x, y
Point = tuple[float, float]
Triple = Sequence[float] | NDArray[np.float64]  # x, y, angle of a T

ARENA = 512.0  # px
WALL_LOW, WALL_HIGH = 7.0, 504.0  # px, the inner faces of the walls
BLOCK_SCALE = 30.0
AGENT_RADIUS = 15.0  # px

#: The T as two boxes at scale 1: centre x, centre y, half width, half height.
BOXES = ((0.0, 0.5, 2.0, 0.5), (0.0, 2.5, 0.5, 1.5))
#: Its outline at scale 1, eight vertices.
OUTLINE = np.array([(-2, 0), (2, 0), (2, 1), (0.5, 1), (0.5, 4), (-0.5, 4), (-0.5, 1), (-2, 1)], dtype=np.float64)
CENTRE = 1.5  # y of the centre of gravity at scale 1
CIRCUMRADIUS = math.hypot(0.5, 2.5)  # distance of the farthest vertex from the centre of gravity, at scale 1


def centre_of_gravity(pose: Triple, scale: float = BLOCK_SCALE) -> tuple[float, float]:
    """Returns the centre of gravity of a T."""
    x, y, angle = pose
    return x - math.sin(angle) * CENTRE * scale, y + math.cos(angle) * CENTRE * scale


def outline(pose: Triple, scale: float = BLOCK_SCALE) -> NDArray[np.float64]:
    """Returns the T's eight vertices, (8, 2)."""
    x, y, angle = pose
    cos, sin = math.cos(angle), math.sin(angle)
    return OUTLINE @ (scale * np.array([[cos, sin], [-sin, cos]])) + (x, y)


def wall_overlap(pose: Triple, scale: float = BLOCK_SCALE) -> float:
    """Returns how far the T reaches into a wall, px; negative: its distance to the nearest."""
    x, y, angle = pose
    cos, sin = math.cos(angle), math.sin(angle)
    overlap = -math.inf
    for centre_x, centre_y, half_width, half_height in BOXES:
        middle_x = x + scale * (cos * centre_x - sin * centre_y)
        middle_y = y + scale * (sin * centre_x + cos * centre_y)
        extent_x = scale * (abs(cos) * half_width + abs(sin) * half_height)
        extent_y = scale * (abs(sin) * half_width + abs(cos) * half_height)
        low, high = min(middle_x - extent_x, middle_y - extent_y), max(middle_x + extent_x, middle_y + extent_y)
        overlap = max(overlap, WALL_LOW - low, high - WALL_HIGH)
    return overlap


def gaps(point: Pair, pose: Triple, scale: float = BLOCK_SCALE) -> list[tuple[float, float, float]]:
    """Returns for each of the T's boxes the signed distance of `point` (negative inside) and the normal there."""
    x, y, angle = pose
    cos, sin = math.cos(angle), math.sin(angle)
    dx, dy = point[0] - x, point[1] - y
    local_x, local_y = cos * dx + sin * dy, cos * dy - sin * dx
    found = []
    for centre_x, centre_y, half_width, half_height in BOXES:
        from_x, from_y = local_x - centre_x * scale, local_y - centre_y * scale
        beyond_x, beyond_y = abs(from_x) - half_width * scale, abs(from_y) - half_height * scale
        if beyond_x > 0.0 and beyond_y > 0.0:
            distance = math.hypot(beyond_x, beyond_y)
            normal_x, normal_y = math.copysign(beyond_x / distance, from_x), math.copysign(beyond_y / distance, from_y)
        elif beyond_x > beyond_y:
            distance, normal_x, normal_y = beyond_x, math.copysign(1.0, from_x), 0.0
        else:
            distance, normal_x, normal_y = beyond_y, 0.0, math.copysign(1.0, from_y)
        found.append((distance, cos * normal_x - sin * normal_y, sin * normal_x + cos * normal_y))
    return found


def distance(point: Pair, pose: Triple, scale: float = BLOCK_SCALE) -> float:
    """Returns the distance of `point` from the T, px; negative inside, measured to the nearer box."""
    return min(gap for gap, _, _ in gaps(point, pose, scale))


def coverage(pose: Triple, goal_pose: Triple, scale: float = BLOCK_SCALE, goal_scale: float = BLOCK_SCALE) -> float:
    """Returns the part of the goal's T that the T covers, 0..1: exact, by polygon clipping.

    Args:
        pose: x, y, angle of the T.
        goal_pose: Likewise of the goal.
        scale: Scale of the T.
        goal_scale: Scale of the goal's.
    """
    boxes, goal_boxes = _boxes(pose, scale), _boxes(goal_pose, goal_scale)
    shared = sum(_area(_clip(box, goal_box)) for box in boxes for goal_box in goal_boxes)
    return shared / (7.0 * goal_scale**2)  # a bar of 4 and a stem of 3 squares


def _boxes(pose: Triple, scale: float) -> list[list[Point]]:
    x, y, angle = (float(value) for value in pose)
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    corners = []
    for cx, cy, hw, hh in BOXES:
        local = ((cx - hw, cy - hh), (cx + hw, cy - hh), (cx + hw, cy + hh), (cx - hw, cy + hh))
        corners.append([(x + cos * u - sin * v, y + sin * u + cos * v) for u, v in local])
    return corners


def _clip(subject: list[Point], window: list[Point]) -> list[Point]:
    """Returns the part of a convex polygon inside another, both in the same orientation (Sutherland-Hodgman)."""
    for (ax, ay), (bx, by) in zip(window, window[1:] + window[:1], strict=True):
        kept: list[Point] = []
        side = [(bx - ax) * (py - ay) - (by - ay) * (px - ax) for px, py in subject]
        for i, (px, py) in enumerate(subject):
            qx, qy = subject[i - 1]
            if (side[i] >= 0.0) != (side[i - 1] >= 0.0):
                t = side[i - 1] / (side[i - 1] - side[i])
                kept.append((qx + t * (px - qx), qy + t * (py - qy)))
            if side[i] >= 0.0:
                kept.append((px, py))
        subject = kept
    return subject


def _area(polygon: list[Point]) -> float:
    return 0.5 * abs(sum(polygon[i - 1][0] * y - x * polygon[i - 1][1] for i, (x, y) in enumerate(polygon)))
