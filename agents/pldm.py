"""PLDM (arXiv 2502.14819): a world model regularised by VICReg, with LeWM's network and planner.

For the latents z of a clip, (B, T, Z), the predicted ones z^ and the blocks a between them:

    L = mean((z^_{t+1} - z_{t+1})^2)                             prediction
      + 18  * mean_{t,j}  relu(1 - std_b(z_{b,t,j}))             variance, over the batch
      + 12  * mean_{t,i!=j} cov_b(z_{b,t,i}, z_{b,t,j})^2        covariance, over the batch
      + 0.2 * mean((z_{t+1} - z_t)^2)                            time_similarity
      + 0.7 * mean_{b,j}  relu(1 - std_t(z_{b,t,j}))             time_variance
      + 0   * mean_{b,i!=j} cov_t(z_{b,t,i}, z_{b,t,j})^2        time_covariance
      + 0   * mean((inverse(z_t, z_{t+1}) - a_t)^2)              inverse_dynamics

The coefficients are those that the LeWM paper (arXiv 2603.19312) chose for its comparison. Differences:

- paper (PLDM): a convolutional encoder, a recurrent predictor and MPPI; here, as in the LeWM paper: LeWM's network and
  planner, so that only the loss differs.
- paper (PLDM): squared off-diagonal entries summed and divided by Z; here their mean, divided by Z (Z - 1), as in the
  code that the LeWM paper's coefficients were tuned in.
- that code centres on the batch before it takes moments over time; here each clip is centred on its own mean, as a
  covariance is; its coefficient is 0.
- if processes share a batch, its moments are over the whole batch, with gradient.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents import lewm
from agents.imitation import LatentAgent
from agents.trainable import Preset
from lewm_gym.data.hindsight import HindsightBatch
from lewm_gym.nn.images import shifted
from lewm_gym.nn.vicreg import batch_moments, covariance_loss, time_moments, variance_loss
from lewm_gym.types import Batch

TERMS = ("variance", "covariance", "time_similarity", "time_variance", "time_covariance", "inverse_dynamics")


@dataclass(frozen=True)
class PLDMConfig(lewm.LeWMConfig):
    """LeWM's architecture with the weights of PLDM's terms; the defaults are the LeWM paper's."""

    sigreg_weight: float = 0.0  # PLDM has no SIGReg
    variance_weight: float = 18.0
    covariance_weight: float = 12.0
    time_similarity_weight: float = 0.2
    time_variance_weight: float = 0.7
    time_covariance_weight: float = 0.0
    inverse_dynamics_weight: float = 0.0
    inverse_width: int = 512  # hidden width of the inverse dynamics

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sigreg_weight", "decoder_weight", "inverse_weight", "information_weight"):
            if getattr(self, name):
                raise ValueError(
                    f"PLDM has no SIGReg, decoder or AD-WM heads: {name} must stay 0, got {getattr(self, name)}"
                )
        for term in TERMS:
            if not 0 <= self.weight(term) < math.inf:
                raise ValueError(f"{term}_weight must not be negative, nor infinite, got {self.weight(term)}")

    def weight(self, term: str) -> float:
        """Returns the weight of one of TERMS."""
        return float(getattr(self, f"{term}_weight"))


class PLDM(lewm.LeWM):
    """LeWM's network with PLDM's loss, and an inverse-dynamics head that only the loss uses."""

    config: PLDMConfig

    def __init__(self, config: PLDMConfig) -> None:
        super().__init__(config)
        self.inverse = nn.Sequential(
            nn.Linear(2 * config.latent_size, config.inverse_width),
            nn.GELU(),
            nn.Linear(config.inverse_width, config.action_block_size),
        )

    def loss(self, batch: Batch | HindsightBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the training loss of a batch of clips, and its seven unweighted terms."""
        pixels = shifted(batch.pixels, self.config.image_shift) if self.training else batch.pixels
        seen, actions = self.encode(pixels), self.normalize_actions(batch.actions)
        latents = seen[:, : actions.shape[1] + 1]  # of a clip; later frames follow where an actor is trained jointly
        predicted = self.predict(latents[:, :-1], actions)
        prediction = (predicted - latents[:, 1:]).float().square().mean()
        terms = self.regularisers(latents, actions)
        total = prediction + sum(self.config.weight(name) * term for name, term in terms.items())
        if isinstance(batch, HindsightBatch):
            terms["imitation"] = self.imitation(seen, batch)
            total = total + self.config.imitation_weight * terms["imitation"]
        return total, {"prediction": prediction, **terms}

    def regularisers(self, latents: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """Returns the other six terms, one for each name in TERMS.

        Args:
            latents: (B, T, Z).
            actions: (B, T - 1, A), z-scored.
        """
        latents = latents.float()  # before differences are taken
        std, covariance = batch_moments(latents)
        time_std, time_covariance = time_moments(latents)
        pairs = torch.cat([latents[:, :-1], latents[:, 1:]], dim=-1)
        values = (
            variance_loss(std),
            covariance_loss(covariance),
            (latents[:, 1:] - latents[:, :-1]).square().mean(),
            variance_loss(time_std),
            covariance_loss(time_covariance),
            (self.inverse(pairs) - actions).float().square().mean(),
        )
        return dict(zip(TERMS, values, strict=True))


def _presets() -> dict[str, Preset]:
    """Returns LeWM's presets with PLDM's loss."""
    presets = {}
    for name, preset in lewm.PRESETS.items():
        settings: dict[str, Any] = {f.name: getattr(preset.model, f.name) for f in dataclasses.fields(lewm.LeWMConfig)}
        presets[name] = dataclasses.replace(preset, model=PLDMConfig(**{**settings, "sigreg_weight": 0.0}))
    return presets


class PLDMAgent(LatentAgent):
    """PLDM as a Gymnasium policy."""

    name = "pldm"
    presets = _presets()
    model_class = PLDM
    config_class = PLDMConfig
