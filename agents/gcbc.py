"""GCBC: goal-conditioned behaviour cloning (arXiv 1903.01973, 2410.20092): imitation of the data towards a goal.

    L = -mean log pi(a | s, g),    pi = N(mu(s, g), 1),    g a later frame of the episode, uniformly

with s and g as encodings of frames and a z-scored. Differences from the LeWM paper's baseline: it reads frozen
DINOv2 patches through a transformer; here an MLP of OGBench's size reads DINOv2 patches (preset `paper`), LeWM's
latents, or a convolutional encoder trained jointly (preset `laptop`: DINOv2 needs weights and a GPU). The networks get
|s - g| in addition to s and g. OGBench's pixel tasks have another encoder (impala_small), and half of their batches are
randomly cropped; here there is no augmentation.

With `steps_left` it is LeWM's actor (lewm_gym/nn/actor.py) without a world model, for comparison: goals are at most
`goal_steps` away, the number of steps left is an input, and the output is a block of `frame_skip` actions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.policy import GoalPolicy, PolicyAgent, PolicyConfig
from agents.trainable import OnLoad, Preset, split_samplers
from lewm_gym.controller import Reply, Request
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.goals import GoalBatch
from lewm_gym.data.hindsight import HindsightBatch, HindsightClips
from lewm_gym.nn.actor import GoalActor, frame_pairs
from lewm_gym.nn.goal_conditioned import concat_goal, log_likelihood
from lewm_gym.planning import RecedingHorizon
from lewm_gym.training import TrainingConfig

#: paper: Adam with the steps, batch and learning rate of OGBench's pixel tasks; its gradient is not clipped, and all of
#: it is float32. laptop: a few minutes on two cores.
TRAINING = {
    "paper": TrainingConfig(
        steps=500_000, batch_size=256, learning_rate=3e-4, weight_decay=0.0, schedule="constant", precision="bf16"
    ),
    "laptop": TrainingConfig(
        steps=2000, batch_size=64, learning_rate=1e-3, weight_decay=0.0, schedule="cosine", checkpoint_every_s=15.0
    ),
}
#: As in the LeWM paper where there are DINOv2 weights; 256 patches of each frame are too many to keep.
PAPER: dict[str, Any] = {"encoder": "auto", "image_size": 224, "cache_features": False}


@dataclass(frozen=True)
class GCBCConfig(PolicyConfig):
    """The policy's settings, and whether the steps left are an input."""

    steps_left: bool = False  # paper: no
    frame_skip: int = 5  # with steps_left: actions in a block, and steps between the frames of a training clip
    goal_steps: int = 50  # with steps_left: greatest distance of a goal, environment steps

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps_left and self.encoder != "scratch":
            raise ValueError(f"steps_left trains the encoder jointly: it needs encoder scratch, not {self.encoder!r}")
        if min(self.frame_skip, self.goal_steps) < 1:
            raise ValueError(
                f"frame_skip and goal_steps must be at least 1, got {self.frame_skip} and {self.goal_steps}"
            )


class GCBC(GoalPolicy):
    """The policy and its loss."""

    config: GCBCConfig

    def __init__(self, config: GCBCConfig, observer: Any = None) -> None:
        super().__init__(config, observer)
        if config.steps_left:
            sizes = self.observer.output_width, config.action_size, config.frame_skip, config.goal_steps
            self.actor = GoalActor(*sizes, config.hidden_widths[0], len(config.hidden_widths))

    def loss(self, batch: GoalBatch | HindsightBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the negative log-likelihood of the recorded actions, and their mean squared error.

        With `steps_left`: the actor's losses over all ordered pairs of the frames of each clip.
        """
        if isinstance(batch, HindsightBatch):
            latents = self.encodings(batch.pixels.flatten(0, 1)).unflatten(0, batch.steps.shape)
            actions = self.normalize_actions(self._single(batch.next_actions), missing=math.nan).flatten(-2)
            pairs = frame_pairs(latents, batch.steps, actions)
            imitation = self.actor.imitation_loss(*pairs)
            # Distances are to be read off the encodings, not to shape them.
            distance = self.actor.distance_loss(pairs.latents.detach(), pairs.goals.detach(), pairs.steps)
            return imitation + distance, {"imitation": imitation, "distance": distance}
        obs, goal = self.encodings(torch.cat([batch.pixels, batch.actor_goals])).chunk(2)
        mean, actions = self.actor(concat_goal(obs, goal)), self.normalize_actions(batch.actions)
        return -log_likelihood(mean, actions).mean(), {"action_error": (mean - actions).square().mean()}

    def encodings(self, pixels: Tensor) -> Tensor:
        """Returns encodings (n, width) of frames (n, h, w, 3) uint8."""
        return self.observer.trained(self.observer.prepare(pixels))  # type: ignore[no-any-return]

    def act_block(self, pixels: Tensor, goals: Tensor, steps_left: float | None) -> tuple[Tensor, float]:
        """Returns the next raw actions (frame_skip, action_size) for a frame and a goal (h, w, 3) uint8.

        And the steps left, as given or as estimated by the actor.
        """
        obs, goal = self.encodings(torch.stack([pixels, goals])).split(1)
        left = self.actor.steps_left(obs, goal) if steps_left is None else torch.tensor([steps_left]).to(obs)
        return self.denormalize_actions(self._single(self.actor(obs, goal, left).mean)[0]), left.item()

    def _single(self, blocks: Tensor) -> Tensor:
        """Returns blocks (..., A) as their actions, (..., frame_skip, action_size)."""
        return blocks.unflatten(-1, (self.config.frame_skip, -1))


class GCBCAgent(PolicyAgent):
    """GCBC as a Gymnasium policy; with `steps_left` it executes a block of actions per observation."""

    name = "gcbc"
    presets = {
        "paper": Preset(GCBCConfig(**PAPER), None, TRAINING["paper"]),
        "laptop": Preset(GCBCConfig(), None, TRAINING["laptop"]),
    }
    model_class = GCBC
    config_class = GCBCConfig

    def __init__(self, model: GCBC, description: dict[str, Any], device: str | torch.device = "cpu") -> None:
        super().__init__(model, description, device)
        self.uses_steps_left = model.config.steps_left
        if self.uses_steps_left:
            self._controller = RecedingHorizon(self._blocks, model.config.frame_skip)

    @classmethod
    def samplers(cls, dataset: Dataset, model: Any, seed: int, on_load: OnLoad | None) -> tuple[Any, Any]:
        """Returns transitions with hindsight goals, or, with `steps_left`, clips with later frames."""
        config = model.config
        if not config.steps_left:
            return super().samplers(dataset, model, seed, on_load)
        options = {"frame_skip": config.frame_skip, "seed": seed, "image_size": config.image_size}

        def sampler(episodes: Any) -> HindsightClips:
            return HindsightClips(dataset, episodes, 2, config.goal_steps, n_frames=2, **options)

        return split_samplers(dataset, sampler, on_load)

    def _blocks(self, requests: Sequence[Request]) -> list[Reply]:
        """Returns the block for each request: one by one, as `PlanningAgent._search` does on a CPU."""
        replies = []
        with torch.inference_mode():
            for request in requests:
                frames = (torch.from_numpy(np.array(f)).to(self.device) for f in (request.frames[-1], request.goal))
                block, left = self.model.act_block(*frames, request.steps_left)
                replies.append(Reply(block.float().cpu().numpy(), block.float().cpu().flatten().unsqueeze(0), left))
        return replies
