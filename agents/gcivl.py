"""GCIVL (OGBench, arXiv 2410.20092): an expectile value function, and a policy by advantage-weighted regression.

Implicit Q-learning without a Q (arXiv 2110.06169). Rewards are -1 per step until the goal, r = -1(s != g), and 0 at the
goal, where the episode ends: the optimal value of a goal d steps away is -(1 - gamma^d) / (1 - gamma). With twin values
V_i, their target networks V-_i and a value goal g:

    q_i     = r + gamma 1(s != g) V-_i(s', g)
    delta   = min_i q_i - mean_i V-_i(s, g)
    L_value = sum_i mean |tau - 1(delta < 0)| (q_i - V_i(s, g))^2                       tau = 0.9, gamma = 0.99

and with an actor goal g (arXiv 1910.00177):

    A       = mean_i V_i(s', g) - mean_i V_i(s, g)
    L_actor = -mean min(exp(3 A), 100) log N(a; mu(s, g), 1)

    L = L_value + L_actor;     V- <- 0.995 V- + 0.005 V after each step

Differences: OGBench gives every network its own encoder of the two frames together; here one encoder of single
frames serves them all (a third of the work), and the target network has an encoder of its own. Encoders as in
agents/gcbc.py. BatchNorm, which one trained jointly has, sees four groups of frames in the encoder, and three in its
target network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents import gcbc
from agents.policy import GoalPolicy, PolicyAgent, PolicyConfig, target_copy
from agents.trainable import Preset
from lewm_gym.data.goals import GoalBatch
from lewm_gym.nn.goal_conditioned import (
    Values,
    concat_goal,
    expectile_loss,
    log_likelihood,
    polyak_update,
    regression_weights,
)


@dataclass(frozen=True)
class GCIVLConfig(PolicyConfig):
    """The policy's settings, and those of the values."""

    discount: float = 0.99  # gamma
    expectile: float = 0.9  # tau
    target_rate: float = 0.995  # share of itself that a target network keeps at each step
    temperature: float = 3.0  # of advantage-weighted regression; the larger, the greedier
    centred_weights: bool = False  # take the batch's mean from the advantages that weigh the regression

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("discount", "expectile", "target_rate"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be within (0, 1), got {getattr(self, name)}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must not be negative, nor infinite, got {self.temperature}")


class GCIVL(GoalPolicy):
    """Policy, twin values and their target networks."""

    config: GCIVLConfig

    def __init__(self, config: GCIVLConfig, observer: Any = None) -> None:
        super().__init__(config, observer)
        self.values = Values(3 * self.observer.output_width, config.hidden_widths, members=2)
        self.target = target_copy(self.observer.trained, self.values)

    def loss(self, batch: GoalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of values and policy together, and its parts."""
        frames = self.observer.prepare(
            torch.cat([batch.pixels, batch.next_pixels, batch.value_goals, batch.actor_goals])
        )
        obs, next_obs, value_goal, actor_goal = self.observer.trained(frames).chunk(4)
        target = self.target[0](frames[: 3 * len(obs)]).chunk(3)
        value_loss, values = self.value_loss(obs, value_goal, target, batch.reached)
        actions = self.normalize_actions(batch.actions)
        actor_loss, advantage = self.actor_loss(obs, next_obs, actor_goal, actions)
        logs = {
            "value": value_loss,
            "actor": actor_loss,
            "mean_value": values.mean(),
            "mean_advantage": advantage.mean(),
        }
        return value_loss + actor_loss, logs

    def value_loss(
        self, obs: Tensor, goal: Tensor, target: tuple[Tensor, ...], reached: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the loss of the values, and the values (2, B).

        Args:
            obs: (B, width) encodings of the current frame.
            goal: (B, width) of the value goals.
            target: The target encoder's of present, next frame and value goals.
            reached: (B,), 1 where the current frame is the goal.
        """
        target_obs, target_next_obs, target_goal = target
        with torch.no_grad():
            future = self.target[1](concat_goal(target_next_obs, target_goal))
            returns = (reached - 1) + self.config.discount * (1 - reached) * future
            advantage = returns.amin(dim=0) - self.target[1](concat_goal(target_obs, target_goal)).mean(dim=0)
        values = self.values(concat_goal(obs, goal))
        return expectile_loss(advantage, returns - values, self.config.expectile).mean(dim=1).sum(), values

    def actor_loss(self, obs: Tensor, next_obs: Tensor, goal: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss of the policy, and its advantages (B,).

        Args:
            obs: (B, width) encodings of the current frame.
            next_obs: (B, width) of the next frame.
            goal: (B, width) of the actor goals.
            actions: (B, action_size), z-scored.
        """
        with torch.no_grad():
            advantage = (self.values(concat_goal(next_obs, goal)) - self.values(concat_goal(obs, goal))).mean(dim=0)
        weights = regression_weights(advantage, self.config.temperature, self.config.centred_weights)
        return -(weights * log_likelihood(self.actor(concat_goal(obs, goal)), actions)).mean(), advantage

    def after_step(self) -> None:
        """Updates the target networks."""
        polyak_update(self.target[0], self.observer.trained, self.config.target_rate)
        polyak_update(self.target[1], self.values, self.config.target_rate)


class GCIVLAgent(PolicyAgent):
    """GCIVL as a Gymnasium policy."""

    name = "gcivl"
    presets = {
        "paper": Preset(GCIVLConfig(**gcbc.PAPER), None, gcbc.TRAINING["paper"]),
        "laptop": Preset(GCIVLConfig(), None, gcbc.TRAINING["laptop"]),
    }
    model_class = GCIVL
    config_class = GCIVLConfig
