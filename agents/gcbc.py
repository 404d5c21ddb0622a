"""GCBC: goal-conditioned behaviour cloning (arXiv 1903.01973, 2410.20092), the policy that imitates towards a goal.

    L = -mean log pi(a | s, g),    pi = N(mu(s, g), 1),    g a later frame of the episode, uniformly

with s and g as encodings of frames and a z-scored. Where we depart from the LeWM paper's baseline: it reads frozen
DINOv2 patches through a transformer; here an MLP of OGBench's size reads DINOv2 patches (preset `paper`), LeWM's
latents, or a convolutional encoder trained along (preset `laptop`: DINOv2 needs weights and a GPU). The networks get
|s - g| besides s and g. OGBench's pixel tasks have another encoder (impala_small), and half of their batches are
cropped at random; here nothing is augmented.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agents.policy import GoalPolicy, PolicyAgent, PolicyConfig
from agents.trainable import Preset
from lewm_gym.data.goals import GoalBatch
from lewm_gym.nn.goal_conditioned import join, log_likelihood
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


class GCBC(GoalPolicy):
    """The policy and its loss."""

    def loss(self, batch: GoalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the negative log-likelihood of the recorded actions, and their mean squared error."""
        frames = self.observer.prepare(torch.cat([batch.pixels, batch.actor_goals]))
        now, goal = self.observer.trained(frames).chunk(2)
        mean, actions = self.actor(join(now, goal)), self.normalize_actions(batch.actions)
        return -log_likelihood(mean, actions).mean(), {"action_error": (mean - actions).square().mean()}


class GCBCAgent(PolicyAgent):
    """GCBC as a Gymnasium policy."""

    name = "gcbc"
    presets = {
        "paper": Preset(PolicyConfig(**PAPER), None, TRAINING["paper"]),
        "laptop": Preset(PolicyConfig(), None, TRAINING["laptop"]),
    }
    model_class = GCBC
    config_class = PolicyConfig
