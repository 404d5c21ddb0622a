"""World models with an optional actor: agents whose training has a second stage.

The first stage trains the world model, with `imitation_weight` jointly with an actor. In the second stage the model is
frozen, and its latents train the estimate of the steps left, and the actor if the first stage did not. All frames are
encoded once, and a step costs a hundredth of the first stage's.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from agents.planning import PlanningAgent
from agents.trainable import OnLoad, Preset, split_samplers
from lewm_gym import checkpoint, training
from lewm_gym.data.clips import ClipSampler
from lewm_gym.data.hindsight import HindsightClips, HindsightLatents, LatentPairs
from lewm_gym.nn.distributed import is_first, wait_for_all
from lewm_gym.training import OnLog, TrainingConfig

if TYPE_CHECKING:
    from lewm_gym.data.dataset import Dataset

FOLDER = "actor"  # within the run folder: log and checkpoint of this stage
_FRAMES_AT_ONCE = 256


class LatentAgent(PlanningAgent):
    """Planning with an optional actor on the latents: what LeWM and PLDM share."""

    recipes: ClassVar[dict[str, dict[str, Any]]] = {}

    @classmethod
    def preset(cls, name: str, task: str) -> Preset:
        """Returns a preset, with what `recipes` changes for the task if it is `guided`."""
        found = super().preset(name, task)
        changes = cls.recipes.get(task, {}) if name == "guided" else {}
        parts: dict[str, Any] = {
            part: {k: v for k, v in changes.items() if k in {f.name for f in dataclasses.fields(of)}}
            for part, of in (("model", found.model), ("training", found.training))
        }
        planning = {k: v for k, v in changes.items() if k not in parts["model"] and k not in parts["training"]}
        return Preset(
            dataclasses.replace(found.model, **parts["model"]),
            found.planning.changed(planning),
            dataclasses.replace(found.training, **parts["training"]),
        )

    @classmethod
    def samplers(cls, dataset: Dataset, model: Any, seed: int, on_load: OnLoad | None) -> tuple[Any, Any]:
        """Returns the samplers of training and validation batches: clips, with later frames as goals of an actor."""
        config = model.config
        options = {
            "n_frames": config.clip_frames,
            "frame_skip": config.frame_skip,
            "seed": seed,
            "image_size": config.image_size,
            "frames_every": config.frames_every,
        }

        def sampler(episodes: Any) -> ClipSampler:
            if config.imitation_weight:
                return HindsightClips(dataset, episodes, config.goal_frames, config.goal_steps, **options)
            return ClipSampler(dataset, episodes, **options)

        return split_samplers(dataset, sampler, on_load)

    @classmethod
    def train(
        cls,
        model: Any,
        clips: Any,
        validation: Any,
        config: TrainingConfig,
        folder: Path,
        device: str,
        on_log: OnLog | None = None,
        **outputs: Any,
    ) -> float:
        """Trains the world model, then the second stage if the configuration has one."""
        more = model.config.actor_steps

        def stage(before: int, after: int) -> OnLog:
            def log(done: int, total: int, latest: dict[str, float]) -> None:
                if on_log:
                    on_log(before + done, before + total + after, latest)

            return log

        if more:  # parts without a gradient are none that several processes could wait for
            model.actor.requires_grad_(False)
            model.actor.policy.requires_grad_(bool(model.config.imitation_weight))
        seconds = super().train(model, clips, validation, config, folder, device, stage(0, more), **outputs)
        if more:
            log = stage(config.steps, 0)
            seconds += train_actor(model, clips, validation, config, folder, device, log, **outputs)
        return seconds


class ActorLearner(nn.Module):
    """What the second stage trains: the actor's estimate of the steps left, and its policy unless that is trained.

    Args:
        model: The frozen world model, whose `actor` is trained and whose statistics normalise actions.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.actor = model.actor
        self._has_policy = bool(model.config.imitation_weight)
        self._normalize = model.normalize_actions
        self.actor.requires_grad_(True)
        self.actor.policy.requires_grad_(not self._has_policy)

    def loss(self, batch: LatentPairs) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of a batch, and its parts."""
        parts = {"distance": self.actor.distance_loss(batch.latents, batch.goals, batch.steps)}
        if not self._has_policy:
            actions = self._normalize(batch.next_actions, missing=math.nan)
            parts["imitation"] = self.actor.imitation_loss(batch.latents, batch.goals, batch.steps, actions)
        return sum(parts.values(), torch.zeros(())), parts

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
    **outputs: Any,
) -> float:
    """Trains the second stage on the latents of a trained world model, or resumes it.

    A policy that was trained jointly with the world model is not trained further.

    Args:
        model: The world model; gets the weights in `folder`, and the actor.
        clips: Where its training frames come from.
        validation: Held-out frames, or None.
        config: How the world model was trained.
        folder: The run folder; its weights become those of the world model with the actor.
        device: Where to compute.
        on_log: Called after every step with (steps done, total steps, latest logs).
        outputs: `sinks` and `run` of `training.train`.

    Returns:
        Seconds spent in training steps.
    """
    weights = folder / checkpoint.WEIGHTS
    checkpoint.load_weights(model, checkpoint.load_tensors(weights, outputs.get("run", "")), str(weights))
    options = model.config
    model.to(device).eval()
    learner = ActorLearner(model)
    samplers = [_latent_pairs(model, frames, config.seed, device) for frames in (clips, validation)]
    stage = dataclasses.replace(
        config,
        steps=options.actor_steps,
        batch_size=options.actor_batch_size,
        learning_rate=options.actor_learning_rate,
        schedule="cosine",
    )
    inner = folder / FOLDER
    if is_first():
        inner.mkdir(exist_ok=True)
    wait_for_all()
    seconds = training.train(learner, samplers[0], samplers[1], stage, inner, device, on_log, **outputs)  # type: ignore[arg-type]
    if is_first():
        checkpoint.save_tensors(weights, model.state_dict(), outputs.get("run", ""))
    wait_for_all()
    return seconds


def _latent_pairs(
    model: Any, frames: ClipSampler | None, seed: int, device: str | torch.device
) -> HindsightLatents | None:
    """Returns the pairs of latents of a sampler's frames."""
    if frames is None:
        return None
    options = model.config
    return HindsightLatents(
        encode_frames(model, frames, device),
        frames.dataset,
        frames.episodes,
        options.goal_steps,
        options.frame_skip,
        seed,
        frames.picture_every,
    )


@torch.inference_mode()
def encode_frames(model: Any, frames: ClipSampler, device: str | torch.device) -> Tensor:
    """Returns the latents (rows, Z) of all stored frames of a sampler's episodes, one after the other."""
    latents = [
        model.encode(chunk.to(device)).float()
        for episode in frames.episode_frames()
        for chunk in torch.from_numpy(episode).split(_FRAMES_AT_ONCE)
    ]
    return torch.cat(latents).clone()
