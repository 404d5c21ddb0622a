"""One episode, as a function of (task, policy, seed, number) only."""

from __future__ import annotations

import importlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from collect.policies import make_policy, policies_of
from collect.variations import choose_variations, draw_variations
from lewm_gym.data.codec import EncodedEpisode, EpisodeEncoder, FrameCodec, codec_for
from lewm_gym.data.episode import Episode, check_episode
from lewm_gym.data.format.header import Header, columns_of, installed_versions
from lewm_gym.data.writer import save_episode
from lewm_gym.tasks import get_task
from lewm_gym.types import BehaviourPolicy, Obs

_ATTEMPTS = 100  # to begin an episode whose variations make some starts impossible


def episode_rng(task: str, seed: int, number: int) -> np.random.Generator:
    """Returns the random stream of one episode; the task's number is a checksum of its name, so it never changes."""
    return np.random.default_rng([zlib.crc32(task.encode()), seed, number])


def make_header(
    task_name: str,
    *,
    seed: int = 0,
    policy: str | None = None,
    noise: float | None = None,
    render_quality: str | None = None,
    states_only: bool = False,
    variations: str | None = None,
    picture_every: int = 1,
) -> Header:
    """Returns the recipe of a collection with all defaults; columns and versions come with the episodes.

    Raises:
        ValueError: For an unknown task or policy, or values out of range.
    """
    task = get_task(task_name)
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    check_picture_every(picture_every, states_only)
    policy = policy or next(iter(policies_of(task.name)))
    made = make_policy(task.name, policy, noise)
    module, _, name = task.entry_point.partition(":")
    env_class = getattr(importlib.import_module(module), name)
    qualities = env_class.render_qualities
    if render_quality is not None and render_quality not in qualities:
        raise ValueError(f"render quality must be one of {', '.join(qualities)}, not {render_quality!r}")
    return Header(
        task=task.name,
        policy=policy,
        noise=getattr(made, "noise", noise),
        seed=seed,
        render_quality=render_quality or qualities[0],
        states_only=states_only,
        codec=None if states_only else codec_for(task.name).as_json(),
        variations=choose_variations(env_class.variation_ranges, variations),
        picture_every=picture_every,
    )


def check_picture_every(picture_every: int, states_only: bool = False) -> None:
    """Raises ValueError for an invalid `picture_every`."""
    if picture_every < 1:
        raise ValueError(f"picture_every must be at least 1, got {picture_every}")
    if states_only and picture_every != 1:
        raise ValueError("states-only datasets have no frames: pass picture_every to `render` instead")


@dataclass(frozen=True)
class Played:
    """A finished episode and the header that describes it."""

    header: Header
    encoded: EncodedEpisode


class EpisodeRunner:
    """Collects the episodes of one recipe, one after another, in one environment.

    Args:
        header: From `make_header`.
        env: Environment; None: the task's own.
        policy: Behaviour policy; None: the task's policy in the header.
        versions: Versions of the packages that the data depend on; None: those of the tasks' simulators.
    """

    def __init__(
        self,
        header: Header,
        env: gymnasium.Env[Any, Any] | None = None,
        policy: BehaviourPolicy | None = None,
        versions: dict[str, str] | None = None,
    ) -> None:
        self._header = header
        self._env = make_env(header.task, header.render_quality) if env is None else env
        if header.states_only:  # nothing looks at the images, and for Cube they are nearly all of the time
            blank = np.zeros(self._env.observation_space["pixels"].shape, np.uint8)  # type: ignore[index]
            self._env.render_state = lambda state: blank  # type: ignore[attr-defined]
        self._policy = make_policy(header.task, header.policy, header.noise) if policy is None else policy
        self._action_shape: tuple[int, ...] = self._env.action_space.shape or ()
        self._low, self._high = header.action_bounds(*self._action_shape)
        self._versions = versions or installed_versions()

    def play(self, number: int) -> Played:
        """Collects the episode with this number.

        Raises:
            ValueError: If the policy returns an action that is not a finite vector of the right length.
        """
        rng = episode_rng(self._header.task, self._header.seed, number)
        encoder = None if self._header.codec is None else EpisodeEncoder(FrameCodec.from_json(self._header.codec))
        self._env.draw_observations = True  # type: ignore[attr-defined]
        obs, info, reset_options = self._begin(number, rng)
        states: list[NDArray[np.float64]] = []
        actions: list[NDArray[np.float32]] = []
        success: list[bool] = []
        every = self._header.picture_every
        while True:
            states.append(info["state"])
            success.append(bool(info["is_success"]))
            if encoder is not None and len(actions) % every == 0:
                encoder.add(obs["pixels"])
            if len(actions) >= self._policy.max_steps or (actions and self._policy.done(info)):
                break
            action = self._checked(self._policy.act(info), number, len(actions))
            actions.append(action)
            self._env.draw_observations = len(actions) % every == 0  # type: ignore[attr-defined]
            obs, _, _, _, info = self._env.step(action)
        episode = self._gather(states, actions, success, reset_options)
        columns = columns_of(episode, getattr(self._env, "quantity_units", {}))
        drawn_by = None if encoder is None else getattr(self._env, "gl_renderer", None)
        header = self._header.with_columns(columns, self._versions, drawn_by)
        return Played(header, EncodedEpisode(episode, None if encoder is None else encoder.finish()))

    def save(self, folder: Path, number: int) -> int:
        """Collects an episode and writes it as a part of the dataset; returns its number of frames."""
        played = self.play(number)
        save_episode(folder, played.header, number, played.encoded)
        return len(played.encoded.states)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()

    def _checked(self, action: Any, number: int, step: int) -> NDArray[np.float32]:
        array = np.asarray(action, dtype=np.float32)
        fits = array.shape == self._action_shape
        if not fits or not ((array >= self._low) & (array <= self._high)).all():  # False for NaN too
            raise ValueError(
                f"policy {self._header.policy!r}, episode {number}, step {step}: expected an action of shape "
                f"{self._action_shape} within {_bounds(self._low, self._high)}, got "
                f"{array.tolist() if fits else f'shape {array.shape}'}"
            )
        return array

    def _begin(self, number: int, rng: np.random.Generator) -> tuple[Obs, dict[str, Any], dict[str, Any]]:
        """Returns observation and info of the episode's start, and the reset options that `render` needs."""
        header, env = self._header, self._env
        if not header.variations:
            return (*self._policy.begin(env, rng), {})
        ranges: Any = env.variation_ranges  # type: ignore[attr-defined]
        values = draw_variations(ranges, header.variations, header.task, header.seed, number)
        plain = type(env).reset

        def reset(*, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            return plain(env, seed=seed, options={**(options or {}), "variations": values})

        env.reset = reset  # type: ignore[method-assign]  # the policy knows nothing of variations
        env.reset(seed=0)  # it may look at the geometry before it chooses a start
        for attempt in range(_ATTEMPTS):
            try:
                obs, info = self._policy.begin(env, rng)
                break
            except ValueError:  # a start that these sizes make impossible: the next draw is another one
                if attempt == _ATTEMPTS - 1:
                    raise
        return obs, info, {"variations": values, "goal_state": info["goal_state"].tolist()}

    def _gather(
        self, states: list[Any], actions: list[Any], success: list[bool], reset_options: dict[str, Any]
    ) -> Episode:
        named = [self._env.quantities(state) for state in states]  # type: ignore[attr-defined]
        nothing = np.full(self._action_shape, np.nan, np.float32)
        episode = Episode(
            pixels=None,
            action=np.stack([*actions, nothing]),
            state=np.stack(states),
            success=np.array(success),
            quantities={name: np.stack([row[name] for row in named]) for name in named[0]},
            reset_options=reset_options,
            picture_every=self._header.picture_every,
        )
        check_episode(episode)
        return episode


def _bounds(low: NDArray[np.float32], high: NDArray[np.float32]) -> str:
    """Returns bounds as text: one pair of numbers if all coordinates have the same."""
    if (low == low[0]).all() and (high == high[0]).all():
        return f"[{low[0]:g}, {high[0]:g}]"
    return f"{low.tolist()} to {high.tolist()}"


def make_env(task_name: str, render_quality: str | None = None) -> gymnasium.Env[Any, Any]:
    """Returns a task's bare environment, without time limit and Gymnasium's checks."""
    quality: dict[str, Any] = {} if render_quality is None else {"render_quality": render_quality}
    env = gymnasium.make(f"lewm_gym:{get_task(task_name).env_id}", disable_env_checker=True, **quality)
    return env.unwrapped
