"""Collecting from any Gymnasium environment: `python -m collect gym --env ID`.

The environment needs a bounded Box action space and `rgb_array` rendering. Its frames are resized as in `PixelGoal`;
its state is its flattened observation. Actions are recorded in the environment's own units and bounds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from collect.collector import How, collect_from
from collect.episodes import EpisodeRunner, check_picture_every
from collect.policies.foreign import ForeignPolicy, name_of_policy
from envs.pixel_goal import PixelGoal
from lewm_gym.data import Dataset
from lewm_gym.data.codec import codec_for
from lewm_gym.data.format.header import SIMULATORS, Header, installed_versions
from lewm_gym.tasks import IMAGE_SIZE

PREFIX = "gym:"
#: For environments that draw with pygame: no window is needed, and SDL must not swallow the signal that ends a process.
_SDL = {"SDL_VIDEODRIVER": "dummy", "SDL_NO_SIGNAL_HANDLERS": "1"}
MAX_STEPS = 1000  # of environments that have no limit of their own
_LARGEST_STATE = 1024  # numbers; a larger observation is an image, which the frames show anyway


@dataclass(frozen=True)
class PolicyChoice:
    """The policy to collect with.

    Attributes:
        name: "random" or "package.module:factory".
        checkpoint: A stable-baselines3 checkpoint instead, or None.
        noise: Standard deviation of the noise added to its actions, as a fraction of half the range; 0: none.
        trust: Whether the checkpoint may be unpickled, which can execute arbitrary code.
    """

    name: str = "random"
    checkpoint: Path | None = None
    noise: float = 0.0
    trust: bool = False


def collect_gym(
    env_id: str,
    folder: str | Path,
    episodes: int,
    policy: PolicyChoice | None = None,
    *,
    seed: int = 0,
    picture_every: int = 1,
    **how: Unpack[How],
) -> Dataset:
    """Collects episodes of your own environment into a folder and returns the dataset.

    An episode ends when the environment terminates or truncates it, and after 1,000 steps if it has no time limit.
    Like `collect`, it resumes and extends; episode i is a function of (environment, policy, seed, i) only, if the
    environment is a function of its seed.

    Args:
        env_id: Id that `gymnasium.make` understands, such as "Pendulum-v1" or "my_package:MyEnv-v0".
        folder: Output folder; made if needed.
        episodes: How many.
        policy: Behaviour policy; by default uniform random actions.
        seed: Seed of the whole collection.
        picture_every: N: render and store frames 0, N, 2N, ... of each episode only.
        how: First episode, workers and the like, see `collect.collector.collect_from`.

    Raises:
        ValueError: For an environment or policy that does not fit, or arguments out of range.
    """
    policy = policy or PolicyChoice()
    header = _header(env_id, policy, seed, picture_every)
    return collect_from(partial(make_runner, header, policy), header, folder, episodes, **how)


def _header(env_id: str, policy: PolicyChoice, seed: int, picture_every: int) -> Header:
    """Returns the recipe of a collection; raises ValueError for a policy that does not fit, or what is out of range."""
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    check_picture_every(picture_every)
    if not 0.0 <= policy.noise < np.inf:
        raise ValueError(f"noise must be at least 0, got {policy.noise}")
    task = PREFIX + env_id
    env = CollectedEnv(env_id)
    try:
        name = name_of_policy(policy.name, policy.checkpoint, policy.trust)
        _make_policy(policy, env)  # says at once what is wrong with it
    finally:
        env.close()
    return Header(
        task=task,
        policy=name,
        noise=policy.noise or None,
        seed=seed,
        codec=codec_for(task).as_json(),
        action_low=tuple(env.action_low.tolist()),
        action_high=tuple(env.action_high.tolist()),
        picture_every=picture_every,
    )


def make_runner(header: Header, policy: PolicyChoice) -> EpisodeRunner:
    """Returns what plays the episodes of an environment of the user."""
    env = CollectedEnv(header.task.removeprefix(PREFIX))
    return EpisodeRunner(header, env, _make_policy(policy, env), env.versions)


def _make_policy(policy: PolicyChoice, env: CollectedEnv) -> ForeignPolicy:
    return ForeignPolicy(policy.name, policy.checkpoint, policy.noise, env, env.max_steps)


class CollectedEnv(gymnasium.Env[dict[str, NDArray[np.uint8]], NDArray[np.float32]]):
    """Your own environment as an `EpisodeRunner` needs it.

    `info` has `state` and `observation`, and `done` if the episode has ended; `is_success` is the environment's own, or
    False.

    Args:
        env_id: Id that `gymnasium.make` understands.

    Raises:
        ValueError: If there is no such environment, or it does not fit.
    """

    def __init__(self, env_id: str) -> None:
        for name, value in _SDL.items():
            os.environ.setdefault(name, value)
        try:
            inner = gymnasium.make(env_id, render_mode="rgb_array", disable_env_checker=True)
        except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
            raise ValueError(f"cannot make the environment {env_id!r}: {error}") from None
        self._recorder = _Recorder(inner)
        try:
            self._env = PixelGoal(
                self._recorder,
                success=lambda state, goal_state: self._recorder.success,
                goal=lambda env, rng: np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8),  # nobody looks at it
                get_state=lambda env: self._recorder.state,
                rescale_action=False,
                terminate_on_success=False,
            )
            space: Any = self._env.action_space
            if len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
                raise ValueError(f"{env_id}: actions must be vectors of floating-point numbers, got {space}")
        except ValueError:
            inner.close()
            raise
        self.inner, self.observation_space = inner, self._env.observation_space
        # the same bounds as the dataset records, in its type; step() brings actions back within the environment's own
        self.action_low, self.action_high = space.low.astype(np.float32), space.high.astype(np.float32)
        self.action_space = spaces.Box(self.action_low, self.action_high, dtype=np.float32)
        self.max_steps = (inner.spec and inner.spec.max_episode_steps) or MAX_STEPS
        self.quantity_units: dict[str, str] = {}

    @property
    def versions(self) -> dict[str, str]:
        """Package name -> version, including the environment's own package."""
        return installed_versions((*SIMULATORS, type(self.inner.unwrapped).__module__.partition(".")[0]))

    @property
    def draw_observations(self) -> bool:
        """Whether `pixels` are rendered; otherwise they are black."""
        return self._env.draw_observations

    @draw_observations.setter
    def draw_observations(self, draw: bool) -> None:
        self._env.draw_observations = draw

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.uint8]], dict[str, Any]]:
        """Starts an episode."""
        obs, info = self._env.reset(seed=seed, options=options)
        return obs, {**info, "observation": self._recorder.observation, "done": False}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, NDArray[np.uint8]], float, bool, bool, dict[str, Any]]:
        """Applies one action, within the bounds."""
        space: Any = self._env.action_space
        obs, reward, terminated, truncated, info = self._env.step(
            np.clip(action.astype(space.dtype), space.low, space.high)
        )
        info = {**info, "observation": self._recorder.observation, "done": terminated or truncated}
        return obs, reward, terminated, truncated, info

    def quantities(self, state: NDArray[np.float64]) -> dict[str, NDArray[np.float32]]:
        """Returns the observation as the one named quantity."""
        return {"observation": state.astype(np.float32)}

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


class _Recorder(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Stores the last observation, flattened, and the environment's own `is_success`."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        try:
            self._is_small = spaces.flatdim(env.observation_space) <= _LARGEST_STATE
        except (NotImplementedError, ValueError):  # of no fixed size
            self._is_small = False
        self.observation: Any = None
        self.success = False
        self._elapsed = 0

    @property
    def state(self) -> NDArray[np.float64]:
        """The observation as one vector; the step number if it is an image."""
        if not self._is_small:
            return np.array([self._elapsed], np.float64)
        return np.asarray(spaces.flatten(self.env.observation_space, self.observation), np.float64).ravel()

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.observation, info = self.env.reset(**kwargs)
        self.success, self._elapsed = bool(info.get("is_success", False)), 0
        return self.observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.observation, reward, terminated, truncated, info = self.env.step(action)
        self.success, self._elapsed = bool(info.get("is_success", False)), self._elapsed + 1
        return self.observation, reward, terminated, truncated, info
