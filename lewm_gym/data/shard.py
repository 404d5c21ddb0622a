"""A shard: one Arrow IPC file, one record batch per episode, memory-mapped and read without copying.

The same format holds a single finished episode (a part) and fifty of them. The schema's metadata make a file
self-describing: its header, and for every episode its number, length and hashes; so a shard that was moved here
from another folder of the same recipe needs no further word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lewm_gym.data.codec import EpisodeEncoder, FrameCodec, pixels_hash
from lewm_gym.data.episode import Episode
from lewm_gym.data.header import SCHEMA, Header, check_schema, merged
from lewm_gym.files import atomic_file

_KEY = b"lewm_gym"


@dataclass(frozen=True)
class Entry:
    """What a shard says of one episode.

    Attributes:
        episode: Its number.
        frames: Its length.
        states_hash: BLAKE2b-128 of everything but the pixels.
        pixels_hash: Of the decoded pixels (`codec.pixels_hash`); empty without frames.
        action_sums: Per action coordinate, the sum and the sum of squares over all actions, float64.
        reset_options: Of the episode (`Episode.reset_options`).
    """

    episode: int
    frames: int
    states_hash: str
    pixels_hash: str
    action_sums: tuple[tuple[float, ...], tuple[float, ...]]
    reset_options: dict[str, Any] = field(default_factory=dict)

    def content(self) -> int:
        """Returns a 128-bit number that stands for the episode's content."""
        text = f"{self.episode} {self.frames} {self.states_hash} {self.pixels_hash}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


@dataclass(frozen=True)
class EncodedEpisode:
    """An episode ready to be written: `Episode` with its stored frames compressed (None without frames)."""

    states: Episode
    frames: list[bytes] | None


def encode(episode: Episode, codec: FrameCodec) -> EncodedEpisode:
    """Returns a whole episode with its frames compressed."""
    if episode.pixels is None:
        return EncodedEpisode(episode, None)
    encoder = EpisodeEncoder(codec)
    for frame in episode.pixels:
        encoder.add(frame)
    return EncodedEpisode(episode, encoder.finish())


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


# Writing -----------------------------------------------------------------------------------------------------


def write_part(path: Path, header: Header, number: int, encoded: EncodedEpisode) -> None:
    """Writes one episode as a file of its own, whole or not at all."""
    states = encoded.states
    actions = states.action[:-1].astype(np.float64)
    entry = Entry(
        episode=number,
        frames=len(states),
        states_hash=states_hash(states),
        pixels_hash="" if encoded.frames is None else pixels_hash(encoded.frames),
        action_sums=(tuple(actions.sum(0).tolist()), tuple((actions**2).sum(0).tolist())),
        reset_options=states.reset_options,
    )
    _write(path, header, [entry], [_record_batch(number, encoded, header.picture_every)])


def write_shard(path: Path, sources: Iterable[tuple[Shard, int]]) -> None:
    """Writes a shard from episodes of other files, given as (file, position in it), in that order."""
    sources = list(sources)
    header = merged([shard.header for shard, _ in sources])
    entries = [shard.entries[position] for shard, position in sources]
    _write(path, header, entries, (shard.batch(position) for shard, position in sources))


def _write(path: Path, header: Header, entries: list[Entry], batches: Iterable[pa.RecordBatch]) -> None:
    record = {"schema": SCHEMA, **header.as_json(), "episodes": [_entry_as_json(entry) for entry in entries]}
    metadata = {_KEY: json.dumps(record, sort_keys=True).encode()}
    with atomic_file(path) as file:
        writer = None
        for batch in batches:
            batch = batch.replace_schema_metadata(metadata)
            writer = writer or pa.ipc.new_file(file, batch.schema)
            writer.write_batch(batch)
        assert writer is not None, "a shard needs an episode"
        writer.close()


def _record_batch(number: int, encoded: EncodedEpisode, picture_every: int) -> pa.RecordBatch:
    states = encoded.states
    length = len(states)
    columns: dict[str, pa.Array] = {
        "episode": pa.array(np.full(length, number, np.int32)),
        "step": pa.array(np.arange(length, dtype=np.int32)),
        "action": _vectors(states.action),
        "state": _vectors(states.state),
        "success": pa.array(states.success),
    }
    columns.update({name: _vectors(values) for name, values in states.quantities.items()})
    if encoded.frames is not None:
        frames: list[bytes | None] = [None] * length
        frames[::picture_every] = encoded.frames  # the other rows have no picture
        columns["pixels"] = pa.array(frames, pa.binary())
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _vectors(values: NDArray[Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])


def _entry_as_json(entry: Entry) -> dict[str, Any]:
    record = {
        "episode": entry.episode,
        "frames": entry.frames,
        "states": entry.states_hash,
        "pixels": entry.pixels_hash,
        "action_sums": entry.action_sums,
    }
    return {**record, "reset_options": entry.reset_options} if entry.reset_options else record


def _entry_from_json(record: dict[str, Any]) -> Entry:
    sums, squares = record["action_sums"]
    return Entry(
        episode=record["episode"],
        frames=record["frames"],
        states_hash=record["states"],
        pixels_hash=record["pixels"],
        action_sums=(tuple(sums), tuple(squares)),
        reset_options=record.get("reset_options", {}),
    )


# Reading -----------------------------------------------------------------------------------------------------


class Shard:
    """A memory-mapped shard or part.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is truncated, damaged or not a shard.
        FileNotFoundError: If there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = pa.memory_map(str(path)).read_buffer()
            self._reader = pa.ipc.open_file(self._file)
            metadata = self._reader.schema.metadata or {}
            if _KEY not in metadata:
                raise ValueError("it is an Arrow file of another kind")
            record = json.loads(metadata[_KEY])
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing: {_remedy()}") from None
        except (pa.ArrowInvalid, pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is truncated or damaged ({_first_line(error)}): {_remedy()}") from None
        check_schema(record, str(path))
        self.header = Header.from_json(record)
        self.entries = [_entry_from_json(entry) for entry in record["episodes"]]
        if len(self.entries) != self._reader.num_record_batches:
            raise self.damaged("its number of episodes is not what it says")
        self.bytes = memoryview(self._file)
        self._frame_starts: list[NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        """Returns the number of episodes."""
        return len(self.entries)

    def batch(self, position: int) -> pa.RecordBatch:
        """Returns the record batch of the episode at `position`."""
        try:
            batch = self._reader.get_batch(position)
        except (pa.ArrowInvalid, OSError) as error:
            raise self.damaged(_first_line(error)) from None
        if batch.num_rows != self.entries[position].frames:
            raise self.damaged(f"episode {self.entries[position].episode} is not as long as it says")
        return batch

    def damaged(self, why: str) -> ValueError:
        """Returns the error to raise when something in the file is not as it should be."""
        return ValueError(f"{self.path} is damaged ({why}): {_remedy()}")

    def states(self, position: int) -> Episode:
        """Returns the episode at `position` without its pixels; the arrays are read-only views of the file."""
        batch = self.batch(position)
        named = {name: batch.column(name) for name in batch.schema.names}
        return Episode(
            pixels=None,
            action=_array(named["action"]),
            state=_array(named["state"]),
            success=named["success"].to_numpy(zero_copy_only=False),
            quantities={
                name: _array(named[name]) for name, column in self.header.columns.items() if column.role == "quantity"
            },
            reset_options=self.entries[position].reset_options,
            picture_every=self.header.picture_every,
        )

    def column(self, name: str) -> NDArray[Any]:
        """Returns one column over all frames of the shard, (frames, size), or (frames,) for success."""
        parts = (self.batch(position).column(name) for position in range(len(self)))
        if name == "success":
            return np.concatenate([part.to_numpy(zero_copy_only=False) for part in parts])
        return np.concatenate([_array(part) for part in parts])

    @cached_property
    def codec(self) -> FrameCodec:
        """How the frames are stored.

        Raises:
            ValueError: If there are none, or this version cannot read them.
        """
        if self.header.codec is None:
            raise ValueError(
                f"{self.path} holds states only; make the frames with: python -m collect render {self.path.parent}"
            )
        return FrameCodec.from_json(self.header.codec)

    def frame_starts(self) -> list[NDArray[np.int64]]:
        """Returns, for each episode, where its K stored frames begin in `bytes`, and where they end: (K + 1,)."""
        if self._frame_starts is None:
            self._frame_starts = [self._starts(position) for position in range(len(self))]
        return self._frame_starts

    def _starts(self, position: int) -> NDArray[np.int64]:
        batch = self.batch(position)
        if "pixels" not in batch.schema.names:
            raise self.damaged("it has no frames")
        _, offsets, data = batch.column("pixels").buffers()
        rows = np.frombuffer(offsets, np.int32, batch.num_rows + 1).astype(np.int64)
        starts = np.append(rows[: -1 : self.header.picture_every], rows[-1])  # rows without a picture take no bytes
        base = data.address - self._file.address
        if starts[0] < 0 or (np.diff(starts) <= 0).any() or base + starts[-1] > self._file.size:
            raise self.damaged("its frames are not where it says")
        return starts + base

    def frames(self, position: int) -> Iterator[memoryview]:
        """Yields the compressed frames of the episode at `position`, those that are stored."""
        starts = self._starts(position).tolist()
        for start, end in zip(starts[:-1], starts[1:], strict=True):
            yield self.bytes[start:end]


def _array(column: pa.Array) -> NDArray[Any]:
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _remedy() -> str:
    return "delete it and run the same collect command again, or copy it anew"
