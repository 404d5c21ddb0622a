"""The manifest of a folder: its shards with their hashes, and the statistics of the dataset."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from lewm_gym.data.format.header import SCHEMA, Hash, Header, Vector, check_record, differences, merged, read_as
from lewm_gym.data.format.shard import MOST_EPISODES, Shard
from lewm_gym.files import SEAL, atomic_file, read_json, sha256, sha256_of

MANIFEST_NAME = "manifest.json"
SHARD_PATTERN = "episodes-*.arrow"
_SHARD_NAME = re.compile(r"episodes-(\d{6,})-(\d{6,})\.arrow")


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
    record = check_record(read_json(path, remedy), path, remedy)
    try:
        header, totals = Header.read(record), read_as(_Totals, record)
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
