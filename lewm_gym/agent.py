"""What every agent shares: observations in, actions out, in Gymnasium's and in stable-baselines3's form."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_gym.controller import RecedingHorizon
from lewm_gym.types import Obs


class Agent:
    """A policy from pixels and a goal image to actions.

    Attributes:
        action_low: (action_size,) float32, smallest actions of the environment it was trained for.
        action_high: (action_size,) float32, largest ones.
        frame_size: Height and width of the frames that it takes, px.
        proprioception: Whether it needs `proprioception` and `goal_proprioception` in observations, too.
    """

    proprioception = False
    uses_steps_left = False  # whether it can be told within how many steps a goal is to be reached
    plans = 0  # made since the start
    _controller: RecedingHorizon | None = None  # of agents that plan, or act by blocks

    def __init__(self, action_low: Any, action_high: Any, frame_size: int) -> None:
        self.action_low = np.asarray(action_low, np.float32)
        self.action_high = np.asarray(action_high, np.float32)
        self.frame_size = frame_size
        self._goal: NDArray[np.uint8] | None = None
        self._goal_steps: float | None = None

    def reset(self, seeds: list[int] | None = None) -> None:
        """Forgets plans; `seeds`, one per environment, start new random streams."""
        if self._controller is not None:
            self._controller.reset(seeds)

    def select_envs(self, rows: list[int]) -> None:
        """Continues with these environments only: the observations that follow are theirs, in this order."""
        if self._controller is not None:
            self._controller.slots = [self._controller.slots[row] for row in rows]

    def needs_frame(self) -> list[bool] | None:
        """Returns for each environment since the last reset whether it will look at the next frame; None: at all."""
        return None if self._controller is None else self._controller.needs_frame()

    def share_rng(self) -> None:
        """Makes all environments draw from one random stream until the next reset, as in the reference."""
        if self._controller is not None:
            self._controller.share_rng()

    def _react(self, pixels: NDArray[np.uint8], goals: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns actions (B, action_size) for frames and goals (B, h, w, 3), of an agent without a controller."""
        raise NotImplementedError("an agent without a controller needs _react")

    def set_goal(self, image: NDArray[np.uint8] | None, steps_left: float | None = None) -> None:
        """Sets the goal in environments whose observations have none; None removes it.

        Args:
            image: (h, w, 3) uint8, the goal image.
            steps_left: Environment steps within which to reach it; counted down as the agent acts, to a minimum.
                None: the agent estimates them, if it needs them.

        Raises:
            ValueError: For an image of another shape or dtype, or steps that are not positive or not used.
        """
        self._goal_steps = None if steps_left is None else float(self._checked_steps(steps_left, 1)[0])
        self._goal = None if image is None else self._checked_frames("goal image", image, (3,))

    def act(
        self,
        obs: Obs | NDArray[np.uint8],
        episode_start: NDArray[np.bool_] | None = None,
        steps_left: float | NDArray[Any] | None = None,
    ) -> NDArray[np.float32]:
        """Returns an action (action_size,) for one observation, or (B, action_size) for a stacked one.

        Call it at every step. A changed goal starts a new plan; `reset()` between episodes is only needed if
        consecutive episodes share their goal image.

        Args:
            obs: `pixels` and `goal`, each (h, w, 3) uint8, or (B, h, w, 3). After `set_goal`, the goal may be
                missing, and `obs` may be the pixels alone, as an array.
            episode_start: (B,), true where `obs` is the first of an episode: the old plan is dropped there.
            steps_left: Environment steps within which to reach the goal, one number or (B,). None: the agent estimates
                them, if it needs them.

        Raises:
            ValueError: For observations of another shape or dtype, or without a goal; for steps that are not positive,
                or that this agent does not use.
        """
        return self.predict(obs, episode_start=episode_start, steps_left=steps_left)[0]

    def predict(
        self,
        observation: Obs | NDArray[np.uint8],
        state: Any = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
        steps_left: float | NDArray[Any] | None = None,
    ) -> tuple[NDArray[np.float32], Any]:
        """Returns (action, state) in stable-baselines3's form, for its `evaluate_policy`.

        Args:
            observation: As for `act`.
            state: What the previous call returned, or None to use the agent's own memory.
            episode_start: (B,), true where an episode has just begun; the old plan is dropped there.
            deterministic: No effect: an agent's randomness comes from its seed.
            steps_left: As for `act`.
        """
        pixels, goals, single = self._checked(observation)
        if episode_start is not None:
            episode_start = np.asarray(episode_start, bool).reshape(-1)
            if len(episode_start) != len(pixels):
                raise ValueError(f"episode_start has {len(episode_start)} entries for {len(pixels)} observations")
        left = None if steps_left is None else self._checked_steps(steps_left, len(pixels))
        if self._controller is None:
            actions = self._react(pixels, goals)
        else:
            actions = self._controller.act(pixels, goals, episode_start, state, left, self._goal_steps)
            state = self._controller.slots if state is None else state
        actions = np.clip(actions, self.action_low, self.action_high)
        return (actions[0] if single else actions), state

    def _checked_steps(self, steps_left: float | NDArray[Any], n_envs: int) -> NDArray[np.float32]:
        """Returns (n_envs,) steps left."""
        if not self.uses_steps_left:
            raise ValueError(
                "this agent does not use steps_left: it is for planners with an actor, such as guided, and for "
                "policies trained with steps left as an input"
            )
        steps = np.asarray(steps_left, np.float32)
        if steps.ndim > 1 or steps.shape not in ((), (n_envs,)):
            raise ValueError(
                f"steps_left must be one number or one for each of {n_envs} environments, got shape {steps.shape}"
            )
        if not (np.isfinite(steps) & (steps > 0)).all():
            raise ValueError(f"steps_left must be positive, got {steps_left}")
        return np.broadcast_to(steps, (n_envs,))

    def _checked(self, obs: Any) -> tuple[NDArray[np.uint8], NDArray[np.uint8], bool]:
        """Returns pixels and goals with a leading environment dimension, and whether it was added."""
        if self._goal is not None and isinstance(obs, np.ndarray):
            obs = {"pixels": obs}
        if not hasattr(obs, "keys"):
            raise ValueError(f"an observation needs 'pixels' and 'goal', got {type(obs).__name__}")
        needed = {"pixels"} if self._goal is not None else {"pixels", "goal"}
        if not needed <= set(obs.keys()):
            hint = "" if self._goal is not None or "pixels" not in obs else "; or call agent.set_goal(image)"
            raise ValueError(
                f"an observation needs {' and '.join(map(repr, sorted(needed)))}, got {sorted(obs.keys())}{hint}"
            )
        pixels = self._checked_frames("obs['pixels']", obs["pixels"])
        if "goal" in obs:
            goals = self._checked_frames("obs['goal']", obs["goal"])
        else:
            goals = np.broadcast_to(self._goal, pixels.shape)  # type: ignore[arg-type]  # checked above
        if pixels.shape != goals.shape:
            raise ValueError(f"pixels {pixels.shape} and goal {goals.shape} must have the same shape")
        if not len(pixels):
            raise ValueError("the batch of observations is empty")
        single = pixels.ndim == 3
        return (pixels[None], goals[None], True) if single else (pixels, goals, False)

    def _checked_frames(self, name: str, value: Any, ndims: tuple[int, ...] = (3, 4)) -> NDArray[np.uint8]:
        array = np.asarray(value)
        wanted = (self.frame_size, self.frame_size, 3)
        if array.dtype != np.uint8 or array.shape[-3:] != wanted or array.ndim not in ndims:
            stacked = ", or stacked with a leading environment dimension" if 4 in ndims else ""
            raise ValueError(
                f"{name} must be uint8 of shape {wanted}{stacked}; got {array.dtype} of shape {array.shape}"
            )
        return array
