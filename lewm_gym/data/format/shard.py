"""Shards: Arrow IPC files that describe themselves, one record batch per episode."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Meta, Struct
from numpy.typing import NDArray

from lewm_gym.data.codec import EncodedEpisode, FrameCodec, pixels_hash
from lewm_gym.data.episode import Episode, states_hash
from lewm_gym.data.format.header import SCHEMA, Hash, Header, Vector, check_record, merged, read_as
from lewm_gym.files import atomic_file, parse_object, sealed

MOST_EPISODES = 2**31  # numbers are int32
_KEY = b"lewm_gym"
_REMEDY = "delete it and run the same collect command again, or copy it again"


class Entry(Struct, frozen=True, rename={"states_hash": "states", "pixels_hash": "pixels"}):
    """A shard's record of one episode.

    Attributes:
        episode: Its number.
        frames: Its length.
        states_hash: BLAKE2b-128 of everything but the pixels.
        pixels_hash: Of the decoded pixels (`codec.pixels_hash`); empty without frames.
        action_sums: Per action coordinate, the sum and the sum of squares over all actions, float64.
        reset_options: Of the episode (`Episode.reset_options`).
    """

    episode: Annotated[int, Meta(ge=0, lt=MOST_EPISODES)]
    frames: Annotated[int, Meta(ge=2, lt=2**31)]
    states_hash: Hash
    pixels_hash: Annotated[str, Meta(pattern="^([0-9a-f]{32})?$")]
    action_sums: tuple[Vector, Vector]
    reset_options: dict[str, Any] = {}

    def content(self) -> int:
        """Returns a 128-bit hash of the episode's content."""
        text = f"{self.episode} {self.frames} {self.states_hash} {self.pixels_hash}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")

    def as_json(self) -> dict[str, Any]:
        """Returns the shard's record, with reset options if there are any."""
        record: dict[str, Any] = msgspec.to_builtins(self)
        return record if self.reset_options else {k: v for k, v in record.items() if k != "reset_options"}


# Writing -----------------------------------------------------------------------------------------------------


def write_part(path: Path, header: Header, number: int, encoded: EncodedEpisode) -> None:
    """Writes one episode as a file of its own, atomically."""
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
    record = sealed({"schema": SCHEMA, **header.as_json(), "episodes": [entry.as_json() for entry in entries]})
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
        frames[::picture_every] = encoded.frames  # the other rows have no image
        columns["pixels"] = pa.array(frames, pa.binary())
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _vectors(values: NDArray[Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])


# Reading -----------------------------------------------------------------------------------------------------


class _Entries(Struct):
    """A shard's metadata besides its header."""

    episodes: Annotated[list[Entry], Meta(min_length=1)]


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
            schema = self._reader.schema
            if _KEY not in (schema.metadata or {}):
                raise ValueError("it is an Arrow file of another kind")
            record = schema.metadata[_KEY]
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing: {_REMEDY}") from None
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{path} is truncated or damaged ({_first_line(error)}): {_REMEDY}") from None
        said = check_record(parse_object(record, path, _REMEDY), path, _REMEDY)
        try:
            self.header = Header.read(said)
            self.entries = read_as(_Entries, said).episodes
            _check_columns(schema, self.header)
        except ValueError as error:
            raise self.damaged(str(error)) from None
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
            batch.validate()
        except (pa.ArrowException, OSError) as error:
            raise self.damaged(_first_line(error)) from None
        if batch.num_rows != self.entries[position].frames:
            raise self.damaged(f"episode {self.entries[position].episode} is not as long as it says")
        return batch

    def damaged(self, why: str) -> ValueError:
        """Returns the error to raise for an invalid file."""
        return ValueError(f"{self.path} is damaged ({why}): {_REMEDY}")

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
        try:
            return FrameCodec.from_json(self.header.codec)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

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
        starts = np.append(rows[: -1 : self.header.picture_every], rows[-1])  # rows without an image take no bytes
        base = data.address - self._file.address
        if starts[0] < 0 or (np.diff(starts) <= 0).any() or base + starts[-1] > self._file.size:
            raise self.damaged("its frames are not where it says")
        return starts + base

    def frames(self, position: int) -> Iterator[memoryview]:
        """Yields the compressed frames of the episode at `position`, those that are stored."""
        starts = self._starts(position).tolist()
        for start, end in zip(starts[:-1], starts[1:], strict=True):
            yield self.bytes[start:end]


def _check_columns(schema: pa.Schema, header: Header) -> None:
    """Raises ValueError unless an Arrow file holds the columns that its header names."""
    kinds = {"float32": pa.float32(), "float64": pa.float64()}
    wanted = {name: pa.list_(kinds[c.dtype], c.size) for name, c in header.columns.items() if c.dtype in kinds}
    wanted |= {"episode": pa.int32(), "step": pa.int32(), "success": pa.bool_()}
    wanted |= {"pixels": pa.binary()} if header.codec is not None else {}
    found = dict(zip(schema.names, schema.types, strict=True))
    if different := sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name)):
        raise ValueError(f"its columns are not those that it names: {', '.join(different)}")


def _array(column: pa.Array) -> NDArray[Any]:
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
