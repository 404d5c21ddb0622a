"""Transitions and clips with goals by hindsight relabelling, as in OGBench (arXiv 2410.20092).

A goal is a frame of the dataset: the current one, a later one of the same episode, or any frame. Their shares are a
`GoalMixture`, which differs between value functions and policies.

As in `ClipSampler`, batch k is a function of (seed, k). Difference: OGBench samples transitions with replacement; here
every transition is used once per epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lewm_gym.data.clips import ClipSampler
from lewm_gym.data.dataset import Dataset
from lewm_gym.tasks import IMAGE_SIZE


class GoalBatch(NamedTuple):
    """Transitions, each with a goal for the value function and one for the policy.

    Attributes:
        pixels: (B, h, w, 3) uint8, the current frame.
        next_pixels: (B, h, w, 3) uint8, one environment step later.
        value_goals: (B, h, w, 3) uint8.
        actor_goals: (B, h, w, 3) uint8.
        actions: (B, action_size) float32, raw, the action between the two.
        reached: (B,) float32, 1 where the value goal is the current frame, else 0.
    """

    pixels: torch.Tensor
    next_pixels: torch.Tensor
    value_goals: torch.Tensor
    actor_goals: torch.Tensor
    actions: torch.Tensor
    reached: torch.Tensor


class GoalClipBatch(NamedTuple):
    """Clips, each with a goal for the value function.

    Attributes:
        pixels: (B, T + 1, h, w, 3) uint8, the T frames of a clip, then the goal.
        actions: (B, T - 1, A) float32, raw, between the frames of the clip.
        reached: (B, T - 1) float32, 1 where a frame of the clip but the last is the goal itself, else 0.
        ahead: (B, T - 1) float32, 1 where the goal is a later frame of the frame's episode, else 0.
    """

    pixels: torch.Tensor
    actions: torch.Tensor
    reached: torch.Tensor
    ahead: torch.Tensor


@dataclass(frozen=True)
class GoalMixture:
    """The shares of `current`, `future` and `random` goals, which sum to 1."""

    current: float  # the present itself
    future: float  # a later frame of the episode
    random: float  # any frame of the episodes drawn from
    # how a later frame is chosen: a distance drawn geometrically with parameter 1 - discount, cut off at the episode's
    # last frame; None for one uniform over the frames that remain
    discount: float | None = None

    def __post_init__(self) -> None:
        shares = (self.current, self.future, self.random)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"current, future and random must be shares that add up to 1, got {shares}")
        if self.discount is not None and not 0 <= self.discount < 1:
            raise ValueError(f"discount must be within [0, 1), got {self.discount}")


#: OGBench's mixture for value functions (of GCIVL and GCIQL); `discount` is to be the value function's.
VALUE_GOALS = GoalMixture(current=0.2, future=0.5, random=0.3, discount=0.99)
#: OGBench's mixture for the policies of GCBC, GCIVL and GCIQL.
ACTOR_GOALS = GoalMixture(current=0.0, future=1.0, random=0.0)


class GoalClips(ClipSampler):
    """Samples clips, each with a value goal; later frames of its episode are a whole number of blocks ahead.

    Args:
        dataset: Source of the data.
        episodes: Positions of the episodes to sample from; None for all.
        value_goals: Mixture of the goals, relative to the first frame of a clip; its `discount` is per block.
        options: Others of `ClipSampler`.
    """

    def __init__(
        self,
        dataset: Dataset,
        episodes: Iterable[int] | None = None,
        value_goals: GoalMixture = VALUE_GOALS,
        **options: Any,
    ) -> None:
        super().__init__(dataset, episodes, **options)
        self.value_goals = value_goals
        self._lengths = dataset.lengths[self.episodes]

    def batch(self, step: int, batch_size: int) -> Any:
        """Returns the `GoalClipBatch` of a training step.

        Raises:
            ValueError: For a negative step, a batch size below 1, or damaged files.
        """
        which, starts = self.clips(step, batch_size)
        rng = np.random.default_rng([self.seed, step, 1])
        goal_episodes, goal_steps = self.draw(rng, which, starts, self.value_goals)
        clip = starts[:, None] + np.arange(self.n_frames) * self.frame_skip
        episodes = np.repeat(which[:, None], self.n_frames, axis=1)
        pixels = self.frames_at(
            np.concatenate([episodes, goal_episodes[:, None]], axis=1),
            np.concatenate([clip, goal_steps[:, None]], axis=1),
        )
        rows = self.dataset.starts[self.episodes[which]] + starts
        actions = self._actions[rows[:, None] + np.arange((self.n_frames - 1) * self.frame_skip)]
        actions = actions.reshape(batch_size, self.n_frames - 1, -1)
        same, left = (goal_episodes == which)[:, None], goal_steps[:, None] - clip[:, :-1]
        parts = actions, same & (left == 0), same & (left > 0)
        tensors = (torch.from_numpy(np.ascontiguousarray(part, np.float32)) for part in parts)
        return GoalClipBatch(pixels, *tensors)

    def draw(
        self, rng: np.random.Generator, which: NDArray[np.int64], steps: NDArray[np.int64], mixture: GoalMixture
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns a goal for each state, as (B,) positions within `self.episodes` and (B,) environment steps.

        Args:
            rng: Random stream; the number of samples does not depend on the mixture.
            which: (B,), the states' episodes, as positions within `self.episodes`.
            steps: (B,), their environment steps, each a block or more before its episode's last frame.
            mixture: The shares of the kinds of goals.
        """
        size = len(which)
        kind, share = rng.random(size), rng.random(size)
        rows = rng.integers(0, self._rows_before[-1], size)
        most = (self._lengths[which] - 1 - steps) // self.frame_skip  # blocks that remain
        if mixture.discount is None:
            blocks = 1 + np.floor(share * most).astype(np.int64)
        elif mixture.discount == 0.0:
            blocks = np.ones_like(most)
        else:  # the inverse of the geometric distribution's cumulative one, on 1, 2, ...
            distance = np.ceil(np.log1p(-share) / np.log(mixture.discount)).astype(np.int64)
            blocks = np.clip(distance, 1, most)
        later = steps + blocks * self.frame_skip
        episodes = np.searchsorted(self._rows_before, rows, side="right") - 1
        anywhere = (rows - self._rows_before[episodes]) * self.picture_every
        current, random = kind < mixture.current, kind >= mixture.current + mixture.future
        return np.where(random, episodes, which), np.where(random, anywhere, np.where(current, steps, later))


class GoalSampler(GoalClips):
    """Samples transitions of one environment step, each with a value goal and an actor goal.

    Args:
        dataset: Source of the data; with the image of every frame.
        episodes: Positions of the episodes to sample from; None for all.
        value_goals: Mixture of the goals of the value function.
        actor_goals: Mixture of the goals of the policy.
        seed: Seed of the order of transitions and of the goals.
        image_size: Height and width delivered, px; divides 224.
        options: Others of `ClipSampler`: `threads`, `memory_budget`.

    Raises:
        ValueError: As `ClipSampler`, or if not every frame's image is stored.
    """

    def __init__(
        self,
        dataset: Dataset,
        episodes: Iterable[int] | None = None,
        value_goals: GoalMixture = VALUE_GOALS,
        actor_goals: GoalMixture = ACTOR_GOALS,
        seed: int = 0,
        image_size: int = IMAGE_SIZE,
        **options: Any,
    ) -> None:
        dataset.require_all_pictures("a policy that is trained on single steps")
        options = {"seed": seed, "image_size": image_size, **options}
        super().__init__(dataset, episodes, value_goals, n_frames=2, frame_skip=1, **options)
        self.actor_goals = actor_goals

    def batch(self, step: int, batch_size: int) -> Any:
        """Returns the `GoalBatch` of a training step.

        Raises:
            ValueError: For a negative step, a batch size below 1, or damaged files.
        """
        which, steps = self.clips(step, batch_size)
        rng = np.random.default_rng([self.seed, step, 1])
        value = self.draw(rng, which, steps, self.value_goals)
        actor = self.draw(rng, which, steps, self.actor_goals)
        frames = [(which, steps), (which, steps + 1), value, actor]
        pixels = self.frames_at(*(np.stack(part, axis=1) for part in zip(*frames, strict=True)))
        actions = self._actions[self.dataset.starts[self.episodes[which]] + steps]
        reached = (value[0] == which) & (value[1] == steps)
        obs, next_obs, value_goals, actor_goals = pixels.unbind(1)
        return GoalBatch(
            obs,
            next_obs,
            value_goals,
            actor_goals,
            torch.from_numpy(np.ascontiguousarray(actions)),
            torch.from_numpy(reached.astype(np.float32)),
        )
