"""The format of a dataset on disk: self-describing shards, and the manifest that lists them.

A shard is one Arrow IPC file, one record batch per episode, memory-mapped and read without copying. The same format
holds a single finished episode (a part) or fifty of them. The schema's metadata make a file self-describing: the
header, and the number, length and hashes of every episode; so shards can be moved here from another folder of the
same recipe. The manifest of a folder lists its shards with their hashes, and the statistics of
the dataset.

All content is validated against the types of this module, and the records of shards and manifests contain their own
hash: a modified file causes a one-line error that names the file and the problem.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Meta, Struct
from numpy.typing import NDArray

from lewm_gym.data.codec import EncodedEpisode, FrameCodec, pixels_hash
from lewm_gym.data.episode import Episode, states_hash
from lewm_gym.files import SEAL, atomic_file, check_seal, parse_object, read_json, sealed, sha256, sha256_of

SCHEMA = 2
_UNSEALED = 1  # the schema of datasets whose records hold no hash of themselves; all else is the same
MANIFEST_NAME = "manifest.json"
SHARD_PATTERN = "episodes-*.arrow"
MOST_EPISODES = 2**31  # numbers are int32
_SHARD_NAME = re.compile(r"episodes-(\d{6,})-(\d{6,})\.arrow")
_KEY = b"lewm_gym"

#: Packages whose version can change the data: every task's simulator, where installed.
SIMULATORS = ("gymnasium", "pymunk", "pygame", "mujoco", "dm_control", "ogbench", "stable_baselines3")

Name = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1, lt=2**31)]
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
Vector = Annotated[tuple[float, ...], Meta(min_length=1)]


# What files say -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One column of a dataset.

    Attributes:
        size: Numbers per frame.
        dtype: numpy's name of their type.
        units: Units of the numbers, such as "px" or "rad"; empty where they are mixed or none.
        role: What it is.
    """

    size: Count
    dtype: Literal["float32", "float64", "bool"]
    units: str
    role: Literal["action", "state", "success", "quantity"]


@dataclass(frozen=True)
class Header:
    """The metadata of a shard or a dataset.

    The recipe (task to `states_only`, and the codec but for its level) determines the data: shards belong to the same
    dataset only if their recipes are equal. The other fields describe the origin and the encoding of the data.

    Attributes:
        task: Name of the task, one of `lewm_gym.tasks.TASKS` or the id of a foreign environment.
        policy: Name of the behaviour policy.
        noise: The policy's noise level, in its own unit; None if it has none.
        seed: Seed of the collection; episode i is a function of (task, policy, seed, i).
        render_quality: Name of the renderer's settings.
        states_only: Whether there are no frames; they can be rendered later.
        versions: Package name -> version, with "python".
        gl_renderer: Name of the OpenGL renderer, if one was used.
        columns: Name -> column, in the order of the file.
        codec: How frames are stored (`lewm_gym.data.codec`), or None without frames.
        variations: Names of the variations that were sampled for every episode.
        action_low: Smallest action, per coordinate, in the environment's units; None is -1, as in all TASKS.
        action_high: Largest action, likewise; None is 1.
        picture_every: N, if only frames 0, N, 2N, ... of each episode have images.
    """

    task: Name
    policy: str
    noise: float | None
    seed: Annotated[int, Meta(ge=0)]
    render_quality: str = "default"
    states_only: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    gl_renderer: str | None = None
    columns: dict[str, Column] = field(default_factory=dict)
    codec: dict[str, Any] | None = None
    variations: tuple[str, ...] = ()
    action_low: Vector | None = None
    action_high: Vector | None = None
    picture_every: Count = 1

    @property
    def recipe(self) -> dict[str, Any]:
        """The fields that must agree for shards to be one dataset."""
        names = ("task", "policy", "noise", "seed", "render_quality", "states_only", "variations", "picture_every")
        codec = self.codec and {name: value for name, value in self.codec.items() if name != "level"}
        return {**{name: getattr(self, name) for name in names}, "codec": codec}

    def with_columns(self, columns: dict[str, Column], versions: dict[str, str], gl: str | None = None) -> Header:
        """Returns the header with the fields that follow from the first episode."""
        return replace(self, columns=columns, versions=versions, gl_renderer=gl)

    def as_json(self) -> dict[str, Any]:
        """Returns the header as a JSON object."""
        return asdict(self)

    def action_bounds(self, action_size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns the smallest and the largest action, each (action_size,)."""
        low = np.full(action_size, -1.0) if self.action_low is None else self.action_low
        high = np.full(action_size, 1.0) if self.action_high is None else self.action_high
        return np.array(low, np.float32), np.array(high, np.float32)

    @staticmethod
    def read(record: Mapping[str, Any]) -> Header:
        """Returns the header in a record of a shard or a manifest; fields that this version does not know are ignored.

        Raises:
            ValueError: Naming the invalid field.
        """
        header = _read(Header, record)
        for name, role in (("action", "action"), ("state", "state"), ("success", "success")):
            if name not in header.columns or header.columns[name].role != role:
                raise ValueError(f"columns: there is no column {name!r}")
        low, high = header.action_bounds(header.columns["action"].size)
        if not (len(low) == len(high) == header.columns["action"].size and (low <= high).all()):
            raise ValueError("action_low, action_high: not the bounds of its actions")
        return header


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


@dataclass(frozen=True)
class ShardInfo:
    """The manifest's record of one shard.

    Attributes:
        file: Its name within the folder.
        sha256: Of the file; empty for a shard that is not listed yet.
        bytes: Its size.
        first_episode: Number of its first episode; the others follow without a gap.
        lengths: Frames of each episode.
        content: Sum of its episodes' content numbers modulo 2^128, in hexadecimal.
        action_sums: Per coordinate, sum and sum of squares of all actions.
    """

    file: Annotated[str, Meta(pattern=f"^{_SHARD_NAME.pattern}$")]
    sha256: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")]
    bytes: Annotated[int, Meta(ge=1)]
    first_episode: Annotated[int, Meta(ge=0, lt=MOST_EPISODES)]
    lengths: Annotated[tuple[Annotated[int, Meta(ge=2, lt=2**31)], ...], Meta(min_length=1)]
    content: Hash
    action_sums: tuple[Vector, Vector]

    @property
    def episodes(self) -> range:
        """The numbers of its episodes."""
        return range(self.first_episode, self.first_episode + len(self.lengths))

    @staticmethod
    def of(shard: Shard, hashed: bool = True) -> ShardInfo:
        """Returns the manifest's record of a shard; `hashed=False` omits the file's hash."""
        sums = [entry.action_sums for entry in shard.entries]
        numbers = [entry.episode for entry in shard.entries]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise shard.damaged("its episodes are not consecutive")
        return ShardInfo(
            file=shard.path.name,
            sha256=sha256(shard.path) if hashed else "",
            bytes=shard.path.stat().st_size,
            first_episode=numbers[0],
            lengths=tuple(entry.frames for entry in shard.entries),
            content=f"{sum(entry.content() for entry in shard.entries) % 2**128:032x}",
            action_sums=(_add(s[0] for s in sums), _add(s[1] for s in sums)),
        )

    def hashed(self, folder: Path) -> ShardInfo:
        """Returns a copy with the file's hash."""
        return self if self.sha256 else replace(self, sha256=sha256(folder / self.file))


def columns_of(episode: Episode, units: Mapping[str, str]) -> dict[str, Column]:
    """Returns the description of an episode's columns."""
    columns = {
        "action": Column(episode.action.shape[1], "float32", "", "action"),
        "state": Column(episode.state.shape[1], "float64", "", "state"),
        "success": Column(1, "bool", "", "success"),
    }
    for name, values in episode.quantities.items():
        columns[name] = Column(values.shape[1], "float32", units.get(name, ""), "quantity")
    return columns


def differences(ours: Header, theirs: Header) -> str:
    """Returns the fields of two recipes that differ, as "seed 0 and 1", or an empty string."""
    return ", ".join(
        f"{name} {value!r} and {theirs.recipe[name]!r}"
        for name, value in ours.recipe.items()
        if theirs.recipe[name] != value
    )


def merged(headers: Iterable[Header]) -> Header:
    """Returns one header for shards of equal recipe; different versions are all listed ("1.2 / 1.3")."""
    headers = list(headers)
    names = sorted({name for header in headers for name in header.versions})
    versions = {name: _all_of(header.versions.get(name) for header in headers) for name in names}
    return replace(headers[0], versions=versions, gl_renderer=_all_of(h.gl_renderer for h in headers) or None)


def _all_of(values: Iterable[str | None]) -> str:
    return " / ".join(sorted({part for value in values if value for part in value.split(" / ")}))


def installed_versions(requirements: Iterable[str] = SIMULATORS) -> dict[str, str]:
    """Returns the versions that the data depend on: Python, numpy, this package, the codec and the simulators."""
    found = {"python": platform.python_version()}
    for name in ("numpy", "lewm-gym", "zstandard", "pyarrow", *requirements):
        try:
            found[re.sub(r"[-_]+", "-", name)] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


# Checking -----------------------------------------------------------------------------------------------------

_Record = TypeVar("_Record")
_REMEDY = "delete it and run the same collect command again, or copy it again"


def _read(kind: type[_Record], record: Mapping[str, Any]) -> _Record:
    """Returns a record as an object of a class; raises ValueError naming the invalid field."""
    try:
        return msgspec.convert(record, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def _check_record(record: dict[str, Any], path: Path, remedy: str) -> dict[str, Any]:
    """Returns the record of a file; raises ValueError if it was altered, or this version cannot read it."""
    schema = record.get("schema")
    if schema not in (SCHEMA, _UNSEALED):
        raise ValueError(
            f"{path}: dataset schema {schema!r}, but this version reads {SCHEMA}: "
            "update lewm-gym or collect the dataset again"
        )
    if schema != _UNSEALED:
        check_seal(record, path, remedy)
    return record


# Writing shards ----------------------------------------------------------------------------------------------


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


# Reading shards -----------------------------------------------------------------------------------------------


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
        said = _check_record(parse_object(record, path, _REMEDY), path, _REMEDY)
        try:
            self.header = Header.read(said)
            self.entries = _read(_Entries, said).episodes
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


# The manifest ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """A dataset folder's contents.

    Attributes:
        header: Recipe, versions, columns and codec, common to all shards.
        shards: In the order of their episodes.
    """

    header: Header
    shards: tuple[ShardInfo, ...]

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return sum(len(shard.lengths) for shard in self.shards)

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return sum(sum(shard.lengths) for shard in self.shards)

    @property
    def content_hash(self) -> str:
        """A 128-bit hash of the episodes' content, independent of the shards."""
        return f"{sum(int(shard.content, 16) for shard in self.shards) % 2**128:032x}"

    def action_statistics(self) -> tuple[list[float], list[float]]:
        """Returns mean and standard deviation of each action coordinate over all actions (not the NaN rows)."""
        count = self.n_frames - self.n_episodes
        sums = _add(shard.action_sums[0] for shard in self.shards)
        squares = _add(shard.action_sums[1] for shard in self.shards)
        mean = [total / count for total in sums]
        variance = [max(total / count - m * m, 0.0) for total, m in zip(squares, mean, strict=True)]
        return mean, [math.sqrt(value) for value in variance]

    def save(self, folder: Path) -> None:
        """Writes the manifest, atomically."""
        mean, std = self.action_statistics()
        record = {
            "schema": SCHEMA,
            **self.header.as_json(),
            "episodes": self.n_episodes,
            "frames": self.n_frames,
            "action_mean": mean,
            "action_std": std,
            "content_hash": self.content_hash,
        }
        shards = msgspec.to_builtins(self.shards)
        record[SEAL] = sha256_of({**record, "shards": shards})
        text = json.dumps(record, indent=1)[:-2] + ',\n "shards": [\n  '  # a line per shard keeps it readable
        text += ",\n  ".join(json.dumps(shard) for shard in shards) + "\n ]\n}\n"
        with atomic_file(folder / MANIFEST_NAME) as file:
            file.write(text.encode())


class _Totals(Struct):
    """The totals in a manifest, which follow from its shards."""

    episodes: int
    frames: int
    content_hash: str
    shards: Annotated[tuple[ShardInfo, ...], Meta(min_length=1)]


def load_manifest(folder: Path) -> Manifest | None:
    """Returns the manifest of a folder, or None if it has none.

    Raises:
        ValueError: If it is damaged, contradicts itself, or is of a schema that this version cannot read.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        return None
    remedy = "delete it; the shards describe themselves"
    record = _check_record(read_json(path, remedy), path, remedy)
    try:
        header, totals = Header.read(record), _read(_Totals, record)
        for info in totals.shards:
            _check_info(info, header)
        manifest = Manifest(header, totals.shards)
        for name, value in (
            ("episodes", manifest.n_episodes),
            ("frames", manifest.n_frames),
            ("content_hash", manifest.content_hash),
        ):
            if getattr(totals, name) != value:
                raise ValueError(f"its {name} is {getattr(totals, name)}, but its shards sum to {value}")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from None
    return manifest


def _check_info(info: ShardInfo, header: Header) -> None:
    """Raises ValueError for an inconsistent record of a shard."""
    if info.file != shard_name(info.episodes):
        raise ValueError(f"shards: {info.file} cannot hold {len(info.lengths)} episodes from {info.first_episode} on")
    if {len(sums) for sums in info.action_sums} != {header.columns["action"].size}:
        raise ValueError(f"shards: action_sums of {info.file} are not of {header.columns['action'].size} numbers")


def scan(folder: Path) -> Manifest | None:
    """Returns the folder's contents: the manifest's shards, which must exist, and those moved in since.

    Raises:
        ValueError: If a shard is missing, truncated, of another recipe or overlaps another one.
        FileNotFoundError: If there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no dataset folder {folder}: make one with python -m collect TASK --out {folder}")
    manifest = load_manifest(folder)
    infos = list(manifest.shards) if manifest else []
    headers = [manifest.header] if manifest else []
    for info in infos:
        _check_present(folder / info.file, info)
    listed = {info.file for info in infos}
    for path in sorted(folder.glob(SHARD_PATTERN)):
        if path.name in listed or _superseded(path.name, infos):
            continue
        shard = Shard(path)
        if headers and (why := differences(headers[0], shard.header)):
            raise ValueError(f"{path} does not belong to this dataset ({why}): move it to a folder of its own")
        headers.append(shard.header)
        infos.append(ShardInfo.of(shard, hashed=False))
    if not headers:
        return None
    infos.sort(key=lambda info: (info.first_episode, -len(info.lengths)))
    infos = _without_contained(infos)
    for left, right in zip(infos[:-1], infos[1:], strict=True):
        if right.first_episode < left.episodes.stop:
            raise ValueError(f"{folder}: {left.file} and {right.file} hold the same episodes: remove one of them")
    return Manifest(merged(headers), tuple(infos))


def shard_name(episodes: range) -> str:
    """Returns the file name of a shard that holds `episodes`."""
    return f"episodes-{episodes[0]:06d}-{episodes[-1]:06d}.arrow"


def _check_present(path: Path, info: ShardInfo) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ValueError(
            f"{path} is listed in the manifest but missing: copy it again, or run the same collect command again"
        ) from None
    if size != info.bytes:
        raise ValueError(
            f"{path} has {size:,} bytes, not the {info.bytes:,} of the manifest (truncated?): delete it and run the "
            "same collect command again, or copy it again"
        )


def _superseded(name: str, infos: Iterable[ShardInfo]) -> bool:
    """Returns whether a listed shard contains this one, as after an extension that was killed before its clean-up."""
    match = _SHARD_NAME.fullmatch(name)
    if match is None:
        return False
    first, last = int(match[1]), int(match[2])
    return any(first in info.episodes and last in info.episodes for info in infos)


def _without_contained(infos: list[ShardInfo]) -> list[ShardInfo]:
    kept: list[ShardInfo] = []
    for info in infos:
        if not (kept and info.episodes.stop <= kept[-1].episodes.stop):
            kept.append(info)
    return kept


def _add(rows: Iterable[Iterable[float]]) -> tuple[float, ...]:
    return tuple(math.fsum(column) for column in zip(*rows, strict=True))
