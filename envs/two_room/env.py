"""Two-Room: a dot moves to a goal position in one of two rooms, which are connected by a door in the wall.

Geometry, in px of the 224x224 image (origin top left, x right, y down): a wall fills x 107..117 but for a door at
y 35..63; border lines 4 px thick end at 14 px; lines and wall run to the image's edge. Re-implemented from the
description of the environment of PLDM (arXiv 2502.14819) as stable-worldmodel configures it.

State, (2,) float64: the dot's centre (x, y), px. Dynamics: (x, y) + 5 px * action, clamped to [21, 203];
deterministic. Success: the dot's centre is less than 16 px from the goal's at the end of a step.

For the dot's centre, the wall is the zone x 100..124 (wall and radius) with a passage at y 33.25..64.75 (the
door and 1.75 px). A dot that would enter the zone elsewhere slides along it, 0.5 px away.

With `reference_rules=True`, only the end point of a step is tested against the zone, as in stable-worldmodel, so a dot
can pass the edge of the door, and one that leaves the doorway sideways is placed outside; here the whole segment is
tested, and that dot slides along the side of the passage. The remaining differences are the reference's single
precision and its rendering, which truncates where this one rounds: compared with stable-worldmodel 0.1.1 over 20,000
steps, 8,000 of them with random variations, positions agree to 1e-4 px, images to 2 grey levels, and success always.

Variations (options of `reset`, with the reference's names and ranges where it has them):

- dynamics and image: `agent_radius` (px: the rendered dot's standard deviation, and its collision radius),
  `wall_thickness` (px, an integer), `wall_axis` ("vertical", "horizontal"), `door_number` (1..3) and for each of
  three doors, of which the first `door_number` exist, `door_position` (px along the wall, its centre; reference
  0..223, where a door can overlap the border) and `door_size` (px, half of its width; reference 1..21, of which
  one must be wide enough for the dot);
- dynamics: `agent_speed` (px per step);
- image: `agent_color`, `background_color`, `border_color`, `door_color`, `wall_color`, `goal_color` (RGB 0..255);
  `goal_visible` also renders the goal as a dot of `goal_radius` px; `light_intensity` multiplies all colours (not in
  the reference).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.goal_env import Event, Frame, GoalEnv, Placed, State
from envs.two_room.rooms import CENTRE, Rooms
from lewm_gym.tasks import IMAGE_SIZE, get_task

_DEFAULT = Rooms()
SPEED = _DEFAULT.speed  # px per step at |action| = 1
LOW, HIGH = _DEFAULT.low, _DEFAULT.high  # px, where the dot's centre may be
WALL_LEFT, WALL_RIGHT = (
    _DEFAULT.near,
    _DEFAULT.far,
)  # px, the zone that the dot's centre may enter only through the door
DOOR_CENTRE = (CENTRE, _DEFAULT.doors[0][0])  # px
SUCCESS_RADIUS = 16.0  # px
_LINES = 10, 14  # px from the image's edge, of the border lines
_REACH = 3.54  # standard deviations, beyond which a dot's weight is below half a grey level: sqrt(2 ln 510)


class TwoRoomEnv(GoalEnv):
    """Two-Room as a goal-conditioned environment; see the module for its geometry and `GoalEnv` for the interface."""

    action_size = 2
    state_size = 2
    proprioceptive = get_task("two_room").proprioception
    phases = get_task("two_room").phases
    walk_std = (0.6, 0.6)
    variation_ranges = {
        "agent_color": (0.0, 255.0, (255.0, 0.0, 0.0)),
        "agent_radius": (7.0, 14.0, 7.0),
        "agent_speed": (1.75, 10.5, 5.0),
        "background_color": (0.0, 255.0, (255.0, 255.0, 255.0)),
        "border_color": (0.0, 255.0, (0.0, 0.0, 0.0)),
        "door_color": (0.0, 255.0, (255.0, 255.0, 255.0)),
        "door_number": [1, 2, 3],
        "door_position": (35.0, 189.0, (49.0, 49.0, 49.0)),
        "door_size": (8.0, 21.0, (14.0, 14.0, 14.0)),
        "goal_color": (0.0, 255.0, (0.0, 255.0, 0.0)),
        "goal_radius": (7.0, 14.0, 7.0),
        "goal_visible": [False, True],
        "light_intensity": (0.2, 1.0, 1.0),
        "wall_axis": ["vertical", "horizontal"],
        "wall_color": (0.0, 255.0, (0.0, 0.0, 0.0)),
        "wall_thickness": (7.0, 41.0, 10.0),
    }

    shifts = {
        "agent blue": {"agent_color": [0.0, 0.0, 255.0]},
        "floor yellow": {"background_color": [255.0, 245.0, 180.0]},
        "walls grey": {"border_color": [128.0, 128.0, 128.0]},
        "agent 1.5 times as large": {"agent_radius": 10.5},
        "light at 70 %": {"light_intensity": 0.7},
        "door 91 px further down": {"door_position": [140.0, 49.0, 49.0]},
        "door 0.7 times as wide": {"door_size": [10.0, 14.0, 14.0]},
    }
    event = Event("dot", ("agent_color", (0.0, 0.0, 255.0)), slice(0, 2), slice(0, 2), slice(2, 2), 60.0)
    place_unit, place_y_down = "px", True

    def placed_states(self, side: int) -> Iterator[Placed]:
        """Yields positions of the dot."""
        for x in np.linspace(24, 200, 2 * side):
            for y in np.linspace(24, 200, 2 * side):
                yield Placed(np.array([x, y]), {"agent": (x, y)})

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._position: State = np.full(2, np.nan)
        self.variations = self._checked_variations({})
        self._apply_variations(self.variations)

    @property
    def rooms(self) -> Rooms:
        """Geometry and dynamics under the current variations."""
        return _rooms(self.variations)

    def _apply_variations(self, variations: dict[str, Any]) -> None:
        self._rooms = self.rooms
        self._picture = Picture(self._rooms, variations)

    def _sample_state(self, rng: np.random.Generator) -> State:
        rooms = self._rooms
        while True:
            position = rng.uniform(rooms.low, rooms.high, 2)
            if not rooms.near <= position[0 if rooms.vertical else 1] <= rooms.far:
                return position

    def check_state(self, state: State) -> None:
        """Raises ValueError for a dot outside the rooms or inside the wall."""
        x, y = state
        rooms = self.rooms  # of the variations of a reset that is not yet executed
        if not (rooms.low <= x <= rooms.high and rooms.low <= y <= rooms.high):
            raise ValueError(f"Two-Room state must be within [{rooms.low:g}, {rooms.high:g}] px, got ({x:g}, {y:g})")
        if rooms.is_inside_wall(state[None])[0]:
            raise ValueError(f"Two-Room state ({x:g}, {y:g}) is inside the wall")

    def _set_state(self, state: State) -> None:
        self._position = state.copy()

    def _get_state(self) -> State:
        return self._position.copy()

    def _advance(self, action: NDArray[np.float32]) -> bool:
        self._position = self._rooms.move(self._position[None], action[None], self.reference_rules)[0]
        return self.is_goal(self._position, self.goal_state)

    def reached(self, achieved: NDArray[np.float64], desired: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Returns whether dots are within 16 px of their goals."""
        return ((achieved - desired) ** 2).sum(-1) < SUCCESS_RADIUS**2

    def phase(self, states: NDArray[np.float64]) -> str:
        """Returns "same room" or "other room": where the goal is; the door is split in the middle."""
        start, goal = states[[0, -1], 0 if self.rooms.vertical else 1] < CENTRE
        return "same room" if start == goal else "other room"

    def render_state(self, state: State) -> Frame:
        """Returns the image of the dot at `state`, and of the goal if `goal_visible`."""
        return self._picture.draw(state, self.goal_state)

    def quantities(self, state: State) -> dict[str, NDArray[np.float32]]:
        """Returns `agent_position` (2,), px."""
        return {"agent_position": state.astype(np.float32)}


def _rooms(variations: dict[str, Any]) -> Rooms:
    doors = zip(variations["door_position"].tolist(), variations["door_size"].tolist(), strict=True)
    return Rooms(
        agent_radius=float(variations["agent_radius"]),
        speed=float(variations["agent_speed"]),
        thickness=float(variations["wall_thickness"]),
        vertical=variations["wall_axis"] == "vertical",
        doors=tuple(doors)[: variations["door_number"]],
    )


class Picture:
    """Renders the rooms with given variations, and one or two dots.

    Args:
        rooms: The geometry.
        variations: All of `TwoRoomEnv.variation_ranges`.
    """

    def __init__(self, rooms: Rooms, variations: dict[str, Any]) -> None:
        light = float(variations["light_intensity"])
        colours = {
            name.removesuffix("_color"): (np.rint(value) * light).astype(np.float32)
            for name, value in variations.items()
            if name.endswith("_color")
        }
        self._background = _draw_background(rooms, colours)
        self._agent = colours["agent"], rooms.agent_radius
        self._goal = (colours["goal"], float(variations["goal_radius"])) if variations["goal_visible"] else None

    def draw(self, position: State, goal: State) -> Frame:
        """Returns the image of the dot at `position` above the goal, (224, 224, 3) uint8; an unknown goal is NaN."""
        frame = self._background.copy()
        if self._goal is not None and np.isfinite(goal).all():
            _blend_dot(frame, goal, *self._goal)
        _blend_dot(frame, position, *self._agent)
        return frame


def _draw_background(rooms: Rooms, colours: dict[str, NDArray[np.float32]]) -> Frame:
    pixel = np.arange(IMAGE_SIZE)
    wall = np.abs(pixel - CENTRE) <= rooms.thickness // 2
    door = np.zeros(IMAGE_SIZE, bool)
    for centre, size in rooms.doors:
        door |= np.abs(pixel - centre) <= size
    first, last = _LINES
    line = (first <= pixel) & (pixel < last) | (IMAGE_SIZE - last <= pixel) & (pixel < IMAGE_SIZE - first)
    frame = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    frame[:] = colours["background"]
    across = frame if rooms.vertical else frame.swapaxes(0, 1)  # first index along the wall, second across it
    across[np.ix_(door, wall)] = colours["door"]
    across[np.ix_(~door, wall)] = colours["wall"]
    frame[line] = frame[:, line] = colours["border"]
    return (frame + 0.5).astype(np.uint8)


def _blend_dot(frame: Frame, centre: State, colour: NDArray[np.float32], std: float) -> None:
    """Alpha-blends a Gaussian dot of `colour` onto `frame`, at the exact (sub-pixel) centre."""
    half = int(np.ceil(_REACH * std))
    column, row = round(float(centre[0])), round(float(centre[1]))
    rows = slice(max(row - half, 0), row + half + 1)
    columns = slice(max(column - half, 0), column + half + 1)
    across = np.exp(-0.5 * ((np.arange(IMAGE_SIZE)[columns] - centre[0]) / std) ** 2)
    down = np.exp(-0.5 * ((np.arange(IMAGE_SIZE)[rows] - centre[1]) / std) ** 2)
    # Rows of interleaved channels are contiguous, which makes this four times as fast as (h, w, 3).
    patch = frame.reshape(IMAGE_SIZE, -1)[rows, 3 * columns.start : 3 * columns.stop]
    alpha = down.astype(np.float32)[:, None] * np.repeat(across.astype(np.float32), 3)
    patch[:] = patch * (1.0 - alpha) + np.tile(colour, len(across)) * alpha + np.float32(0.5)
