"""What a dataset says when something is wrong with its files."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from test_data import HEADER, made_up_episode, write

from lewm_gym.data import Dataset
from lewm_gym.data.codec import FrameCodec
from lewm_gym.data.manifest import MANIFEST_NAME
from lewm_gym.data.shard import encode
from lewm_gym.data.verify import verify
from lewm_gym.data.writer import open_writer, part_path, save_episode
from lewm_gym.files import atomic_file, exclusive


@pytest.fixture
def dataset(tmp_path):
    return write(tmp_path, range(3))


def shard_path(dataset):
    return dataset.folder / dataset.manifest.shards[0].file


def test_no_dataset_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m collect"):
        Dataset.open(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="python -m collect"):
        Dataset.open(tmp_path)


def test_a_missing_shard_is_named(dataset):
    shard_path(dataset).unlink()
    with pytest.raises(ValueError, match="episodes-000000-000002.arrow is listed in the manifest but missing: copy"):
        Dataset.open(dataset.folder)
    assert "missing" in verify(dataset.folder)[0]


@pytest.mark.parametrize("keep", [0, 10, 5000, -10])
@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_truncated_shard_is_named(dataset, keep, with_manifest):
    path = shard_path(dataset)
    path.write_bytes(path.read_bytes()[:keep])
    if not with_manifest:
        (dataset.folder / MANIFEST_NAME).unlink()
    with pytest.raises(ValueError, match=r"episodes-000000-000002.arrow.*truncated.*delete it and run"):
        Dataset.open(dataset.folder)


def test_any_flipped_byte_is_caught_by_verify(dataset):
    path = shard_path(dataset)
    whole = path.read_bytes()
    assert verify(dataset.folder) == []
    for position in np.random.default_rng(0).integers(0, len(whole), 12).tolist():
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        faults = verify(dataset.folder)
        assert faults and path.name in faults[0], position
    path.write_bytes(whole)
    assert verify(dataset.folder) == []


def test_a_flipped_byte_in_a_frame_is_caught_when_it_is_read(dataset):
    path = shard_path(dataset)
    data = bytearray(path.read_bytes())
    start, end = Dataset.open(dataset.folder)._shard(0).frame_starts()[1][4:6]
    data[(start + end) // 2] ^= 1
    path.write_bytes(data)
    damaged = Dataset.open(dataset.folder)
    with pytest.raises(ValueError, match="episodes-000000-000002.arrow is damaged.*episode 1, step 4"):
        damaged.frames(1, [4])
    np.testing.assert_array_equal(damaged.frames(1, [5])[0], made_up_episode(1, 9).pixels[5])


def test_a_damaged_manifest_is_named_and_can_be_made_again(dataset):
    path = dataset.folder / MANIFEST_NAME
    before = path.read_bytes()
    path.write_bytes(before[:100])
    with pytest.raises(ValueError, match="manifest.json is damaged.*delete it"):
        Dataset.open(dataset.folder)
    path.unlink()
    assert write(dataset.folder, range(3)).content_hash == dataset.content_hash
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused(dataset):
    path = dataset.folder / MANIFEST_NAME
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(ValueError, match="schema 2, but this version reads 1"):
        Dataset.open(dataset.folder)


def test_a_manifest_that_lies_is_caught_by_verify(dataset):
    path = dataset.folder / MANIFEST_NAME
    path.write_text(path.read_text().replace('"episodes": 3', '"episodes": 4'))
    assert "says episodes 4" in verify(dataset.folder)[0]


def test_overlapping_shards_are_named(dataset):
    other = write(dataset.folder.with_name("other"), range(2, 5))
    shard_path(other).rename(dataset.folder / shard_path(other).name)
    with pytest.raises(ValueError, match="hold the same episodes"):
        Dataset.open(dataset.folder)


def test_a_damaged_part_is_played_again(tmp_path):
    with open_writer(tmp_path, HEADER, range(3)) as writer:
        for number in range(2):
            save_episode(tmp_path, HEADER, number, encode(made_up_episode(number), FrameCodec("chw", level=1)))
            writer.add(number)
    path = part_path(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-200])
    with open_writer(tmp_path, HEADER, range(3)) as writer:
        assert writer.missing == [0, 2]


def test_an_interrupted_replacement_of_a_shard_is_cleaned_up(dataset):
    larger = write(dataset.folder.with_name("larger"), range(5))
    shard_path(larger).rename(dataset.folder / shard_path(larger).name)  # as if killed before the manifest was written
    assert Dataset.open(dataset.folder).content_hash == larger.content_hash
    write(dataset.folder, range(5))
    assert [path.name for path in dataset.folder.glob("*.arrow")] == [shard_path(larger).name]


def test_a_second_writer_is_refused_and_a_dead_one_is_not_waited_for(tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from lewm_gym.files import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(ValueError, match=rf"written by another process \(pid {process.pid}\)"):
            with exclusive(tmp_path):
                pass
        process.kill()
    with exclusive(tmp_path):
        pass


def test_a_failed_write_leaves_neither_the_file_nor_a_leftover(tmp_path):
    (tmp_path / "file").write_text("before")
    with pytest.raises(OSError, match="No space"):
        with atomic_file(tmp_path / "file") as file:
            file.write(b"half")
            raise OSError(28, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_what_killed_workers_left_is_removed_at_the_end(dataset):
    parts = dataset.folder / "parts"
    with open_writer(dataset.folder, HEADER, range(4)) as writer:
        save_episode(dataset.folder, HEADER, 3, encode(made_up_episode(3), FrameCodec("chw", level=1)))
        writer.add(3)
        (parts / ".episode-000002.arrow.123.tmp").write_text("half")
        save_episode(dataset.folder, HEADER, 1, encode(made_up_episode(1), FrameCodec("chw", level=1)))
        writer.close()
    assert not parts.exists()


def test_the_manifest_of_another_dataset_is_named(dataset):
    other = write(dataset.folder / "apart", range(3), replace(HEADER, task="pusht"))
    ours = dataset.folder / MANIFEST_NAME
    ours.write_bytes((other.folder / MANIFEST_NAME).read_bytes())
    faults = verify(dataset.folder)
    assert any("belongs to another dataset (task 'pusht' and 'two_room')" in fault for fault in faults), faults
    with pytest.raises(ValueError, match="holds another dataset .task|bytes, not the"):
        with open_writer(dataset.folder, HEADER, range(3)):
            pass
    ours.unlink()
    assert Dataset.open(dataset.folder).content_hash == dataset.content_hash


def test_a_shard_of_another_dataset_is_named(dataset):
    other = write(dataset.folder / "apart", range(3, 5), replace(HEADER, seed=1))
    shard_path(other).rename(dataset.folder / shard_path(other).name)
    with pytest.raises(ValueError, match="episodes-000003-000004.arrow does not belong to this dataset .seed 0 and 1"):
        Dataset.open(dataset.folder)


def test_two_threads_that_write_the_same_file_do_not_share_a_temporary_one(tmp_path):
    with atomic_file(tmp_path / "file") as one:
        with atomic_file(tmp_path / "file") as other:
            assert len(list(tmp_path.iterdir())) == 2
            other.write(b"other")
        one.write(b"one")
    assert (tmp_path / "file").read_bytes() == b"one" and len(list(tmp_path.iterdir())) == 1
