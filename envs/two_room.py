"""Two-Room: a dot that must go through the one door of a wall to the other room.

Geometry, in pixels of the 224x224 picture (origin top left, x right, y down): a wall fills x 107..117 but for a
door at y 35..63; border lines 4 px thick end at 14 px. Re-implemented from the description of the environment of
PLDM (arXiv 2502.14819) as stable-worldmodel configures it.

State: the dot's centre (x, y). Dynamics: (x, y) + 5 px * action, clamped to [21, 203]; deterministic.
Success: within 16 px of the goal.

The wall as the dot's centre meets it is the zone x 100..124 with passage at y 33.25..64.75: whoever would enter
it elsewhere stays 0.5 px before it. Here the whole segment of a step is tested. With `reference_rules=True` only
its end point is, as in the reference, so that a dot can slip past the door's edge.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.goal_env import Frame, GoalEnv, State
from lewm_gym.tasks import IMAGE_SIZE

SPEED = 5.0  # px per step at |action| = 1
LOW, HIGH = 21.0, 203.0  # px, where the dot's centre may be
WALL_LEFT, WALL_RIGHT = 100.0, 124.0  # px, the zone that the dot's centre may enter only through the door
DOOR_TOP, DOOR_BOTTOM = 33.25, 64.75  # px, the passage through the zone
DOOR_CENTRE = (112.0, 49.0)  # px
SUCCESS_RADIUS = 16.0  # px
DOT_STD = 7.0  # px
_PATCH = 25  # px, half width of what is drawn: beyond, the dot's weight is below half a grey level


class TwoRoomEnv(GoalEnv):
    """Two-Room as a goal-conditioned environment; see the module for its geometry and `GoalEnv` for the interface."""

    action_size = 2
    state_size = 2

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._position = np.full(2, np.nan)
        self._background = _draw_background()

    def _sample_state(self, rng: np.random.Generator) -> State:
        while True:
            position = rng.uniform(LOW, HIGH, 2)
            if not WALL_LEFT <= position[0] <= WALL_RIGHT:
                return position

    def check_state(self, state: State) -> None:
        """Raises ValueError for a dot outside the rooms or inside the wall."""
        x, y = state
        if not (LOW <= x <= HIGH and LOW <= y <= HIGH):
            raise ValueError(f"Two-Room state must lie within [{LOW}, {HIGH}] px, got ({x:g}, {y:g})")
        if WALL_LEFT < x < WALL_RIGHT and not DOOR_TOP <= y <= DOOR_BOTTOM:
            raise ValueError(f"Two-Room state ({x:g}, {y:g}) lies inside the wall")

    def _set_state(self, state: State) -> None:
        self._position = state.copy()

    def _get_state(self) -> State:
        return self._position.copy()

    def _advance(self, action: NDArray[np.float32]) -> bool:
        moved = np.clip(self._position + SPEED * action.astype(np.float64), LOW, HIGH)
        self._position = (_stop_at_wall_reference if self.reference_rules else _stop_at_wall)(self._position, moved)
        return self.is_goal(self._position, self.goal_state)

    def is_goal(self, state: State, goal_state: State) -> bool:
        """Returns whether the dot is within 16 px of the goal."""
        return bool(np.hypot(*(state - goal_state)) < SUCCESS_RADIUS)

    def render_state(self, state: State) -> Frame:
        """Returns the picture of the dot at `state`."""
        frame = self._background.copy()
        _blend_dot(frame, self._background, state)
        return frame

    def quantities(self, state: State) -> dict[str, NDArray[np.float32]]:
        """Returns `agent_position` (2,), px."""
        return {"agent_position": state.astype(np.float32)}


def _stop_at_wall(start: State, end: State) -> State:
    """Returns where a dot rests that sets off straight from `start` (outside the wall) to `end`, sliding along what it meets.

    A step is shorter than the wall is thick, so a segment meets at most one of the zone's two faces.
    """
    face = _crossed_face(start[0], end[0])
    if face is not None:
        y = start[1] + (end[1] - start[1]) * (face - start[0]) / (end[0] - start[0])
        in_door = DOOR_TOP <= y <= DOOR_BOTTOM
        entering = WALL_LEFT < end[0] < WALL_RIGHT
        if entering and not in_door:
            return np.array([face - 0.5 if start[0] < end[0] else face + 0.5, end[1]])
        if not entering and in_door:
            return end
    elif not WALL_LEFT < end[0] < WALL_RIGHT:
        return end
    return np.array([end[0], np.clip(end[1], DOOR_TOP, DOOR_BOTTOM)])


def _crossed_face(x_start: float, x_end: float) -> float | None:
    """Returns the x of the zone's face between the two, or None if both are inside the zone or on one side of it."""
    if (WALL_LEFT < x_start < WALL_RIGHT) == (WALL_LEFT < x_end < WALL_RIGHT):
        return None
    outside = x_end if WALL_LEFT < x_start < WALL_RIGHT else x_start
    return WALL_LEFT if outside <= WALL_LEFT else WALL_RIGHT


def _stop_at_wall_reference(start: State, end: State) -> State:
    """Returns `end`, put back to the near side if it lies inside the wall: only the end point is tested."""
    x, y = end
    if WALL_LEFT < x < WALL_RIGHT and not DOOR_TOP <= y <= DOOR_BOTTOM:
        return np.array([WALL_LEFT - 0.5 if start[0] < DOOR_CENTRE[0] else WALL_RIGHT + 0.5, y])
    return end


def _draw_background() -> Frame:
    frame = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 255, np.uint8)
    border = slice(10, 14), slice(IMAGE_SIZE - 14, IMAGE_SIZE - 10)
    for line in border:
        frame[line, 10 : IMAGE_SIZE - 10] = 0
        frame[10 : IMAGE_SIZE - 10, line] = 0
    frame[10 : IMAGE_SIZE - 10, 107:118] = 0
    frame[35:64, 107:118] = 255
    return frame


def _blend_dot(frame: Frame, background: Frame, centre: State) -> None:
    """Alpha-blends a red Gaussian dot onto `frame`, at the exact (sub-pixel) centre."""
    column, row = (int(round(c)) for c in centre)
    rows = slice(max(row - _PATCH, 0), row + _PATCH + 1)
    columns = slice(max(column - _PATCH, 0), column + _PATCH + 1)
    patch = background[rows, columns]
    across = np.exp(-0.5 * ((np.arange(columns.start, columns.start + patch.shape[1]) - centre[0]) / DOT_STD) ** 2)
    down = np.exp(-0.5 * ((np.arange(rows.start, rows.start + patch.shape[0]) - centre[1]) / DOT_STD) ** 2)
    alpha = (down[:, None] * across[None, :]).astype(np.float32)
    keep = 1.0 - alpha
    frame[rows, columns, 0] = patch[..., 0] * keep + 255.0 * alpha + 0.5
    shade = (patch[..., 1] * keep + 0.5).astype(np.uint8)  # background is grey: green equals blue
    frame[rows, columns, 1] = shade
    frame[rows, columns, 2] = shade
