"""Variations sampled for every episode: colours, sizes, light, densities.

They have their own random stream, so varied colours do not change an episode's states and actions.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

ALL = "all"
_STREAM = 1  # beside the episode's own


def choose_variations(ranges: Mapping[str, Any], text: str | None) -> tuple[str, ...]:
    """Returns the sorted names of "all" or of a list such as "agent_color,block_color".

    Args:
        ranges: The environment's `variation_ranges`.
        text: "all" or names; None or an empty string: none.

    Raises:
        ValueError: For a name that the environment does not have.
    """
    names = set(ranges) if text == ALL else {name.strip() for name in (text or "").split(",") if name.strip()}
    unknown = sorted(names - set(ranges))
    if unknown:
        raise ValueError(f"unknown variations {unknown}; expected {ALL!r} or some of {sorted(ranges)}")
    return tuple(sorted(names))


def draw_variations(
    ranges: Mapping[str, Any], names: tuple[str, ...], task: str, seed: int, number: int
) -> dict[str, Any]:
    """Returns the values of one episode as JSON values, uniform within their ranges.

    Args:
        ranges: The environment's `variation_ranges`.
        names: Which to sample.
        task: Name of the task.
        seed: Seed of the collection.
        number: Of the episode.
    """
    values = {}
    for name in names:  # each from its own stream: what else is varied does not matter
        key = [zlib.crc32(task.encode()), seed, number, _STREAM, zlib.crc32(name.encode())]
        rng = np.random.default_rng(key)
        allowed = ranges[name]
        if isinstance(allowed, list):
            values[name] = allowed[int(rng.integers(len(allowed)))]
        else:
            low, high, default = allowed
            values[name] = np.asarray(rng.uniform(low, high, np.shape(default))).tolist()
    return values
