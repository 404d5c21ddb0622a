"""A goal-conditioned actor on latents, with an estimate of the environment steps between two latents.

    a_{t..t+4} ~ N(mu, sigma^2),   mu, log sigma = actor(z, g, g - z, features(k))       k: steps left to the goal
    p(k | z, g) = softmax(distance(z, g, g - z))                                        k = 1..K, K: K or more

Both are trained by hindsight relabelling: the goal is a later frame of the same episode, k steps ahead. The steps left
are an input as in GC-IDM (arXiv 2605.08732); there a deterministic policy for one action, here a Gaussian over a block.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

LOG_STD_BOUNDS = (-3.0, 1.0)  # in standard deviations of the training set's actions


class ActionBlock(NamedTuple):
    """A Gaussian over the next block of actions.

    Attributes:
        mean: (n, A), z-scored.
        std: (n, A).
    """

    mean: Tensor
    std: Tensor


class GoalActor(nn.Module):
    """Proposes the next block of actions, and estimates the steps left.

    Args:
        latent_size: Z.
        action_size: Numbers in one action.
        frame_skip: Actions in a block.
        goal_steps: K, greatest distance of a goal, environment steps.
        width: Of the hidden layers.
        depth: Number of hidden layers; the estimate of the steps left has two, of half the width.
    """

    def __init__(
        self,
        latent_size: int,
        action_size: int,
        frame_skip: int = 5,
        goal_steps: int = 50,
        width: int = 512,
        depth: int = 3,
    ) -> None:
        super().__init__()
        self.goal_steps, self.action_size, self.frame_skip = goal_steps, action_size, frame_skip
        self.policy = _mlp(3 * latent_size + 4, width, depth, 2 * frame_skip * action_size)
        self.distance = _mlp(3 * latent_size, width // 2, 2, goal_steps)

    def forward(self, latents: Tensor, goals: Tensor, steps_left: Tensor) -> ActionBlock:
        """Returns the proposal for latents and goals (n, Z), with (n,) environment steps left."""
        out = self.policy(torch.cat([latents, goals, goals - latents, self._features(steps_left)], dim=-1))
        mean, log_std = out.float().chunk(2, dim=-1)
        return ActionBlock(mean, log_std.clamp(*LOG_STD_BOUNDS).exp())

    def steps_left(self, latents: Tensor, goals: Tensor) -> Tensor:
        """Returns the median number of environment steps from latents to goals (n, Z), (n,), within 1..K.

        The median, not the mean: if the scene is at rest at the goal, the number of steps between two frames is
        arbitrary, and a large mean would delay the actor there.
        """
        shares = self._distance_logits(latents, goals).softmax(dim=-1).cumsum(dim=-1)
        return 1.0 + (shares < 0.5).sum(dim=-1).clamp_max(self.goal_steps - 1)

    def imitation_loss(self, latents: Tensor, goals: Tensor, steps: Tensor, actions: Tensor) -> Tensor:
        """Returns the squared error of the proposal's mean, with a term that fits its standard deviation.

            L = (a - mu)^2 + sg(sigma^2) log sigma^2

        which is 2 sigma^2 times the negative log-likelihood, the factor without gradient (beta-NLL with beta = 1,
        arXiv 2203.09168): the mean is fitted by least squares, independent of sigma.

        Args:
            latents: (n, Z).
            goals: (n, Z).
            steps: (n,), from each latent to its goal; pairs beyond 1..K are ignored.
            actions: (n, A), z-scored, the actions after each latent; NaN where none was recorded.
        """
        proposal = self(latents, goals, steps)
        error = (actions.nan_to_num() - proposal.mean).square()
        variance = proposal.std.square()
        loss = error + variance.detach() * variance.log()
        counts = self._counted(steps, actions)
        return (loss * counts).sum() / counts.sum().clamp_min(1.0)

    def distance_loss(self, latents: Tensor, goals: Tensor, steps: Tensor) -> Tensor:
        """Returns the cross-entropy of (n,) steps between latents and goals (n, Z); K stands for K and more."""
        return nn.functional.cross_entropy(self._distance_logits(latents, goals), steps.clamp(1, self.goal_steps) - 1)

    def _distance_logits(self, latents: Tensor, goals: Tensor) -> Tensor:
        return self.distance(torch.cat([latents, goals, goals - latents], dim=-1)).float()

    def _counted(self, steps: Tensor, actions: Tensor) -> Tensor:
        """Returns 1 for recorded actions before the goal, else 0, (n, A)."""
        within = (steps >= 1) & (steps <= self.goal_steps)
        before = torch.arange(self.frame_skip, device=steps.device) < steps.unsqueeze(1)
        before = before.repeat_interleave(self.action_size, dim=1)
        return (within.unsqueeze(1) & before & actions.isfinite()).float()

    def _features(self, steps: Tensor) -> Tensor:
        k = steps.float().clamp(1.0, float(self.goal_steps))
        parts = [k / self.goal_steps, k.log() / math.log(self.goal_steps), 1 / k, (k / 5).clamp_max(1.0)]
        return torch.stack(parts, dim=-1)


class FramePairs(NamedTuple):
    """All ordered pairs of the frames of clips: B F (F - 1) / 2 of them.

    Attributes:
        latents: (n, Z), of the earlier frame.
        goals: (n, Z), of the later one.
        steps: (n,), environment steps between them.
        actions: (n, A), z-scored, those that follow the earlier one; NaN where none was recorded.
    """

    latents: Tensor
    goals: Tensor
    steps: Tensor
    actions: Tensor


def frame_pairs(latents: Tensor, steps: Tensor, next_actions: Tensor) -> FramePairs:
    """Returns the ordered pairs of the frames of each clip.

    Args:
        latents: (B, F, Z).
        steps: (B, F), environment step of each frame, ascending.
        next_actions: (B, F, A), z-scored, those that follow each frame; NaN where none was recorded.
    """
    first, second = torch.triu_indices(latents.shape[1], latents.shape[1], offset=1, device=latents.device)
    parts = latents[:, first], latents[:, second], steps[:, second] - steps[:, first], next_actions[:, first]
    return FramePairs(*(part.flatten(0, 1) for part in parts))


def _mlp(in_width: int, width: int, depth: int, out_width: int) -> nn.Sequential:
    """Returns hidden layers with GELU and a linear output."""
    layers: list[nn.Module] = []
    for before in (in_width, *[width] * (depth - 1)):
        layers += [nn.Linear(before, width), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(width, out_width))
