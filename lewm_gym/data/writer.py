"""Writing a dataset folder: parts for single episodes, shards for fifty.

    data/two_room/
      manifest.json                      list of shards, with hashes
      episodes-000000-000049.arrow       shards (shard.py)
      parts/episode-000050.arrow         finished episodes of the shard under way
      .lock                              held by the writer

Finished episodes survive any interruption: parts are written atomically, a shard replaces its parts only after it is
on disk, and shards are self-describing, so the manifest can be rebuilt.
A shard's bytes only depend on its episodes, not on the writers or their order.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from lewm_gym.data.codec import EncodedEpisode
from lewm_gym.data.format.header import Header, differences, merged
from lewm_gym.data.format.manifest import SHARD_PATTERN, Manifest, ShardInfo, scan, shard_name
from lewm_gym.data.format.shard import Shard, write_part, write_shard
from lewm_gym.files import exclusive, make_folder, remove_leftovers

PARTS = "parts"
SHARD_EPISODES = 50


def part_path(folder: Path, episode: int) -> Path:
    """Returns the path of the part of an episode."""
    return folder / PARTS / f"episode-{episode:06d}.arrow"


def save_episode(folder: Path, header: Header, number: int, encoded: EncodedEpisode) -> None:
    """Writes a finished episode durably; any process may do so while the folder's writer waits for it."""
    write_part(part_path(folder, number), header, number, encoded)


@contextlib.contextmanager
def open_writer(folder: Path, header: Header, wanted: Iterable[int]) -> Iterator[DatasetWriter]:
    """Yields the folder's writer, holding its lock; makes the folder. See `DatasetWriter`."""
    make_folder(folder)
    with exclusive(folder):
        writer = DatasetWriter(folder, header, wanted)
        try:
            yield writer
        finally:
            remove_leftovers(folder / PARTS)  # of workers that were stopped because another one failed


class DatasetWriter:
    """Gathers episodes into shards. Use `open_writer`, which holds the folder's lock.

    Args:
        folder: The dataset's folder.
        header: Of the episodes to come; its recipe must agree with what is there.
        wanted: Numbers of the requested episodes; a shard is written when all of its episodes are finished.
        shard_episodes: Episodes per shard; shard k holds numbers from k * shard_episodes on.

    Raises:
        ValueError: If the folder holds a dataset of another recipe, or a damaged one.
    """

    def __init__(
        self, folder: Path, header: Header, wanted: Iterable[int], shard_episodes: int = SHARD_EPISODES
    ) -> None:
        self.folder = folder
        self._shard_episodes = shard_episodes
        (folder / PARTS).mkdir(exist_ok=True)
        remove_leftovers(folder)
        remove_leftovers(folder / PARTS)
        found = scan(folder)
        if found is not None and (why := differences(found.header, header)):
            raise ValueError(
                f"{folder} holds another dataset ({why}): choose another folder with --out, or the same options"
            )
        self._header = found.header if found else None
        self._shards = {info.episodes: info for info in found.shards} if found else {}
        self._wanted_header = header
        self._parts = self._find_parts()
        finished = self.finished()
        self.missing = sorted(set(wanted) - finished)
        self._missing_in: dict[int, set[int]] = defaultdict(set)
        for number in self.missing:
            self._missing_in[number // shard_episodes].add(number)

    def finished(self) -> set[int]:
        """Returns the numbers of all finished episodes."""
        return self._parts | {number for episodes in self._shards for number in episodes}

    def add(self, number: int) -> None:
        """Records that `save_episode` has written an episode; writes its shard if it is complete."""
        self._parts.add(number)
        block = number // self._shard_episodes
        self._missing_in[block].discard(number)
        if not self._missing_in[block]:
            self._consolidate(block)

    def close(self) -> Manifest:
        """Writes all parts to shards, complete or not, and returns the manifest.

        Raises:
            ValueError: If there is no episode at all.
        """
        self._parts = self._find_parts()  # an interruption may have come before `add`
        for block in sorted({number // self._shard_episodes for number in self._parts}):
            self._consolidate(block)
        manifest = self._save_manifest()
        self._remove_superseded()
        self._remove_strays()
        return manifest

    def _find_parts(self) -> set[int]:
        """Returns the numbers of valid parts; removes incomplete and obsolete ones."""
        in_shards = {number for episodes in self._shards for number in episodes}
        found = set()
        for path in sorted((self.folder / PARTS).glob("episode-*.arrow")):
            try:
                part = Shard(path)
            except ValueError:
                path.unlink()
                continue
            if why := differences(part.header, self._wanted_header):
                raise ValueError(
                    f"{path} is of another dataset ({why}): choose another folder with --out, or the same options"
                )
            number = part.entries[0].episode
            if number in in_shards or path != part_path(self.folder, number):
                path.unlink()
            else:
                found.add(number)
        return found

    def _consolidate(self, block: int) -> None:
        """Writes the shards of a block from its parts and from shards that they extend, then removes those."""
        start = block * self._shard_episodes
        there = self.finished() & set(range(start, start + self._shard_episodes))
        for run in _runs(sorted(there)):
            if run in self._shards:
                continue
            path = self.folder / shard_name(run)
            write_shard(path, [self._source(number) for number in run])
            shard = Shard(path)
            for episodes in [e for e in self._shards if e[0] in run]:
                del self._shards[episodes]
            self._shards[run] = ShardInfo.of(shard)
            self._header = merged([self._header or shard.header, shard.header])
            self._save_manifest()
            self._remove_superseded()
            for number in self._parts & set(run):
                part_path(self.folder, number).unlink(missing_ok=True)
            self._parts -= set(run)

    def _source(self, number: int) -> tuple[Shard, int]:
        for episodes, info in self._shards.items():
            if number in episodes:
                return Shard(self.folder / info.file), number - info.first_episode
        return Shard(part_path(self.folder, number)), 0

    def _save_manifest(self) -> Manifest:
        if self._header is None:
            raise ValueError(f"{self.folder} holds no finished episode")
        shards = sorted(self._shards.values(), key=lambda info: info.first_episode)
        manifest = Manifest(self._header, tuple(info.hashed(self.folder) for info in shards))
        manifest.save(self.folder)
        return manifest

    def _remove_strays(self) -> None:
        """Removes leftovers of killed workers in `parts/`; their episodes are in shards."""
        remove_leftovers(self.folder / PARTS)
        done = {part_path(self.folder, number) for number in self.finished()}
        for path in (self.folder / PARTS).glob("episode-*.arrow"):
            if path in done:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # an orphaned worker is just writing
            (self.folder / PARTS).rmdir()

    def _remove_superseded(self) -> None:
        """Removes shards whose episodes a larger shard holds too; never one of another recipe or a damaged one."""
        names = {info.file for info in self._shards.values()}
        for path in self.folder.glob(SHARD_PATTERN):
            if path.name in names:
                continue
            with contextlib.suppress(ValueError):
                shard = Shard(path)
                numbers = {entry.episode for entry in shard.entries}
                same = self._header is not None and not differences(self._header, shard.header)
                if same and any(numbers <= set(episodes) for episodes in self._shards):
                    path.unlink()


def _runs(numbers: list[int]) -> Iterator[range]:
    """Yields the ranges of consecutive numbers in a sorted list."""
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            yield range(numbers[start], numbers[i - 1] + 1)
            start = i
