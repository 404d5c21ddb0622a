"""What a dataset says when something is wrong with its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from test_data import HEADER, made_up_episode, write

from lewm_gym.data import Dataset
from lewm_gym.data.codec import FrameCodec, encode
from lewm_gym.data.format.manifest import MANIFEST_NAME
from lewm_gym.data.verify import verify
from lewm_gym.data.writer import open_writer, part_path, save_episode
from lewm_gym.files import Locked, atomic_file, exclusive, sealed


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
    with pytest.raises(ValueError, match="manifest.json is not valid JSON.*delete it"):
        Dataset.open(dataset.folder)
    path.unlink()
    assert write(dataset.folder, range(3)).content_hash == dataset.content_hash
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused(dataset):
    path = dataset.folder / MANIFEST_NAME
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 3'))
    with pytest.raises(ValueError, match="schema 3, but this version reads 2"):
        Dataset.open(dataset.folder)


def test_any_flipped_bit_of_a_manifest_is_noticed_as_it_is_read(dataset):
    """Statistics and bounds of actions among them, which say nothing wrong by themselves."""
    path = dataset.folder / MANIFEST_NAME
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            Dataset.open(dataset.folder)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert json.loads(damaged) == json.loads(whole), position  # a space became another, say
    path.write_bytes(whole)
    assert verify(dataset.folder) == []


def sealed_manifest(dataset, **changes):
    """Writes a manifest that says something else, but goes with its own hash: as somebody could who wants to."""
    path = dataset.folder / MANIFEST_NAME
    record = {name: value for name, value in json.loads(path.read_text()).items() if name != "sha256"}
    path.write_text(json.dumps(sealed({**record, **changes})))


WRONG = {
    "episodes": [4, "3", None],
    "content_hash": ["0" * 32, 5],
    "columns": [None, {}, {"action": 3}, {"action": {"size": 0, "dtype": "float32", "units": "", "role": "action"}}],
    "action_low": [[-1.0], "low", [2.0, 2.0], []],
    "task": [None, 3, ""],
    "seed": ["0", -1, 1.5],
    "variations": ["all", [1]],
    "picture_every": [0, "1"],
    "versions": [[], {"python": 3}],
    "shards": [None, [], [5], [{}], {"file": "x"}],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_manifest_with_a_field_of_a_wrong_kind_is_named_with_the_field(dataset, name):
    path = dataset.folder / MANIFEST_NAME
    whole = path.read_bytes()
    for value in WRONG[name]:
        path.write_bytes(whole)
        sealed_manifest(dataset, **{name: value})
        for read in (Dataset.open, verify):
            with pytest.raises(ValueError, match=f"manifest.json is damaged .*{name}.*delete it"):
                read(dataset.folder)


@pytest.mark.parametrize("file", ["../../other/episodes-000000-000002.arrow", "/x/episodes-000000-000002.arrow", "x"])
def test_a_manifest_cannot_name_files_elsewhere(dataset, file):
    shards = json.loads((dataset.folder / MANIFEST_NAME).read_text())["shards"]
    sealed_manifest(dataset, shards=[{**shards[0], "file": file}])
    for read in (Dataset.open, verify):
        with pytest.raises(ValueError, match=r"manifest.json is damaged .*file"):
            read(dataset.folder)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b'{"schema": NaN}', b"[]", b"", b'{"schema": {}}'])
def test_a_manifest_that_is_no_json_of_ours_is_named(dataset, content):
    (dataset.folder / MANIFEST_NAME).write_bytes(content)
    for read in (Dataset.open, verify):
        with pytest.raises(ValueError, match="manifest.json"):
            read(dataset.folder)


def test_a_shard_whose_header_was_altered_is_named(dataset):
    """Flips within what a shard says of itself: every one, whatever field it hits."""
    path = shard_path(dataset)
    whole = path.read_bytes()
    with pa.memory_map(str(path)) as file:
        said = pa.ipc.open_file(file).schema.metadata[b"lewm_gym"]
    start = whole.rindex(said)  # in the footer, which is read; the file begins with a copy
    (dataset.folder / MANIFEST_NAME).unlink()  # it would tell the file's hash
    for position in range(start, start + len(said), 11):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=path.name):
            Dataset.open(dataset.folder)


def test_a_shard_with_a_field_of_a_wrong_kind_is_named_with_the_field(dataset):
    """Sealed anew, so that only the kinds of fields are wrong; `verify` tells it, too."""
    path = shard_path(dataset)
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        record = json.loads(reader.schema.metadata[b"lewm_gym"])
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for name, value in (
            ("codec", 5),
            ("columns", {"action": None}),
            ("episodes", 7),
            ("episodes", [{**record["episodes"][0], "frames": "12"}]),
            ("episodes", [{**record["episodes"][0], "states": 12}]),
            ("noise", "much"),
        ):
            said = sealed({**{k: v for k, v in record.items() if k != "sha256"}, name: value})
            with pa.OSFile(str(dataset.folder / "new"), "wb") as out:
                schema = reader.schema.with_metadata({b"lewm_gym": json.dumps(said).encode()})
                with pa.ipc.new_file(out, schema) as writer:
                    for batch in batches:
                        writer.write_batch(batch.replace_schema_metadata(schema.metadata))
            other = dataset.folder.with_name(f"{dataset.folder.name}-other")
            other.mkdir(exist_ok=True)
            (dataset.folder / "new").rename(other / path.name)
            for read in (Dataset.open, verify):
                with pytest.raises(ValueError, match=f"{path.name} is damaged .*{name}"):
                    read(other)


def test_a_shard_whose_columns_are_of_another_kind_is_named(dataset):
    path = shard_path(dataset)
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for name in ("success", "angle", "step", "pixels"):
            other = dataset.folder.with_name(f"other-{name}")
            other.mkdir()
            i = reader.schema.get_field_index(name)
            changed = [b.set_column(i, name, pa.array(["x"] * b.num_rows)) for b in batches]
            with pa.OSFile(str(other / path.name), "wb") as out:
                with pa.ipc.new_file(out, changed[0].schema) as writer:
                    for batch in changed:
                        writer.write_batch(batch)
            with pytest.raises(ValueError, match=f"{path.name} is damaged .its columns .*: {name}"):
                Dataset.open(other)


def test_a_dataset_of_a_version_without_checksums_is_read_and_extended(dataset):
    path = dataset.folder / MANIFEST_NAME
    record = {name: value for name, value in json.loads(path.read_text()).items() if name != "sha256"}
    path.write_text(json.dumps({**record, "schema": 1}))
    assert Dataset.open(dataset.folder).content_hash == dataset.content_hash
    assert write(dataset.folder, range(5)).n_episodes == 5
    assert json.loads(path.read_text())["schema"] == 2


def test_overlapping_shards_are_named(dataset):
    other = write(dataset.folder.with_name(f"{dataset.folder.name}-other"), range(2, 5))
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
    larger = write(dataset.folder.with_name(f"{dataset.folder.name}-larger"), range(5))
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


def test_the_lock_of_a_file_is_removed_and_one_that_was_removed_while_it_was_waited_for_does_not_count(tmp_path):
    path, lock, held = tmp_path / "r.json", tmp_path / ".r.json.lock", []

    def wait():
        with exclusive(path, wait=True):
            held.append(lock.read_text())

    waiting = threading.Thread(target=wait)
    with exclusive(path):
        with (
            pytest.raises(Locked, match=r"r.json is being written by another .*, or use another name"),
            exclusive(path),
        ):
            pass
        waiting.start()
        time.sleep(0.1)
        assert not held and lock.exists()
    waiting.join(10)
    assert held == [str(os.getpid())] and not list(tmp_path.iterdir())


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
