"""Reading a dataset folder: fast to open, memory-mapped, with random access to frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_gym.data.codec import FrameCodec, FrameDecoder
from lewm_gym.data.episode import FRAME_SHAPE, Episode, count_pictures
from lewm_gym.data.format.header import Header
from lewm_gym.data.format.manifest import Manifest, scan
from lewm_gym.data.format.shard import Shard
from lewm_gym.data.writer import PARTS
from lewm_gym.tasks import TASKS


class Dataset:
    """Episodes on disk. Open one with `Dataset.open(folder)`.

    Episodes are addressed by position, 0 to `n_episodes - 1`; `episode_numbers` has their numbers, which differ
    only if a folder holds a range that does not start at 0. Thread-safe.

    Attributes:
        folder: Its path.
        manifest: The folder's manifest.
        address: Where it was opened, if the folder is the local copy of what is there.
        lengths: (n_episodes,) int64, frames of each episode.
        starts: (n_episodes + 1,) int64, row of each episode's first frame in the columns, and the number of rows.
        picture_every: N, if only frames 0, N, 2N, ... of each episode have images; 1 if all have.
        picture_starts: (n_episodes + 1,) int64, as `starts`, counted in stored images.
        episode_numbers: (n_episodes,) int64.
    """

    def __init__(self, folder: Path, manifest: Manifest, address: str | None = None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.address = address
        self.lengths = np.array([n for shard in manifest.shards for n in shard.lengths], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.picture_every = manifest.header.picture_every
        self.picture_starts = np.concatenate([[0], np.cumsum(count_pictures(self.lengths, self.picture_every))])
        self.episode_numbers = np.array([i for shard in manifest.shards for i in shard.episodes], np.int64)
        counts = [len(shard.lengths) for shard in manifest.shards]
        self._shard_of = np.repeat(np.arange(len(counts)), counts)
        self._position_of = np.concatenate([np.arange(count) for count in counts])
        self._shards: list[Shard | None] = [None] * len(counts)
        self._columns: dict[str, NDArray[Any]] = {}
        self._decoder = FrameDecoder()

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns the folder and its manifest for pickling, as for a DataLoader's workers; files are opened again."""
        return Dataset, (self.folder, self.manifest, self.address)

    @staticmethod
    def open(folder: str | Path) -> Dataset:
        """Returns the dataset in a folder; takes well under a second for 20,000 episodes.

        Args:
            folder: A folder, or an address such as "s3://bucket/pusht", "gs://...", or "hf://datasets/user/name" for
                the Hugging Face Hub, of which a local copy is made, or completed, and checked by its hashes.

        Raises:
            FileNotFoundError: If there is no dataset.
            ValueError: If a shard is missing, truncated or of another dataset.
            OSError: If an address does not answer, or refuses.
            ImportError: Without the package for an address.
        """
        address = None
        if ":/" in str(folder):
            from lewm_gym.data import remote

            address = remote.address_of(folder)
            folder = folder if address is None else remote.cached(address)
        folder = Path(folder)
        manifest = scan(folder)
        if manifest is None:
            waiting = " yet (its collection was interrupted)" if (folder / PARTS).is_dir() else ""
            raise FileNotFoundError(f"{folder} has no dataset{waiting}: run python -m collect TASK --out {folder}")
        return Dataset(folder, manifest, address)

    def again(self) -> Dataset:
        """Returns this dataset, opened on another machine: in the same folder, or from its address.

        Raises:
            FileNotFoundError: If it is in neither.
        """
        if self.folder.is_dir() or self.address is None:
            return Dataset.open(self.folder)
        return Dataset.open(self.address)

    # What it is ----------------------------------------------------------------------------------------------

    @property
    def header(self) -> Header:
        """Recipe, versions, columns and codec."""
        return self.manifest.header

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.header.task

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.lengths)

    @property
    def n_frames(self) -> int:
        """Number of frames of all episodes."""
        return int(self.starts[-1])

    @property
    def action_size(self) -> int:
        """Length of one action."""
        return self.header.columns["action"].size

    @property
    def action_low(self) -> NDArray[np.float32]:
        """(action_size,) smallest action of the environment, in its units; -1 for all of TASKS."""
        return self.header.action_bounds(self.action_size)[0]

    @property
    def action_high(self) -> NDArray[np.float32]:
        """(action_size,) largest action of the environment, in its units; 1 for all of TASKS."""
        return self.header.action_bounds(self.action_size)[1]

    @property
    def frame_size(self) -> int:
        """Height and width of the frames, px."""
        return FRAME_SHAPE[0]

    @property
    def has_pixels(self) -> bool:
        """Whether the dataset has frames."""
        return self.header.codec is not None

    @property
    def n_pictures(self) -> int:
        """Number of stored images of all episodes; 0 without frames."""
        return int(self.picture_starts[-1]) if self.has_pixels else 0

    def picture_steps(self, index: int) -> NDArray[np.int64]:
        """Returns the steps of an episode whose images are stored."""
        return np.arange(0, self.lengths[index], self.picture_every)

    def require_all_pictures(self, what: str) -> None:
        """Raises ValueError unless every frame has a stored image, as `what` needs."""
        if self.picture_every != 1 and self.has_pixels:
            raise ValueError(
                f"{what} needs the image of every frame, but {self.folder} stores every {self.picture_every}th only: "
                "collect it again without --picture-every"
            )

    @property
    def pixel_bytes(self) -> int:
        """Compressed size of all frames; opens each shard."""
        shards = (self._shard(i) for i in range(len(self._shards)))
        return sum(int(starts[-1] - starts[0]) for shard in shards for starts in shard.frame_starts())

    @property
    def codec(self) -> FrameCodec:
        """How frames are stored.

        Raises:
            ValueError: If there are none.
        """
        if self.header.codec is None:
            raise ValueError(f"{self.folder} holds states only; first: python -m collect render {self.folder}")
        return FrameCodec.from_json(self.header.codec)

    @property
    def content_hash(self) -> str:
        """128-bit hash, in hexadecimal, of the episodes' content, independent of the shards."""
        return self.manifest.content_hash

    @property
    def action_mean(self) -> NDArray[np.float32]:
        """(action_size,) mean of all actions; NaN rows do not count."""
        return np.array(self.manifest.action_statistics()[0], np.float32)

    @property
    def action_std(self) -> NDArray[np.float32]:
        """(action_size,) standard deviation of all actions; NaN rows do not count."""
        return np.array(self.manifest.action_statistics()[1], np.float32)

    # What it holds -------------------------------------------------------------------------------------------

    def episode(self, index: int, pixels: bool = True) -> Episode:
        """Returns the episode at a position, its stored frames decoded unless `pixels=False` (or there are none)."""
        shard, position = self._locate(index)
        states = shard.states(position)
        if not (pixels and self.has_pixels):
            return states
        frames = self.frames(index, self.picture_steps(index))
        return replace(states, pixels=frames)

    def frames(self, index: int, steps: Any) -> NDArray[np.uint8]:
        """Returns the frames of an episode at `steps`, (n, 224, 224, 3) uint8.

        Raises:
            IndexError: If the episode has no such step.
            ValueError: If the image of a step is not stored (`picture_every`), or the file is damaged.
        """
        steps = np.atleast_1d(np.asarray(steps))
        codec = self._locate(index)[0].codec
        stored = np.empty((len(steps), *codec.stored_shape), np.uint8)
        self.decode_into(stored, index, steps.tolist())
        return stored if codec.layout == "hwc" else np.ascontiguousarray(stored.transpose(0, 2, 3, 1))

    def decode_into(self, out: NDArray[np.uint8], index: int, steps: Sequence[int], check: bool = True) -> None:
        """Decodes frames of an episode into a contiguous uint8 array, `(n, *codec.stored_shape)`.

        `check=False` leaves out the checksums, which take a third of the time.

        Raises:
            IndexError: If the episode has no such step.
            ValueError: If the image of a step is not stored, or the file is damaged.
        """
        shard, position = self._locate(index)
        starts = shard.frame_starts()[position]
        length, frames, done = len(starts) - 1, shard.bytes, 0
        if steps and not 0 <= min(steps) <= max(steps) < self.lengths[index]:
            raise IndexError(
                f"episode {index} has steps 0 to {self.lengths[index] - 1}, not {min(steps)} to {max(steps)}"
            )
        every = self.picture_every
        if every != 1:
            if absent := [step for step in steps if step % every]:
                raise ValueError(
                    f"{self.folder} stores every {every}th frame: episode {index} has none at step {absent[0]}"
                )
            steps = [step // every for step in steps]
        for key, group in groupby(steps, lambda picture: shard.codec.key_step(picture, length)):
            alike = list(group)
            compressed = [frames[starts[i] : starts[i + 1]] for i in alike]
            key_frame = None if alike == [key] else frames[starts[key] : starts[key + 1]]
            try:
                self._decoder.decode_into(out[done : done + len(alike)], (index, key), key_frame, compressed, check)
            except ValueError as error:
                raise shard.damaged(
                    f"episode {self.episode_numbers[index]}, step {alike[0] * every}: {error}"
                ) from None
            done += len(alike)

    def column(self, name: str) -> NDArray[Any]:
        """Returns a column over all frames: (n_frames, size), or (n_frames,) for "success"; kept in memory.

        Rows `starts[i]` to `starts[i + 1]` are episode i.

        Raises:
            ValueError: If there is no such column; the message lists those that exist.
        """
        if name not in self.header.columns:
            raise ValueError(f"{self.folder} has no column {name!r}; it has: {', '.join(self.header.columns)}")
        if name not in self._columns:
            shards = [self._shard(i) for i in range(len(self._shards))]
            self._columns[name] = np.concatenate([shard.column(name) for shard in shards])
        return self._columns[name]

    @property
    def actions(self) -> NDArray[np.float32]:
        """(n_frames, action_size) float32; the last row of each episode is NaN."""
        return self.column("action")

    @property
    def states(self) -> NDArray[np.float64]:
        """(n_frames, state_size) float64."""
        return self.column("state")

    @property
    def quantities(self) -> dict[str, NDArray[np.float32]]:
        """Name -> (n_frames, k) float32, the physical quantities."""
        return {n: self.column(n) for n, column in self.header.columns.items() if column.role == "quantity"}

    @property
    def proprioception(self) -> NDArray[np.float32]:
        """(n_frames, k) float32, the `proprioception` of the task's environments (`Task.proprioception`).

        Raises:
            ValueError: If the task is none of TASKS, or a column is missing or of another size.
        """
        task = TASKS.get(self.task)
        if task is None:
            raise ValueError(f"{self.task!r} has no defined proprioception; tasks with one: {', '.join(TASKS)}")
        sizes = {name: column.size for name, column in self.header.columns.items()}
        if any(sizes.get(name) != size for name, size in task.proprioception.items()):
            wanted = ", ".join(f"{name} ({size})" for name, size in task.proprioception.items())
            raise ValueError(
                f"{self.folder} lacks proprioception: {self.task}'s are the columns {wanted}; "
                f"it has: {', '.join(f'{name} ({size})' for name, size in sizes.items())}"
            )
        return np.concatenate([self.column(name) for name in task.proprioception], axis=1)

    def split(self, validation_fraction: float = 0.1, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the positions of training and validation episodes, sorted and disjoint.

        The same dataset, fraction and seed give the same split. Each side has at least one episode, unless the
        fraction is 0.

        Raises:
            ValueError: For a fraction outside [0, 1), or fewer than two episodes to split.
        """
        if not 0.0 <= validation_fraction < 1.0:
            raise ValueError(f"validation_fraction must be within [0, 1), got {validation_fraction}")
        order = np.random.default_rng([seed, self.n_episodes]).permutation(self.n_episodes)
        if validation_fraction == 0.0:
            return np.sort(order), order[:0]
        if self.n_episodes < 2:
            raise ValueError("a validation split needs at least 2 episodes, got 1: collect at least 2 episodes")
        held_out = min(max(round(validation_fraction * self.n_episodes), 1), self.n_episodes - 1)
        return np.sort(order[held_out:]), np.sort(order[:held_out])

    def _locate(self, index: int) -> tuple[Shard, int]:
        if not 0 <= index < self.n_episodes:
            raise IndexError(f"{self.folder} has episodes 0 to {self.n_episodes - 1}, not {index}")
        return self._shard(int(self._shard_of[index])), int(self._position_of[index])

    def _shard(self, i: int) -> Shard:
        shard = self._shards[i]
        if shard is None:  # two threads may both open it; either will do
            info = self.manifest.shards[i]
            shard = Shard(self.folder / info.file)
            if tuple(entry.frames for entry in shard.entries) != info.lengths:
                raise shard.damaged("its episodes are not those of the manifest")
            if shard.header.columns != self.header.columns:
                raise shard.damaged("its columns are not those of the manifest")
            self._shards[i] = shard
        return shard
