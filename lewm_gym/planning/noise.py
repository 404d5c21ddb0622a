"""Random candidates, one stream per environment: what is drawn for one never depends on the others."""

from __future__ import annotations

import torch
from torch import Tensor


def candidates(generators: list[torch.Generator], n_samples: int, mean: Tensor, std: Tensor) -> Tensor:
    """Returns samples (B, n_samples, H, A) of N(mean, std), the mean itself first, row b from stream b alone.

    Args:
        generators: B streams, one per environment.
        n_samples: Samples per environment, the mean among them.
        mean: (B, H, A).
        std: (B, H, A).
    """
    rows = [torch.randn(n_samples, *mean.shape[1:], generator=g, device=g.device) for g in generators]
    noise = torch.stack(rows).to(mean.device)
    noise[:, 0] = 0.0
    return mean.unsqueeze(1) + std.unsqueeze(1) * noise


def coloured(
    generators: list[torch.Generator], n_samples: int, like: Tensor, exponent: float, steps_per_block: int
) -> Tensor:
    """Returns noise (B, n_samples, H, A) with a power spectrum 1 / frequency ** exponent along environment steps.

    Row b comes from stream b alone; `like`, (B, H, A), gives shape and device. Each block holds `steps_per_block`
    consecutive actions; the colour runs through all H * steps_per_block of them.
    Each has variance 1.
    """
    n_steps = like.shape[1] * steps_per_block
    frequencies = torch.fft.rfftfreq(n_steps)
    frequencies[0] = frequencies[1] if n_steps > 1 else 1.0  # the mean gets as much power as the slowest wave
    scale = frequencies ** (-exponent / 2)
    weights = torch.full_like(scale, 2.0)
    weights[0] = 1.0
    if n_steps % 2 == 0:
        weights[-1] = 1.0
    scale = scale * (n_steps / (weights * scale.square()).sum().sqrt())
    action_size = like.shape[2] // steps_per_block
    rows = []
    for g in generators:
        real, imaginary = torch.randn(2, n_samples, action_size, len(scale), generator=g, device=g.device)
        imaginary[..., 0] = 0.0
        real[..., 0] *= 2**0.5  # the mean has no imaginary part to share its power with
        if n_steps % 2 == 0:
            imaginary[..., -1] = 0.0
            real[..., -1] *= 2**0.5
        spectrum = torch.complex(real, imaginary) * (scale.to(g.device) / 2**0.5)
        series = torch.fft.irfft(spectrum, n=n_steps)  # (S, action_size, n_steps)
        rows.append(series.transpose(1, 2).reshape(n_samples, *like.shape[1:]))
    return torch.stack(rows).to(like.device)
