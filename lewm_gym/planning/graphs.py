"""A cost as one CUDA graph: searches ask for it many times at the same shapes, and wait for kernels to be launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: (function of no arguments that computes on fixed memory) -> (replay, the output's fixed memory)
Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], Any], Tensor]]


def record(compute: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
    """Returns how to replay a computation on a GPU, and where its result then lies.

    It is run three times on a stream of its own first, as torch asks: libraries then have allocated what they need.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = compute()
    return graph.replay, output


class _Recording(NamedTuple):
    inputs: tuple[Tensor, ...]
    replay: Callable[[], Any]
    output: Tensor


class Graphs:
    """Replays a function of tensors, recorded once for each set of shapes.

    Args:
        function: Of tensors, to a tensor; it reads nothing else that changes, never waits for the device, and works at
            the same addresses whenever it is replayed.
        recorder: What records a computation; `record`, for a GPU.
    """

    def __init__(self, function: Callable[..., Tensor], recorder: Recorder = record) -> None:
        self._function, self._recorder = function, recorder
        self._recordings: dict[tuple[Any, ...], _Recording] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Returns what the function returns, in memory of its own."""
        key = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs)
        if key not in self._recordings:
            fixed = tuple(tensor.clone() for tensor in inputs)
            self._recordings[key] = _Recording(fixed, *self._recorder(lambda: self._function(*fixed)))
        recording = self._recordings[key]
        for fixed_input, given in zip(recording.inputs, inputs, strict=True):
            fixed_input.copy_(given)
        recording.replay()
        return recording.output.clone()
