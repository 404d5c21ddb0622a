"""Where to compute."""

from __future__ import annotations

import torch


def choose_device(device: str | None = None) -> str:
    """Returns `device`, or the best one available: a CUDA GPU, an Apple GPU (`mps`, untested), else the CPU.

    Raises:
        ValueError: For a device that torch does not know or cannot use.
    """
    if device is None:
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot compute on device {device!r}: {reason}; try cpu") from None
    return device
