"""How many threads a search uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Numbers in the predicted latents of one step below which one thread is faster. Measured on 2 cores of an AMD EPYC
#: with sleeping OpenMP threads: 9,600 (preset laptop) 1.7x faster with one, 57,600 (paper) 1.4x faster with two.
SMALL = 20_000


@contextmanager
def suited_threads(numbers: int) -> Iterator[None]:
    """Computes with one thread where operations on so many numbers cost less than waking the other threads."""
    threads = torch.get_num_threads()
    if numbers > SMALL or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
