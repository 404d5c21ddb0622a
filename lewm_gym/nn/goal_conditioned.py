"""Pieces of goal-conditioned learning from data: values and their spread, expectiles, advantage weights, targets."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

MAX_WEIGHT = 100.0  # of one transition in advantage-weighted regression (OGBench)


def concat_goal(frames: Tensor, goals: Tensor) -> Tensor:
    """Returns encodings of frames and goals with their absolute difference, (n, 3 width) from (n, width) each.

    Values depend on whether the goal is reached. Without |s - g| an MLP has to learn this comparison, which is several
    times slower (tests/test_baselines_learn.py).
    """
    return torch.cat([frames, goals, (frames - goals).abs()], dim=-1)


class MLP(nn.Module):
    """Linear layers with GELU, and optionally LayerNorm, between them: several (n, k_i) -> (n, out_width).

    Float32, also under autocast: values reach -100, where bf16 has a resolution of 0.5, and advantages are differences
    of such values.

    Args:
        in_width: Sum of the inputs' widths.
        hidden_widths: Of the layers in between.
        out_width: Of the result.
        layer_norm: Whether hidden layers end in a LayerNorm (OGBench: value functions do, policies do not).
    """

    def __init__(self, in_width: int, hidden_widths: tuple[int, ...], out_width: int, layer_norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((in_width, *hidden_widths)):
            layers += [nn.Linear(before, after), nn.GELU()]
            if layer_norm:
                layers.append(nn.LayerNorm(after))
        self.layers = nn.Sequential(*layers, nn.Linear((in_width, *hidden_widths)[-1], out_width))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns (n, out_width), float32."""
        with torch.autocast(inputs[0].device.type, enabled=False):
            return self.layers(torch.cat(inputs, dim=-1).float())


class Values(nn.Module):
    """Independent estimates of the value of the same inputs: several (n, k_i) -> (members, n), float32."""

    def __init__(self, in_width: int, hidden_widths: tuple[int, ...], members: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(MLP(in_width, hidden_widths, 1, layer_norm=True) for _ in range(members))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns (members, n)."""
        return torch.cat([member(*inputs) for member in self.members], dim=-1).T


class PatchReader(nn.Module):
    """Reduces patch features (n, patches, width) to (n, out_width), preserving positions."""

    def __init__(self, n_patches: int, width: int, out_width: int, width_per_patch: int = 32) -> None:
        super().__init__()
        self.per_patch = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width_per_patch), nn.GELU())
        self.out = nn.Linear(n_patches * width_per_patch, out_width)

    def forward(self, patches: Tensor) -> Tensor:
        """Returns (n, out_width)."""
        return self.out(self.per_patch(patches).flatten(1))


def expectile_loss(advantage: Tensor, error: Tensor, expectile: float) -> Tensor:
    """Returns |expectile - 1(advantage < 0)| error^2, elementwise.

    If `error` is the advantage itself, the minimiser of this loss is an expectile (arXiv 2110.06169, eq. 5).
    """
    weight = torch.where(advantage < 0, 1 - expectile, expectile)
    return weight * error.square()


def regression_weights(advantage: Tensor, temperature: float, centred: bool = False) -> Tensor:
    """Returns min(exp(temperature advantage), 100), without gradient: the weights of advantage-weighted regression.

    Args:
        advantage: (n,).
        temperature: Larger values are greedier.
        centred: Subtract the batch's mean advantage first. A bias that all advantages have in common then leaves the
            weights alone, such as the -1 of GCIQL's while its values still fall from 0 towards those of far goals.
    """
    advantage = advantage.detach()
    if centred:
        advantage = advantage - advantage.mean()
    return (temperature * advantage).exp().clamp(max=MAX_WEIGHT)


def log_likelihood(mean: Tensor, actions: Tensor) -> Tensor:
    """Returns log N(actions; mean, 1) up to a constant, (n,), of (n, action_size)."""
    return -0.5 * (actions - mean).float().square().sum(dim=-1)


@torch.no_grad()
def polyak_update(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Moves the target's parameters: target <- rate target + (1 - rate) source."""
    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
        slow.lerp_(fast, 1 - rate)


@torch.no_grad()
def follow_spread(scale: Tensor, values: Tensor, rate: float = 0.01) -> None:
    """Moves `scale` towards the distance between the 5th and the 95th percentile of values, or 1 if that is less."""
    low, high = values.float().flatten().quantile(torch.tensor([0.05, 0.95], device=values.device))
    scale.lerp_((high - low).clamp_min(1.0), rate)
