"""Two-Room's geometry and dynamics, for any number of dots at once.

A single dot is a batch of one: the environment, the vector environment and the tests run the same code, so their
episodes are equal bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lewm_gym.tasks import IMAGE_SIZE

Positions = NDArray[np.float64]  # (B, 2), px: x, y

BORDER = 14.0  # px, the inner edge of the border lines
CENTRE = 112.0  # px, the middle of the wall
DOOR_MARGIN = 1.75  # px by which the dot's centre may pass beside the drawn door (reference: 0.5 of its 65 px canvas)
SETBACK = 0.5  # px before the wall's zone at which a stopped dot rests


@dataclass(frozen=True)
class Rooms:
    """The two rooms, the wall between them and its doors; all lengths in px of the 224x224 image.

    Attributes:
        agent_radius: The dot's collision radius, and its standard deviation when rendered.
        speed: Length of a step along an axis where the action is 1.
        thickness: Of the rendered wall; rounded down, as in the reference.
        vertical: Whether the wall is vertical (rooms left and right) or horizontal (rooms above and below).
        doors: Centre along the wall and half width of each door.

    With each length within the ranges of `TwoRoomEnv`, a step (10.5 px) is shorter than the zone is thick (20 px): it
    meets at most one of the zone's two faces.
    """

    agent_radius: float = 7.0
    speed: float = 5.0
    thickness: float = 10.0
    vertical: bool = True
    doors: tuple[tuple[float, float], ...] = ((49.0, 14.0),)
    #: Where the dot's centre may be along each axis.
    low: float = field(init=False)
    high: float = field(init=False)
    #: The zone across the wall that the dot's centre may enter only through a door.
    near: float = field(init=False)
    far: float = field(init=False)
    #: Ends along the wall of the passages through the zone, each (K,), sorted; overlapping doors are one passage.
    _starts: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    _ends: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        half = self.thickness // 2 + self.agent_radius
        passages: list[list[float]] = []
        for centre, size in sorted(self.doors, key=lambda door: door[0] - door[1]):
            start, end = centre - size - DOOR_MARGIN, centre + size + DOOR_MARGIN
            if passages and start <= passages[-1][1]:
                passages[-1][1] = max(passages[-1][1], end)
            else:
                passages.append([start, end])
        starts, ends = np.array(passages).T
        derived = {
            "low": BORDER + self.agent_radius,
            "high": IMAGE_SIZE - BORDER - self.agent_radius,
            "near": CENTRE - half,
            "far": CENTRE + half,
            "_starts": starts,
            "_ends": ends,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    def in_zone(self, across: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Returns whether coordinates across the wall lie within its zone, faces excluded."""
        return (self.near < across) & (across < self.far)

    def in_passage(self, along: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Returns whether coordinates along the wall lie within a passage, ends included."""
        start, end = self._passage(along)
        return (start <= along) & (along <= end)

    def is_inside_wall(self, positions: Positions) -> NDArray[np.bool_]:
        """Returns whether positions (B, 2) are impossible for a dot, (B,)."""
        across, along = self._axes(positions)
        return self.in_zone(across) & ~self.in_passage(along)

    def move(self, positions: Positions, actions: NDArray[np.float32], reference_rules: bool = False) -> Positions:
        """Returns the positions of dots one step later, (B, 2).

        The whole segment of a step is tested: no dot passes a door's edge; a dot that hits the wall slides along it.

        Args:
            positions: (B, 2), outside the wall.
            actions: (B, 2), within [-1, 1].
            reference_rules: Test only the segment's end point, as the reference does.
        """
        moved = np.clip(positions + self.speed * actions.astype(np.float64), self.low, self.high)
        across, along = self._axes(positions)
        across_end, along_end = self._axes(moved)
        if reference_rules:
            across_end[:] = self._stop_at_end_point(across, across_end, along_end)
            return moved
        inside, inside_end = self.in_zone(across), self.in_zone(across_end)
        if (inside | inside_end).any():  # most steps are far from the wall
            across_end[:], along_end[:] = self._stop_on_the_way(
                (across, along, inside), (across_end, along_end, inside_end)
            )
        return moved

    def _axes(self, positions: Positions) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns views of the coordinates across and along the wall, (B,) each."""
        x, y = positions[:, 0], positions[:, 1]
        return (x, y) if self.vertical else (y, x)

    def _passage(self, along: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns start and end of the passage that could contain each coordinate."""
        index = np.maximum(np.searchsorted(self._starts, along, side="right") - 1, 0)
        return self._starts[index], self._ends[index]

    def _stop_on_the_way(
        self,
        begin: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]],
        end: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the end points after collisions; each argument is across, along and whether that is in the zone."""
        (across, along, inside), (across_end, along_end, inside_end) = begin, end
        crossed = inside != inside_end
        near_side = np.where(inside, across_end, across) <= self.near
        face = np.where(near_side, self.near, self.far)
        fraction = (face - across) / np.where(crossed, across_end - across, 1.0)
        at_face = np.where(crossed, along + (along_end - along) * fraction, along)
        start, stop = self._passage(np.where(inside, along, at_face))
        open_face = (start <= at_face) & (at_face <= stop)
        blocked = crossed & inside_end & ~open_face
        free = ~inside & ~inside_end | crossed & inside & open_face
        # Within a passage, and on the way out over its edge, a dot slides along the passage's sides.
        kept = np.where(blocked | free, along_end, np.clip(along_end, start, stop))
        rest = np.where(near_side, self.near - SETBACK, self.far + SETBACK)
        return np.where(blocked, rest, across_end), kept

    def _stop_at_end_point(
        self, across: NDArray[np.float64], across_end: NDArray[np.float64], along_end: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        near_side = across < CENTRE
        entered = np.where(near_side, across_end > self.near, across_end < self.far)
        rest = np.where(near_side, self.near - SETBACK, self.far + SETBACK)
        return np.where(entered & ~self.in_passage(along_end), rest, across_end)
