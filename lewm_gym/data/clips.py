"""Training clips: shuffled windows of an episode, a pure function of (seed, step, batch size).

Position p = step * batch_size + j in an endless sequence of epochs names the clip; epoch e visits every clip start
once, in a random order given by (seed, e). A resumed training therefore only needs the step number, and the number
of threads has no effect.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lewm_gym.data.dataset import Dataset
from lewm_gym.data.episode import count_pictures
from lewm_gym.memory import available_memory
from lewm_gym.tasks import IMAGE_SIZE
from lewm_gym.types import Batch, ProprioceptiveBatch

MEMORY_SHARE = 0.5  # of the memory that is available, for decoded frames: the network and batches need the rest


class ClipSampler:
    """Samples clips of `n_frames` frames, `frame_skip` environment steps apart, with the actions between them.

    Frames keep their stored memory layout, which may be channel-first, behind a (B, T, h, w, 3) view.

    With `image_size` below 224, frames are averaged down (`box_average`); if all of the episodes then fit into
    `memory_budget`, they are decoded once, by `preload` or at the first batch, and kept in memory. Otherwise a
    warning is issued, and every batch is decoded again.

    If only every N-th frame is stored (`dataset.picture_every`), clips start at stored frames.

    Args:
        dataset: Source of the data.
        episodes: Positions of the episodes to sample from, such as one side of `dataset.split()`; None for all.
        n_frames: T, frames per clip.
        frame_skip: Environment steps between them; a multiple of `dataset.picture_every`.
        seed: Seed of the order of clips.
        image_size: Height and width delivered, px; divides 224.
        threads: Decoding threads; None: one per CPU core, at most 4.
        memory_budget: Bytes that decoded, averaged frames may take; None: half of the available memory
            (`lewm_gym.memory`), shared by the processes of a distributed training.
        proprioception: (n_frames, k) float32 of the whole dataset; batches are then `ProprioceptiveBatch`.
        frames_every: N: use only every N-th stored frame, which saves memory.

    Raises:
        ValueError: For values out of range, a dataset of states only or without the frames at that `frame_skip`, or
            episodes that are all too short.
    """

    def __init__(
        self,
        dataset: Dataset,
        episodes: Iterable[int] | None = None,
        n_frames: int = 4,
        frame_skip: int = 5,
        seed: int = 0,
        image_size: int = IMAGE_SIZE,
        threads: int | None = None,
        memory_budget: int | None = None,
        proprioception: NDArray[np.float32] | None = None,
        frames_every: int = 1,
    ) -> None:
        self._stored = dataset.codec  # raises if there are no frames
        self.picture_every = dataset.picture_every * frames_every
        _check_clips(dataset, n_frames, frame_skip, seed, image_size, frames_every)
        self.dataset = dataset
        self.n_frames, self.frame_skip, self.seed, self.image_size = n_frames, frame_skip, seed, image_size
        self.threads = threads or min(4, os.cpu_count() or 1)
        wanted = range(dataset.n_episodes) if episodes is None else episodes
        self.episodes = np.unique(np.fromiter(wanted, np.int64))
        if len(self.episodes) and not 0 <= self.episodes[0] <= self.episodes[-1] < dataset.n_episodes:
            raise ValueError(f"episodes must be within 0 to {dataset.n_episodes - 1}")
        small = (3, image_size, image_size)  # what box_average gives
        self._frame_shape = small if image_size < IMAGE_SIZE else self._stored.stored_shape
        self._starts_before = self._count_starts()
        self._orders = _Orders(self.n_clips, seed)
        self._actions, self._proprioception = dataset.actions, proprioception
        self._buffers = _Buffers()
        pictures = count_pictures(dataset.lengths[self.episodes], self.picture_every)
        self._rows_before = np.concatenate([[0], np.cumsum(pictures)])  # of `_frames`, one for each stored image
        self.pooled_bytes = int(pictures.sum()) * 3 * image_size**2
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        budget = MEMORY_SHARE * available_memory() / processes if memory_budget is None else memory_budget
        self.memory_budget = int(budget)
        self._in_memory = image_size < IMAGE_SIZE and self.pooled_bytes <= self.memory_budget
        self._frames: NDArray[np.uint8] | None = None
        self._preload_lock = threading.Lock()
        self._warned = False

    def _count_starts(self) -> NDArray[np.int64]:
        span = (self.n_frames - 1) * self.frame_skip + 1
        lengths = self.dataset.lengths[self.episodes]
        counts = np.maximum((lengths - span) // self.picture_every + 1, 0)
        if counts.sum() == 0:
            longest = int(lengths.max()) if len(lengths) else 0
            raise ValueError(
                f"a clip of {self.n_frames} frames at a frame skip of {self.frame_skip} spans {span} frames, but the "
                f"longest of {len(lengths)} episodes in {self.dataset.folder} has {longest}: collect longer or more "
                "episodes, or lower n_frames or frame_skip"
            )
        return np.concatenate([[0], np.cumsum(counts)])

    @property
    def n_clips(self) -> int:
        """Number of different clips, the length of an epoch."""
        return int(self._starts_before[-1])

    # One batch -----------------------------------------------------------------------------------------------

    def batch(self, step: int, batch_size: int) -> Batch | ProprioceptiveBatch:
        """Returns the batch of a training step: pixels (B, T, size, size, 3) uint8, raw actions (B, T - 1, A) float32.

        Raises:
            ValueError: For a negative step, a batch size below 1, or damaged files.
        """
        which, starts = self.clips(step, batch_size)
        indices = self.episodes[which]
        rows = self.dataset.starts[indices] + starts
        span = (self.n_frames - 1) * self.frame_skip
        actions = self._actions[rows[:, None] + np.arange(span)]
        actions = actions.reshape(batch_size, self.n_frames - 1, -1)
        pixels = self._buffers.take((batch_size, self.n_frames, *self._frame_shape))
        self._fill(pixels.numpy(), which, starts)
        if self._frame_shape[0] == 3:
            pixels = pixels.permute(0, 1, 3, 4, 2)
        return self._joined(pixels, torch.from_numpy(np.ascontiguousarray(actions)), rows)

    def _joined(
        self, pixels: torch.Tensor, actions: torch.Tensor, rows: NDArray[np.int64]
    ) -> Batch | ProprioceptiveBatch:
        """Returns the batch of clips that begin at (B,) rows of the dataset."""
        if self._proprioception is None:
            return Batch(pixels, actions)
        sensed = self._proprioception[rows[:, None] + np.arange(self.n_frames) * self.frame_skip]
        return ProprioceptiveBatch(pixels, actions, torch.from_numpy(sensed))

    def clips(self, step: int, batch_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the clips of a batch: (B,) positions within `self.episodes`, (B,) first environment steps."""
        if step < 0 or batch_size < 1:
            raise ValueError(f"step must be at least 0 and batch_size at least 1, got {step} and {batch_size}")
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        clips = self._orders.at(positions)
        which = np.searchsorted(self._starts_before, clips, side="right") - 1
        return which, (clips - self._starts_before[which]) * self.picture_every

    def _fill(self, pixels: NDArray[np.uint8], which: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        if self._in_memory:
            self.preload()
            assert self._frames is not None
            steps = starts[:, None] + np.arange(self.n_frames) * self.frame_skip
            np.take(self._frames, self._rows_before[which][:, None] + steps // self.picture_every, axis=0, out=pixels)
            return
        for j in np.argsort(which, kind="stable").tolist():  # clips of one episode share its key frames
            first = int(starts[j])
            wanted = range(first, first + self.n_frames * self.frame_skip, self.frame_skip)
            self._decode(pixels[j], int(self.episodes[which[j]]), wanted)

    def _decode(self, out: NDArray[np.uint8], index: int, steps: Sequence[int]) -> None:
        """Decodes frames of an episode, averaged down to the requested size."""
        if self.image_size == IMAGE_SIZE:
            self.dataset.decode_into(out, index, steps, check=False)
            return
        whole = np.empty((1, *self._stored.stored_shape), np.uint8)
        for k, step in enumerate(steps):
            self.dataset.decode_into(whole, index, [step])
            planes = whole[0] if self._stored.layout == "chw" else np.ascontiguousarray(whole[0].transpose(2, 0, 1))
            out[k] = box_average(planes, self.image_size)

    def frames_at(self, which: NDArray[np.int64], steps: NDArray[np.int64]) -> torch.Tensor:
        """Returns the frames of (B, K) episodes (positions within `episodes`) and stored steps, (B, K, h, w, 3)."""
        pixels = self._buffers.take((*which.shape, *self._frame_shape))
        out = pixels.numpy()
        if self._in_memory:
            self.preload()
            assert self._frames is not None
            np.take(self._frames, self._rows_before[which] + steps // self.picture_every, axis=0, out=out)
        else:
            self._decode_at(out.reshape(-1, *self._frame_shape), which.ravel(), steps.ravel())
        return pixels.permute(0, 1, 3, 4, 2) if self._frame_shape[0] == 3 else pixels

    def _decode_at(self, out: NDArray[np.uint8], which: NDArray[np.int64], steps: NDArray[np.int64]) -> None:
        for j in np.argsort(which, kind="stable").tolist():  # frames of one episode share its key frames
            self._decode(out[j : j + 1], int(self.episodes[which[j]]), [int(steps[j])])

    def episode_frames(self) -> Iterator[NDArray[np.uint8]]:
        """Yields the stored frames (T, h, w, 3) of each episode, in order."""
        self.preload()
        for k, (first, end) in enumerate(pairwise(self._rows_before.tolist())):
            if self._frames is not None:
                frames = self._frames[first:end]
            else:
                frames = np.empty((end - first, *self._frame_shape), np.uint8)
                self._decode(
                    frames, int(self.episodes[k]), range(0, len(frames) * self.picture_every, self.picture_every)
                )
            yield frames.transpose(0, 2, 3, 1) if self._frame_shape[0] == 3 else frames

    def preload(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Decodes all frames into memory, once, if they fit; otherwise warns that every batch will be decoded again.

        Does nothing at full size.

        Args:
            progress: Called with (episodes decoded, episodes in all).
        """
        if not self._in_memory:
            self._warn_of_size()
            return
        if self._frames is not None:
            return
        with self._preload_lock:
            if self._frames is not None:
                return
            frames = np.empty((self._rows_before[-1], 3, self.image_size, self.image_size), np.uint8)
            with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:
                jobs = [pool.submit(self._decode_episode, frames, k) for k in range(len(self.episodes))]
                try:
                    for done, job in enumerate(jobs, start=1):
                        job.result()
                        if progress is not None:
                            progress(done, len(jobs))
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            self._frames = frames

    def _warn_of_size(self) -> None:
        if self.image_size == IMAGE_SIZE or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"the frames of {len(self.episodes):,} episodes at {self.image_size} px take "
            f"{self.pooled_bytes / 2**30:,.2f} GiB, more than the memory budget of {self.memory_budget / 2**30:,.2f} "
            "GiB: every batch is decoded again, which is much slower; free memory, or use fewer episodes, "
            "a smaller image_size, or a dataset collected with --picture-every",
            RuntimeWarning,
            stacklevel=3,
        )

    def _decode_episode(self, frames: NDArray[np.uint8], k: int) -> None:
        rows = frames[self._rows_before[k] : self._rows_before[k + 1]]
        self._decode(rows, int(self.episodes[k]), range(0, len(rows) * self.picture_every, self.picture_every))

    # Many batches --------------------------------------------------------------------------------------------

    def batches(
        self, start_step: int, n_steps: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch | ProprioceptiveBatch]:
        """Yields the batches of steps `start_step` to `start_step + n_steps - 1` in order, prepared in the background.

        Where CUDA is available they are in pinned memory. Closing the iterator (or leaving its loop) ends the threads.
        Each of `world_size` processes gets the part of a batch given by its `rank`.

        Raises:
            ValueError: If the processes cannot share a batch evenly.
        """
        if batch_size % world_size:
            raise ValueError(f"a batch of {batch_size} clips cannot be shared evenly by {world_size} processes")
        self.preload()
        steps = iter(range(start_step, start_step + n_steps))
        threads = 1 if self._in_memory else self.threads
        pool = ThreadPoolExecutor(threads, thread_name_prefix="clips")
        ahead: deque[Future[Batch | ProprioceptiveBatch]] = deque()
        try:
            for step in steps:
                ahead.append(pool.submit(self.batch, step * world_size + rank, batch_size // world_size))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _check_clips(
    dataset: Dataset, n_frames: int, frame_skip: int, seed: int, image_size: int, frames_every: int
) -> None:
    """Raises ValueError for values out of range, or frames that the dataset has not at that `frame_skip`."""
    for name, value, least in (("n_frames", n_frames, 2), ("frame_skip", frame_skip, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if image_size < 1 or IMAGE_SIZE % image_size:
        raise ValueError(f"image_size must divide {IMAGE_SIZE} (such as 56, 112 or 224), got {image_size}")
    if frames_every < 1:
        raise ValueError(f"frames_every must be at least 1, got {frames_every}")
    stride = dataset.picture_every * frames_every
    if frames_every > 1 and frame_skip % stride:
        raise ValueError(
            f"frame_skip must be a multiple of frames_every times the dataset's picture_every, {frames_every} x "
            f"{dataset.picture_every}, got {frame_skip}"
        )
    if frame_skip % stride:
        raise ValueError(
            f"{dataset.folder} stores every {stride}th frame only, so frame_skip must be a "
            f"multiple of {stride}, got {frame_skip}: choose another one, or collect again without "
            "--picture-every"
        )


def box_average(planes: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Returns (..., h, w) planes averaged down to (..., size, size), half rounded up.

    That is (sum + k*k//2) // (k*k) with k = h / size, in integer arithmetic, so that the same image gives the same
    numbers everywhere; Pillow's `Image.reduce` agrees for every k that is a power of two, but takes 4x as long.
    """
    k = planes.shape[-1] // size
    if k == 1:
        return planes
    rows = planes.reshape(*planes.shape[:-2], size, k, size * k)
    sums: NDArray[Any] = rows[..., 0, :].astype(np.uint16 if k <= 16 else np.uint32)  # 16 * 16 * 255 + 128 < 2**16
    for i in range(1, k):
        np.add(sums, rows[..., i, :], out=sums)
    columns = sums.reshape(*planes.shape[:-2], size, size, k)
    sums = columns[..., 0].copy()
    for i in range(1, k):
        np.add(sums, columns[..., i], out=sums)
    return np.asarray((sums + k * k // 2) // (k * k), np.uint8)


class _Orders:
    """The order of clips of each epoch; the last two are cached (a batch may span them)."""

    def __init__(self, n_clips: int, seed: int) -> None:
        self._n_clips, self._seed = n_clips, seed
        self._epochs: dict[int, NDArray[np.int64]] = {}
        self._lock = threading.Lock()

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the clips at positions of the endless sequence."""
        epochs, within = np.divmod(positions, self._n_clips)
        clips = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            clips[here] = self._order(epoch)[within[here]]
        return clips

    def _order(self, epoch: int) -> NDArray[np.int64]:
        with self._lock:
            if epoch not in self._epochs:
                while len(self._epochs) > 1:
                    del self._epochs[min(self._epochs)]
                self._epochs[epoch] = np.random.default_rng([self._seed, epoch]).permutation(self._n_clips)
            return self._epochs[epoch]


class _Buffers:
    """Memory for batches, reused when a tensor is released: new pages cost as much as decoding into them."""

    def __init__(self) -> None:
        self._pinned = torch.cuda.is_available()
        self._arrays: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        if self._pinned:  # CUDA's host allocator keeps and reuses pinned blocks, aware of copies under way
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        with self._lock:
            self._arrays = [a for a in self._arrays if a.shape == shape]
            for array in self._arrays:
                if sys.getrefcount(array) <= 3:  # the list, this loop's variable and getrefcount's argument
                    return torch.from_numpy(array)
            array = np.empty(shape, np.uint8)
            if len(self._arrays) < 16:
                self._arrays.append(array)
            return torch.from_numpy(array)
