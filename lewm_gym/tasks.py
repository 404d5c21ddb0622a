"""The one list of tasks. Registration, command lines, contract tests and tables iterate `TASKS`.

To add a task: write `envs/<name>.py` and `collect/policies/<name>.py`, and add one row here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

IMAGE_SIZE = 224  # px, height and width of every observation (paper, section 4)


@dataclass(frozen=True)
class Task:
    """What the rest of the project needs to know of a task without importing its simulator.

    Attributes:
        name: Name on command lines and of the modules `envs.<name>` and `collect.policies.<name>`.
        title: Name in tables and plots.
        env_id: Gymnasium id; `gym.make("lewm_gym:" + env_id)` needs no other import.
        entry_point: `module:class` of the environment.
        action_size: Length of one action; every task's action space is Box(-1, 1, (action_size,)).
        state_size: Length of `info["state"]`, float64: everything that the next step depends on.
        max_episode_steps: Environment steps after which an episode is truncated by default.
        collect_episodes: Episodes of the paper's offline dataset, the default of `python -m collect`.
        goal_offsets: Distances (environment steps) at which evaluation pairs exist; budget is twice the distance.
        proprioception: Name -> size of the physical quantities that the actor can sense of itself, never of an object:
            what environments made with `proprioception=True` show, and the columns of that name in datasets.
        phases: What lies between start and goal, in words, the easiest first: what success is reported by.
        laptop_episodes: Episodes of a dataset for a laptop, for which minutes of training are meant.
        collect_seconds: What an episode takes to collect, seconds: two workers on two cores of an AMD EPYC.
        reference_env: Beginning of stable-worldmodel's id, to be timed beside ours; its versions differ by release.
        film_note: What an image shows that could be taken for something else.
        extra: Name of the pip extra that the simulator needs beyond the core, or None.
        vector_entry_point: `module:class` of a batched vector environment, or None.
    """

    name: str
    title: str
    env_id: str
    entry_point: str
    action_size: int
    state_size: int
    max_episode_steps: int
    collect_episodes: int
    goal_offsets: tuple[int, ...]
    proprioception: dict[str, int]
    phases: tuple[str, ...]
    laptop_episodes: int = 500
    collect_seconds: float = 0.1
    reference_env: str | None = None
    film_note: str = ""
    extra: str | None = None
    vector_entry_point: str | None = None

    def env_class(self) -> Any:
        """Returns the class of the environment, imported now: what the task knows of itself."""
        module, _, name = self.entry_point.partition(":")
        return getattr(importlib.import_module(module), name)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="two_room",
            title="Two-Room",
            env_id="lewm/TwoRoom-v0",
            entry_point="envs.two_room:TwoRoomEnv",
            action_size=2,
            state_size=2,
            max_episode_steps=100,
            collect_episodes=10_000,
            goal_offsets=(25, 50, 75),
            laptop_episodes=300,
            collect_seconds=0.0126,
            reference_env="swm/TwoRoom-v",
            proprioception={"agent_position": 2},
            phases=("same room", "other room"),
            vector_entry_point="envs.two_room.vector:TwoRoomVectorEnv",
        ),
        Task(
            name="pusht",
            title="Push-T",
            env_id="lewm/PushT-v0",
            entry_point="envs.pusht:PushTEnv",
            action_size=2,
            state_size=10,
            max_episode_steps=300,  # 97 % of the expert's episodes are shorter, and budgets go up to 200
            collect_episodes=20_000,
            goal_offsets=(25, 50, 75, 100),
            laptop_episodes=1000,
            collect_seconds=0.066,
            reference_env="swm/PushT-v",
            film_note="The green T is a fixed mark of the environment, not the goal.",
            proprioception={"agent_position": 2, "agent_velocity": 2},
            phases=("free", "contact"),
        ),
        Task(
            name="cube",
            title="OGBench-Cube",
            env_id="lewm/Cube-v0",
            entry_point="envs.cube:CubeEnv",
            action_size=5,
            state_size=61,
            max_episode_steps=200,
            collect_episodes=10_000,
            goal_offsets=(25, 50, 75, 100),
            laptop_episodes=500,
            collect_seconds=1.94,
            reference_env="swm/OGBCube-v",
            proprioception={"joint_angles": 6, "effector_position": 3, "effector_yaw": 2, "gripper_opening": 1},
            phases=("arm only", "in hand", "empty hand"),
            extra="mujoco",
        ),
        Task(
            name="reacher",
            title="Reacher",
            env_id="lewm/Reacher-v0",
            entry_point="envs.reacher:ReacherEnv",
            action_size=2,
            state_size=6,
            max_episode_steps=200,
            collect_episodes=10_000,
            goal_offsets=(25, 50, 75, 100),
            laptop_episodes=500,
            collect_seconds=0.40,
            reference_env="swm/ReacherDMControl-v",
            proprioception={"joint_angles": 4, "joint_velocities": 2},
            phases=("under 60 degrees", "60 to 120 degrees", "over 120 degrees"),
            extra="mujoco",
        ),
    )
}


def get_task(name: str) -> Task:
    """Returns the task called `name`.

    Raises:
        ValueError: If there is no such task; the message lists those that exist.
    """
    try:
        return TASKS[name]
    except KeyError:
        raise ValueError(f"unknown task {name!r}; expected one of: {', '.join(TASKS)}") from None
