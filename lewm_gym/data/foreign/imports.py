"""What all importers share: resumable conversion of episodes to a dataset folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_gym.data.codec import codec_for, encode
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.episode import FRAME_SHAPE, Episode, check_episode
from lewm_gym.data.format.header import Header, columns_of, installed_versions
from lewm_gym.data.writer import open_writer, save_episode

#: Called with (episodes done, episodes in all).
Progress = Callable[[int, int], None]


def import_episodes(
    folder: Path,
    header: Header,
    count: int,
    read: Callable[[int], Episode],
    source: Path,
    units: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Returns the dataset of `count` episodes. Can be resumed, like a collection.

    Args:
        folder: Output folder.
        header: Recipe of the dataset; codec and columns are added.
        count: Number of episodes.
        read: Returns the episode with a number in 0 to `count - 1`.
        source: Source of the episodes, for messages.
        units: Units of quantities.
        progress: Called after every episode.

    Raises:
        ValueError: Naming the invalid episode, or a folder with another dataset.
    """
    if count < 1:
        raise ValueError(f"{source} holds no episodes")
    with open_writer(folder, header, range(count)) as writer:
        missing = list(writer.missing)
        for done, number in enumerate(missing, start=1):
            try:
                episode = read(number)
                check_episode(episode)
            except ValueError as error:
                raise ValueError(f"{source}, episode {number}: {error}") from None
            described = header.with_columns(columns_of(episode, units or {}), installed_versions(()))
            save_episode(folder, described, number, encode(episode, codec_for(header.task)))
            writer.add(number)
            if progress is not None:
                progress(done, len(missing))
        writer.close()
    return Dataset.open(folder)


def padded_actions(actions: Any, length: int) -> NDArray[np.float32]:
    """Returns (length, action_size) float32 actions of an episode of `length` frames; the last row is NaN.

    Args:
        actions: (length, ...) or (length - 1, ...); an action after the last frame is dropped.
        length: Number of frames.
    """
    array = np.asarray(actions, np.float32)
    array = array.reshape(len(array), -1)
    if len(array) not in (length - 1, length):
        raise ValueError(f"{len(array)} actions do not fit {length} frames")
    nothing = np.full((1, array.shape[1]), np.nan, np.float32)
    return np.concatenate([array[: length - 1], nothing])


def resized_frames(pictures: Any) -> NDArray[np.uint8]:
    """Returns (T, 224, 224, 3) uint8 frames of images of any size, resized to the square with antialiasing.

    Raises:
        ValueError: If they are not (T, h, w, 3), or (T, 3, h, w), uint8.
    """
    array = np.asarray(pictures)
    if array.ndim == 4 and array.shape[-1] != 3 and array.shape[1] == 3:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(f"images must be (T, h, w, 3) uint8, got {array.shape} {array.dtype}")
    if array.shape[1:] == FRAME_SHAPE:
        return np.ascontiguousarray(array)
    from PIL import Image

    size = (FRAME_SHAPE[1], FRAME_SHAPE[0])
    small = [Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR) for frame in array]
    return np.stack([np.asarray(frame) for frame in small])


def vectors(columns: dict[str, Any], length: int) -> dict[str, NDArray[np.float64]]:
    """Returns the numeric columns as (length, k) float64; those of text, images or another length are left out."""
    found = {}
    for name, values in columns.items():
        array = np.asarray(values)
        if array.dtype.kind in "biuf" and array.ndim >= 1 and len(array) == length:
            flat = array.reshape(length, -1).astype(np.float64)
            if flat.shape[1]:
                found[name] = flat
    return found


def state_of(columns: dict[str, NDArray[np.float64]], length: int, name: str = "state") -> NDArray[np.float64]:
    """Returns the column called `name`, else all columns concatenated, else the step number."""
    if name in columns:
        return columns[name]
    if columns:
        return np.concatenate(list(columns.values()), axis=1)
    return np.arange(length, dtype=np.float64)[:, None]
