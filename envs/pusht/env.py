"""Push-T: a disc pushes a T-shaped block to a goal pose, as in DINO-WM (arXiv 2411.04983).

Arena of 512x512 px (origin top left, x right, y down), its walls' inner faces at 7 and 504 px; the image is
downsampled to 224x224. The light-green T at (256, 256, pi/4) is a fixed visual anchor, not the goal.

State, ten float64, px, rad and seconds; the first seven are the reference's:

    0, 1  agent position         2, 3  block position (middle of the bar's outer edge)    4  block angle, [0, 2 pi)
    5, 6  agent velocity         7, 8  block velocity                                     9  block angular velocity

Dynamics: the action moves the target of the agent's PD control, target = agent + 100 px * action; ten physics
steps of 10 ms per action. The block slides without friction and stops as soon as nothing pushes it. Success:
the distance over the four coordinates of agent and block is below 20 px and the block's angle within pi/9.

Differences from the reference (stable-worldmodel), undone by `reference_rules=True`:

- states are restored exactly; there, a restore runs one physics step, loses the block's velocity and cannot restore
  a living Space (see `envs.pusht.physics`). The goal image shows the goal state itself in both.
- the agent stops at the walls and cannot push the block through one; there, both can leave the arena.
- states are checked: agent and block within the walls (up to 1 and 25 px), the two apart (up to 15 px).
- random starts have no overlapping bodies.

Step and image, per second of one core: 3,700 in the expert's episodes, 4,700 under random actions, 2,200 where the
agent never leaves a block at a wall (measured beside another busy process).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.goal_env import Event, Frame, GoalEnv, Placed, State
from envs.pusht.geometry import WALL_HIGH, WALL_LOW, coverage, distance, wall_overlap
from envs.pusht.physics import ContinuousSpace, Sizes, advance
from envs.pusht.picture import Colour, Picture
from lewm_gym.tasks import get_task

SUCCESS_DISTANCE = 20.0  # px, over agent and block coordinates together
SUCCESS_ANGLE = np.pi / 9  # rad
# px that bodies may overlap in a state. Contacts are soft: what a million pushes against walls gave was at most
# 17 px of the block in a wall and 12 px of the agent in the block; the agent is stopped at the walls to 1e-6 px.
WALL_TOLERANCE = 25.0
AGENT_TOLERANCE = 15.0
AGENT_WALL_TOLERANCE = 1.0
MAX_ANGLE = 1000.0  # rad; the simulation wraps to [0, 2 pi)
MAX_SPEED, MAX_SPIN = 2000.0, 50.0  # px/s, rad/s; the simulation stays below 700 and 8
_TOUCHED = 1e-9  # px or rad that the block moves once it is touched, above rounding
_AGENT_STARTS = (50.0, 450.0)  # px, each axis
_BLOCK_STARTS = (100.0, 400.0)  # px, each axis
_RADIUS_PER_SCALE = 0.375  # px of agent radius, as the reference scales its disc


class PushTEnv(GoalEnv):
    """Push-T as a goal-conditioned environment; see the module for its physics and `GoalEnv` for the interface.

    Variations: colours (0..255 RGB) of agent, block, goal T and background; `agent_scale` (radius 0.375 px each);
    `block_scale` (thickness of bar and stem, px; mass stays 1), `goal_scale`, `goal_position` (px), `goal_angle`
    (rad), `goal_visible`. Ranges are the reference's.
    """

    action_size = 2
    state_size = 10
    proprioceptive = get_task("pusht").proprioception
    phases = get_task("pusht").phases
    walk_std = (0.2, 0.2)
    variation_ranges = {
        "agent_color": (0.0, 255.0, (65.0, 105.0, 225.0)),
        "agent_scale": (20.0, 60.0, 40.0),
        "background_color": (0.0, 255.0, (255.0, 255.0, 255.0)),
        "block_color": (0.0, 255.0, (119.0, 136.0, 153.0)),
        "block_scale": (20.0, 60.0, 30.0),
        "goal_angle": (-2 * np.pi, 2 * np.pi, np.pi / 4),
        "goal_color": (0.0, 255.0, (144.0, 238.0, 144.0)),
        "goal_position": (50.0, 450.0, (256.0, 256.0)),
        "goal_scale": (20.0, 60.0, 30.0),
        "goal_visible": [True, False],
    }

    shifts = {
        "agent orange": {"agent_color": [225.0, 125.0, 65.0]},
        "block red": {"block_color": [205.0, 92.0, 72.0]},
        "background yellow": {"background_color": [255.0, 245.0, 180.0]},
        "anchor hidden": {"goal_visible": False},
        "agent 1.25 times as large": {"agent_scale": 50.0},
        "block 1.2 times as large": {"block_scale": 36.0},
        "block 0.8 times as large": {"block_scale": 24.0},
    }
    event = Event("block", ("block_color", (205.0, 92.0, 72.0)), slice(2, 5), slice(2, 4), slice(7, 10), 100.0, "weak")
    place_unit, place_y_down = "px of the arena", True

    def placed_states(self, side: int) -> Iterator[Placed]:
        """Yields positions of the disc for a few positions of the block."""
        for block in np.stack(np.meshgrid(*[np.linspace(150, 360, max(2, side // 2))] * 2), -1).reshape(-1, 2):
            for agent in np.stack(np.meshgrid(*[np.linspace(60, 450, side)] * 2), -1).reshape(-1, 2):
                state = np.array([*agent, *block, np.pi / 4, *np.zeros(5)])
                yield Placed(state, {"agent": tuple(agent), "block": tuple(block)})

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.variations = self._checked_variations({})
        self._state: State = np.full(self.state_size, np.nan)
        self._space: ContinuousSpace | None = None  # only under the reference's rules
        self._picture: Picture | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_space": None, "_picture": None}  # made again from state and variations

    @property
    def sizes(self) -> Sizes:
        """The bodies' sizes under the current variations."""
        radius = _RADIUS_PER_SCALE * float(self.variations["agent_scale"])
        return Sizes(agent_radius=radius, block_scale=float(self.variations["block_scale"]))

    def _sample_state(self, rng: np.random.Generator) -> State:
        sizes = self.sizes
        for _ in range(10_000):
            agent, block = rng.uniform(*_AGENT_STARTS, 2), rng.uniform(*_BLOCK_STARTS, 2)
            pose = (*block, rng.uniform(0.0, 2 * np.pi))
            inside = wall_overlap(pose, sizes.block_scale) <= 0.0
            if inside and distance(agent, pose, sizes.block_scale) >= sizes.agent_radius:
                return np.array([*agent, *pose, *np.zeros(5)])
        raise RuntimeError("no start without overlap found in 10,000 samples")  # the largest block has 8 % free starts

    def check_state(self, state: State) -> None:
        """Raises ValueError for bodies outside the arena or inside each other, and for impossible speeds."""
        if self.reference_rules:  # under which everything can be anywhere
            return
        if np.abs(state[5:9]).max() > MAX_SPEED or abs(state[9]) > MAX_SPIN:
            limits = f"{MAX_SPEED:g} px/s and {MAX_SPIN:g} rad/s"
            raise ValueError(f"Push-T's velocities must be within {limits}, got {state[5:].tolist()}")
        if abs(state[4]) > MAX_ANGLE:
            raise ValueError(f"Push-T's block angle must lie within +-{MAX_ANGLE:g} rad, got {state[4]:g}")
        scale, pose, radius = self.sizes.block_scale, state[2:5], self.sizes.agent_radius
        low, high = WALL_LOW + radius - AGENT_WALL_TOLERANCE, WALL_HIGH - radius + AGENT_WALL_TOLERANCE
        if not ((state[:2] >= low) & (state[:2] <= high)).all():
            raise ValueError(
                f"Push-T's agent, a disc of radius {radius:g} px, must be within [{low:g}, {high:g}] px (between the"
                f" walls, to {AGENT_WALL_TOLERANCE:g} px), got {state[:2].tolist()}"
            )
        if wall_overlap(pose, scale) > WALL_TOLERANCE:
            raise ValueError(f"Push-T's block at (x, y, angle) {pose.tolist()} overlaps a wall of the arena")
        if distance(state[:2], pose, scale) < radius - AGENT_TOLERANCE:
            raise ValueError(f"Push-T's agent at {state[:2].tolist()} is inside the block at {pose.tolist()}")

    def _set_state(self, state: State) -> None:
        self._state = state.copy()
        self._space = None
        if self.reference_rules:
            self._space = ContinuousSpace(state.tolist(), self.sizes)
            self._state = np.array(self._space.state())

    def _get_state(self) -> State:
        return self._state.copy()

    def _advance(self, action: NDArray[np.float32]) -> bool:
        if self.reference_rules:
            self._space = self._space or ContinuousSpace(self._state.tolist(), self.sizes)
            self._state = np.array(self._space.advance(action.tolist()))
        else:
            self._state = np.array(advance(self._state.tolist(), action.tolist(), self.sizes))
        return self.is_goal(self._state, self.goal_state)

    def reached(self, achieved: NDArray[np.float64], desired: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Returns whether agent and block are within 20 px and the block's angle within pi/9 of the goal's."""
        off = (achieved[..., 4] - desired[..., 4] + np.pi) % (2 * np.pi) - np.pi
        near = np.linalg.norm(achieved[..., :4] - desired[..., :4], axis=-1) < SUCCESS_DISTANCE
        return near & (np.abs(off) < SUCCESS_ANGLE)

    def achieved_goal(self, state: State) -> NDArray[np.float64]:
        """Returns agent position, block position and block angle, (5,)."""
        return state[:5].copy()

    def phase(self, states: NDArray[np.float64]) -> str:
        """Returns "contact" if the disc moves the T between start and goal, else "free"."""
        moved = np.abs(states[1:, 2:5] - states[0, 2:5])
        moved[:, 2] = np.minimum(moved[:, 2] % (2 * np.pi), -moved[:, 2] % (2 * np.pi))
        return "contact" if (moved > _TOUCHED).any() else "free"

    def coverage(self, state: State, goal_state: State) -> float:
        """Returns the share of the block's goal pose that the block covers, 0..1."""
        scale = self.sizes.block_scale
        return coverage(state[2:5], goal_state[2:5], scale, scale)

    def _apply_variations(self, variations: dict[str, Any]) -> None:
        self._picture = None

    def render_state(self, state: State) -> Frame:
        """Returns the image of agent and block at `state`."""
        if self._picture is None:
            self._picture = _picture(self.variations, self.sizes)
        return self._picture.draw((state[0], state[1]), (state[2], state[3], state[4]))

    def quantities(self, state: State) -> dict[str, NDArray[np.float32]]:
        """Returns `agent_position`, `block_position` px; `block_angle` (cosine, sine); velocities, px/s and rad/s."""
        values = {
            "agent_position": state[0:2],
            "block_position": state[2:4],
            "block_angle": np.array([np.cos(state[4]), np.sin(state[4])]),
            "agent_velocity": state[5:7],
            "block_velocity": state[7:9],
            "block_angular_velocity": state[9:10],
        }
        return {name: value.astype(np.float32) for name, value in values.items()}


def _picture(variations: dict[str, Any], sizes: Sizes) -> Picture:
    def colour(name: str) -> Colour:
        red, green, blue = (round(float(channel)) for channel in variations[f"{name}_color"])
        return red, green, blue

    goal = None
    if variations["goal_visible"]:
        x, y = variations["goal_position"]
        goal = (float(x), float(y), float(variations["goal_angle"]), float(variations["goal_scale"]))
    colours = {name: colour(name) for name in ("agent", "background", "block", "goal")}
    return Picture(colours, sizes.agent_radius, sizes.block_scale, goal)
