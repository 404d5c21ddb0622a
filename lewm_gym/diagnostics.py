"""Statistics of latents during training: representation collapse, and straightness of trajectories."""

from __future__ import annotations

import torch
from torch import Tensor

#: Below these the latents carry next to nothing (a healthy run has 0.9 and more than half of its dimensions).
COLLAPSED_STD = 0.1
COLLAPSED_RANK = 1.5


def latent_statistics(latents: Tensor) -> dict[str, float]:
    """Returns statistics of the latents of clips, (B, T, Z).

    - `latent_std`: mean standard deviation per dimension, over the batch and time; 1 in a standard normal.
    - `effective_rank`: exp of the entropy of the normalised singular values (RankMe, arXiv 2210.02885), 1..Z.
    - `straightness`: mean cosine between consecutive latent velocities (arXiv 2603.19312, section G); NaN-free: 0 for
      latents that do not move.
    """
    flat = latents.detach().float().flatten(0, -2)
    singular = torch.linalg.svdvals(flat - flat.mean(dim=0))
    shares = singular / singular.sum().clamp_min(1e-12)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    velocities = latents.detach().float().diff(dim=1)
    cosines = torch.nn.functional.cosine_similarity(velocities[:, :-1], velocities[:, 1:], dim=-1)
    return {
        "latent_std": float(flat.std(dim=0).mean()),
        "effective_rank": float(entropy.exp()),
        "straightness": float(cosines.mean()),
    }


def collapse_warning(statistics: dict[str, float]) -> str | None:
    """Returns a warning if the latents have collapsed, else None."""
    std, rank = statistics["latent_std"], statistics["effective_rank"]
    if std >= COLLAPSED_STD and rank >= COLLAPSED_RANK:
        return None
    return (
        f"the latents have collapsed: standard deviation {std:.3g}, effective rank {rank:.3g}; planning will fail. "
        "Raise sigreg_weight (0.09 is the paper's), and check that the dataset shows more than one picture"
    )
