"""Hindsight relabelling for actors: later frames of an episode as goals, with the steps to them and the next actions.

As in `ClipSampler`, batch k is a function of (seed, k).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lewm_gym.data.clips import ClipSampler
from lewm_gym.data.dataset import Dataset


class HindsightBatch(NamedTuple):
    """Clips with later frames of their episodes.

    Attributes:
        pixels: (B, T + G, h, w, 3) uint8, the T frames of a clip, then G later ones in order of time.
        actions: (B, T - 1, A) float32, raw, between the frames of the clip; NaN where none was recorded.
        next_actions: (B, T + G, A) float32, raw, those that follow each frame; NaN where none was recorded.
        steps: (B, T + G) int64, environment step of each frame.
    """

    pixels: torch.Tensor
    actions: torch.Tensor
    next_actions: torch.Tensor
    steps: torch.Tensor


class LatentPairs(NamedTuple):
    """Latents with hindsight goals.

    Attributes:
        latents: (B, Z).
        goals: (B, Z), of a later frame of the same episode.
        steps: (B,) int64, environment steps between them.
        next_actions: (B, A) float32, raw, those that follow; NaN where none was recorded.
    """

    latents: torch.Tensor
    goals: torch.Tensor
    steps: torch.Tensor
    next_actions: torch.Tensor


class HindsightClips(ClipSampler):
    """Samples clips, each with `n_goals` later frames, uniform over the `goal_steps` environment steps after the clip.

    Steps beyond the end of the episode are replaced by its last frame.

    Args:
        dataset: Source of the data.
        episodes: Positions of the episodes to draw from; None for all.
        n_goals: G.
        goal_steps: Greatest distance of a goal from the clip's last frame.
        options: Others of `ClipSampler`.
    """

    def __init__(
        self,
        dataset: Dataset,
        episodes: Iterable[int] | None = None,
        n_goals: int = 2,
        goal_steps: int = 50,
        **options: Any,
    ) -> None:
        super().__init__(dataset, episodes, **options)
        if n_goals < 1 or goal_steps < 1:
            raise ValueError(f"n_goals and goal_steps must be at least 1, got {n_goals} and {goal_steps}")
        self.n_goals, self.goal_steps = n_goals, goal_steps

    def batch(self, step: int, batch_size: int) -> Any:
        """Returns the `HindsightBatch` of a training step.

        Raises:
            ValueError: For a negative step, a batch size below 1, or damaged files.
        """
        which, starts = self.clips(step, batch_size)
        rng = np.random.default_rng([self.seed, step, 2])
        episodes = self.episodes[which]
        first, last = self.dataset.starts[episodes], self.dataset.lengths[episodes] - 1
        clip = starts[:, None] + np.arange(self.n_frames) * self.frame_skip
        later = clip[:, -1:] + rng.integers(1, self.goal_steps + 1, (batch_size, self.n_goals))
        later = np.sort(np.minimum(later, last[:, None]) // self.picture_every * self.picture_every, axis=1)
        steps = np.concatenate([clip, later], axis=1)
        pixels = self.frames_at(np.broadcast_to(which[:, None], steps.shape), steps)
        following = next_actions(self._actions, first[:, None] + steps, last[:, None] - steps, self.frame_skip)
        actions = following[:, : self.n_frames - 1].copy()
        tensors = (torch.from_numpy(part) for part in (actions, following, steps))
        return HindsightBatch(pixels, *tensors)


class HindsightLatents:
    """Samples pairs of latents of one episode, at distances uniform over 1..`goal_steps`, with the next actions.

    Args:
        latents: (rows, Z), of the stored frames of those episodes, one after the other.
        dataset: Their dataset.
        episodes: Positions of the episodes to sample from.
        goal_steps: Greatest distance.
        frame_skip: Actions in a block.
        seed: Seed of the pairs.
        every: Environment steps between two of these frames.
    """

    def __init__(
        self,
        latents: torch.Tensor,
        dataset: Dataset,
        episodes: NDArray[np.int64],
        goal_steps: int,
        frame_skip: int,
        seed: int,
        every: int = 1,
    ) -> None:
        self.every = every
        self.latents, self.goal_steps, self.frame_skip, self.seed = latents, goal_steps, frame_skip, seed
        self._actions = dataset.actions
        last = dataset.lengths[episodes] - 1
        kept = last // self.every + 1  # stored frames of each episode
        before = np.concatenate([[0], np.cumsum(kept)[:-1]])
        # Of every frame that has another one after it: its row, the frames and actions after it, its first action.
        within = np.concatenate([np.arange(n - 1) for n in kept])
        of = np.repeat(np.arange(len(episodes)), kept - 1)
        self._row, self._after = before[of] + within, kept[of] - 1 - within
        self._action, self._left = dataset.starts[episodes][of] + within * self.every, last[of] - within * self.every

    def batch(self, step: int, batch_size: int) -> LatentPairs:
        """Returns the pairs of a training step."""
        rng = np.random.default_rng([self.seed, step, 3])
        chosen = rng.integers(0, len(self._row), batch_size)
        most = np.minimum(self._after[chosen], max(1, self.goal_steps // self.every))
        ahead = 1 + np.floor(rng.random(batch_size) * most).astype(np.int64)
        rows = self._row[chosen]
        actions = next_actions(self._actions, self._action[chosen], self._left[chosen], self.frame_skip)
        latents, goals = (self.latents[torch.from_numpy(index)] for index in (rows, rows + ahead))
        return LatentPairs(latents, goals, torch.from_numpy(ahead * self.every), torch.from_numpy(actions))

    def batches(
        self, start_step: int, n_steps: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[LatentPairs]:
        """Yields the batches of consecutive steps; each of several processes gets its part."""
        for step in range(start_step, start_step + n_steps):
            yield self.batch(step * world_size + rank, batch_size // world_size)


def next_actions(
    actions: NDArray[np.float32], rows: NDArray[np.int64], left: NDArray[np.int64], count: int
) -> NDArray[np.float32]:
    """Returns the `count` actions from each row on, (..., count * action_size); NaN after the episode's last.

    Args:
        actions: (rows, action_size) of the whole dataset.
        rows: (...), first rows.
        left: (...), actions from there to the episode's end.
        count: Number of actions.
    """
    ahead = np.arange(count)
    block = actions[np.minimum(rows[..., None] + ahead, len(actions) - 1)].astype(np.float32)
    block[ahead >= left[..., None]] = np.nan
    return block.reshape(*rows.shape, -1)
