"""Statistics over the whole batch when it is spread over processes (`torchrun`), on GPUs and on the CPU.

Batch statistics are not sums over samples: computed on a part of the batch, they give another loss. Means are
therefore taken over all processes, with gradient. Each process's backward pass then yields the gradient of the *sum*
of all processes' losses, which DistributedDataParallel's averaging turns into that of their mean: with n processes
holding 1/n of a batch each, loss and gradient are those of one process with the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_alone = False


def world_size() -> int:
    """Returns the number of processes that share a batch, 1 without `torchrun` or within `alone()`."""
    return dist.get_world_size() if not _alone and dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Returns whether this process writes files: the only one, or the first one under `torchrun`."""
    return world_size() == 1 or dist.get_rank() == 0


def wait_for_all() -> None:
    """Waits until every process has called it."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def alone() -> Iterator[None]:
    """Lets this process compute alone, for validation and recalibration."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def all_mean(values: Tensor) -> Tensor:
    """Returns the mean of `values` over all processes, with gradient."""
    n = world_size()
    return values if n == 1 else _AllSum.apply(values) / n


def from_first(values: Tensor) -> Tensor:
    """Returns the first process's `values`, in place, without gradient."""
    if world_size() > 1:
        dist.broadcast(values, 0)
    return values


class _AllSum(torch.autograd.Function):
    """Sum over processes; every process's loss depends on every summand, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class _SharedStatistics(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over all processes; within one process, torch's own.

    torch's SyncBatchNorm rejects the CPU; this one is written with plain differentiable operations.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """Returns the normalised input, (n, features) or (n, channels, h, w)."""
        n = world_size()
        if n == 1 or not self.training:
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        shape = (1, -1) + (1,) * (input.ndim - 2)
        values = input.float()
        mean = all_mean(values.mean(dim=axes))
        centred = values - mean.view(shape)
        variance = all_mean(centred.square().mean(dim=axes))  # biased, as torch normalises
        self._track(mean.detach(), variance.detach(), n * input.numel() // input.shape[1])
        normal = centred * torch.rsqrt(variance + self.eps).view(shape)
        return (normal * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance * (count / (count - 1)), rate)


class BatchNorm1d(_SharedStatistics, nn.BatchNorm1d):
    """Batch normalisation of (n, features) over all processes."""


class BatchNorm2d(_SharedStatistics, nn.BatchNorm2d):
    """Batch normalisation of (n, channels, h, w) over all processes."""
