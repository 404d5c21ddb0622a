"""Reacher: a two-link arm in the plane that must reach a joint configuration seen in an image.

Physics: the model of the DeepMind Control Suite (arXiv 1801.00690), read from the installed dm_control: two hinges
driven by motors, timestep 0.02 s, action repeat 2 (one step is 0.04 s). The suite's target ball is not rendered.

State, (6,) float64: shoulder and wrist angle (rad), their velocities (rad/s), and the constraint solver's warm start
`qacc_warmstart` (rad/s^2): the wrist's limit is solved iteratively, so that the next step depends on it. Time does not
matter. The shoulder turns freely and its angle is not wrapped; the wrist is limited to +-160 degrees, softly.
Fill the missing entries of states with angles and velocities only with zeros.

Success: both joints within 0.05 rad of their goal, after either of the two physics steps of a step; velocities do not
count. The shoulder's difference is wrapped to [-pi, pi]. With `reference_rules=True` it is not, as in
stable-worldmodel: a configuration one full turn away looks identical but does not count as success.

Variations: `agent_color` (3,), `floor_colors` (2, 3) and `light_intensity` change the image; `arm_density` and
`finger_density` (kg/m^3) the dynamics.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.goal_env import Frame, GoalEnv, Placed, State
from envs.mujoco_rendering import (
    SceneRenderer,
    checker_texels,
    load_mujoco,
    package_folder,
    shared_renderer,
)
from lewm_gym.tasks import get_task

SUCCESS_RADIANS = 0.05
ACTION_REPEAT = 2
TIMESTEP = 0.02  # s
LINK = 0.12  # m, from shoulder to wrist and from wrist to finger
WRIST_LIMIT = np.radians(160.0)
#: The limit is soft: extreme actions drive the wrist 0.17 rad beyond it (20,000 steps), at up to 7.3 rad/s.
WRIST_TOLERANCE = 0.3  # rad
MAX_VELOCITY = 50.0  # rad/s
# Generous limits of what simulation gives: at 7.6 rad/s, the shoulder would need 36 hours; 200,000 extreme steps gave
# accelerations of 3,300 rad/s^2.
MAX_TURN = 1e6  # rad, of the shoulder
MAX_WARM_START = 1e6  # rad/s^2
_STEERING = 2.5  # torque per rad: full torque turns a joint by about 0.2 rad per step, this one by half of what is off
_TURNS = (60.0, 120.0)  # degrees, between phases
_DENSITY = 1000.0  # kg/m^3, MuJoCo's default, which the suite's model uses
_FLOOR = 'width="300" height="300" mark="edge" markrgb=".2 .3 .4"'


class ReacherEnv(GoalEnv):
    """Reacher as a goal-conditioned environment; see the module for its physics and `GoalEnv` for the interface."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # type: ignore[misc]
    action_size = 2
    state_size = 6
    proprioceptive = get_task("reacher").proprioception
    phases = get_task("reacher").phases
    walk_std = (0.6, 0.6)
    render_qualities = ("fast", "reference")
    quantity_units = {"joint_velocities": "rad/s", "finger_position": "m"}
    variation_ranges = {
        "agent_color": (0.0, 1.0, (0.7, 0.5, 0.3)),
        "floor_colors": (0.0, 1.0, ((0.1, 0.2, 0.3), (0.2, 0.3, 0.4))),
        "light_intensity": (0.0, 1.0, 0.7),
        "arm_density": (500.0, 1500.0, _DENSITY),
        "finger_density": (500.0, 1500.0, _DENSITY),
    }

    shifts = {
        "arm blue": {"agent_color": [0.3, 0.5, 0.8]},
        "floor brown": {"floor_colors": [[0.3, 0.2, 0.1], [0.4, 0.3, 0.2]]},
        "light at 0.4 instead of 0.7": {"light_intensity": 0.4},
        "arm 1.3 times as heavy": {"arm_density": 1300.0},
    }
    place_unit = "lengths of a link"

    def placed_states(self, side: int) -> Iterator[Placed]:
        """Yields joint configurations, with the position of the finger."""
        for shoulder in np.linspace(-np.pi, np.pi, 2 * side, endpoint=False):
            for wrist in np.linspace(-2.6, 2.6, side):
                forearm = shoulder + wrist
                reach = float(np.cos(shoulder) + np.cos(forearm)), float(np.sin(shoulder) + np.sin(forearm))
                yield Placed(np.array([shoulder, wrist, 0, 0, 0, 0]), {"finger": reach})

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        load_mujoco()
        package_folder("dm_control")
        self.variations = self._checked_variations({})
        self._state: State = np.full(self.state_size, np.nan)
        self._simulation: Simulation | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_simulation": None}  # MuJoCo's structures are made again where they are needed

    def _sample_state(self, rng: np.random.Generator) -> State:
        angles = rng.uniform((-np.pi, -WRIST_LIMIT), (np.pi, WRIST_LIMIT))
        return np.concatenate([angles, np.zeros(4)])

    def check_state(self, state: State) -> None:
        """Raises ValueError for a wrist beyond its limit, and for values out of range."""
        if abs(state[0]) > MAX_TURN:
            raise ValueError(f"Reacher's shoulder angle must lie within +-{MAX_TURN:g} rad, got {state[0]:g}")
        if abs(state[1]) > WRIST_LIMIT + WRIST_TOLERANCE:
            raise ValueError(f"Reacher's wrist is limited to +-{WRIST_LIMIT:.3f} rad, got {state[1]:g}")
        if np.abs(state[2:4]).max() > MAX_VELOCITY:
            raise ValueError(f"Reacher's joint velocities must lie within {MAX_VELOCITY} rad/s, got {state[2:4]}")
        if np.abs(state[4:6]).max() > MAX_WARM_START:
            raise ValueError(f"Reacher's warm start must lie within {MAX_WARM_START:g} rad/s^2, got {state[4:6]}")

    def _set_state(self, state: State) -> None:
        self._state = state.copy()

    def _get_state(self) -> State:
        return self._state.copy()

    def _apply_variations(self, variations: dict[str, Any]) -> None:
        self._simulation = None  # its model depends on the densities

    def _advance(self, action: NDArray[np.float32]) -> bool:
        if self._simulation is None:
            densities = (float(self.variations[name]) for name in ("arm_density", "finger_density"))
            self._simulation = Simulation(*densities)
        reached = False
        for _ in range(ACTION_REPEAT):
            self._state = self._simulation.step(self._state, action)
            reached = reached or self.is_goal(self._state, self.goal_state)
        return reached

    def reached(self, achieved: NDArray[np.float64], desired: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Returns whether both joints are within 0.05 rad of their goal."""
        shoulder, wrist = np.moveaxis(achieved - desired, -1, 0)
        if not self.reference_rules:
            shoulder = (shoulder + np.pi) % (2 * np.pi) - np.pi
        return (np.abs(shoulder) < SUCCESS_RADIANS) & (np.abs(wrist) < SUCCESS_RADIANS)

    def achieved_goal(self, state: State) -> NDArray[np.float64]:
        """Returns both joint angles, (2,) rad."""
        return state[:2].copy()

    def phase(self, states: NDArray[np.float64]) -> str:
        """Returns the range, one of three, of the larger of the two rotations that the joints need at least."""
        shoulder, wrist = states[-1, :2] - states[0, :2]
        turn = np.degrees(max(abs((shoulder + np.pi) % (2 * np.pi) - np.pi), abs(wrist)))
        return self.phases[int(np.searchsorted(_TURNS, turn))]

    def steer(self, state: State, goal_state: State) -> NDArray[np.float32]:
        """Returns torques proportional to the joint errors; the damped arm then settles at the goal."""
        shoulder, wrist = goal_state[:2] - state[:2]
        off = np.array([(shoulder + np.pi) % (2 * np.pi) - np.pi, wrist])
        return np.clip(_STEERING * off, -1.0, 1.0).astype(np.float32)

    def render_state(self, state: State) -> Frame:
        """Returns the image of the arm at `state`; it depends on the angles only."""
        renderer = shared_renderer(("reacher", self.render_quality), functools.partial(_renderer, self.render_quality))
        looks = {name: self.variations[name] for name in ("agent_color", "floor_colors", "light_intensity")}
        renderer.dress({name: value.tolist() for name, value in looks.items()}, lambda r: _dress(r, **looks))
        renderer.data.qpos[:] = state[:2]
        return renderer.draw()

    def quantities(self, state: State) -> dict[str, NDArray[np.float32]]:
        """Returns `joint_angles` (4,), cosine and sine of each, `joint_velocities` (2,) and `finger_position` (2,)."""
        return {
            "joint_angles": np.stack([np.cos(state[:2]), np.sin(state[:2])], 1).ravel().astype(np.float32),
            "joint_velocities": state[2:4].astype(np.float32),
            "finger_position": finger_position(state).astype(np.float32),
        }


def finger_position(state: State) -> NDArray[np.float64]:
    """Returns the position of the finger's centre, (2,) m, with the shoulder at the origin."""
    shoulder, forearm = state[0], state[0] + state[1]
    return LINK * np.array([np.cos(shoulder) + np.cos(forearm), np.sin(shoulder) + np.sin(forearm)])


class Simulation:
    """The arm's dynamics as a function of the state, without internal state.

    Args:
        arm_density: Of the upper arm, kg/m^3.
        finger_density: Of the finger, kg/m^3.
    """

    def __init__(self, arm_density: float = _DENSITY, finger_density: float = _DENSITY) -> None:
        self._mujoco = load_mujoco()
        self._model = _physics_model(arm_density, finger_density)
        self._data = self._mujoco.MjData(self._model)

    def step(self, state: State, action: NDArray[np.float32]) -> State:
        """Returns the state one physics step (0.02 s) after `state` (6,) under `action` (2,), a fresh array."""
        data = self._data
        data.qpos, data.qvel, data.qacc_warmstart = state[:2], state[2:4], state[4:6]
        data.ctrl = action
        self._mujoco.mj_step(self._model, data)
        return np.concatenate([data.qpos, data.qvel, data.qacc_warmstart])


@functools.lru_cache(maxsize=16)
def _physics_model(arm_density: float, finger_density: float) -> Any:
    mujoco = load_mujoco()
    spec = mujoco.MjSpec.from_file(str(package_folder("dm_control") / "suite" / "reacher.xml"))
    spec.geom("arm").density = arm_density
    spec.geom("finger").density = finger_density
    return spec.compile()


def _renderer(quality: str) -> SceneRenderer:
    mujoco = load_mujoco()
    spec = mujoco.MjSpec.from_file(str(package_folder("dm_control") / "suite" / "reacher.xml"))
    spec.delete(spec.geom("target"))
    renderer = SceneRenderer(spec.compile(), camera="fixed", quality=quality)
    if quality == "fast":
        # The arm lies 1 cm above the floor: half the shadow map draws the same shadow (0.01 grey levels), 15 % faster.
        renderer.model.vis.quality.shadowsize //= 2
    return renderer


def _dress(
    renderer: SceneRenderer,
    agent_color: NDArray[np.float64],
    floor_colors: NDArray[np.float64],
    light_intensity: NDArray[np.float64],
) -> None:
    model = renderer.model
    model.material("self").rgba[:3] = agent_color
    model.light("light").diffuse[:] = light_intensity
    renderer.set_texture("grid", checker_texels(_FLOOR, tuple(floor_colors.ravel().tolist())))
