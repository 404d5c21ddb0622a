"""Checking a dataset folder: every hash, every count, every frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lewm_gym.data.codec import FrameDecoder, pixels_hash
from lewm_gym.data.episode import check_episode, states_hash
from lewm_gym.data.format.header import differences
from lewm_gym.data.format.manifest import SHARD_PATTERN, Manifest, ShardInfo, load_manifest, scan
from lewm_gym.data.format.shard import Shard
from lewm_gym.files import sha256


def verify(folder: str | Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Returns the faults of a dataset, one line each; an empty list for a valid one.

    Checked are each file's SHA-256 and each episode's length, hash of states and hash of decoded pixels, the order of
    its rows, and the manifest's hash of itself and its totals.

    Args:
        folder: The dataset's folder.
        progress: Called with (shards checked, shards in all).

    Raises:
        FileNotFoundError: If there is no dataset.
        ValueError: If the manifest itself cannot be read.
    """
    folder = Path(folder)
    manifest = load_manifest(folder) or scan(folder)
    if manifest is None:
        raise FileNotFoundError(f"{folder} holds no dataset: nothing to verify")
    faults: list[str] = []
    for done, info in enumerate(manifest.shards, start=1):
        faults += _check_shard(folder / info.file, info, manifest)
        if progress is not None:
            progress(done, len(manifest.shards))
    if not faults:
        try:
            scan(folder)  # shards that were moved in
        except ValueError as error:
            faults.append(str(error))
        else:
            faults += _check_unlisted(folder, manifest)
    return faults


def _check_unlisted(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Checks shards that the manifest does not list yet."""
    listed = {info.file for info in manifest.shards}
    for path in sorted(folder.glob(SHARD_PATTERN)):
        if path.name not in listed:
            yield from _check_shard(path, ShardInfo.of(Shard(path)), manifest)


def _check_shard(path: Path, info: ShardInfo, manifest: Manifest) -> Iterator[str]:
    try:
        if info.sha256 and path.stat().st_size == info.bytes and sha256(path) != info.sha256:
            yield f"{path}: its SHA-256 is not the manifest's: delete it and run the same collect command again"
        shard = Shard(path)
        if why := differences(manifest.header, shard.header):
            yield f"{path}: belongs to another dataset ({why})"
        if ShardInfo.of(shard, hashed=False).content != info.content:
            yield f"{path}: its episodes are not those of the manifest"
        for position in range(len(shard)):
            yield from _check_episode(shard, position)
    except FileNotFoundError:
        yield f"{path}: missing: copy it again, or run the same collect command again"
    except ValueError as error:
        yield str(error)


def _check_episode(shard: Shard, position: int) -> Iterator[str]:
    entry = shard.entries[position]
    where = f"{shard.path}: episode {entry.episode}"
    batch = shard.batch(position)
    batch.validate(full=True)
    states = shard.states(position)
    try:
        check_episode(states)
    except ValueError as error:
        yield f"{where}: {error}"
    if states_hash(states) != entry.states_hash:
        yield f"{where}: the hash of its states is not what was recorded"
    steps, numbers = batch.column("step").to_numpy(), batch.column("episode").to_numpy()
    if not (np.array_equal(steps, np.arange(entry.frames)) and (numbers == entry.episode).all()):
        yield f"{where}: its rows are out of order"
    if shard.header.codec is not None:
        frames, every = list(shard.frames(position)), shard.header.picture_every
        if not np.array_equal(np.flatnonzero(batch.column("pixels").is_valid()), np.arange(0, entry.frames, every)):
            yield f"{where}: its pictures are not at every {every}th step"
        out, decoder = np.empty(shard.codec.stored_shape, np.uint8), FrameDecoder(max_cached=1)
        for i, frame in enumerate(frames):
            try:
                key = shard.codec.key_step(i, len(frames))
                decoder.decode_into(out, key, None if i == key else frames[key], [frame])
            except ValueError as error:
                yield f"{where}, step {i * every}: {error}"
                return
        if pixels_hash(frames) != entry.pixels_hash:
            yield f"{where}: the hash of its pixels is not what was recorded"
