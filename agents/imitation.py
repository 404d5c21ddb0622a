"""The second stage of a training with an actor: the world model is frozen, an actor learns on its latents.

All frames are encoded once; steps then cost a hundredth of the first stage's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lewm_gym import checkpoint, training
from lewm_gym.data.clips import ClipSampler
from lewm_gym.data.hindsight import HindsightLatents, LatentPairs
from lewm_gym.nn.distributed import is_first, wait_for_all
from lewm_gym.training import OnLog, Sink, TrainingConfig

FOLDER = "actor"  # within the run folder: log and checkpoint of this stage
_FRAMES_AT_ONCE = 256


class ActorLearner(nn.Module):
    """What the second stage trains: the actor and its estimate of the steps left.

    Args:
        model: The frozen world model, whose `actor` is trained and whose statistics normalise actions.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.actor = model.actor
        self._normalize = model.normalize_actions

    def loss(self, batch: LatentPairs) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of a batch, and its parts."""
        actions = self._normalize(batch.next_actions, missing=math.nan)
        imitation = self.actor.imitation_loss(batch.latents, batch.goals, batch.steps, actions)
        distance = self.actor.distance_loss(batch.latents, batch.goals, batch.steps)
        return imitation + distance, {"imitation": imitation, "distance": distance}

    def after_step(self) -> None:
        """Nothing: there is no target network."""


def train_actor(
    model: Any,
    clips: ClipSampler,
    validation: ClipSampler | None,
    config: TrainingConfig,
    folder: Path,
    device: str | torch.device,
    on_log: OnLog | None = None,
    sinks: Sequence[Sink] = (),
    run: str = "",
) -> float:
    """Trains a fresh actor on the latents of a trained world model, or goes on where that stands.

    Args:
        model: The world model; gets the weights in `folder`, and the actor.
        clips: Where its training frames come from.
        validation: Held-out frames, or None.
        config: How the world model was trained.
        folder: The run folder; its weights become those of the world model with the actor.
        device: Where to compute.
        on_log: Called after every step with (steps done, steps in all, latest logs).
        sinks: Where else logged rows go.
        run: Names all that determines the result.

    Returns:
        Seconds spent in training steps.
    """
    weights = folder / checkpoint.WEIGHTS
    checkpoint.load_weights(model, checkpoint.load_tensors(weights, run), str(weights))
    model.to(device).eval()
    options = model.config
    torch.manual_seed(training.step_seed(config.seed, -2 % 2**32))  # a stream that no step uses
    model.actor = model.fresh_actor().to(device)
    learner = ActorLearner(model)
    samplers = [
        None
        if frames is None
        else HindsightLatents(
            encode_frames(model, frames, device),
            frames.dataset,
            frames.episodes,
            options.goal_steps,
            options.frame_skip,
            config.seed,
            frames.picture_every,
        )
        for frames in (clips, validation)
    ]
    stage = TrainingConfig(
        steps=options.actor_steps,
        batch_size=options.actor_batch_size,
        learning_rate=options.actor_learning_rate,
        weight_decay=config.weight_decay,
        schedule="cosine",
        precision=config.precision,
        seed=config.seed,
        log_every_steps=config.log_every_steps,
        validate_every_steps=config.validate_every_steps,
        checkpoint_every_s=config.checkpoint_every_s,
    )
    inner = folder / FOLDER
    if is_first():
        inner.mkdir(exist_ok=True)
    wait_for_all()
    seconds = training.train(learner, samplers[0], samplers[1], stage, inner, device, on_log, sinks, run)  # type: ignore[arg-type]
    if is_first():
        checkpoint.save_tensors(weights, model.state_dict(), run)
    wait_for_all()
    return seconds


@torch.inference_mode()
def encode_frames(model: Any, frames: ClipSampler, device: str | torch.device) -> Tensor:
    """Returns the latents (rows, Z) of all stored frames of a sampler's episodes, one after the other."""
    latents = [
        model.encode(chunk.to(device)).float()
        for episode in frames.episode_frames()
        for chunk in torch.from_numpy(episode).split(_FRAMES_AT_ONCE)
    ]
    return torch.cat(latents).clone()
