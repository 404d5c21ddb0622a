"""The goal-conditioned environment that every task shares: reset options, goal image, success, reward.

A task's own file implements the simulator in the methods named `_...`; the user interface is here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from lewm_gym.tasks import IMAGE_SIZE

Frame = NDArray[np.uint8]
State = NDArray[np.float64]

_WALK_MEMORY = 0.9  # correlation of consecutive actions: they keep their direction for about ten steps
RESET_OPTIONS = ("state", "goal_state", "goal_image", "variations")


class Event(NamedTuple):
    """A violation of expectation in a task: an object changes its colour, or is teleported.

    Attributes:
        object: Name of the object.
        colour: Variation of the environment that is changed, and its value.
        place: Coordinates of the state that a teleport takes from a random start state.
        position: Those among them that are its position, to measure the distance of the teleport.
        stopped: Coordinates that a teleport sets to 0, its velocities.
        min_jump: Least distance of a teleport, in the state's unit.
        policy: Behaviour policy of the trajectories; None: the task's default.
    """

    object: str
    colour: tuple[str, tuple[float, float, float]]
    place: slice
    position: slice
    stopped: slice
    min_jump: float
    policy: str | None = None


class Placed(NamedTuple):
    """A state of a grid, and the positions by which it is coloured on a map, name -> (x, y)."""

    state: State
    places: dict[str, tuple[float, float]]


class GoalEnv(gymnasium.Env[dict[str, Frame], NDArray[np.float32]]):
    """Gymnasium environment whose goal is an image.

    Observation: Dict of `pixels` (the current image) and `goal` (the goal image), each (224, 224, 3) uint8; with
    `proprioception=True` also `proprioception` and `goal_proprioception`, quantities of the agent's body now and at
    the goal, each (k,) float32.
    Action: Box(-1, 1, (action_size,)) float32.
    Reward: -1 per step, 0 at success. `terminated` on success unless `terminate_on_success=False`;
    `truncated` by Gymnasium's TimeLimit, whose default is the task's `max_episode_steps`.
    `info`: `state` and `goal_state` (state_size,) float64, `is_success` bool.

    `reset(options=...)` takes:

    - `state`: the start, a recorded `info["state"]`. Replaying the same actions repeats the same states bit for bit
      and the same frames pixel for pixel.
    - `goal_state`: the goal, likewise. By default a random reachable one is sampled.
    - `goal_image`: (224, 224, 3) uint8, an image instead of a goal state; success is then unknown:
      `is_success` stays False, `goal_state` is NaN.
    - `variations`: dict of the task's visual and physical factors of variation, see `variation_ranges`.

    Args:
        render_mode: None or "rgb_array"; `gym.make(..., render_mode="human")` adds Gymnasium's own wrapper.
        terminate_on_success: Whether reaching the goal ends the episode.
        reference_rules: Follow the reference implementation (stable-worldmodel) where this one differs,
            to compare with published numbers. Each task documents the differences.
        render_quality: One of `render_qualities`. Images of different qualities differ slightly; a dataset and the
            agents trained on it record the quality.
        proprioception: Whether observations include the quantities in the task's `Task.proprioception`, concatenated.
            Goals must then be states: the proprioception of a `goal_image` is unknown.

    Raises:
        ValueError: For actions that are not finite numbers of the right shape within the bounds, impossible
            states, and unknown options.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}

    #: Length of one action and of the state; class attributes of the task.
    action_size: ClassVar[int]
    state_size: ClassVar[int]
    #: What `render_quality` may be; the first is the default.
    render_qualities: ClassVar[tuple[str, ...]] = ("fast",)
    #: name -> (low, high, default), where a default that is a (nested) tuple gives the shape, or a list of choices,
    #: the first of them the default; what `options["variations"]` may set.
    variation_ranges: ClassVar[dict[str, Any]] = {}
    #: `Task.proprioception` of the task: name and size of the quantities that `proprioception=True` shows.
    proprioceptive: ClassVar[dict[str, int]]
    #: Standard deviation of each action of `sample_walk`, (action_size,): about that of recorded ones.
    walk_std: ClassVar[tuple[float, ...]]
    #: `Task.phases` of the task: what `phase` may return.
    phases: ClassVar[tuple[str, ...]]

    # What benchmarks ask of a task; each may be left out.
    #: What changes in a changed world, in words -> `options["variations"]`, one at a time.
    shifts: ClassVar[dict[str, dict[str, Any]]] = {}
    #: What violates expectation, None where nothing is defined.
    event: ClassVar[Event | None] = None
    #: Quantities that probes read off the state besides those of `quantities`: name -> place in the state.
    derived_quantities: ClassVar[dict[str, slice]] = {}
    #: Unit of the places in `placed_states`, and whether they have y downwards, as images do.
    place_unit: ClassVar[str] = ""
    place_y_down: ClassVar[bool] = False

    def placed_states(self, side: int) -> Iterator[Placed]:
        """Yields a grid of states, `side` cells wide, some of which may be impossible; none by default."""
        yield from ()

    def __init__(
        self,
        *,
        render_mode: str | None = None,
        terminate_on_success: bool = True,
        reference_rules: bool = False,
        render_quality: str = "fast",
        proprioception: bool = False,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None or one of {self.metadata['render_modes']}, not {render_mode!r}")
        if render_quality not in self.render_qualities:
            raise ValueError(f"render_quality must be one of {self.render_qualities}, not {render_quality!r}")
        self.render_mode = render_mode
        self.render_quality = render_quality
        self.terminate_on_success = terminate_on_success
        self.reference_rules = reference_rules
        picture = spaces.Box(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        shown: dict[str, spaces.Space[Any]] = {"pixels": picture, "goal": picture}
        self.proprioception = proprioception
        if proprioception:
            sensed = spaces.Box(-np.inf, np.inf, (sum(self.proprioceptive.values()),), np.float32)
            shown |= {"proprioception": sensed, "goal_proprioception": sensed}
        self.observation_space: spaces.Dict = spaces.Dict(shown)  # type: ignore[assignment]
        self.action_space = spaces.Box(-1.0, 1.0, (self.action_size,), np.float32)
        #: False where a wrapper observes states only: images are expensive, so that `pixels` and `goal` stay black.
        self.draw_observations = True
        self.variations: dict[str, Any] = {}
        self.goal_state: State = np.full(self.state_size, np.nan)
        self._goal_image: Frame | None = None
        self._success = False

    # What a task supplies ------------------------------------------------------------------------------------

    @abstractmethod
    def _sample_state(self, rng: np.random.Generator) -> State:
        """Returns a random start state."""

    def _sample_goal_state(self, rng: np.random.Generator, state: State) -> State:
        """Returns a random goal state that can be reached from `state` and is not yet reached there."""
        for _ in range(1000):
            goal = self._sample_state(rng)
            if not self.is_goal(state, goal):
                return goal
        raise RuntimeError("no unsolved goal found in 1000 samples")  # a fault of the task, not of the caller

    @abstractmethod
    def check_state(self, state: State) -> None:
        """Raises ValueError if the simulator cannot be in `state` ((state_size,), finite)."""

    @abstractmethod
    def _set_state(self, state: State) -> None:
        """Sets the simulator exactly to `state`."""

    @abstractmethod
    def _get_state(self) -> State:
        """Returns everything that the next step depends on, (state_size,) float64, a new array."""

    @abstractmethod
    def _advance(self, action: NDArray[np.float32]) -> bool:
        """Applies one action; returns whether the goal (`self.goal_state`) was reached during it or at its end."""

    @abstractmethod
    def reached(self, achieved: NDArray[np.float64], desired: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Returns whether achieved goals match desired goals, (...), each (..., goal size).

        False for an unknown goal (NaN).
        """

    @abstractmethod
    def render_state(self, state: State) -> Frame:
        """Returns the image of any state, a new (224, 224, 3) uint8 array; the simulation is not affected."""

    @abstractmethod
    def quantities(self, state: State) -> dict[str, NDArray[np.float32]]:
        """Returns the named physical quantities of a state, each (k,) float32, for probing and statistics."""

    @abstractmethod
    def phase(self, states: NDArray[np.float64]) -> str:
        """Returns the phase of a start and a goal, one of the task's `phases`.

        Args:
            states: (n, state_size), from the start to the goal, with known states in between; at least two.
        """

    def is_goal(self, state: State, goal_state: State) -> bool:
        """Returns whether the task is solved in `state` if the goal is `goal_state`."""
        return bool(self.reached(self.achieved_goal(state), self.achieved_goal(goal_state)))

    def is_strict_goal(self, state: State, goal_state: State) -> bool:
        """Returns whether `state` is the goal by the strict condition."""
        return self.is_goal(state, goal_state)

    def achieved_goal(self, state: State) -> NDArray[np.float64]:
        """Returns the part of a state that determines success, for hindsight relabelling."""
        return state

    def _apply_variations(self, variations: dict[str, Any]) -> None:
        """Applies validated variations (all of `variation_ranges`, with defaults); called at every reset."""

    def steer(self, state: State, goal_state: State) -> NDArray[np.float32] | None:
        """Returns an action of a simple controller towards a goal; None if that takes a policy."""
        return None

    def sample_walk(self, rng: np.random.Generator, steps: int) -> NDArray[np.float32]:
        """Returns a smooth random walk's actions, (steps, action_size), within the bounds.

        Each action is a Gaussian of std `walk_std`, correlated by 0.9 with the one before, then clipped.
        """
        actions = np.empty((steps, self.action_size))
        action = rng.standard_normal(self.action_size)
        for step in range(steps):
            if step:
                action = _WALK_MEMORY * action + np.sqrt(1.0 - _WALK_MEMORY**2) * rng.standard_normal(self.action_size)
            actions[step] = action
        return np.clip(actions * self.walk_std, -1.0, 1.0).astype(np.float32)

    # What a user sees ----------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Frame], dict[str, Any]]:
        """Starts an episode; see the class for the options."""
        options = checked_dict(options, "options")
        super().reset(seed=seed)
        unknown = sorted(set(options) - set(RESET_OPTIONS), key=str)
        if unknown:
            raise ValueError(f"unknown reset options {unknown}; expected some of {list(RESET_OPTIONS)}")
        if "goal_state" in options and "goal_image" in options:
            raise ValueError("reset options: give goal_state or goal_image, not both")
        before, self.variations = self.variations, self._checked_variations(options.get("variations"))
        try:  # under the new variations, since sizes decide which states overlap
            start = self._checked_state(options["state"], "state") if "state" in options else None
            goal = self._checked_state(options["goal_state"], "goal_state") if "goal_state" in options else None
            image = self._checked_image(options["goal_image"]) if "goal_image" in options else None
            if image is not None and self.proprioception:
                raise ValueError("with proprioception=True give goal_state: a goal_image has no proprioception")
        except ValueError:
            self.variations = before
            raise
        self._apply_variations(self.variations)
        if start is None:
            start = self._sample_state(self.np_random)
        self._set_state(start)
        if image is not None:
            self.goal_state = np.full(self.state_size, np.nan)
            self._goal_image = image
        else:
            self.goal_state = self._sample_goal_state(self.np_random, start) if goal is None else goal
            self._goal_image = self._draw(self.goal_state)
        self._success = image is None and self.is_goal(start, self.goal_state)
        return self._observe(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Frame], float, bool, bool, dict[str, Any]]:
        """Applies one action, (action_size,) within [-1, 1]."""
        if self._goal_image is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        action = self._checked_action(action)
        self._success = self._advance(action)
        reward = 0.0 if self._success else -1.0
        return self._observe(), reward, self._success and self.terminate_on_success, False, self._info()

    def render(self) -> Frame | None:  # type: ignore[override]
        """Returns the current image, (224, 224, 3) uint8, or None without a render mode."""
        return self.render_state(self._get_state()) if self.render_mode == "rgb_array" else None

    def set_goal_state(self, goal_state: State) -> Frame:
        """Changes the goal within an episode (moving targets) and returns its image."""
        self.goal_state = self._checked_state(goal_state, "goal_state")
        self._goal_image = self.render_state(self.goal_state)
        return self._goal_image.copy()

    def _observe(self) -> dict[str, Frame]:
        assert self._goal_image is not None
        state = self._get_state()
        obs: dict[str, Any] = {"pixels": self._draw(state), "goal": self._goal_image.copy()}
        if self.proprioception:
            obs |= {"proprioception": self.sense(state), "goal_proprioception": self.sense(self.goal_state)}
        return obs

    def sense(self, state: State) -> NDArray[np.float32]:
        """Returns the proprioception of a state, (k,) float32: `Task.proprioception`, in that order."""
        quantities = self.quantities(state)
        return np.concatenate([quantities[name] for name in self.proprioceptive])

    def _draw(self, state: State) -> Frame:
        return self.render_state(state) if self.draw_observations else np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)

    def _info(self) -> dict[str, Any]:
        return {"state": self._get_state(), "goal_state": self.goal_state.copy(), "is_success": bool(self._success)}

    # Checks at the boundary ----------------------------------------------------------------------------------

    def _checked_action(self, action: Any) -> NDArray[np.float32]:
        array = numbers(action, "action").astype(np.float32)
        if array.shape != (self.action_size,):
            raise ValueError(f"action must have shape ({self.action_size},), got {array.shape}")
        if not (np.abs(array) <= 1.0).all():  # False for NaN too
            raise ValueError(f"action must be finite and within [-1, 1], got {array.tolist()}; clip it first")
        return array

    def _checked_state(self, state: Any, name: str) -> State:
        array = numbers(state, name)
        if array.shape != (self.state_size,):
            raise ValueError(f"{name} must have shape ({self.state_size},), got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got {array.tolist()}")
        self.check_state(array)
        return array

    def _checked_image(self, image: Any) -> Frame:
        array = np.array(image)
        if array.shape != (IMAGE_SIZE, IMAGE_SIZE, 3) or array.dtype != np.uint8:
            raise ValueError(
                f"goal_image must be ({IMAGE_SIZE}, {IMAGE_SIZE}, 3) uint8, got {array.shape} {array.dtype}"
            )
        return array

    def _checked_variations(self, variations: dict[str, Any] | None) -> dict[str, Any]:
        variations = checked_dict(variations, "variations")
        if variations and not self.variation_ranges:
            raise ValueError(f"{type(self).__name__} has no variations, got {sorted(variations, key=str)}")
        unknown = sorted(set(variations) - set(self.variation_ranges), key=str)
        if unknown:
            raise ValueError(f"unknown variations {unknown}; expected some of {sorted(self.variation_ranges)}")
        return {
            name: _checked_variation(name, allowed, variations[name]) if name in variations else _default(allowed)
            for name, allowed in self.variation_ranges.items()
        }


def checked_dict(value: Any, name: str) -> dict[str, Any]:
    """Returns a copy of `options` or `variations`, empty for None.

    Raises:
        ValueError: If it is not a dict.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a dict, got {value!r}")
    return dict(value)


def checked_count(value: Any, name: str) -> int:
    """Returns an integer of at least 1.

    Raises:
        ValueError: For anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return int(value)


def numbers(value: Any, name: str) -> NDArray[np.float64]:
    """Returns an array of real numbers, always a copy.

    Raises:
        ValueError: For anything else, complex numbers included.
    """
    try:
        if np.iscomplexobj(value):
            raise TypeError("float64 would drop the imaginary part")
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be an array of numbers, got {value!r}") from None


def _default(allowed: Any) -> Any:
    return allowed[0] if isinstance(allowed, list) else np.array(allowed[2], dtype=np.float64)


def _checked_variation(name: str, allowed: Any, value: Any) -> Any:
    if isinstance(allowed, list):
        if value not in allowed:
            raise ValueError(f"variation {name!r} must be one of {allowed}, got {value!r}")
        return value
    low, high, default = allowed
    array = numbers(value, f"variation {name!r}")
    if array.shape != np.shape(default):
        raise ValueError(f"variation {name!r} must have shape {np.shape(default)}, got {array.shape}")
    if not ((array >= low) & (array <= high)).all():  # False for NaN too
        raise ValueError(f"variation {name!r} must lie within [{low}, {high}], got {array.tolist()}")
    return array
