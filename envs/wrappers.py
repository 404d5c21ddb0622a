"""Wrappers for tasks: action blocks, pixel history, states instead of pixels, hindsight goals, variations.

Gymnasium's own wrappers work as well and are not repeated here: TimeLimit, RecordEpisodeStatistics, RecordVideo,
TransformObservation, ClipAction, RescaleAction. Its FrameStackObservation would also stack the goal: see
`PixelHistory`. For crops or noise use TransformObservation.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from envs.goal_env import GoalEnv, checked_count, checked_dict, numbers

Env = gymnasium.Env[Any, Any]
StepResult = tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]
Goals = NDArray[np.floating[Any]]


class FrameSkip(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Executes action blocks, the unit of plans of world models with a frame skip.

    The action is a block (frame_skip * action_size,): the concatenated actions of consecutive steps. It ends
    early if the episode does. The observation is the last one, the reward the sum; `info["steps"]` is the number of
    executed actions. Time limits inside this wrapper count environment steps, those around it blocks.

    Args:
        env: With a one-dimensional Box action.
        frame_skip: Environment steps per block, at least 1.

    Raises:
        ValueError: For another action space or frame skip; at `step`, for a block of another shape, with NaN or
            outside the bounds, before any of its actions is executed.
    """

    def __init__(self, env: Env, frame_skip: int) -> None:
        RecordConstructorArgs.__init__(self, frame_skip=frame_skip)
        super().__init__(env)
        space = env.action_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"FrameSkip needs a Box action of one dimension, got {space}")
        self.frame_skip = frame_skip = checked_count(frame_skip, "frame_skip")
        low, high = np.tile(space.low, frame_skip), np.tile(space.high, frame_skip)
        self.action_space = spaces.Box(low, high, dtype=space.dtype.type)  # type: ignore[arg-type]

    def step(self, action: NDArray[Any]) -> StepResult:
        """Executes one block."""
        block = self._checked_block(action)
        total, steps = 0.0, 0
        for single in np.split(block, self.frame_skip):
            obs, reward, terminated, truncated, info = self.env.step(single)
            total, steps = total + float(reward), steps + 1
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, {**info, "steps": steps}

    def _checked_block(self, action: Any) -> NDArray[Any]:
        space = self.action_space
        assert isinstance(space, spaces.Box)
        block = numbers(action, "an action block").astype(space.dtype)
        if block.shape != space.shape:
            raise ValueError(f"an action block must have shape {space.shape}, got {block.shape}")
        if not (np.isfinite(block) & (space.low <= block) & (block <= space.high)).all():
            raise ValueError(f"an action block must be finite and within {space}, got {block.tolist()}; clip it first")
        return block


class PixelHistory(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Observes the last n frames: `pixels` becomes (n, h, w, 3), oldest first; everything else stays.

    At the start of an episode the first frame fills the history. For policies without a history of their own;
    LeWMAgent keeps its own and needs single frames.

    Args:
        env: With `pixels` among its observations.
        n: Frames, at least 1.

    Raises:
        ValueError: If there are no pixels or n is too small.
    """

    def __init__(self, env: Env, n: int) -> None:
        RecordConstructorArgs.__init__(self, n=n)
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Dict) or "pixels" not in space.spaces:
            raise ValueError(f"PixelHistory needs an observation Dict with 'pixels', got {space}")
        n = checked_count(n, "n")
        frame = space["pixels"]
        assert isinstance(frame, spaces.Box)
        stacked = spaces.Box(0, 255, (n, *frame.shape), np.uint8)
        self.observation_space = spaces.Dict({**space.spaces, "pixels": stacked})
        self._frames: deque[NDArray[np.uint8]] = deque(maxlen=n)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode with a history of its first frame."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._frames.extend([obs["pixels"]] * (self._frames.maxlen or 1))
        return self._stacked(obs), info

    def step(self, action: Any) -> StepResult:
        """Drops the oldest frame and appends the newest."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._frames.append(obs["pixels"])
        return self._stacked(obs), reward, terminated, truncated, info

    def _stacked(self, obs: dict[str, Any]) -> dict[str, Any]:
        return {**obs, "pixels": np.stack(self._frames)}


class _TaskObservation(gymnasium.Wrapper[Any, Any, Any, Any]):
    """What StateObservation and HindsightGoal share: observations of the state, without drawing images."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        if not isinstance(env.unwrapped, GoalEnv):
            raise ValueError(f"{type(self).__name__} needs one of LeWM-Gym's tasks, got {env}")
        self.task = env.unwrapped
        self.task.draw_observations = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode.

        Raises:
            ValueError: For a `goal_image`: its state is unknown.
        """
        options = checked_dict(options, "options")
        if "goal_image" in options:
            raise ValueError(f"{type(self).__name__} observes the goal's state: give goal_state instead of goal_image")
        _, info = self.env.reset(seed=seed, options=options)
        return self._observe(info), info

    def step(self, action: Any) -> StepResult:
        """Steps the environment."""
        _, reward, terminated, truncated, info = self.env.step(action)
        return self._observe(info), reward, terminated, truncated, info

    def _observe(self, info: dict[str, Any]) -> Any:
        raise NotImplementedError

    def _state(self, state: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.concatenate(list(self.task.quantities(state).values()))


class StateObservation(_TaskObservation, RecordConstructorArgs):
    """Observes a vector: the state's quantities (`GoalEnv.quantities`), then the goal (`GoalEnv.achieved_goal`).

    For agents that learn from states, such as stable-baselines3's SAC. (k,) float32. Images are rendered by
    `render` only.

    Args:
        env: One of the tasks.

    Raises:
        ValueError: For any other environment.
    """

    def __init__(self, env: Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        state = np.zeros(self.task.state_size)
        size = self._state(state).size + self.task.achieved_goal(state).size
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def _observe(self, info: dict[str, Any]) -> NDArray[np.float32]:
        goal = self.task.achieved_goal(info["goal_state"])
        return np.concatenate([self._state(info["state"]), goal.astype(np.float32)])


class HindsightGoal(_TaskObservation, RecordConstructorArgs):
    """The GoalEnv interface for hindsight experience replay, such as stable-baselines3's HerReplayBuffer.

    Observation: Dict of `observation` (the state's quantities, float32), `achieved_goal` and `desired_goal` (float64,
    what determines success, so that relabelled rewards are exact). `compute_reward` is the task's own reward
    for any achieved and desired goals. Images are rendered by `render` only.

    Reacher also counts a goal that is reached in the middle of a step, which the achieved goal does not show: the
    reward of a step can be 0 although `compute_reward` of its end is -1.

    Args:
        env: One of the tasks.

    Raises:
        ValueError: For any other environment.
    """

    def __init__(self, env: Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        state = np.zeros(self.task.state_size)
        goal = spaces.Box(-np.inf, np.inf, self.task.achieved_goal(state).shape, np.float64)
        observation = spaces.Box(-np.inf, np.inf, self._state(state).shape, np.float32)
        self.observation_space = spaces.Dict({"observation": observation, "achieved_goal": goal, "desired_goal": goal})

    def compute_reward(self, achieved_goal: Goals, desired_goal: Goals, info: Any) -> NDArray[np.float64]:
        """Returns 0 where the goal is achieved and -1 elsewhere, (...), for goals (..., goal size).

        Args:
            achieved_goal: What was achieved.
            desired_goal: What is to be achieved.
            info: Not needed; part of the interface.
        """
        rewards = np.where(self.task.reached(np.asarray(achieved_goal), np.asarray(desired_goal)), 0.0, -1.0)
        return rewards[()]  # a number for a single goal

    def _observe(self, info: dict[str, Any]) -> dict[str, NDArray[Any]]:
        return {
            "observation": self._state(info["state"]),
            "achieved_goal": self.task.achieved_goal(info["state"]).copy(),
            "desired_goal": self.task.achieved_goal(info["goal_state"]).copy(),
        }


class RandomVariations(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Samples the task's variations at every reset, uniformly from their ranges.

    Values in `options["variations"]` take precedence. `info["variations"]` has the sampled values. Their random stream
    is seeded by `reset(seed=)` and separate from the task's own: the same seed still starts in the same state if sizes
    allow.

    Args:
        env: One of the tasks.
        names: Variations to sample; None: all.
        strength: Share of the range around the default to sample from, in (0, 1]; choices are always sampled.

    Raises:
        ValueError: For an environment without variations, a string instead of a list, unknown names or another
            strength.
    """

    def __init__(self, env: Env, names: Sequence[str] | None = None, strength: float = 1.0) -> None:
        RecordConstructorArgs.__init__(self, names=names, strength=strength)
        super().__init__(env)
        if isinstance(names, str):
            raise ValueError(f"names must be a list of names: write names=[{names!r}]")
        ranges = getattr(env.unwrapped, "variation_ranges", {})
        if not ranges:
            raise ValueError(f"{env} has no variations")
        unknown = sorted(set(names or ()) - set(ranges))
        if unknown:
            raise ValueError(f"unknown variations {unknown}; expected some of {sorted(ranges)}")
        if not 0.0 < strength <= 1.0:
            raise ValueError(f"strength must lie within (0, 1], got {strength}")
        self._ranges = {name: ranges[name] for name in (sorted(ranges) if names is None else names)}
        self._strength = strength
        self._rng = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode with new variations."""
        options = checked_dict(options, "options")
        given = checked_dict(options.get("variations"), "variations")
        if seed is not None:
            self._rng = np.random.default_rng([zlib.crc32(b"variations"), seed])
        drawn = {name: self._draw(allowed) for name, allowed in self._ranges.items()}
        options["variations"] = {**drawn, **given}
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, {**info, "variations": options["variations"]}

    def _draw(self, allowed: Any) -> Any:
        if isinstance(allowed, list):
            return allowed[self._rng.integers(len(allowed))]
        low, high, default = allowed
        value = self._rng.uniform(low, high, np.shape(default))
        return np.asarray(default) + self._strength * (value - np.asarray(default))
