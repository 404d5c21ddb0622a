"""A cost function as one CUDA graph: searches evaluate it many times with the same shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: (function of no arguments that computes on fixed memory) -> (replay, the output's fixed memory)
Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], Any], Tensor]]


def record(compute: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
    """Returns a function that replays a computation on a GPU, and the tensor of its result.

    The computation runs three times on a separate stream first, as torch requires, for libraries to allocate memory.
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
        function: Of tensors, to a tensor; it must not read other changing data, never wait for the device, and use the
            same addresses whenever it is replayed.
        recorder: Records a computation; `record`, for a GPU.
    """

    def __init__(self, function: Callable[..., Tensor], recorder: Recorder = record) -> None:
        self._function, self._recorder = function, recorder
        self._recordings: dict[tuple[Any, ...], _Recording] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Returns the function's result, in separate memory."""
        key = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs)
        if key not in self._recordings:
            fixed = tuple(tensor.clone() for tensor in inputs)
            self._recordings[key] = _Recording(fixed, *self._recorder(lambda: self._function(*fixed)))
        recording = self._recordings[key]
        for fixed_input, given in zip(recording.inputs, inputs, strict=True):
            fixed_input.copy_(given)
        recording.replay()
        return recording.output.clone()
