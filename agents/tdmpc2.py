"""TD-MPC2 (arXiv 2310.16828), offline and towards goals: a world model of rewards and values, and a plan in it.

For a clip of frames o_0..o_H a block of actions apart, its blocks a, and a value goal:

    z_t     = SimNorm(enc(o_t)), g the same of the goal         softmax over groups of 8: a latent is 8-way codes
    z^_0    = z_0,   z^_{t+1} = d(z^_t, a_t)                    latent dynamics, ends in SimNorm too
    r_t     = -1(o_t != goal)                                   as in agents/gcivl.py; the episode ends at the goal
    q_t     = r_t + gamma 1(o_t != goal) min_{i in pair} Q-_i(z_{t+1}, p(z_{t+1}, g), g)
    L_model = 1/H sum_{t<H} rho^t (20  mean (z^_{t+1} - sg(z_{t+1}))^2                      joint-embedding consistency
                                 + 0.1 CE(R(z^_t, a_t, g), r_t)                             reward
                                 + 0.1 mean_{i=1..5} CE(Q_i(z^_t, a_t, g), q_t))            value
    L_prior = -1/(H+1) sum_{t<=H} rho^t mean (mean_{i in pair} Q_i(z^_t, a, g) / S - 1e-4 log p(a | z^_t, g)),
              a ~ p(. | z^_t, g), no gradient to latents and Q

    L = L_model + L_prior;      Q- <- 0.99 Q- + 0.01 Q after each step;      rho = 0.5, H = 3, gamma = 0.95 per block

R and Q are distributions over bins (lewm_gym/nn/two_hot.py); a pair of the five Q is drawn in each step; S follows the
distance between the 5th and the 95th percentile of Q, at least 1. Acting maximises the return that the model predicts,

    sum_{h<H} gamma^h R(z^_h, a_h, g) + gamma^H mean_i Q_i(z^_H, p(z^_H, g), g),

with MPPI (lewm_gym/planning/mppi.py), 24 of whose candidates are plans of the policy unrolled through the model.

Differences:

- paper: rewards of a task; here: -1 until a goal by hindsight relabelling, sampled as for GCIVL's values. The goal is
  in the place of the task: its latent, by the same encoder, is an input of reward, Q and policy, with |z - g| besides
  as in the other baselines; the dynamics do not know it.
- paper: a latent step is an action, repeated twice; here: a block of 5, as LeWM's, so that datasets, rollouts and the
  controller are the same (`frame_skip=1`: one). gamma = 0.95 per block is the least that the authors take, and GCIVL's
  0.99 per step. The reward looks at frames between blocks only.
- paper: its own planner, elites whose spread is fitted and one of which is executed; here: this project's MPPI, which
  averages all candidates by standardised costs with a spread that decays. The paper's value of a plan's end is the mean
  of a random pair of Q at a drawn action; here of all five at the policy's mean, the expectation over pairs: a plan
  depends on its environment's random stream alone.
- paper: convolutions without normalisation; here this project's, with BatchNorm, which sees two groups of frames, the
  first with the goals and the later ones. One shift of a clip and its goal together (paper: of each frame).
- paper: the encoder learns at 0.3 of the rate, and the policy's step comes after the model's; here one rate and one
  step for all, whose gradients are clipped together.

Preset `laptop` keeps 0.95 of the target networks per step, for GCIQL's reason, and weighs the entropy by 0.02. At a
learning rate fit for few steps the policy otherwise moves to a bound, where tanh has no slope, before Q tells actions
apart: on the toy of tests/test_baselines_learn.py it then always goes to the same side.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from agents.actions import ActionModel, learn_bounds
from agents.planning import RETURN, PlanningAgent, PlanningConfig
from agents.trainable import OnLoad, Preset, goal_clips
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.goals import GoalClipBatch
from lewm_gym.nn.actor import ActionBlock
from lewm_gym.nn.conv import ConvEncoder
from lewm_gym.nn.goal_conditioned import concat_goal, follow_spread, polyak_update
from lewm_gym.nn.images import shifted, to_network
from lewm_gym.nn.mlp import normed_mlp, zero_at_first
from lewm_gym.nn.two_hot import TwoHot
from lewm_gym.planning.mppi import MPPIConfig
from lewm_gym.training import TrainingConfig

LOG_STD_BOUNDS = (-10.0, 2.0)  # of the policy before it is squashed
_PAIR = 2  # Q that are asked at a time


@dataclass(frozen=True)
class TDMPC2Config:
    """Architecture and loss; the defaults are those of the released 5M model, but for frames and blocks."""

    action_size: int = 2  # numbers in one action of the environment
    frame_skip: int = 5  # environment steps between two latents, and actions in a block; paper: 2, one action twice
    image_size: int = 56  # px that the encoder sees; paper: 64
    conv_channels: tuple[int, ...] = (64, 128, 128)  # channels after each stage
    image_shift: int = 3  # px; in training each clip and its goal are shifted by up to so many
    latent_size: int = 512  # Z
    group_size: int = 8  # of SimNorm
    hidden_widths: tuple[int, ...] = (512, 512)  # of dynamics, reward, Q and policy
    critics: int = 5
    dropout: float = 0.01  # in the first layer of each Q
    n_bins: int = 101  # of rewards and values
    largest: float = 10.0  # the bins span +- this, in symlog
    predict_blocks: int = 3  # H of the loss
    discount: float = 0.95  # gamma, per block
    target_rate: float = 0.99  # share of itself that the target network of Q keeps at each step
    rho: float = 0.5  # weight of a latent step in the loss relative to that before it
    consistency_weight: float = 20.0
    reward_weight: float = 0.1
    value_weight: float = 0.1
    entropy_weight: float = 1e-4

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = {"image_shift": 0, "critics": _PAIR, "n_bins": 2}.get(field.name, 1)
            if field.type == "int" and getattr(self, field.name) < least:
                raise ValueError(f"{field.name} must be at least {least}, got {getattr(self, field.name)}")
        if self.latent_size % self.group_size:
            raise ValueError(
                f"latent_size must be a multiple of group_size, got {self.latent_size} and {self.group_size}"
            )
        for name in ("discount", "target_rate"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be within (0, 1), got {getattr(self, name)}")
        if not 0 < self.rho <= 1 or not 0 <= self.dropout < 1 or not 0 < self.largest < math.inf:
            raise ValueError(
                "rho must be within (0, 1], dropout within [0, 1) and largest positive, "
                f"got {self.rho}, {self.dropout} and {self.largest}"
            )
        for name in ("consistency_weight", "reward_weight", "value_weight", "entropy_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, nor infinite, got {getattr(self, name)}")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TDMPC2Config:
        """Returns the configuration that `dataclasses.asdict` wrote."""
        lists = ("conv_channels", "hidden_widths")
        return cls(**{**values, **{name: tuple(values[name]) for name in lists}})

    @property
    def context(self) -> int:
        """Latents that a prediction is made from: a state says all."""
        return 1

    @property
    def action_block_size(self) -> int:
        """Numbers in one block of actions, A."""
        return self.frame_skip * self.action_size


class SimNorm(nn.Module):
    """Softmax over groups of consecutive numbers: (..., Z) -> (..., Z), each group on a simplex."""

    def __init__(self, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., Z)."""
        return x.unflatten(-1, (-1, self.group_size)).softmax(dim=-1).flatten(-2)


class Critics(nn.Module):
    """Independent Q, each as logits over bins."""

    def __init__(self, in_width: int, config: TDMPC2Config) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            zero_at_first(normed_mlp(in_width, config.hidden_widths, config.n_bins, nn.Mish, config.dropout))
            for _ in range(config.critics)
        )

    def forward(self, inputs: Tensor, members: list[int] | None = None) -> Tensor:
        """Returns logits (members, ..., n_bins) of the members numbered, or of all."""
        chosen = range(len(self.members)) if members is None else members
        return torch.stack([self.members[i](inputs) for i in chosen])


class Policy(nn.Module):
    """A Gaussian squashed by tanh to the action bounds; in the form of an actor (lewm_gym/nn/actor.py).

    The planners that start from an actor's plan take it for one: `planner=actor` acts by the policy alone.
    """

    low: Tensor  # (A,), z-scored bounds of a block
    high: Tensor

    def __init__(self, config: TDMPC2Config) -> None:
        super().__init__()
        size = config.action_block_size
        self.layers = normed_mlp(3 * config.latent_size, config.hidden_widths, 2 * size, nn.Mish)
        self.register_buffer("low", -torch.ones(size))
        self.register_buffer("high", torch.ones(size))

    def forward(self, latents: Tensor, goals: Tensor, steps_left: Tensor | None = None) -> ActionBlock:
        """Returns what the Gaussian's mean becomes and, to first order, its spread there; steps left are not used."""
        mean, log_std = self._gaussian(latents, goals)
        squashed = mean.tanh()
        return ActionBlock(self._scaled(squashed), (self.high - self.low) / 2 * (1 - squashed.square()) * log_std.exp())

    def steps_left(self, latents: Tensor, goals: Tensor) -> Tensor:
        """Returns (n,) infinite numbers of steps: the policy knows of no time, and plans are as long as they can be."""
        return latents.new_full((len(latents),), torch.inf)

    def sample(self, latents: Tensor, goals: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns z-scored actions (..., A) for latents and goals (..., Z), and their log-probabilities (...).

        Args:
            latents: (..., Z).
            goals: (..., Z).
            noise: (..., A), of a standard normal.
        """
        mean, log_std = self._gaussian(latents, goals)
        squashed = (mean + log_std.exp() * noise).tanh()
        # Of actions within [-1, 1], whatever the bounds.
        log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi) - (1 - squashed.square() + 1e-6).log()
        return self._scaled(squashed), log_prob.sum(dim=-1)

    def _gaussian(self, latents: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.layers(concat_goal(latents, goals)).float().chunk(2, dim=-1)
        low, high = LOG_STD_BOUNDS
        return mean, low + 0.5 * (high - low) * (raw.tanh() + 1)

    def _scaled(self, squashed: Tensor) -> Tensor:
        return (self.high + self.low) / 2 + (self.high - self.low) / 2 * squashed


class TDMPC2(ActionModel):
    """Encoder, latent dynamics, reward, critics with their target networks, and the policy, `actor`."""

    q_scale: Tensor  # S
    latents_have_unit_scale = False  # SimNorm's do not: their spread says nothing of a collapse

    def __init__(self, config: TDMPC2Config) -> None:
        super().__init__(config.action_size, config.frame_skip)
        self.config = config
        size, block = config.latent_size, config.action_block_size
        convolutions = ConvEncoder(config.image_size, config.conv_channels, size)
        self.encoder = nn.Sequential(convolutions, nn.LayerNorm(size), SimNorm(config.group_size))
        self.dynamics = nn.Sequential(
            normed_mlp(size + block, config.hidden_widths, size, nn.Mish),
            nn.LayerNorm(size),
            SimNorm(config.group_size),
        )
        self.reward = zero_at_first(normed_mlp(3 * size + block, config.hidden_widths, config.n_bins, nn.Mish))
        self.critic = Critics(3 * size + block, config)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor = Policy(config)
        self.bins = TwoHot(-config.largest, config.largest, config.n_bins)
        self.register_buffer("q_scale", torch.ones(()))

    def train(self, mode: bool = True) -> TDMPC2:
        """Sets the mode of all but the target networks, which have no dropout."""
        super().train(mode)
        self.target.eval()
        return self

    # The model -----------------------------------------------------------------------------------------------

    def encode(self, pixels: Tensor) -> Tensor:
        """Returns latents (..., Z) of frames (..., h, w, 3) uint8."""
        images = to_network(pixels.flatten(0, -4), self.config.image_size)
        return self.encoder(images).float().view(*pixels.shape[:-3], -1)  # type: ignore[no-any-return]

    def unroll(self, start: Tensor, actions: Tensor) -> Tensor:
        """Returns the latents (n, H + 1, Z) of plans (n, H, A), z-scored, the first of them `start`, (n, Z)."""
        latents = [start]
        for action in actions.unbind(1):
            latents.append(self.dynamics(torch.cat([latents[-1], action], dim=-1)).float())
        return torch.stack(latents, dim=1)

    def rollout(self, latents: Tensor, actions: Tensor, past_actions: Tensor | None = None) -> Tensor:
        """Returns predicted latents (B, S, H, Z) of candidate plans (B, S, H, A) from the last of latents (B, n, Z)."""
        start = latents[:, -1].repeat_interleave(actions.shape[1], dim=0)
        return self.unroll(start, actions.flatten(0, 1))[:, 1:].unflatten(0, actions.shape[:2])

    def returns(self, predicted: Tensor, actions: Tensor, start: Tensor, goal: Tensor) -> Tensor:
        """Returns the discounted rewards of candidate plans and the value of their ends, (B, S).

        Args:
            predicted: (B, S, H, Z), the latents after each block.
            actions: (B, S, H, A), z-scored.
            start: (B, Z), the latent before the first.
            goal: (B, Z).
        """
        first = start[:, None, None].expand_as(predicted[:, :, :1])
        goals = goal[:, None, None].expand_as(predicted)
        seen = concat_goal(torch.cat([first, predicted[:, :, :-1]], dim=2), goals)
        rewards = self.bins.decode(self.reward(torch.cat([seen, actions], dim=-1)))
        last, goals = predicted[:, :, -1], goals[:, :, -1]
        final = torch.cat([concat_goal(last, goals), self.actor(last, goals).mean], dim=-1)
        value = self.bins.decode(self.critic(final)).mean(dim=0)
        discounts = self.config.discount ** torch.arange(actions.shape[2] + 1, device=actions.device)
        return (rewards * discounts[:-1]).sum(dim=-1) + discounts[-1] * value

    def propose(self, start: Tensor, goal: Tensor, noise: Tensor) -> Tensor:
        """Returns plans (B, P, H, A) of the policy from latents (B, Z) to goals (B, Z), with noise of their shape."""
        n_plans = noise.shape[1]
        latents, goals = (part.repeat_interleave(n_plans, dim=0) for part in (start, goal))
        plans = []
        for drawn in noise.flatten(0, 1).unbind(1):
            plans.append(self.actor.sample(latents, goals, drawn)[0])
            latents = self.unroll(latents, plans[-1].unsqueeze(1))[:, 1]
        return torch.stack(plans, dim=1).unflatten(0, noise.shape[:2])

    # Its training --------------------------------------------------------------------------------------------

    def loss(self, batch: GoalClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of model and policy together, and its parts before their weights."""
        config = self.config
        pixels = shifted(batch.pixels, config.image_shift) if self.training else batch.pixels
        start, goal = self.encode(pixels[:, [0, -1]]).unbind(1)
        with torch.no_grad():
            later = self.encode(pixels[:, 1:-1])
        actions = self.normalize_actions(batch.actions)
        predicted = self.unroll(start, actions)
        goals = goal.unsqueeze(1).expand_as(predicted)
        inputs = torch.cat([concat_goal(predicted[:, :-1], goals[:, :-1]), actions], dim=-1)
        targets = self.value_targets(later, goals[:, 1:].detach(), batch.reached)
        errors = {
            "consistency": (predicted[:, 1:] - later).square().mean(dim=-1),
            "reward": self.bins.loss(self.reward(inputs), batch.reached - 1),
            "value": self.bins.loss(self.critic(inputs), targets).mean(dim=0),
        }
        parts = {name: self._over_steps(error) for name, error in errors.items()}
        parts["actor"], values = self.actor_loss(predicted.detach(), goals.detach())
        total = (
            config.consistency_weight * parts["consistency"]
            + config.reward_weight * parts["reward"]
            + config.value_weight * parts["value"]
            + parts["actor"]
        )
        return total, {**parts, "mean_value": values.mean(), "q_scale": self.q_scale.clone()}

    @torch.no_grad()
    def value_targets(self, after: Tensor, goals: Tensor, reached: Tensor) -> Tensor:
        """Returns what Q is to say of each latent step, (B, H).

        Args:
            after: (B, H, Z), the encodings of the frames after each step.
            goals: (B, H, Z).
            reached: (B, H), 1 where the frame before is the goal.
        """
        noise = torch.randn(*after.shape[:2], self.config.action_block_size, device=after.device)
        actions, _ = self.actor.sample(after, goals, noise)
        values = self.bins.decode(self.target(torch.cat([concat_goal(after, goals), actions], dim=-1), self._pair()))
        return (reached - 1) + self.config.discount * (1 - reached) * values.amin(dim=0)

    def actor_loss(self, latents: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss of the policy, and the values of its actions; (B, H + 1, Z) each, without gradient."""
        noise = torch.randn(*latents.shape[:2], self.config.action_block_size, device=latents.device)
        actions, log_prob = self.actor.sample(latents, goals, noise)
        inputs = torch.cat([concat_goal(latents, goals), actions], dim=-1)
        fixed = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        values = self.bins.decode(functional_call(self.critic, fixed, (inputs, self._pair()))).mean(dim=0)
        if self.training:
            follow_spread(self.q_scale, values[:, 0])
        return self._over_steps(self.config.entropy_weight * log_prob - values / self.q_scale), values.detach()

    def after_step(self) -> None:
        """Updates the target networks."""
        polyak_update(self.target, self.critic, self.config.target_rate)

    def _over_steps(self, errors: Tensor) -> Tensor:
        """Returns the mean over clips and latent steps, (B, n), step t weighted by rho^t."""
        weights = self.config.rho ** torch.arange(errors.shape[1], device=errors.device)
        return (weights * errors.mean(dim=0)).mean()

    def _pair(self) -> list[int]:
        return torch.randperm(self.config.critics)[:_PAIR].tolist()


def _planning(n_samples: int) -> PlanningConfig:
    """Returns the paper's planning: H blocks, one of them executed, from what is left of the last plan."""
    search = MPPIConfig(n_samples=n_samples, n_iterations=6)
    return PlanningConfig(search, horizon_blocks=3, execute_blocks=1, cost=RETURN, clip_actions=True, warm_start=True)


PRESETS = {
    # 512 candidates with the policy's 24. The authors train offline with larger batches on many tasks.
    "paper": Preset(
        TDMPC2Config(),
        _planning(488),
        TrainingConfig(
            steps=10_000_000, batch_size=256, learning_rate=3e-4, weight_decay=0.0, clip_norm=20.0, schedule="constant"
        ),
    ),
    # Minutes on two CPU cores.
    "laptop": Preset(
        TDMPC2Config(latent_size=128, hidden_widths=(256, 256), target_rate=0.95, entropy_weight=0.02),
        _planning(128),
        TrainingConfig(
            steps=2000,
            batch_size=64,
            learning_rate=1e-3,
            weight_decay=0.0,
            clip_norm=20.0,
            schedule="cosine",
            checkpoint_every_s=15.0,
        ),
    ),
}


class TDMPC2Agent(PlanningAgent):
    """TD-MPC2 as a Gymnasium policy."""

    name = "tdmpc2"
    presets = PRESETS
    model_class = TDMPC2
    config_class = TDMPC2Config

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.uses_steps_left = False  # whatever the planner: the policy does not

    @classmethod
    def set_normalization(cls, model: TDMPC2, dataset: Dataset) -> None:
        """Gives a fresh model the statistics of actions, and its policy their bounds.

        Raises:
            ValueError: If actions are not bounded.
        """
        super().set_normalization(model, dataset)
        learn_bounds(model, dataset, cls.name)

    @classmethod
    def samplers(cls, dataset: Dataset, model: TDMPC2, seed: int, on_load: OnLoad | None) -> tuple[Any, Any]:
        """Returns clips with goals by hindsight relabelling, of training and of held-out episodes."""
        return goal_clips(dataset, model.config, model.config.predict_blocks + 1, seed, on_load)
