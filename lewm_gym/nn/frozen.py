"""Frozen networks: no gradient, no optimiser, fixed statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class FixedNorm(nn.Module):
    """Batch normalisation with fixed statistics, independent of the mode.

    Training and validation set BatchNorm layers to training mode and update their statistics; those of a frozen encoder
    must not change. Names of the tensors are BatchNorm's own.
    """

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        for name, tensor in norm.state_dict().items():
            self.register_buffer(name, tensor.clone())

    def forward(self, values: Tensor) -> Tensor:
        """Returns values (n, features, ...), normalised."""
        return F.batch_norm(
            values, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


def freeze(module: Module) -> Module:
    """Returns `module` without gradients, its BatchNorm layers fixed; changed in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, FixedNorm(child))
        else:
            freeze(child)
    return module.requires_grad_(False)


@contextmanager
def held(*modules: nn.Module) -> Iterator[None]:
    """Within: gradients pass through the modules, but not to their parameters."""
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
