"""A wrapper that makes any environment with a Box action and `rgb_array` rendering a goal-conditioned one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from envs.goal_env import checked_count, checked_dict, numbers
from lewm_gym.tasks import IMAGE_SIZE

Frame = NDArray[np.uint8]
State = NDArray[np.float64]
Env = gymnasium.Env[Any, Any]

OPTIONS = ("state", "goal_state", "goal_image")


class PixelGoal(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Gives an environment the interface of LeWM-Gym's tasks: the current image and a goal image.

        env = PixelGoal(gym.make("Pendulum-v1", render_mode="rgb_array"))

    Observation: Dict of `pixels` and `goal`, each (size, size, 3) uint8: what `render` returns, resized. Action:
    Box(-1, 1), rescaled to the environment's bounds, as in LeWM-Gym's tasks; `rescale_action=False` keeps the bounds.
    Reward: -1 per step, 0 at success; the environment's own is `info["env_reward"]`. `terminated` when the environment
    terminates, or on success; `truncated` when the environment truncates. `info` has `is_success` and, if `get_state`
    is given, `state` and `goal_state`.

    The goal of an episode is the first of these that is given:

    - `options["goal_image"]`: an image of any size, resized;
    - `options["goal_state"]`: a recorded state (needs `set_state`), which is rendered;
    - `goal(env, rng)`: returns the image; it may change the environment, which is reset afterwards;
    - by default, the image after `goal_steps` random actions from the episode's own start: a reachable goal, if the
      environment is deterministic.

    `options["state"]` starts the episode in a recorded state (needs `set_state`). Other options go to the environment.

    Args:
        env: With a bounded Box action, made with `render_mode="rgb_array"`.
        success: When the goal is reached. A function `success(state, goal_state) -> bool` (needs `get_state`; the
            goal state is NaN if only its image is known), or a number above 0: the mean absolute difference of
            pixels and goal, in grey levels, below which they count as equal; or None: never.
        goal: A function `goal(env.unwrapped, rng) -> picture`, see above.
        get_state: A function `get_state(env.unwrapped) -> 1-D array`.
        set_state: A function `set_state(env.unwrapped, state)`, after which the environment is in that state.
        goal_steps: Random actions to a goal by default, at least 1.
        size: Height and width of the images, px.
        rescale_action: Whether actions are within [-1, 1], see above.
        terminate_on_success: Whether reaching the goal ends the episode.

    Raises:
        ValueError: For an environment without a bounded Box action or `rgb_array` rendering, and for inconsistent
            arguments; at `reset`, for unsupported options; at `step`, for invalid actions.
    """

    def __init__(
        self,
        env: Env,
        *,
        success: Callable[[State, State], bool] | float | None = None,
        goal: Callable[[Any, np.random.Generator], ArrayLike] | None = None,
        get_state: Callable[[Any], ArrayLike] | None = None,
        set_state: Callable[[Any, State], None] | None = None,
        goal_steps: int = 25,
        size: int = IMAGE_SIZE,
        rescale_action: bool = True,
        terminate_on_success: bool = True,
    ) -> None:
        RecordConstructorArgs.__init__(
            self,
            success=success,
            goal=goal,
            get_state=get_state,
            set_state=set_state,
            goal_steps=goal_steps,
            size=size,
            rescale_action=rescale_action,
            terminate_on_success=terminate_on_success,
            _disable_deepcopy=True,  # functions and environments that they close over stay what they are
        )
        _check_environment(env)
        if callable(success) and get_state is None:
            raise ValueError("success(state, goal_state) needs get_state")
        if success is not None and not callable(success):
            success = _checked_difference(success)
        goal_steps, size = checked_count(goal_steps, "goal_steps"), checked_count(size, "size")
        super().__init__(env)
        self.metadata = {**env.metadata, "render_modes": ["rgb_array"]}  # which `_check_environment` has seen
        assert isinstance(env.action_space, spaces.Box)
        self._low, self._high = env.action_space.low, env.action_space.high
        self.rescale_action = rescale_action
        if rescale_action:
            self.action_space = spaces.Box(-1.0, 1.0, env.action_space.shape, np.float32)
        self.success, self.goal = success, goal
        self.get_state, self.set_state = get_state, set_state
        self.goal_steps, self.size = goal_steps, size
        self.terminate_on_success = terminate_on_success
        #: False where nobody looks: `pixels` then stay black, unless success is seen in them.
        self.draw_observations = True
        picture = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = spaces.Dict({"pixels": picture, "goal": picture})
        self._rng = np.random.default_rng()
        self._goal_image: Frame | None = None
        self._goal_state: State | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; see the class for the options. The same seed gives the same start and goal."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        given = checked_dict(options, "options")
        own = {name: given.pop(name) for name in OPTIONS if name in given}
        rest = given or None
        for name in ("state", "goal_state"):
            if name in own and self.set_state is None:
                raise ValueError(f'options["{name}"] needs set_state')
        if "goal_state" in own and "goal_image" in own:
            raise ValueError("reset options: give goal_state or goal_image, not both")
        inner_seed = int(self._rng.integers(2**31))
        # The same start twice: the goal is sought from it, then the episode begins there.
        self._begin(inner_seed, rest, own.get("state"))
        self._goal_image = self._find_goal(own)
        info = self._begin(inner_seed, rest, own.get("state"))
        pixels = self._frame()
        return self._observe(pixels), self._info(info, pixels)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Applies one action."""
        if self._goal_image is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        array = numbers(action, "action").astype(self.action_space.dtype)
        if array not in self.action_space:
            raise ValueError(f"action must lie within {self.action_space}, got {array.tolist()}; clip it first")
        if self.rescale_action:
            array = self._low + (array + 1.0) * (0.5 * (self._high - self._low))
            array = np.clip(array, self._low, self._high).astype(self._low.dtype)  # rounding may exceed a bound
        _, env_reward, terminated, truncated, info = self.env.step(array)
        seen = self.draw_observations or not (self.success is None or callable(self.success))
        pixels = self._frame() if seen else np.zeros((self.size, self.size, 3), np.uint8)
        info = self._info({**info, "env_reward": env_reward}, pixels)
        success = info["is_success"]
        terminated = terminated or (success and self.terminate_on_success)
        return self._observe(pixels), 0.0 if success else -1.0, bool(terminated), bool(truncated), info

    def _begin(self, seed: int, options: dict[str, Any] | None, state: Any) -> dict[str, Any]:
        _, info = self.env.reset(seed=seed, options=options)
        if state is not None:
            self._restore(state)
        return info

    def _restore(self, state: Any) -> None:
        array = numbers(state, "a state")
        if not np.isfinite(array).all():
            raise ValueError(f"a state must be finite, got {array.tolist()}")
        assert self.set_state is not None  # checked at the start of `reset`
        self.set_state(self.env.unwrapped, array)

    def _find_goal(self, options: dict[str, Any]) -> Frame:
        """Returns the goal image and stores its state; may leave the environment in any state."""
        if "goal_image" in options:
            self._goal_state = self._unknown_state()
            return _resized(options["goal_image"], self.size)
        if "goal_state" in options:
            self._restore(options["goal_state"])
        elif self.goal is not None:
            picture = _resized(self.goal(self.env.unwrapped, self._rng), self.size)
            self._goal_state = self._state()
            return picture
        else:
            for _ in range(self.goal_steps):
                action = self._rng.uniform(self._low, self._high).astype(self._low.dtype)
                _, _, terminated, truncated, _ = self.env.step(action)
                if terminated or truncated:
                    break
        self._goal_state = self._state()
        return self._frame()

    def _state(self) -> State | None:
        return None if self.get_state is None else np.array(self.get_state(self.env.unwrapped), dtype=np.float64)

    def _unknown_state(self) -> State | None:
        state = self._state()
        return None if state is None else np.full_like(state, np.nan)

    def _frame(self) -> Frame:
        return _resized(self.env.render(), self.size)

    def _observe(self, pixels: Frame) -> dict[str, Frame]:
        assert self._goal_image is not None
        return {"pixels": pixels, "goal": self._goal_image.copy()}

    def _info(self, info: dict[str, Any], pixels: Frame) -> dict[str, Any]:
        state, goal_state = self._state(), self._goal_state
        known = {} if state is None or goal_state is None else {"state": state, "goal_state": goal_state.copy()}
        return {**info, **known, "is_success": self._is_success(pixels, state)}

    def _is_success(self, pixels: Frame, state: State | None) -> bool:
        if self.success is None:
            return False
        if callable(self.success):
            assert state is not None and self._goal_state is not None
            return bool(self.success(state, self._goal_state))
        assert self._goal_image is not None
        return bool(np.abs(pixels.astype(np.int16) - self._goal_image).mean() < self.success)


def _checked_difference(success: Any) -> float:
    try:
        difference = float(success)
    except (TypeError, ValueError):
        difference = -1.0
    if isinstance(success, bool) or not difference > 0.0:  # False for NaN too
        raise ValueError(f"success must be a function, None or a difference above 0 grey levels, got {success!r}")
    return difference


def _check_environment(env: Env) -> None:
    space = env.action_space
    if not isinstance(space, spaces.Box):
        raise ValueError(f"PixelGoal needs a Box action space, got {space}; wrap the environment to have one")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"PixelGoal needs a bounded action space, got {space}; bound it with RescaleAction or ClipAction"
        )
    if env.render_mode != "rgb_array":
        modes = env.metadata.get("render_modes", [])
        advice = 'make it with render_mode="rgb_array"' if "rgb_array" in modes else f"it offers {modes} only"
        raise ValueError(f"PixelGoal needs rgb_array rendering, got render_mode {env.render_mode!r}: {advice}")


def _resized(picture: Any, size: int) -> Frame:
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"an image must be (h, w, 3) uint8, got {array.shape} {array.dtype}")
    if array.shape[:2] == (size, size):
        return array.copy()
    # Averages over the area when it shrinks, unlike plain interpolation: thin lines do not flicker.
    return np.array(Image.fromarray(array).resize((size, size), Image.Resampling.BILINEAR))
