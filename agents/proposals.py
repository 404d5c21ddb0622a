"""The proposals of a world model's actor: plans unrolled through the model, for planners that search around them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Unrolled(NamedTuple):
    """A plan in which the actor acts on the model's predictions.

    Attributes:
        actions: (B, S, H, A), z-scored.
        std: (B, S, H, A), the actor's own.
        latents: (B, S, H, Z), predicted after each block.
    """

    actions: Tensor
    std: Tensor
    latents: Tensor


def unroll(
    model: Any,
    context: Tensor,
    past: Tensor | None,
    goal: Tensor,
    steps_left: Tensor,
    n_blocks: int,
    least_steps: float,
    residuals: Tensor | None = None,
) -> Unrolled:
    """Returns the plan of the model's actor, or one for each candidate of residuals added to its actions.

    Args:
        model: A world model with an actor.
        context: (B, n, Z), latents of the past and, last, the current one.
        past: (B, n - 1, A), z-scored actions between them; None for n = 1.
        goal: (B, Z).
        steps_left: (B,), from the current frame; counted down block by block.
        n_blocks: H.
        least_steps: Lower bound of the steps left.
        residuals: (B, S, H, A), z-scored; None for the plain plan, S = 1.
    """
    n_samples = 1 if residuals is None else residuals.shape[1]
    latents = list(context.repeat_interleave(n_samples, dim=0).unbind(1))
    blocks = [] if past is None else list(past.repeat_interleave(n_samples, dim=0).unbind(1))
    goals, left = goal.repeat_interleave(n_samples, dim=0), steps_left.repeat_interleave(n_samples)
    n_given, window = len(latents), model.config.context
    stds = []
    for h in range(n_blocks):
        proposal = model.actor(latents[-1], goals, (left - h * model.config.frame_skip).clamp_min(least_steps))
        action = proposal.mean if residuals is None else proposal.mean + residuals[:, :, h].flatten(0, 1)
        seen, done = latents[-window:], blocks[len(blocks) - min(len(latents), window) + 1 :]
        options = {"past_actions": torch.stack(done, dim=1)} if done else {}
        predicted = model.rollout(torch.stack(seen, dim=1), action[:, None, None], **options)
        latents.append(predicted[:, 0, 0].float())
        blocks.append(action)
        stds.append(proposal.std)
    parts = blocks[-n_blocks:], stds, latents[n_given:]
    return Unrolled(*(torch.stack(part, dim=1).unflatten(0, (len(goal), n_samples)) for part in parts))
