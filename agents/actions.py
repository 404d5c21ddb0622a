"""What the models of all agents share: actions z-scored by the statistics of their training set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lewm_gym.data.dataset import Dataset


class ActionModel(nn.Module):
    """A model of, or over, blocks of z-scored actions.

    Args:
        action_size: Numbers in one action of the environment.
        frame_skip: Actions in a block.
    """

    action_mean: Tensor  # (action_size,), of the training set's actions
    action_std: Tensor

    def __init__(self, action_size: int, frame_skip: int = 1) -> None:
        super().__init__()
        self._block_length = frame_skip
        self.register_buffer("action_mean", torch.zeros(action_size))
        self.register_buffer("action_std", torch.ones(action_size))

    def normalize_actions(self, actions: Tensor, missing: float = 0.0) -> Tensor:
        """Returns z-scored action blocks (..., A) of raw ones; NaN (not recorded) becomes `missing`."""
        mean, std = self._block_statistics()
        return ((actions - mean) / std).nan_to_num(nan=missing)

    def denormalize_actions(self, actions: Tensor) -> Tensor:
        """Returns raw action blocks (..., A) of z-scored ones."""
        mean, std = self._block_statistics()
        return actions * std + mean

    def after_step(self) -> None:
        """Does nothing: there is no target network."""

    def _block_statistics(self) -> tuple[Tensor, Tensor]:
        return self.action_mean.repeat(self._block_length), self.action_std.repeat(self._block_length)


def candidate_blocks(actions: Tensor, past_actions: Tensor | None) -> Tensor:
    """Returns all blocks of each candidate plan, (B S, n - 1 + H, A): the executed, then the planned ones.

    Args:
        actions: (B, S, H, A), z-scored.
        past_actions: (B, n - 1, A), z-scored, taken between the n frames that are given; None for n = 1.
    """
    blocks = actions.flatten(0, 1)
    if past_actions is None:
        return blocks
    return torch.cat([past_actions.repeat_interleave(actions.shape[1], dim=0), blocks], dim=1)


def learn_bounds(model: Any, dataset: Dataset, name: str) -> None:
    """Gives the actor of a fresh model, which has its statistics, the z-scored bounds of a block, `low` and `high`.

    Raises:
        ValueError: If actions are not bounded.
    """
    bounds = np.stack([dataset.action_low, dataset.action_high])
    if not np.isfinite(bounds).all():
        raise ValueError(f"the policy of {name} needs bounded actions, got the bounds {bounds.tolist()}")
    blocks = torch.from_numpy(bounds.astype(np.float32)).repeat(1, model.config.frame_skip)
    for bound, block in zip((model.actor.low, model.actor.high), model.normalize_actions(blocks), strict=True):
        bound.copy_(block)
