"""The image of Push-T: rendered at 448 px with pygame's software surfaces, averaged 2 x 2 to 224 px. Needs no display.

The reference draws 512 px and resizes. Twice the image's size gives as smooth an edge, at a third of the cost, and
keeps white at 255 (pygame's own `smoothscale` makes it 253).
"""

from __future__ import annotations

import math
import os

import numpy as np
from numpy.typing import NDArray

from envs.pusht.geometry import ARENA, BOXES, WALL_HIGH, WALL_LOW
from lewm_gym.tasks import IMAGE_SIZE

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # libraries are silent
import pygame

Colour = tuple[int, int, int]

_CANVAS = 2 * IMAGE_SIZE  # px
_ZOOM = _CANVAS / ARENA  # canvas px per arena px
_OUTLINE = 2.0  # arena px to either side of a box's edge
_RIM = 4.0  # arena px between the agent's edge and its lighter inner disc
_WALL_WIDTH = 4.0  # arena px
_WALL_COLOUR = (211, 211, 211)
_EVEN_BYTES = np.uint32(0x00FF00FF)
_HALF = np.uint32(0x00020002)


class Picture:
    """Renders states of Push-T with one set of colours and sizes.

    Static parts (background, walls, goal T) are rendered once; a frame only renders the surroundings of block and
    agent again, on a canvas that is restored afterwards. The result is a function of the arguments only.

    Args:
        colours: "agent", "block", "goal", "background".
        agent_radius: px of the arena.
        block_scale: Scale of the block.
        goal: x, y, angle and scale of the goal T, or None to leave it out.
    """

    def __init__(
        self,
        colours: dict[str, Colour],
        agent_radius: float,
        block_scale: float,
        goal: tuple[float, float, float, float] | None,
    ) -> None:
        self._agent_colours = colours["agent"], _lighter(colours["agent"])
        self._block_colours = colours["block"], _lighter(colours["block"])
        self._agent_radii = agent_radius * _ZOOM, (agent_radius - _RIM) * _ZOOM
        self._block_corners = np.concatenate([_corners(block_scale, margin) for margin in (_OUTLINE, -_OUTLINE)])
        self._pixels = np.zeros((_CANVAS, _CANVAS, 4), np.uint8)  # 4 channels draw faster than 3
        self._canvas = pygame.image.frombuffer(self._pixels.data.cast("B"), (_CANVAS, _CANVAS), "RGBX")
        self._draw_backdrop(colours, goal)
        self._backdrop = self._pixels.copy()
        self._small_backdrop = _halved(self._pixels)[..., :3].copy()

    def draw(self, agent: tuple[float, float], block: tuple[float, float, float]) -> NDArray[np.uint8]:
        """Returns the image, (224, 224, 3), of an agent at (x, y) and a block at (x, y, angle), in arena px."""
        regions = [_even(area) for area in (self._draw_block(*block), self._draw_agent(*agent)) if area.width]
        if len(regions) == 2 and regions[0].colliderect(regions[1]):
            regions = [regions[0].union(regions[1])]
        frame = self._small_backdrop.copy()
        for region in regions:
            rows, columns = slice(region.top, region.bottom), slice(region.left, region.right)
            small_rows, small_columns = (slice(s.start // 2, s.stop // 2) for s in (rows, columns))
            frame[small_rows, small_columns] = _halved(self._pixels[rows, columns])[..., :3]
            self._pixels[rows, columns] = self._backdrop[rows, columns]
        return frame

    def _draw_backdrop(self, colours: dict[str, Colour], goal: tuple[float, float, float, float] | None) -> None:
        self._canvas.fill(colours["background"])
        if goal is not None:
            corners = _placed(_corners(goal[3], 0.0), *goal[:3])
            for box in range(len(BOXES)):
                pygame.draw.polygon(self._canvas, colours["goal"], corners[4 * box : 4 * box + 4])
        low, high = round((WALL_LOW - _WALL_WIDTH) * _ZOOM), round((WALL_HIGH + _WALL_WIDTH) * _ZOOM)
        frame = pygame.Rect(low, low, high - low, high - low)
        pygame.draw.rect(self._canvas, _WALL_COLOUR, frame, width=round(_WALL_WIDTH * _ZOOM))

    def _draw_block(self, x: float, y: float, angle: float) -> pygame.Rect:
        if not (abs(x) < 2 * ARENA and abs(y) < 2 * ARENA):  # far off the image, under the reference's rules
            return pygame.Rect(0, 0, 0, 0)
        corners = _placed(self._block_corners, x, y, angle)
        rim, fill = self._block_colours
        bar = pygame.draw.polygon(self._canvas, rim, corners[0:4])
        pygame.draw.polygon(self._canvas, fill, corners[8:12])
        stem = pygame.draw.polygon(self._canvas, rim, corners[4:8])
        pygame.draw.polygon(self._canvas, fill, corners[12:16])
        return bar.union(stem) if bar.width and stem.width else bar if bar.width else stem

    def _draw_agent(self, x: float, y: float) -> pygame.Rect:
        if not (abs(x) < 2 * ARENA and abs(y) < 2 * ARENA):
            return pygame.Rect(0, 0, 0, 0)
        centre = round(x * _ZOOM), round(y * _ZOOM)
        area = pygame.draw.circle(self._canvas, self._agent_colours[0], centre, self._agent_radii[0])
        pygame.draw.circle(self._canvas, self._agent_colours[1], centre, self._agent_radii[1])
        return area


def _corners(scale: float, margin: float) -> NDArray[np.float64]:
    """Returns the corners of the T's two boxes in its own frame, (8, 2) canvas px, moved outwards by `margin` px."""
    corners = []
    for x, y, half_width, half_height in (np.array(box) * scale for box in BOXES):
        width, height = half_width + margin, half_height + margin
        corners += [(x - width, y - height), (x + width, y - height), (x + width, y + height), (x - width, y + height)]
    return np.array(corners) * _ZOOM


def _placed(corners: NDArray[np.float64], x: float, y: float, angle: float) -> list[list[int]]:
    """Returns the nearest canvas pixels of `corners` of a T at (x, y, angle)."""
    cos, sin = math.cos(angle), math.sin(angle)
    placed = corners @ np.array([[cos, sin], [-sin, cos]]) + (x * _ZOOM, y * _ZOOM)
    return np.rint(placed).astype(np.int64).tolist()


def _lighter(colour: Colour) -> Colour:
    red, green, blue = (min(int(1.2 * channel), 255) for channel in colour)
    return red, green, blue


def _even(area: pygame.Rect) -> pygame.Rect:
    """Returns the smallest region around `area` that begins and ends at even pixels."""
    left, top = area.left & ~1, area.top & ~1
    return pygame.Rect(left, top, (area.right + 1 & ~1) - left, (area.bottom + 1 & ~1) - top)


def _halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the means of 2 x 2 pixels, rounded, of an (h, w, 4) array: (h / 2, w / 2, 4).

    Two channels are summed at once in the 16-bit halves of a 32-bit word.
    """
    words: NDArray[np.uint32] = pixels.view(np.uint32)[..., 0]
    even = _summed(np.bitwise_and(words, _EVEN_BYTES))
    odd = _summed(np.bitwise_and(words >> np.uint32(8), _EVEN_BYTES))
    means = (even >> 2) & _EVEN_BYTES | ((odd >> 2) & _EVEN_BYTES) << 8
    return means.view(np.uint8).reshape(*means.shape, 4)


def _summed(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Returns the sums of 2 x 2 words, and a half of what the mean divides by, so that it rounds."""
    rows = np.add(words[0::2], words[1::2])
    return np.add(np.add(rows[:, 0::2], rows[:, 1::2]), _HALF)
