"""The manifest: a folder's list of shards with their hashes, and the statistics of the whole."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lewm_gym.data.header import SCHEMA, Header, check_schema, differences, merged
from lewm_gym.data.shard import Shard
from lewm_gym.files import atomic_file, sha256

MANIFEST_NAME = "manifest.json"
SHARD_PATTERN = "episodes-*.arrow"
_SHARD_NAME = re.compile(r"episodes-(\d{6,})-(\d{6,})\.arrow")


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest knows of one shard.

    Attributes:
        file: Its name within the folder.
        sha256: Of the file; empty for a shard that was moved here and is not listed yet.
        bytes: Its size.
        first_episode: Number of its first episode; the others follow without a gap.
        lengths: Frames of each episode.
        content: Sum of its episodes' content numbers modulo 2^128, in hexadecimal.
        action_sums: Per coordinate, sum and sum of squares of all actions.
    """

    file: str
    sha256: str
    bytes: int
    first_episode: int
    lengths: tuple[int, ...]
    content: str
    action_sums: tuple[tuple[float, ...], tuple[float, ...]]

    @property
    def episodes(self) -> range:
        """The numbers of its episodes."""
        return range(self.first_episode, self.first_episode + len(self.lengths))

    @staticmethod
    def of(shard: Shard, hashed: bool = True) -> ShardInfo:
        """Returns what the manifest records of a shard; `hashed=False` leaves the file's hash out."""
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
        """Returns the same with the file's hash filled in."""
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
        """A 128-bit hash of what the episodes hold, whatever shards they are spread over."""
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
        """Writes the manifest, whole or not at all."""
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
        text = json.dumps(record, indent=1)[:-2] + ',\n "shards": [\n  '  # a line per shard keeps it readable
        text += ",\n  ".join(json.dumps(vars(shard)) for shard in self.shards) + "\n ]\n}\n"
        with atomic_file(folder / MANIFEST_NAME) as file:
            file.write(text.encode())


def load_manifest(folder: Path) -> Manifest | None:
    """Returns the manifest of a folder, or None if it has none.

    Raises:
        ValueError: If it is damaged or of a schema that this version cannot read.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it; the shards describe themselves") from None
    check_schema(record, str(path))
    try:
        shards = tuple(_shard_info(shard) for shard in record["shards"])
        return Manifest(Header.from_json(record), shards)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__} {error}): delete it; the shards describe themselves"
        ) from None


def scan(folder: Path) -> Manifest | None:
    """Returns the folder's true contents: the manifest's shards, checked to be there, and those moved in since.

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
            f"{path} is listed in the manifest but missing: copy it anew, or run the same collect command again"
        ) from None
    if size != info.bytes:
        raise ValueError(
            f"{path} has {size:,} bytes, not the {info.bytes:,} of the manifest (truncated?): delete it and run the "
            "same collect command again, or copy it anew"
        )


def _superseded(name: str, infos: Iterable[ShardInfo]) -> bool:
    """Returns whether a listed shard holds all that this one does: an extension was killed before its last clean-up."""
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


def _shard_info(record: dict[str, Any]) -> ShardInfo:
    sums, squares = record["action_sums"]
    info = ShardInfo(**{**record, "lengths": tuple(record["lengths"]), "action_sums": (tuple(sums), tuple(squares))})
    if not all(isinstance(length, int) and length > 1 for length in info.lengths):
        raise ValueError("lengths must be integers above 1")
    return info


def _add(rows: Iterable[Iterable[float]]) -> tuple[float, ...]:
    return tuple(math.fsum(column) for column in zip(*rows, strict=True))
