"""Numbers as distributions over bins (arXiv 2301.04104, section "Robust predictions"; arXiv 2310.16828, appendix).

A network says a distribution over K bins, evenly spaced in symlog(x) = sign(x) log(1 + |x|); its mean there, mapped
back, is the number meant. It is trained with the cross-entropy to a two-hot target: the two bins beside symlog(x) share
the weight so that their mean is symlog(x). The gradient is then of the same size for small and for large numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def symlog(x: Tensor) -> Tensor:
    """Returns sign(x) log(1 + |x|), elementwise."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Returns sign(x) (exp(|x|) - 1), elementwise: the inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


class TwoHot(nn.Module):
    """Bins, and how numbers become distributions over them and back; no parameters.

    Args:
        low: Centre of the first bin, in symlog.
        high: Centre of the last one.
        n_bins: K.
    """

    centres: Tensor  # (K,)

    def __init__(self, low: float = -10.0, high: float = 10.0, n_bins: int = 101) -> None:
        super().__init__()
        if not low < high or n_bins < 2:
            raise ValueError(f"bins need low < high and at least 2 of them, got {low}, {high} and {n_bins}")
        self.register_buffer("centres", torch.linspace(low, high, n_bins), persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """Returns two-hot targets (..., K) of numbers (...); those beyond the last bins are taken for these."""
        low, high = self.centres[0], self.centres[-1]
        position = (symlog(x.float()).clamp(low, high) - low) / (high - low) * (len(self.centres) - 1)
        bins = torch.arange(len(self.centres), device=x.device)
        return (1 - (position.unsqueeze(-1) - bins).abs()).clamp_min(0.0)

    def decode(self, logits: Tensor) -> Tensor:
        """Returns the numbers (...) that logits (..., K) mean, float32."""
        return symexp((logits.float().softmax(dim=-1) * self.centres).sum(dim=-1))

    def loss(self, logits: Tensor, x: Tensor) -> Tensor:
        """Returns the cross-entropies (...) of logits (..., K) to the two-hot targets of numbers (...)."""
        return -(self.encode(x) * logits.float().log_softmax(dim=-1)).sum(dim=-1)
