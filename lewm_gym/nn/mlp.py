"""Linear layers with LayerNorm between them, as model-based reinforcement learning has them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import nn


def normed_mlp(
    in_width: int,
    hidden_widths: tuple[int, ...],
    out_width: int,
    activation: Callable[[], nn.Module],
    dropout: float = 0.0,
) -> nn.Sequential:
    """Returns hidden layers of Linear, LayerNorm and activation, then a linear output.

    Args:
        in_width: Width of the input.
        hidden_widths: Of the layers in between.
        out_width: Width of the output.
        activation: Class of the activation.
        dropout: Of the first layer, before its LayerNorm.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise((in_width, *hidden_widths)):
        drops = [nn.Dropout(dropout)] if dropout and not layers else []
        layers += [nn.Linear(before, after), *drops, nn.LayerNorm(after), activation()]
    return nn.Sequential(*layers, nn.Linear((in_width, *hidden_widths)[-1], out_width))


def zero_at_first(network: nn.Sequential) -> nn.Sequential:
    """Returns the network with a last layer of zeros: over symmetric bins it says 0."""
    last = network[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return network
