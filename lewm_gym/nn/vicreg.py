"""VICReg's variance and covariance (arXiv 2105.04906), along the batch or along time, as PLDM uses them.

Moments are float32, autocast or not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lewm_gym.nn.distributed import all_mean, world_size

EPSILON = 1e-4  # under the root


def batch_moments(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Returns per frame the standard deviations (T, Z) and covariances (T, Z, Z) over the batch of (B, T, Z).

    Unbiased. If processes share a batch, over the whole batch, with gradient.
    """
    values = latents.float().transpose(0, 1)
    count = values.shape[1] * world_size()
    centred = values - all_mean(values.mean(dim=1, keepdim=True))
    covariance = all_mean(_products(centred)) * world_size() / (count - 1)
    return _std(covariance), covariance


def time_moments(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Returns per clip the standard deviations (B, Z) and covariances (B, Z, Z) over the frames of (B, T, Z)."""
    values = latents.float()
    centred = values - values.mean(dim=1, keepdim=True)
    covariance = _products(centred) / (values.shape[1] - 1)
    return _std(covariance), covariance


def variance_loss(std: Tensor) -> Tensor:
    """Returns the mean shortfall of standard deviations (..., Z) from 1."""
    return torch.relu(1 - std).mean()


def covariance_loss(covariance: Tensor) -> Tensor:
    """Returns the mean square of the off-diagonal entries of (..., Z, Z)."""
    width = covariance.shape[-1]
    if width < 2:
        return covariance.new_zeros(())
    squares = covariance.square()
    beside = squares.sum(dim=(-2, -1)) - squares.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return (beside / (width * (width - 1))).mean()


def _products(centred: Tensor) -> Tensor:
    """Returns the sums of products (n, Z, Z) of centred values (n, k, Z)."""
    with torch.autocast(centred.device.type, enabled=False):
        return centred.transpose(1, 2) @ centred


def _std(covariance: Tensor) -> Tensor:
    return (covariance.diagonal(dim1=-2, dim2=-1) + EPSILON).sqrt()
