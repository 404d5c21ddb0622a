"""OGBench-Cube: a robot arm moves a cube to its position in a goal image.

Physics: cube-single of OGBench (arXiv 2410.20092), read from the installed ogbench: a UR5e arm with a Robotiq 2F-85
gripper; timestep 0.002 s, 25 of them per step (0.05 s). The action moves the gripper relative to its position, by up to
0.05 m along x, y and z and 0.3 rad of yaw, and opens or closes it; inverse kinematics and a PD controller do the rest.

State, (61,) float64: positions (21: six arm joints, eight gripper joints, rad; the cube's position, m, and quaternion
w x y z), velocities (20) and the constraint solver's warm start `qacc_warmstart` (20), on which the next step depends
because contacts are solved iteratively. Time, the target marker and the last controls do not matter: every step
overwrites all controls. Fill the missing entries of states with positions and velocities only with zeros.

The controller starts from the gripper's pose. OGBench reads it as MuJoCo leaves it, one physics step old, so a
restored simulation differs from the original one. Here it is computed from the positions before every
step: the step is a function of the state, and replaying is exact. `reference_rules=True` reads the old pose, as
OGBench and stable-worldmodel do; restoring a state in the middle of an episode is then inexact.

Success: the cube's centre within 0.04 m of its goal, at the end of a step; rotation and arm do not count. The camera
is OGBench's `front_pixels`; the arm is opaque and the target is not rendered.

Variations: `cube_color`, `agent_color` (the gripper's), each (3,), `floor_colors` (2, 3), `light_intensity` and
`camera_angles` (2,) (degrees of rotation about the vertical axis and of upward tilt) change the image; `cube_size`
(half its width, m) also changes its mass.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.cube.models import CUBE_HALF_SIZE, physics_model, picture_model, resize_cube
from envs.cube.simulation import (
    CUBE_POSITION,
    CUBE_QUATERNION,
    JOINTS,
    POSITIONS,
    STATE_SIZE,
    VELOCITIES,
    WARM_START,
    Simulation,
    cube_turn,
    quaternion_yaw,
)
from envs.goal_env import Event, Frame, GoalEnv, Placed, State
from envs.mujoco_rendering import SceneRenderer, checker_texels, load_mujoco, package_folder, shared_renderer
from lewm_gym.tasks import get_task

SUCCESS_DISTANCE = 0.04  # m
STRICT_ANGLE = np.radians(15.0)  # besides the distance, for strict success
#: The cube's centre, m: the walls around the table are at x 0.22 and 0.63, y +-0.38, and it can be lifted over them.
CUBE_LOW, CUBE_HIGH = np.array([0.1, -0.6, 0.005]), np.array([0.75, 0.6, 0.6])
JOINT_TOLERANCE = 0.1  # rad beyond a joint's limit, which is soft: 9,000 oracle, random and extreme steps gave 0.02
#: m; contacts are soft: in 115,000 oracle, random, extreme and pressing steps with cubes of 0.01 to 0.03 a corner dug
#: into the table by 0.0167, into a wall by 0.0163, a finger into the cube by 0.0153.
PENETRATION_TOLERANCE = 0.02
#: m by which the cube's centre may be lower than where the cube lies flat; the same steps gave 0.008 (the oracle's
#: 0.0052), and where the default cube lies, the largest one (0.01 more) can begin.
SINKING_TOLERANCE = 0.012
MAX_VELOCITY = 200.0  # rad/s and m/s; the same steps gave 77
MAX_WARM_START = 1e7  # rad/s^2 and m/s^2; the same steps gave 72,000
_SMALLEST_CUBE = 0.01  # m
_FLOOR = 'width="512" height="512" mark="cross" markrgb="0.8 0.8 0.8"'
_LOOKS = ("cube_color", "agent_color", "floor_colors", "light_intensity", "camera_angles", "cube_size")


class CubeEnv(GoalEnv):
    """OGBench-Cube as a goal-conditioned environment; see the module for its physics, `GoalEnv` for the interface."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # type: ignore[misc]
    action_size = 5
    state_size = STATE_SIZE
    proprioceptive = get_task("cube").proprioception
    phases = get_task("cube").phases
    walk_std = (0.4, 0.4, 0.4, 0.4, 0.4)
    render_qualities = ("fast", "reference")
    quantity_units = {"cube_position": "m", "effector_position": "m", "joint_angles": "rad"}
    variation_ranges = {
        "cube_color": (0.0, 1.0, (0.96, 0.26, 0.33)),
        "cube_size": (_SMALLEST_CUBE, 0.03, CUBE_HALF_SIZE),
        "agent_color": (0.0, 1.0, (0.61, 0.28, 0.82)),
        "floor_colors": (0.0, 1.0, ((0.08, 0.11, 0.16), (0.15, 0.18, 0.25))),
        "light_intensity": (0.0, 1.0, 0.7),
        "camera_angles": (-10.0, 10.0, (0.0, 0.0)),
    }

    shifts = {
        "cube blue": {"cube_color": [0.13, 0.55, 0.95]},
        "gripper green": {"agent_color": [0.28, 0.82, 0.4]},
        "floor brown": {"floor_colors": [[0.2, 0.14, 0.08], [0.3, 0.22, 0.15]]},
        "cube 0.8 times as large": {"cube_size": 0.016},
        "light at 0.4 instead of 0.7": {"light_intensity": 0.4},
        "camera turned by 5 degrees": {"camera_angles": [5.0, 0.0]},
    }
    event = Event("cube", ("cube_color", (0.13, 0.55, 0.95)), slice(14, 21), slice(14, 16), slice(35, 41), 0.15)
    derived_quantities = {"joint_velocities": slice(21, 27)}
    place_unit = "m"

    def placed_states(self, side: int) -> Iterator[Placed]:
        """Yields positions of the cube, with the arm as after a reset."""
        rest = self.reset(seed=0)[1]["state"]
        for x in np.linspace(0.3, 0.55, 2 * side):
            for y in np.linspace(-0.3, 0.3, 2 * side):
                state = rest.copy()
                state[14:17], state[17:21], state[21:] = (x, y, 0.02), (1, 0, 0, 0), 0.0
                yield Placed(state, {"cube": (x, y)})

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        load_mujoco()
        for package in ("ogbench", "dm_control"):
            package_folder(package)
        self.variations = self._checked_variations({})
        self._state: State = np.full(self.state_size, np.nan)
        self._simulation: Simulation | None = None
        self._late_pose: NDArray[np.float64] | None = None  # only under the reference's rules

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_simulation": None}  # MuJoCo's structures are made again where they are needed

    @property
    def simulation(self) -> Simulation:
        """The dynamics under the current variations."""
        size = float(self.variations["cube_size"])
        if self._simulation is None or self._simulation.half_size != size:
            self._simulation = Simulation(size)
        return self._simulation

    def _sample_state(self, rng: np.random.Generator) -> State:
        return self.simulation.sample_state(rng)

    def check_state(self, state: State) -> None:
        """Raises ValueError for joints beyond their limits, a cube off the table or overlapping bodies."""
        norm = np.linalg.norm(state[CUBE_QUATERNION])
        if abs(norm - 1.0) > 1e-3:
            raise ValueError(f"Cube's quaternion (state[17:21]) must have norm 1, got {norm:g}")
        if not ((state[CUBE_POSITION] >= CUBE_LOW) & (state[CUBE_POSITION] <= CUBE_HIGH)).all():
            raise ValueError(
                f"Cube's position (state[14:17]) must lie within {CUBE_LOW} and {CUBE_HIGH} m,"
                f" got {state[CUBE_POSITION]}"
            )
        if np.abs(state[VELOCITIES]).max() > MAX_VELOCITY:
            raise ValueError(f"Cube's velocities (state[21:41]) must lie within {MAX_VELOCITY}")
        if np.abs(state[WARM_START]).max() > MAX_WARM_START:
            raise ValueError(f"Cube's warm start (state[41:61]) must lie within {MAX_WARM_START:g}")
        size = float(self.variations["cube_size"])
        if state[16] < size - SINKING_TOLERANCE:
            raise ValueError(
                f"Cube's position (state[14:17]) is {1000 * (size - state[16]):.0f} mm inside the table: a cube of half"
                f" width {size:g} m lies at height {size:g} m, got {state[16]:g}"
            )
        model = physics_model()
        low, high = model.jnt_range[:14].T
        angles = state[JOINTS]
        wrong = np.flatnonzero((angles < low - JOINT_TOLERANCE) | (angles > high + JOINT_TOLERANCE))
        if wrong.size:
            joint = wrong[0]
            raise ValueError(
                f"Cube's joint {model.joint(joint).name} (state[{joint}]) must lie within [{low[joint]:.3f},"
                f" {high[joint]:.3f}] rad, got {angles[joint]:g}"
            )
        depth = self.simulation.penetration(state)
        if depth > PENETRATION_TOLERANCE:
            raise ValueError(f"Cube's state has bodies that overlap by {1000 * depth:.0f} mm")

    def _set_state(self, state: State) -> None:
        self._state = state.copy()
        self._late_pose = None

    def _get_state(self) -> State:
        return self._state.copy()

    def _advance(self, action: NDArray[np.float32]) -> bool:
        pose = self._late_pose if self.reference_rules else None
        self._state, self._late_pose = self.simulation.step(self._state, action, pose)
        return self.is_goal(self._state, self.goal_state)

    def reached(self, achieved: NDArray[np.float64], desired: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Returns whether the cube's centre is within 0.04 m of its goal."""
        return np.linalg.norm(achieved - desired, axis=-1) <= SUCCESS_DISTANCE

    def is_strict_goal(self, state: State, goal_state: State) -> bool:
        """Returns whether the cube is at its goal with its orientation, within 15 degrees up to symmetry."""
        turned = cube_turn(state[CUBE_QUATERNION], goal_state[CUBE_QUATERNION])
        return self.is_goal(state, goal_state) and turned <= STRICT_ANGLE

    def achieved_goal(self, state: State) -> NDArray[np.float64]:
        """Returns the cube's position, (3,) m."""
        return state[CUBE_POSITION].copy()

    def phase(self, states: NDArray[np.float64]) -> str:
        """Returns "arm only" if the cube is at its goal; else whether it is "in hand" at the start, or "empty hand"."""
        if self.is_goal(states[0], states[-1]):
            return "arm only"
        return "in hand" if self.simulation.holds_cube(states[0]) else "empty hand"

    def render_state(self, state: State) -> Frame:
        """Returns the image of the scene at `state`; it depends on the positions only."""
        renderer = shared_renderer(("cube", self.render_quality), functools.partial(_renderer, self.render_quality))
        looks = {name: self.variations[name] for name in _LOOKS}
        renderer.dress({name: value.tolist() for name, value in looks.items()}, lambda r: _dress(r, **looks))
        renderer.data.qpos[:] = state[POSITIONS]
        return renderer.draw()

    def quantities(self, state: State) -> dict[str, NDArray[np.float32]]:
        """Returns the quantities for probing.

        `cube_position` (3,) m; `cube_yaw` and `effector_yaw` (2,), cosine and sine, the cube's of four times
        the angle because of its symmetry; `effector_position` (3,) m; `gripper_opening` (1,), 0 open to 1
        closed; `joint_angles` (6,) rad.
        """
        yaw, effector = 4.0 * quaternion_yaw(state[CUBE_QUATERNION]), self.simulation.effector(state)
        values = {
            "cube_position": state[CUBE_POSITION],
            "cube_yaw": (np.cos(yaw), np.sin(yaw)),
            "effector_position": effector.position,
            "effector_yaw": (np.cos(effector.yaw), np.sin(effector.yaw)),
            "gripper_opening": [effector.closed],
            "joint_angles": state[:6],
        }
        return {name: np.asarray(value, dtype=np.float32) for name, value in values.items()}


def _renderer(quality: str) -> SceneRenderer:
    return SceneRenderer(picture_model(quality), camera="front_pixels", quality=quality)


def _dress(
    renderer: SceneRenderer,
    cube_color: NDArray[np.float64],
    agent_color: NDArray[np.float64],
    floor_colors: NDArray[np.float64],
    light_intensity: NDArray[np.float64],
    camera_angles: NDArray[np.float64],
    cube_size: NDArray[np.float64],
) -> None:
    model = renderer.model
    model.geom("object_0").rgba[:3] = cube_color
    resize_cube(model, float(cube_size))
    for material in ("ur5e/robotiq/black", "ur5e/robotiq/pad_gray"):
        model.material(material).rgba[:3] = agent_color
    model.light("global").diffuse[:] = light_intensity
    renderer.turn_camera(*np.radians(camera_angles))
    renderer.set_texture("grid", checker_texels(_FLOOR, tuple(floor_colors.ravel().tolist())))
