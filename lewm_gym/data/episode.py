"""One episode in memory, as plain arrays."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_gym.tasks import IMAGE_SIZE

FRAME_SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3)


@dataclass(frozen=True)
class Episode:
    """T frames with actions, states and quantities.

    Attributes:
        pixels: (T, 224, 224, 3) uint8; None without frames; if only every N-th frame has an image,
            (ceil(T / N), 224, 224, 3).
        action: (T, action_size) float32; row t leads from frame t to frame t + 1; the last row is NaN.
        state: (T, state_size) float64, the simulator's whole state.
        quantities: Name -> (T, k) float32, physical quantities for probing.
        success: (T,) bool, whether the goal of the collection policy was reached.
        reset_options: Reset options, besides the state, for rendering the frames: "variations" and "goal_state", as
            JSON values. Empty for the defaults.
        picture_every: N: `pixels` are of the frames 0, N, 2N, ...
    """

    pixels: NDArray[np.uint8] | None
    action: NDArray[np.float32]
    state: NDArray[np.float64]
    success: NDArray[np.bool_]
    quantities: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    reset_options: dict[str, Any] = field(default_factory=dict)
    picture_every: int = 1

    def __len__(self) -> int:
        """Returns T, the number of frames."""
        return len(self.state)


def count_pictures(frames: Any, picture_every: int) -> Any:
    """Returns the number of stored images of an episode (or of several) with this number of frames."""
    return -(-frames // picture_every)


def check_episode(episode: Episode) -> None:
    """Validates shapes, dtypes and values of an external episode.

    Raises:
        ValueError: Naming the column, what was expected and what was given.
    """
    length = len(episode.state)
    if length < 2:
        raise ValueError(f"an episode needs at least 2 frames (one action), got {length}")
    _check("state", episode.state, (length, None), np.float64)
    _check("action", episode.action, (length, None), np.float32)
    _check("success", episode.success, (length,), np.bool_)
    for name, values in episode.quantities.items():
        _check(name, values, (length, None), np.float32)
    if episode.pixels is not None:
        _check("pixels", episode.pixels, (count_pictures(length, episode.picture_every), *FRAME_SHAPE), np.uint8)
    if not np.isnan(episode.action[-1]).all():
        raise ValueError("action: the last row must be NaN, since no action leaves the last frame")
    if not np.isfinite(episode.action[:-1]).all():
        step = int(np.flatnonzero(~np.isfinite(episode.action[:-1]).all(1))[0])
        raise ValueError(f"action: row {step} is {episode.action[step].tolist()}; only the last row may be NaN")
    if not np.isfinite(episode.state).all():
        raise ValueError("state: contains NaN or infinity")


def _check(name: str, values: Any, shape: tuple[int | None, ...], dtype: Any) -> None:
    fits = (
        isinstance(values, np.ndarray)
        and values.dtype == dtype
        and values.ndim == len(shape)
        and all(want in (None, got) for want, got in zip(shape, values.shape, strict=True))
    )
    if not fits:
        wanted = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
        came = f"{values.shape} {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(f"{name}: expected {wanted} {np.dtype(dtype)}, got {came}")


def states_hash(episode: Episode) -> str:
    """Returns BLAKE2b-128 over actions, states, success, quantities (by name) and reset options, if any."""
    digest = hashlib.blake2b(digest_size=16)
    named: dict[str, NDArray[Any]] = {
        "action": episode.action,
        "state": episode.state,
        "success": episode.success.astype(np.uint8),
    }
    for name, values in (*named.items(), *sorted(episode.quantities.items())):
        digest.update(f"{name} {values.shape} {values.dtype}".encode())
        digest.update(np.ascontiguousarray(values).data)
    if episode.reset_options:
        digest.update(json.dumps(episode.reset_options, sort_keys=True).encode())
    return digest.hexdigest()
