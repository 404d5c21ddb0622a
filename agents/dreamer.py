"""Dreamer v3 (arXiv 2301.04104), offline and towards goals: a model that reconstructs, and an actor trained in it.

For a clip of frames o_0..o_{T-1} a block of actions apart, its blocks a, and a goal image; s_t = (h_t, z_t) is the
state of the recurrent model (lewm_gym/nn/rssm.py) with posterior q and prior p:

    e_t = BatchNorm(enc(o_t)), g the same of the goal
    x_t = (s_t, g, |e^(s_t) - g|)                           what reward, critic and actor see; e^ predicts e_t from s_t
    r_t = -1(o_t != goal)                                   as in agents/gcivl.py; the episode ends at the goal

    L_model = mean_t ( sum over pixels (o^(s_t) - (o_t - o_mean))^2                     reconstruction
                     + CE(R(x_t), r_t)                                                  reward
                     + mean (e^(s_t) - sg(e_t))^2                                       embedding
                     + 1.0 max(1, KL(sg(q_t) || p_t)) + 0.1 max(1, KL(q_t || sg(p_t))) )     KL balance, free nats

From every state of the clip the actor imagines H blocks towards the goal, with the model held, c_t = -R(x_t) the
probability to go on, and weights w_t = prod_{k<t} gamma c_k:

    G_t = R(x_t) + gamma c_t ((1 - lambda) V(x_{t+1}) + lambda G_{t+1}),   G_H = V(x_H)             lambda-returns
    L_critic = mean w_t (CE(V(x_t), sg(G_t)) + CE(V(x_t), V-(x_t)))
    L_actor  = -mean w_t (G_t / max(1, S) + 3e-4 entropy(a_t)) + beta mean (mu(x_t) - a_t)^2

    L = L_model + L_critic + L_actor;   V- <- 0.98 V- + 0.02 V after each step;   gamma = 0.95 per block, lambda = 0.95

R and V are distributions over bins (lewm_gym/nn/two_hot.py); S follows the distance between the 5th and the 95th
percentile of G. The agent executes the actor's mean for one block, from the state after the last T frames with the most
probable codes.

Differences:

- paper: rewards of a task; here: -1 until a goal by hindsight relabelling, sampled as for GCIVL's values. The goal
  enters as its embedding, and is compared with the embedding that a state predicts (LEXA, arXiv 2110.09514, has both).
  The reward is also learned for all frames of the clip as goals, where images are equal: near goals are rare otherwise.
  There is no head for the end of an episode: with these rewards it is minus the reward.
- paper: learns online; here: from a dataset. beta keeps the actor near the actions of the data where the goal is ahead
  of them (arXiv 2106.06860), against its exploiting the model's errors; imagination is short and starts from data.
  The critic learns in imagination only (paper: from replayed rewards besides).
- paper: a latent step is an action; here: a block of 5, as LeWM's, so that datasets and the controller are the same.
  gamma is TD-MPC2's (paper: 0.997 per step). The actor's gradient is that of the returns through the model, as in the
  paper's first version for continuous actions (later: REINFORCE), which short trainings need.
- paper: states carry on for an episode, with sampled codes and actions; here: they begin anew T - 1 blocks ago, as in
  training, without sampling. An environment's actions then depend on what the controller remembers alone.
- paper: whole images are reconstructed; here: what differs from o_mean, the mean image of the batch. Scenes are static
  but for little: a short training otherwise learns the background. For the same reason embeddings are normalised over
  frames, not over their numbers.
- paper: three optimisers, LayerNorm in the convolutions, 64 px; here: one AdamW, this project's convolutions with
  BatchNorm, 56 px. Bins of symlog values are averaged before symexp (paper's first version; later: after it).

TorchRL (0.14) has the RSSM and these losses. Its actor's loss hands state and belief on to imagination and nothing
else, so a goal does not get to reward, critic and actor; what would remain is less than the wrapping.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from agents.actions import ActionModel, learn_bounds
from agents.devices import choose_device
from agents.trainable import OnLoad, Preset, Trainable, goal_clips
from lewm_gym.agent import Agent
from lewm_gym.controller import RecedingHorizon, Reply, Request
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.goals import GoalClipBatch
from lewm_gym.nn.actor import ActionBlock
from lewm_gym.nn.conv import ConvEncoder
from lewm_gym.nn.decoder import ConvDecoder
from lewm_gym.nn.distributed import BatchNorm1d
from lewm_gym.nn.frozen import held
from lewm_gym.nn.goal_conditioned import follow_spread, polyak_update
from lewm_gym.nn.images import IMAGENET_STD, to_network
from lewm_gym.nn.mlp import normed_mlp, zero_at_first
from lewm_gym.nn.rssm import RSSM, LatentState, balanced_kl
from lewm_gym.nn.two_hot import TwoHot
from lewm_gym.training import TrainingConfig

STD_BOUNDS = (0.1, 1.0)  # of the actor, in standard deviations of the training set's actions


@dataclass(frozen=True)
class DreamerConfig:
    """Architecture and loss; the defaults are those of the paper's size S (18 M), but for frames and blocks."""

    action_size: int = 2  # numbers in one action of the environment
    frame_skip: int = 5  # environment steps between two states, and actions in a block; paper: 1
    image_size: int = 56  # px that the encoder sees; paper: 64
    conv_channels: tuple[int, ...] = (
        64,
        128,
        256,
    )  # channels after each stage of the encoder; of the decoder, reversed
    embedding_width: int = 512  # of a frame's embedding, E
    recurrent_width: int = 512  # of the recurrent state
    groups: int = 32  # categoricals of a code
    classes: int = 32  # of each
    hidden_widths: tuple[int, ...] = (512, 512)  # of reward, critic, actor and the predicted embedding
    n_bins: int = 255  # of rewards and values
    largest: float = 20.0  # the bins span +- this, in symlog
    clip_frames: int = 13  # T; paper: 64 steps
    imagine_blocks: int = 15  # H
    free_nats: float = 1.0  # per state, below which a divergence is not reduced
    dynamics_weight: float = 1.0  # of the prior's part of the divergence
    representation_weight: float = 0.1  # of the posterior's
    discount: float = 0.95  # gamma, per block
    trace: float = 0.95  # lambda
    slow_rate: float = 0.98  # share of itself that the slow critic keeps at each step
    entropy_weight: float = 3e-4
    behaviour_weight: float = 0.4  # beta, relative to normalised returns; TD3+BC's 1 / 2.5. paper: 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least = {"clip_frames": 2, "classes": 2, "n_bins": 2}.get(field.name, 1)
            if field.type == "int" and getattr(self, field.name) < least:
                raise ValueError(f"{field.name} must be at least {least}, got {getattr(self, field.name)}")
        for name in ("discount", "slow_rate"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be within (0, 1), got {getattr(self, name)}")
        if not 0 <= self.trace <= 1 or not 0 < self.largest < math.inf:
            raise ValueError(f"trace must be within [0, 1] and largest positive, got {self.trace} and {self.largest}")
        weights = ("dynamics_weight", "representation_weight", "entropy_weight", "behaviour_weight")
        for name in ("free_nats", *weights):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, nor infinite, got {getattr(self, name)}")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DreamerConfig:
        """Returns the configuration that `dataclasses.asdict` wrote."""
        lists = ("conv_channels", "hidden_widths")
        return cls(**{**values, **{name: tuple(values[name]) for name in lists}})

    @property
    def action_block_size(self) -> int:
        """Numbers in one block of actions, A."""
        return self.frame_skip * self.action_size


class Actor(nn.Module):
    """A Gaussian over a block of actions, its mean squashed by tanh to the action bounds."""

    low: Tensor  # (A,), z-scored bounds of a block
    high: Tensor

    def __init__(self, in_width: int, config: DreamerConfig) -> None:
        super().__init__()
        size = config.action_block_size
        self.layers = normed_mlp(in_width, config.hidden_widths, 2 * size, nn.SiLU)
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.uniform_(last.weight, -1e-3, 1e-3)  # paper: nearly 0 at first
        nn.init.zeros_(last.bias)
        self.register_buffer("low", -torch.ones(size))
        self.register_buffer("high", torch.ones(size))

    def forward(self, inputs: Tensor) -> ActionBlock:
        """Returns the Gaussian, z-scored, (..., A)."""
        centre, spread = self.layers(inputs).float().chunk(2, dim=-1)
        mean = (self.high + self.low) / 2 + (self.high - self.low) / 2 * centre.tanh()
        low, high = STD_BOUNDS
        return ActionBlock(mean, low + (high - low) * (spread + 2).sigmoid())  # paper: near the upper bound at first

    def sample(self, proposal: ActionBlock, noise: Tensor) -> Tensor:
        """Returns actions (..., A) within the bounds; the gradient does not see the bounds."""
        actions = proposal.mean + proposal.std * noise
        return actions + (actions.clamp(self.low, self.high) - actions).detach()


class Imagined(NamedTuple):
    """What follows from states as the actor acts.

    Attributes:
        inputs: (H + 1, n, X), what reward, critic and actor see of each state.
        proposals: The actor's, at the first H states, (H, n, A).
    """

    inputs: Tensor
    proposals: ActionBlock


class Dreamer(ActionModel):
    """Encoder, recurrent model, its heads, critic with its slow copy, and actor."""

    return_scale: Tensor  # S
    latents_have_unit_scale = False  # embeddings have it by their BatchNorm: it says nothing of a collapse

    def __init__(self, config: DreamerConfig) -> None:
        super().__init__(config.action_size, config.frame_skip)
        self.config = config
        width, hidden = config.embedding_width, config.hidden_widths
        self.encoder = nn.Sequential(
            ConvEncoder(config.image_size, config.conv_channels, width), BatchNorm1d(width, affine=False)
        )
        sizes = config.recurrent_width, config.groups, config.classes, hidden[0]
        self.dynamics = RSSM(width, config.action_block_size, *sizes)
        features = self.dynamics.feature_width
        seen = features + 2 * width
        self.decoder = ConvDecoder(features, config.image_size, config.conv_channels)
        self.embedding = normed_mlp(features, hidden, width, nn.SiLU)
        self.reward = zero_at_first(normed_mlp(seen, hidden, config.n_bins, nn.SiLU))
        self.critic = zero_at_first(normed_mlp(seen, hidden, config.n_bins, nn.SiLU))
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor = Actor(seen, config)
        self.bins = TwoHot(-config.largest, config.largest, config.n_bins)
        self.register_buffer("return_scale", torch.ones(()))

    def encode(self, pixels: Tensor) -> Tensor:
        """Returns embeddings (..., E) of frames (..., h, w, 3) uint8."""
        return self._embed(to_network(pixels.flatten(0, -4), self.config.image_size)).view(*pixels.shape[:-3], -1)

    def act(self, frames: Tensor, actions: Tensor, goal: Tensor) -> Tensor:
        """Returns the actor's mean, a raw block (A,).

        Args:
            frames: (n, h, w, 3) uint8, a block apart, the last the current one.
            actions: (n - 1, A), raw, between them.
            goal: (h, w, 3) uint8.
        """
        embeddings = self.encode(torch.cat([frames, goal.unsqueeze(0)]))
        states, _, _ = self.dynamics.observe(embeddings[None, :-1], self.normalize_actions(actions)[None])
        inputs = self.inputs(states.features[0, -1], embeddings[-1])
        return self.denormalize_actions(self.actor(inputs).mean)

    def inputs(self, features: Tensor, goals: Tensor) -> Tensor:
        """Returns what reward, critic and actor see, (..., X), of states' features and goals' embeddings (..., E)."""
        return torch.cat([features, goals, (self.embedding(features).float() - goals).abs()], dim=-1)

    # Its training --------------------------------------------------------------------------------------------

    def loss(self, batch: GoalClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of model, critic and actor together, and its parts before their weights."""
        config = self.config
        images = to_network(batch.pixels.flatten(0, 1), config.image_size)
        embeddings = self._embed(images).view(*batch.pixels.shape[:2], -1)
        actions = self.normalize_actions(batch.actions)
        states, posteriors, priors = self.dynamics.observe(embeddings[:, :-1], actions)
        parts = self.model_losses(batch.pixels, images, embeddings, states.features)
        dynamics, representation = balanced_kl(posteriors, priors, config.free_nats)
        parts |= {"dynamics": dynamics.mean(), "representation": representation.mean()}
        start = LatentState(*(part.detach().flatten(0, 1) for part in states))
        goals = embeddings[:, -1].detach().repeat_interleave(states.code.shape[1], dim=0)
        noise = torch.randn(config.imagine_blocks, len(goals), config.action_block_size, device=goals.device)
        with held(self.dynamics, self.embedding, self.reward, self.critic):
            imagined = self.imagine(start, goals, noise)
            returns, weights = self.returns(imagined.inputs)
        if self.training:
            follow_spread(self.return_scale, returns.detach())
        parts["critic"] = self.critic_loss(imagined.inputs[:-1].detach(), returns.detach(), weights)
        parts["actor"] = self.actor_loss(imagined.proposals, returns, weights)
        first = imagined.proposals.mean[0].unflatten(0, states.code.shape[:2])
        known = batch.ahead.unsqueeze(-1) * batch.actions.isfinite()
        errors = (first[:, :-1] - actions).square() * known
        parts["behaviour"] = errors.sum() / known.sum().clamp_min(1.0)
        total = (
            parts["reconstruction"]
            + parts["reward"]
            + parts["embedding"]
            + config.dynamics_weight * parts["dynamics"]
            + config.representation_weight * parts["representation"]
            + parts["critic"]
            + parts["actor"]
            + config.behaviour_weight * parts["behaviour"]
        )
        return total, {**parts, "mean_return": returns.detach()[0].mean(), "return_scale": self.return_scale.clone()}

    def model_losses(self, pixels: Tensor, images: Tensor, embeddings: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Returns the losses of the model's heads.

        Args:
            pixels: (B, T + 1, h, w, 3) uint8, the frames and the goal.
            images: (B (T + 1), 3, size, size), the same, normalised.
            embeddings: (B, T + 1, E).
            features: (B, T, F), of the frames' states.
        """
        decoded = self.decoder(features.flatten(0, 1)).float()
        wanted = (images - images.mean(dim=0)).unflatten(0, pixels.shape[:2])[:, :-1].flatten(0, 1)
        std = torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1)
        n_frames = features.shape[1]
        compared = self.inputs(
            features.unsqueeze(2).expand(-1, -1, n_frames + 1, -1),
            embeddings.unsqueeze(1).expand(-1, n_frames, -1, -1),
        )
        return {
            "reconstruction": (std * (decoded - wanted)).square().sum(dim=(1, 2, 3)).mean(),  # of pixels within [0, 1]
            "embedding": (self.embedding(features).float() - embeddings[:, :-1].detach()).square().mean(),
            "reward": self.bins.loss(self.reward(compared), _same_images(pixels) - 1).mean(),
        }

    def imagine(self, start: LatentState, goals: Tensor, noise: Tensor) -> Imagined:
        """Returns what follows from states (n, ...) as the actor acts towards goals (n, E), with noise (H, n, A)."""
        state, inputs, proposals = start, [self.inputs(start.features, goals)], []
        for drawn in noise:
            proposals.append(self.actor(inputs[-1].detach()))
            state = self.dynamics.imagine(state, self.actor.sample(proposals[-1], drawn))
            inputs.append(self.inputs(state.features, goals))
        means, stds = (torch.stack(part) for part in zip(*proposals, strict=True))
        return Imagined(torch.stack(inputs), ActionBlock(means, stds))

    def returns(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the lambda-returns of the first H of imagined states, (H, n), and the weights of these states.

        Args:
            inputs: (H + 1, n, X).
        """
        rewards = self.bins.decode(self.reward(inputs[:-1])).clamp(-1.0, 0.0)
        values = self.bins.decode(self.critic(inputs[1:]))
        discounts = -self.config.discount * rewards  # the episode ends where the reward does
        weights = torch.cat([torch.ones_like(discounts[:1]), discounts[:-1].detach()]).cumprod(dim=0)
        return lambda_returns(rewards, discounts, values, self.config.trace), weights

    def critic_loss(self, inputs: Tensor, returns: Tensor, weights: Tensor) -> Tensor:
        """Returns the loss of the critic on imagined states (H, n, X), from returns and weights (H, n)."""
        said = self.critic(inputs)
        slow = self.bins.decode(self.slow_critic(inputs))
        return (weights * (self.bins.loss(said, returns) + self.bins.loss(said, slow))).mean()

    def actor_loss(self, proposals: ActionBlock, returns: Tensor, weights: Tensor) -> Tensor:
        """Returns the loss of the actor in imagination, from its proposals (H, n, A) and their returns (H, n)."""
        entropy = (proposals.std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(dim=-1)
        return -(weights * (returns / self.return_scale + self.config.entropy_weight * entropy)).mean()

    def after_step(self) -> None:
        """Updates the slow critic."""
        polyak_update(self.slow_critic, self.critic, self.config.slow_rate)

    def _embed(self, images: Tensor) -> Tensor:
        return self.encoder(images).float()  # type: ignore[no-any-return]


def lambda_returns(rewards: Tensor, discounts: Tensor, values: Tensor, trace: float) -> Tensor:
    """Returns G_t = r_t + d_t ((1 - trace) v_{t+1} + trace G_{t+1}) with G_H = v_H, (H, ...).

    Args:
        rewards: (H, ...), r_0 to r_{H-1}.
        discounts: (H, ...), d_0 to d_{H-1}, of all that follows.
        values: (H, ...), v_1 to v_H.
        trace: lambda: 0 looks one step ahead, 1 to the end.
    """
    returns, following = [], values[-1]
    for reward, discount, value in zip(rewards.flip(0), discounts.flip(0), values.flip(0), strict=True):
        following = reward + discount * ((1 - trace) * value + trace * following)
        returns.append(following)
    return torch.stack(returns[::-1])


def _same_images(pixels: Tensor) -> Tensor:
    """Returns (B, T, T + 1), 1 where a frame of a clip is the same as another or as the goal, of (B, T + 1, ...)."""
    rows = pixels.flatten(2)
    return (rows[:, :-1, None] == rows[:, None]).all(dim=-1).float()


PRESETS = {
    "paper": Preset(
        DreamerConfig(),
        None,
        TrainingConfig(
            steps=500_000, batch_size=16, learning_rate=4e-5, weight_decay=0.0, clip_norm=1000.0, schedule="constant"
        ),
    ),
    # Minutes on two CPU cores.
    "laptop": Preset(
        DreamerConfig(
            conv_channels=(32, 64, 128),
            embedding_width=128,
            recurrent_width=256,
            groups=16,
            classes=16,
            hidden_widths=(256, 256),
            clip_frames=5,
            imagine_blocks=5,
        ),
        None,
        TrainingConfig(
            steps=2000,
            batch_size=32,
            learning_rate=1e-3,
            weight_decay=0.0,
            clip_norm=1000.0,
            schedule="cosine",
            checkpoint_every_s=15.0,
        ),
    ),
}


class DreamerAgent(Trainable, Agent):
    """Dreamer as a Gymnasium policy: the actor's mean for a block of actions, from the last frames and blocks.

    Args:
        model: The model; used in evaluation mode.
        description: The environment in the run folder: `action_low`, `action_high`, `frame_size`, and more.
        device: Where to compute.
    """

    name = "dreamer"
    presets = PRESETS
    model_class = Dreamer
    config_class = DreamerConfig

    def __init__(self, model: Dreamer, description: dict[str, Any], device: str | torch.device = "cpu") -> None:
        super().__init__(description["action_low"], description["action_high"], description["frame_size"])
        self.model, self.description, self.device = model.to(device).eval(), description, torch.device(device)
        config = model.config
        self._controller = RecedingHorizon(self._blocks, config.frame_skip, config.clip_frames)

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None, seed: int = 0) -> Self:
        """Returns the agent that was trained into a run folder.

        Args:
            folder: A run folder.
            device: Device; by default the best one available.
            seed: No effect: the agent executes the actor's mean.

        Raises:
            FileNotFoundError: If there is no finished run.
            ValueError: If the folder is damaged, or holds another agent's run.
        """
        return cls(*cls.read(folder), choose_device(device))

    def save(self, folder: str | Path) -> None:
        """Writes the agent into a run folder that `load` reads."""
        self.write(folder, self.model, self.description)

    def _blocks(self, requests: Sequence[Request]) -> list[Reply]:
        """Returns the block for each request: one by one, as `PlanningAgent._search` does on a CPU."""
        size, skip = self.model.config.action_block_size, self.model.config.frame_skip
        replies = []
        with torch.inference_mode():
            for request in requests:
                parts = request.frames, request.blocks.reshape(-1, size), request.goal
                block = self.model.act(*(torch.from_numpy(np.array(part)).to(self.device) for part in parts))
                actions = np.clip(block.cpu().numpy().reshape(skip, -1), self.action_low, self.action_high)
                replies.append(Reply(actions, block.cpu().unsqueeze(0)))
        return replies

    # Training (see Trainable) --------------------------------------------------------------------------------

    @classmethod
    def set_normalization(cls, model: Dreamer, dataset: Dataset) -> None:
        """Gives a fresh model the statistics of actions, and its actor their bounds.

        Raises:
            ValueError: If actions are not bounded.
        """
        super().set_normalization(model, dataset)
        learn_bounds(model, dataset, cls.name)

    @classmethod
    def samplers(cls, dataset: Dataset, model: Dreamer, seed: int, on_load: OnLoad | None) -> tuple[Any, Any]:
        """Returns clips with goals by hindsight relabelling, of training and of held-out episodes."""
        return goal_clips(dataset, model.config, model.config.clip_frames, seed, on_load)
