"""GCIQL (OGBench, arXiv 2410.20092): implicit Q-learning (arXiv 2110.06169) towards goals.

Rewards as in agents/gcivl.py. Here actions have values, and the state's value is an expectile of them.
With twin critics Q_i, their target networks Q-_i, and a value goal g:

    delta    = min_i Q-_i(s, a, g) - V(s, g)
    L_value  = mean |tau - 1(delta < 0)| delta^2                                        tau = 0.9
    L_critic = sum_i mean (r + gamma 1(s != g) V(s', g) - Q_i(s, a, g))^2               gamma = 0.99

and with an actor goal g:

    A        = min_i Q_i(s, a, g) - V(s, g)
    L_actor  = -mean min(exp(10 A), 100) log N(a; mu(s, g), 1)

    L = L_value + L_critic + L_actor;     Q- <- 0.995 Q- + 0.005 Q after each step

Differences: OGBench extracts the policy by default with the critic's gradient (DDPG+BC); here advantage-weighted
regression, as in the LeWM paper. One encoder for all networks, as in agents/gcivl.py; BatchNorm sees two groups of
frames in its target network. Preset `laptop` keeps 0.95 of the target critics per step and weighs by exp(A - mean A):
values come from the target critics, so they fall by at most 1 - 0.995 per step, to -3 after 600 steps, and A = Q - V
stays near -1 meanwhile, which exp(10 A) turns into no weights at all. docs/baselines.md has the measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents import gcbc
from agents.gcivl import GCIVLConfig
from agents.policy import GoalPolicy, PolicyAgent, target_copy
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
class GCIQLConfig(GCIVLConfig):
    """GCIVL's settings, with another temperature."""

    temperature: float = 10.0


class GCIQL(GoalPolicy):
    """Policy, value, twin critics and their target networks."""

    config: GCIQLConfig

    def __init__(self, config: GCIQLConfig, observer: Any = None) -> None:
        super().__init__(config, observer)
        width = 3 * self.observer.output_width
        self.value = Values(width, config.hidden_widths, members=1)
        self.critic = Values(width + config.action_size, config.hidden_widths, members=2)
        self.target = target_copy(self.observer.trained, self.critic)

    def loss(self, batch: GoalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of value, critics and policy together, and its parts."""
        frames = self.observer.prepare(
            torch.cat([batch.pixels, batch.value_goals, batch.next_pixels, batch.actor_goals])
        )
        obs, value_goal, next_obs, actor_goal = self.observer.trained(frames).chunk(4)
        actions = self.normalize_actions(batch.actions)
        with torch.no_grad():
            target_obs, target_goal = self.target[0](frames[: 2 * len(obs)]).chunk(2)
            judged = self.target[1](concat_goal(target_obs, target_goal), actions).amin(dim=0)
        values = self.value(concat_goal(obs, value_goal))[0]
        delta = judged - values
        value_loss = expectile_loss(delta, delta, self.config.expectile).mean()
        critic_loss = self.critic_loss(obs, next_obs, value_goal, actions, batch.reached)
        actor_loss, advantage = self.actor_loss(obs, actor_goal, actions)
        logs = {"value": value_loss, "critic": critic_loss, "actor": actor_loss}
        logs |= {"mean_value": values.mean(), "mean_advantage": advantage.mean()}
        return value_loss + critic_loss + actor_loss, logs

    def critic_loss(self, obs: Tensor, next_obs: Tensor, goal: Tensor, actions: Tensor, reached: Tensor) -> Tensor:
        """Returns the squared Bellman error of both critics.

        Args:
            obs: (B, width) encodings of the current frame.
            next_obs: (B, width) of the next frame.
            goal: (B, width) of the value goals.
            actions: (B, action_size), z-scored.
            reached: (B,), 1 where the current frame is the goal.
        """
        with torch.no_grad():
            future = self.value(concat_goal(next_obs, goal))[0]
            returns = (reached - 1) + self.config.discount * (1 - reached) * future
        return (returns - self.critic(concat_goal(obs, goal), actions)).square().mean(dim=1).sum()

    def actor_loss(self, obs: Tensor, goal: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss of the policy, and its advantages (B,); arguments as for `critic_loss`."""
        with torch.no_grad():
            advantage = self.critic(concat_goal(obs, goal), actions).amin(dim=0) - self.value(concat_goal(obs, goal))[0]
        weights = regression_weights(advantage, self.config.temperature, self.config.centred_weights)
        return -(weights * log_likelihood(self.actor(concat_goal(obs, goal)), actions)).mean(), advantage

    def after_step(self) -> None:
        """Updates the target networks."""
        polyak_update(self.target[0], self.observer.trained, self.config.target_rate)
        polyak_update(self.target[1], self.critic, self.config.target_rate)


class GCIQLAgent(PolicyAgent):
    """GCIQL as a Gymnasium policy."""

    name = "gciql"
    presets = {
        "paper": Preset(GCIQLConfig(**gcbc.PAPER), None, gcbc.TRAINING["paper"]),
        "laptop": Preset(
            GCIQLConfig(target_rate=0.95, temperature=1.0, centred_weights=True), None, gcbc.TRAINING["laptop"]
        ),
    }
    model_class = GCIQL
    config_class = GCIQLConfig
