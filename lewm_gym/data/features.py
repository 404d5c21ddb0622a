"""Features of a frozen encoder for every image of a dataset: computed once and cached in its folder.

A file `features/<key>.f16` in the dataset's folder holds one row of float16 per image; the key is a
hash of the dataset's content, the encoder's weights and the shape of a row. It is written row by row under a
temporary name, so an interrupted computation resumes, and renamed when it is complete; its
SHA-256 is stored beside it (`<key>.sha256`) and checked before the features are used.

Size: 2 bytes per number. DINOv2's 16 patches of a frame of 56 px take 12 KiB, 1.1 GiB for 1,000 episodes of Two-Room;
the 256 of one of 224 px 192 KiB, 17 GiB for the same. Delete the folder `features` to get the space back.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lewm_gym.data.clips import ClipSampler
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.goals import GoalSampler
from lewm_gym.files import atomic_file, exclusive, make_folder, sha256
from lewm_gym.nn.distributed import is_first, wait_for_all
from lewm_gym.types import Batch, ProprioceptiveBatch

FOLDER = "features"
CHUNK = 64  # frames encoded at once
#: (n, h, w, 3) uint8 -> (n, ...) floating point
Encode = Callable[[Tensor], Tensor]


def cached_features(
    dataset: Dataset, encoder: nn.Module, encode: Encode, progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float16]:
    """Returns the features of all images, (n_pictures, ...), memory-mapped; missing ones are computed first.

    While another process computes features of this dataset, this one waits.

    Args:
        dataset: Source of the frames.
        encoder: The frozen network; its weights determine the file name, its device is used.
        encode: The function of the network to compute.
        progress: Called with (episodes done, episodes in all).

    Raises:
        ValueError: If the frames are missing, or the file is damaged.
        OSError: If the folder cannot be written.
    """
    _ = dataset.codec  # raises where there are no frames, and says what to do
    device = next(encoder.parameters()).device
    shape = _encoded(dataset.frames(0, [0]), encode, device).shape[1:]
    file = dataset.folder / FOLDER / f"{_key(dataset, encoder, shape)}.f16"
    checksum = file.with_suffix(".sha256")
    if not _is_there(file, checksum) and is_first():
        make_folder(
            file.parent, "features are kept with their dataset: copy it to where you can write, and name that copy"
        )
        with exclusive(file.parent, wait=True):  # another training on this dataset may be at it
            if not _is_there(file, checksum):
                _compute(
                    file, dataset, lambda frames: _encoded(frames, encode, device), 2 * int(np.prod(shape)), progress
                )
    wait_for_all()
    if is_first() and sha256(file) != checksum.read_text("ascii", errors="replace"):
        raise ValueError(f"{file} is damaged (its checksum differs): delete it, then its features are computed again")
    return np.memmap(file, np.float16, "r", shape=(dataset.n_pictures, *shape))


def _is_there(file: Path, checksum: Path) -> bool:
    return file.is_file() and checksum.is_file()


def _key(dataset: Dataset, encoder: nn.Module, shape: tuple[int, ...]) -> str:
    digest = hashlib.blake2b(f"{dataset.content_hash} {shape}".encode(), digest_size=12)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return digest.hexdigest()


@torch.no_grad()
def _encoded(frames: NDArray[np.uint8], encode: Encode, device: torch.device) -> NDArray[np.float16]:
    parts = [encode(part.to(device)).half().cpu() for part in torch.from_numpy(frames).split(CHUNK)]
    return np.asarray(torch.cat(parts).numpy())


def _compute(
    file: Path,
    dataset: Dataset,
    encoded: Callable[[NDArray[np.uint8]], NDArray[np.float16]],
    row_bytes: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Writes the features, from the first episode that an earlier call has not finished."""
    unfinished = file.with_suffix(".partial")
    with open(unfinished, "ab") as out:
        begun = int(np.searchsorted(dataset.picture_starts, out.tell() // row_bytes, side="right")) - 1
        out.truncate(int(dataset.picture_starts[begun]) * row_bytes)
        for episode in range(begun, dataset.n_episodes):
            out.write(encoded(dataset.frames(episode, dataset.picture_steps(episode))).data)
            if progress is not None:
                progress(episode + 1, dataset.n_episodes)
        out.flush()
        os.fsync(out.fileno())
    with atomic_file(file.with_suffix(".sha256")) as checksum:
        checksum.write(sha256(unfinished).encode())
    os.replace(unfinished, file)


class _FromFeatures:
    """Returns rows of features in place of a sampler's frames."""

    dataset: Dataset
    episodes: NDArray[np.int64]
    features: NDArray[np.float16]

    def preload(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Does nothing: the operating system caches the file."""

    def frames_at(self, which: NDArray[np.int64], steps: NDArray[np.int64]) -> Tensor:
        """Returns the features of (B, K) episodes and steps, (B, K, ...)."""
        rows = self.dataset.picture_starts[self.episodes[which]] + steps // self.dataset.picture_every
        return torch.from_numpy(self.features[rows])


class FeatureClips(_FromFeatures, ClipSampler):
    """Clips of features: a `Batch` whose `pixels` are (B, T, ...) float16.

    Args:
        features: Of `cached_features`.
        arguments: As for `ClipSampler`.
    """

    def __init__(self, features: NDArray[np.float16], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.features = features

    def batch(self, step: int, batch_size: int) -> Batch | ProprioceptiveBatch:
        """Returns the batch of a training step, for the clips of `ClipSampler`."""
        which, starts = self.clips(step, batch_size)
        steps = starts[:, None] + np.arange(self.n_frames) * self.frame_skip
        rows = self.dataset.starts[self.episodes[which]] + starts
        actions = self.dataset.actions[rows[:, None] + np.arange((self.n_frames - 1) * self.frame_skip)]
        actions = np.ascontiguousarray(actions.reshape(batch_size, self.n_frames - 1, -1))
        return self._joined(self.frames_at(which[:, None], steps), torch.from_numpy(actions), rows)


class FeatureGoals(_FromFeatures, GoalSampler):
    """Transitions and goals as features: a `GoalBatch` whose frames are (B, ...) float16.

    Args:
        features: Of `cached_features`.
        arguments: As for `GoalSampler`.
    """

    def __init__(self, features: NDArray[np.float16], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.features = features
