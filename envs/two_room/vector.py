"""A batched Two-Room environment, with the same episodes as single environments."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.goal_env import Frame, checked_count, checked_dict, numbers
from envs.two_room.env import TwoRoomEnv
from lewm_gym.tasks import IMAGE_SIZE, get_task

Mask = NDArray[np.bool_]
OBSERVE = ("pixels", "state")
OPTIONS = ("state", "goal_state", "variations", "reset_mask")


class TwoRoomVectorEnv(gymnasium.vector.VectorEnv[dict[str, NDArray[Any]], NDArray[np.float32], NDArray[Any]]):
    """Two-Room, batched; what `gym.make_vec("lewm_gym:lewm/TwoRoom-v0", num_envs=n)` makes.

    Environment i has the episodes of a single environment seeded with `seed + i`, whatever the number of environments.
    The interface is Gymnasium's: `step` and `reset` return stacked observations and infos, and autoreset is as in its
    SyncVectorEnv. `reset(options=...)` takes `state` and `goal_state`, each (2,) for all or (num_envs, 2);
    `variations`, which apply to all environments, including autoresets, until the next reset of all; and `reset_mask`
    (num_envs,) bool. Images as goals need `vectorization_mode="sync"`.

    Args:
        num_envs: Number of agents B.
        observe: "pixels": Dict of `pixels` and `goal`, each (B, 224, 224, 3) uint8; "state": Dict of `state` and
            `goal`, each (B, 2) float32, px, without rendering.
        max_episode_steps: Steps after which episodes are truncated; None: never.
        autoreset_mode: Gymnasium's; by default, a finished environment resets at the next step.
        render_mode: None or "rgb_array", with which `render` returns a tuple of images.
        terminate_on_success: See `GoalEnv`.
        reference_rules: See `GoalEnv`.
        render_quality: See `GoalEnv`.
        proprioception: See `GoalEnv`; for "pixels" only.

    Raises:
        ValueError: As `GoalEnv` does, naming the environment; and for options of another shape.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        observe: str = "pixels",
        max_episode_steps: int | None = get_task("two_room").max_episode_steps,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        terminate_on_success: bool = True,
        reference_rules: bool = False,
        render_quality: str = "fast",
        proprioception: bool = False,
    ) -> None:
        num_envs = checked_count(num_envs, "num_envs")
        if observe not in OBSERVE:
            raise ValueError(f"observe must be one of {OBSERVE}, not {observe!r}")
        if proprioception and observe != "pixels":
            raise ValueError(f"proprioception goes with observe='pixels', not with {observe!r}")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1 or None, got {max_episode_steps}")
        self.task = TwoRoomEnv(
            render_mode=render_mode,
            terminate_on_success=terminate_on_success,
            reference_rules=reference_rules,
            render_quality=render_quality,
            proprioception=proprioception,
        )
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.observe = observe
        self.max_episode_steps = max_episode_steps
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**TwoRoomEnv.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_action_space = self.task.action_space
        self.single_observation_space = self.task.observation_space if observe == "pixels" else _state_space()
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._seeds: list[int | None] = [None] * num_envs
        self._positions = np.full((num_envs, 2), np.nan)
        self._goals = np.full((num_envs, 2), np.nan)
        self._goal_images: Frame = np.zeros(
            (num_envs if observe == "pixels" else 0, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8
        )
        self._steps = np.zeros(num_envs, int)
        self._finished = np.zeros(num_envs, bool)

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """The environments' last seeds."""
        return tuple(self._seeds)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Starts episodes; see the class for the options. An integer seed gives environment i the seed `seed + i`."""
        options = checked_dict(options, "options")
        unknown = sorted(set(options) - set(OPTIONS), key=str)
        if unknown:
            hint = '; goal_image needs vectorization_mode="sync"' if "goal_image" in unknown else ""
            raise ValueError(f"unknown reset options {unknown}; expected some of {list(OPTIONS)}{hint}")
        mask = self._checked_mask(options.get("reset_mask"))
        if isinstance(seed, int | np.integer):
            seed = [int(seed) + index for index in range(self.num_envs)]
        seeds = seed or [None] * self.num_envs
        if len(seeds) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} seeds, one per environment, got {len(seeds)}")
        before, given = self.task.variations, checked_dict(options.get("variations"), "variations")
        if mask.all():
            self.task.variations = self.task._checked_variations(given)
        elif given:
            raise ValueError("variations apply to all environments: reset them all, without reset_mask")
        try:
            states = self._checked_states(options.get("state"), "state")
            goals = self._checked_states(options.get("goal_state"), "goal_state")
        except ValueError:
            self.task.variations = before
            raise
        if mask.all():
            self.task._apply_variations(self.task.variations)
        for index in np.flatnonzero(mask):
            if self._generators[index] is None or seeds[index] is not None:
                self._generators[index], self._seeds[index] = seeding.np_random(seeds[index])
        self._begin(mask, states, goals)
        success = self.task.reached(self._positions, self._goals)
        return self._observation(), self._info(success, mask)

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64], Mask, Mask, dict[str, Any]]:
        """Applies actions (B, 2); with `AutoresetMode.NEXT_STEP` those of finished environments are ignored."""
        if any(generator is None for generator in self._generators):
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        begin = self._finished.copy()
        if begin.any() and self.autoreset_mode is AutoresetMode.DISABLED:
            raise gymnasium.error.ResetNeeded(f"environments {np.flatnonzero(begin).tolist()} are finished: reset them")
        go_on = ~begin
        moves = self._checked_actions(actions, go_on)
        moved = self.task._rooms.move(self._positions, moves, self.task.reference_rules)
        self._positions[go_on] = moved[go_on]
        self._steps += go_on
        success = self.task.reached(self._positions, self._goals)
        if begin.any():
            self._begin(begin)
            success[begin] = self.task.reached(self._positions[begin], self._goals[begin])
        rewards = np.where(success | begin, 0.0, -1.0)
        terminations = go_on & success if self.task.terminate_on_success else np.zeros(self.num_envs, bool)
        late = self.max_episode_steps is not None and self._steps >= self.max_episode_steps
        truncations = go_on & late
        info = self._info(success, np.ones(self.num_envs, bool))
        self._finished = terminations | truncations
        if self._finished.any() and self.autoreset_mode is AutoresetMode.SAME_STEP:
            info = self._begin_at_once(info)
        return self._observation(), rewards, terminations, truncations, info

    def render(self) -> tuple[Frame, ...] | None:
        """Returns the current images, or None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(self._draw(position, goal) for position, goal in zip(self._positions, self._goals, strict=True))

    def _begin(
        self, mask: Mask, states: NDArray[np.float64] | None = None, goals: NDArray[np.float64] | None = None
    ) -> None:
        """Starts an episode in the environments of `mask`; samples what is not given as a single environment does."""
        for index in np.flatnonzero(mask):
            rng = self._generators[index]
            assert rng is not None
            start = self.task._sample_state(rng) if states is None else states[index]
            goal = self.task._sample_goal_state(rng, start) if goals is None else goals[index]
            self._positions[index], self._goals[index] = start, goal
            if self.observe == "pixels":
                self._goal_images[index] = self._draw(goal, goal)
        self._steps[mask] = 0
        self._finished = self._finished & ~mask

    def _begin_at_once(self, info: dict[str, Any]) -> dict[str, Any]:
        """Restarts the finished environments within their last step; returns the info, including the final one."""
        finished = self._finished.copy()
        last = self._observation()
        final_obs = np.full(self.num_envs, None, object)
        for index in np.flatnonzero(finished):
            final_obs[index] = {name: array[index].copy() for name, array in last.items()}
        success = info["is_success"].copy()
        final_info = self._info(success, finished)
        self._begin(finished)
        success[finished] = self.task.reached(self._positions[finished], self._goals[finished])
        info = self._info(success, np.ones(self.num_envs, bool))
        return info | {
            "final_obs": final_obs,
            "_final_obs": finished.copy(),
            "final_info": final_info,
            "_final_info": finished.copy(),
        }

    def _draw(self, position: NDArray[np.float64], goal: NDArray[np.float64]) -> Frame:
        return self.task._picture.draw(position, goal)

    def _observation(self) -> dict[str, NDArray[Any]]:
        if self.observe == "state":
            return {"state": self._positions.astype(np.float32), "goal": self._goals.astype(np.float32)}
        pixels = np.empty_like(self._goal_images)
        for index in range(self.num_envs):
            pixels[index] = self._draw(self._positions[index], self._goals[index])
        obs: dict[str, NDArray[Any]] = {"pixels": pixels, "goal": self._goal_images.copy()}
        if self.task.proprioception:
            for name, states in (("proprioception", self._positions), ("goal_proprioception", self._goals)):
                obs[name] = np.stack([self.task.sense(state) for state in states])
        return obs

    def _info(self, success: Mask, mask: Mask) -> dict[str, Any]:
        """Returns infos in Gymnasium's form: arrays, each with the mask of the environments that have it."""
        values: dict[str, NDArray[Any]] = {"state": self._positions, "goal_state": self._goals, "is_success": success}
        info: dict[str, Any] = {}
        for name, value in values.items():
            info[name] = np.where(mask.reshape(-1, *[1] * (value.ndim - 1)), value, np.zeros((), value.dtype))
            info[f"_{name}"] = mask.copy()
        return info

    def _checked_actions(self, actions: Any, used: Mask) -> NDArray[np.float32]:
        array = numbers(actions, "actions").astype(np.float32)
        if array.shape != (self.num_envs, 2):
            raise ValueError(f"actions must have shape ({self.num_envs}, 2), got {array.shape}")
        array[~used] = 0.0
        good = (np.abs(array) <= 1.0).all(axis=1)  # False for NaN too
        if not good.all():
            index = int(np.flatnonzero(~good)[0])
            got = f"{array[index].tolist()} for environment {index}"
            raise ValueError(f"actions must be finite and within [-1, 1], got {got}; clip them first")
        return array

    def _checked_states(self, states: Any, name: str) -> NDArray[np.float64] | None:
        if states is None:
            return None
        array = numbers(states, name)
        if array.shape not in ((2,), (self.num_envs, 2)):
            raise ValueError(f"{name} must have shape (2,) or ({self.num_envs}, 2), got {array.shape}")
        rows = np.broadcast_to(array, (self.num_envs, 2)).copy()
        for index, row in enumerate(rows):
            try:
                self.task._checked_state(row, name)
            except ValueError as error:
                raise ValueError(f"environment {index}: {error}") from None
        return rows

    def _checked_mask(self, mask: Any) -> Mask:
        if mask is None:
            return np.ones(self.num_envs, bool)
        array = np.asarray(mask)
        if array.shape != (self.num_envs,) or array.dtype != bool or not array.any():
            raise ValueError(f"reset_mask must be ({self.num_envs},) bool with at least one True, got {mask!r}")
        if not array.all() and any(g is None for g, chosen in zip(self._generators, array, strict=True) if not chosen):
            raise gymnasium.error.ResetNeeded("reset all environments before some of them")
        return array


def _state_space() -> gymnasium.spaces.Dict:
    rooms = gymnasium.spaces.Box(0.0, float(IMAGE_SIZE), (2,), np.float32)
    return gymnasium.spaces.Dict({"state": rooms, "goal": rooms})
