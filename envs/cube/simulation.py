"""OGBench-Cube's dynamics as a function of the state: OGBench's controller around MuJoCo's steps.

The controller is written out here, after OGBench's `ManipSpaceEnv` (MIT), with its inverse kinematics and Lie groups,
because OGBench's environment takes 300 MB more and keeps state between steps. Floating-point operations are in
OGBench's order: a test compares the two bit for bit.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.cube.models import CUBE_HALF_SIZE, arm_model, physics_model
from envs.goal_env import State
from envs.mujoco_rendering import INSTALL_EXTRA, load_mujoco

STATE_SIZE = 61
JOINTS, CUBE_POSITION, CUBE_QUATERNION = slice(0, 14), slice(14, 17), slice(17, 21)
POSITIONS, VELOCITIES, WARM_START = slice(0, 21), slice(21, 41), slice(41, 61)
PHYSICS_STEPS = 25  # per step
CONTROL_TIMESTEP = 0.05  # s
ACTION_RANGE = np.array([0.05, 0.05, 0.05, 0.3, 1.0])  # m, m, m, rad, share of the gripper's way
# Low and high corners, m: where the gripper may be sent, where it starts, where the cube and its targets are drawn.
WORKSPACE = np.array([[0.25, -0.35, 0.02], [0.6, 0.35, 0.35]])
ARM_STARTS = np.array([[0.25, -0.35, 0.20], [0.6, 0.35, 0.35]])
CUBE_STARTS = np.array([[0.3, -0.3], [0.55, 0.3]])
_HOME = np.array([-0.5, -0.5, 0.5, -0.5, -0.5, 0.0]) * np.pi  # rad, the arm's joints
_POINTING_DOWN = np.array([0.0, 1.0, 0.0, 0.0])  # the gripper's rotation, w x y z
_GRIPPER_JOINT, _GRIPPER_RANGE = 6, 0.8  # index of its position; rad from open to closed


class Effector(NamedTuple):
    """What the gripper does: position (3,) m, yaw in rad, and how far it is closed, 0 to 1."""

    position: NDArray[np.float64]
    yaw: float
    closed: float


def quaternion_yaw(quaternion: NDArray[np.float64]) -> float:
    """Returns the angle (rad) about the vertical of a rotation w x y z."""
    w, x, y, z = quaternion
    return float(np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)))


def cube_turn(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Returns the smallest angle (rad) that makes a cube of rotation `one` look like `other`, each w x y z.

    A cube looks the same in 24 rotations. Of the turn between the two, composed with each of those, the largest real
    part is found from the sizes of its components alone, sorted: a rotation about a face's axis leaves one of them,
    one about an edge's mixes two, one about a corner's mixes all four.
    """
    w, vector = one[0], -one[1:]  # the inverse of `one`
    turn = np.array(
        [w * other[0] - vector @ other[1:], *(w * other[1:] + other[0] * vector + np.cross(vector, other[1:]))]
    )
    a, b, c, d = np.sort(np.abs(turn / np.linalg.norm(turn)))[::-1]
    return float(2.0 * np.arccos(min(1.0, max(a, (a + b) / np.sqrt(2.0), (a + b + c + d) / 2.0))))


class Simulation:
    """Steps from one state to the next without internal state.

    Args:
        half_size: Half the cube's width, m.

    Raises:
        ImportError: If a package is missing.
    """

    def __init__(self, half_size: float = CUBE_HALF_SIZE) -> None:
        self._mujoco = load_mujoco()
        self.half_size = half_size
        self._model = physics_model(half_size)
        self._data = self._mujoco.MjData(self._model)
        self._site = self._model.site("ur5e/robotiq/pinch").id
        self._pads = [self._model.body(f"ur5e/robotiq/{side}_pad").id for side in ("right", "left")]
        self._cube = self._model.body("object_0").id
        try:
            controllers = importlib.import_module("ogbench.manipspace.controllers")
            self._lie: Any = importlib.import_module("ogbench.manipspace.lie")
        except ModuleNotFoundError as error:
            raise ImportError(f"Cube needs {error.name}: {INSTALL_EXTRA}") from error
        self._inverse_kinematics = controllers.DiffIKController(model=arm_model(), sites=["attachment_site"])
        self._down = self._lie.SO3(_POINTING_DOWN)
        self._pinch_to_flange = self._measure_gripper()

    def step(
        self, state: State, action: NDArray[np.float32], pose: NDArray[np.float64] | None = None
    ) -> tuple[State, NDArray[np.float64]]:
        """Returns the state after `action` (5,), and the gripper's pose as MuJoCo leaves it, one physics step old.

        Args:
            state: (61,).
            action: (5,).
            pose: The gripper's position and rotation matrix, (12,), from which the controller begins; None for what
                follows from `state`.
        """
        data = self._data
        self._restore(state)
        if pose is not None:
            data.site_xpos[self._site], data.site_xmat[self._site] = pose[:3], pose[3:]
        data.ctrl = self._control(action)
        self._mujoco.mj_step(self._model, data, nstep=PHYSICS_STEPS)
        late_pose = np.concatenate([data.site_xpos[self._site], data.site_xmat[self._site]])
        return np.concatenate([data.qpos, data.qvel, data.qacc_warmstart]), late_pose

    def sample_state(self, rng: np.random.Generator) -> State:
        """Returns a random state at rest as OGBench samples it: gripper above the table, pointing down; cube on it."""
        state = np.zeros(STATE_SIZE)
        position = rng.uniform(*ARM_STARTS)
        turn = self._lie.SO3.from_z_radians(rng.uniform(-np.pi, np.pi)) @ self._down
        state[:6] = self._joint_angles(turn, position, _HOME)
        state[CUBE_POSITION] = (*rng.uniform(*CUBE_STARTS), self.half_size)
        state[CUBE_QUATERNION] = self._lie.SO3.from_z_radians(rng.uniform(0.0, 2.0 * np.pi)).wxyz
        return state

    def effector(self, state: State) -> Effector:
        """Returns what the gripper does at a state (61,)."""
        self._restore(state)
        return self._effector()

    def control(self, state: State, action: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns the targets (7,) that `action` (5,) sets at a state (61,): six joints (rad), gripper (0 to 255)."""
        self._restore(state)
        return self._control(action)

    def grip(self, state: State, control: NDArray[np.float64]) -> float:
        """Returns the force on the right finger's pad at a state (61,), 0 to 1 (from 50 N on), as OGBench scales it.

        Args:
            state: (61,).
            control: (7,), what `control` gave for the step that led to the state: the gripper presses as it was told.
        """
        self._restore(state)
        self._data.ctrl = control
        self._mujoco.mj_forward(self._model, self._data)
        self._mujoco.mj_rnePostConstraint(self._model, self._data)
        return float(np.clip(np.linalg.norm(self._data.cfrc_ext[self._pads[0]]) / 50.0, 0.0, 1.0))

    def holds_cube(self, state: State) -> bool:
        """Returns whether both fingers' pads touch the cube at a state (61,)."""
        self._collide(state)
        bodies = self._model.geom_bodyid[self._data.contact.geom]
        return all(((bodies == pad).any(1) & (bodies == self._cube).any(1)).any() for pad in self._pads)

    def penetration(self, state: State) -> float:
        """Returns the deepest overlap (m) of bodies, except between parts of the linkage."""
        self._collide(state)
        distances = self._data.contact.dist
        return max(0.0, -float(distances.min())) if len(distances) else 0.0

    def _collide(self, state: State) -> None:
        self._restore(state)
        self._mujoco.mj_comPos(self._model, self._data)
        self._mujoco.mj_collision(self._model, self._data)

    def _restore(self, state: State) -> None:
        data = self._data
        data.qpos, data.qvel, data.qacc_warmstart = state[POSITIONS], state[VELOCITIES], state[WARM_START]
        self._mujoco.mj_kinematics(self._model, data)

    def _effector(self) -> Effector:
        rotation = self._lie.SO3.from_matrix(self._data.site_xmat[self._site].reshape(3, 3).copy())
        closed = float(np.clip(self._data.qpos[_GRIPPER_JOINT] / _GRIPPER_RANGE, 0.0, 1.0))
        return Effector(self._data.site_xpos[self._site].copy(), rotation.compute_yaw_radians(), closed)

    def _control(self, action: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns the targets (7,) of the arm's six joints (rad) and the gripper (0 to 255) for an action (5,)."""
        lie, effector = self._lie, self._effector()
        move = 0.5 * (action + 1) * (ACTION_RANGE - -ACTION_RANGE) + -ACTION_RANGE
        position = np.clip(effector.position + move[:3], *WORKSPACE)
        turned = lie.SO3.from_z_radians(move[3]) @ lie.SO3.from_z_radians(effector.yaw) @ self._down.inverse()
        yaw = np.clip(turned.compute_yaw_radians(), -np.pi, np.pi)
        angles = self._joint_angles(lie.SO3.from_z_radians(yaw) @ self._down, position, self._data.qpos[:6])
        return np.append(angles, 255.0 * np.clip(effector.closed + move[4], 0.0, 1.0))

    def _joint_angles(
        self, rotation: Any, position: NDArray[np.float64], start: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Returns the arm's joint angles (6,) that bring the gripper to a pose, searched from `start` (6,)."""
        flange = self._lie.SE3.from_rotation_and_translation(rotation, position) @ self._pinch_to_flange
        return self._inverse_kinematics.solve(
            pos=flange.translation(), quat=flange.rotation().wxyz, curr_qpos=np.array(start)
        )

    def _measure_gripper(self) -> Any:
        """Returns the transformation from the gripper's pinch point to the flange, which the arm's model ends in."""
        self._mujoco.mj_forward(self._model, self._data)
        poses = []
        for site in ("ur5e/robotiq/pinch", "ur5e/attachment_site"):
            pose = self._data.site(site)
            rotation = self._lie.SO3.from_matrix(pose.xmat.reshape(3, 3).copy())
            poses.append(self._lie.SE3.from_rotation_and_translation(rotation, pose.xpos.copy()))
        return poses[0].inverse() @ poses[1]
