"""Episodes, codec, shards and the reader."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from lewm_gym.data import Dataset, Episode, zstd
from lewm_gym.data.codec import EpisodeEncoder, FrameCodec, FrameDecoder, encode, pixels_hash
from lewm_gym.data.episode import check_episode
from lewm_gym.data.format.header import Column, Header
from lewm_gym.data.format.manifest import MANIFEST_NAME
from lewm_gym.data.format.shard import Shard
from lewm_gym.data.verify import verify
from lewm_gym.data.writer import open_writer, part_path, save_episode

HEADER = Header(
    task="two_room",
    policy="made up",
    noise=None,
    seed=0,
    columns={
        "action": Column(2, "float32", "", "action"),
        "state": Column(3, "float64", "", "state"),
        "success": Column(1, "bool", "", "success"),
        "angle": Column(1, "float32", "rad", "quantity"),
    },
    codec=FrameCodec("chw", level=1).as_json(),
)


def made_up_episode(number: int, length: int = 12) -> Episode:
    rng = np.random.default_rng(number)
    pixels = np.repeat(rng.integers(0, 256, (1, 224, 224, 3), np.uint8), length, axis=0)
    pixels[np.arange(length), np.arange(length)] = rng.integers(0, 256, (length, 224, 3), np.uint8)
    action = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
    action[-1] = np.nan
    success = rng.random(length) < 0.5
    quantities = {"angle": rng.normal(size=(length, 1)).astype(np.float32)}
    return Episode(pixels, action, rng.normal(size=(length, 3)), success, quantities)


def write(folder, numbers, header=HEADER, length=lambda number: 8 + number % 5):
    numbers, codec = list(numbers), FrameCodec.from_json(header.codec)
    with open_writer(folder, header, numbers) as writer:
        for number in numbers:
            save_episode(folder, header, number, encode(made_up_episode(number, length(number)), codec))
            writer.add(number)
        writer.close()
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"), range(53))


def test_episodes_come_back_as_they_were_written(dataset):
    assert dataset.n_episodes == 53 and dataset.lengths.tolist() == [8 + i % 5 for i in range(53)]
    assert len(dataset.manifest.shards) == 2
    for index in (0, 49, 50, 52):
        wrote, read = made_up_episode(index, 8 + index % 5), dataset.episode(index)
        np.testing.assert_array_equal(read.pixels, wrote.pixels)
        np.testing.assert_array_equal(read.action, wrote.action)
        np.testing.assert_array_equal(read.state, wrote.state)
        np.testing.assert_array_equal(read.success, wrote.success)
        np.testing.assert_array_equal(read.quantities["angle"], wrote.quantities["angle"])
        check_episode(read)


def test_frames_are_readable_one_by_one(dataset):
    frames = dataset.frames(51, [3, 0, 7])
    np.testing.assert_array_equal(frames, made_up_episode(51, 9).pixels[[3, 0, 7]])
    with pytest.raises(IndexError, match="steps 0 to 8"):
        dataset.frames(51, [9])
    with pytest.raises(IndexError, match="episodes 0 to 52"):
        dataset.episode(53)


def test_columns_run_over_all_frames(dataset):
    rows = slice(dataset.starts[51], dataset.starts[52])
    np.testing.assert_array_equal(dataset.states[rows], made_up_episode(51, 9).state)
    np.testing.assert_array_equal(dataset.actions[rows], made_up_episode(51, 9).action)
    np.testing.assert_array_equal(dataset.quantities["angle"][rows], made_up_episode(51, 9).quantities["angle"])
    assert dataset.column("success").shape == (dataset.n_frames,)
    with pytest.raises(ValueError, match="no column 'speed'; it has: action"):
        dataset.column("speed")


def test_action_statistics_leave_out_the_rows_without_action(dataset):
    actions = dataset.actions[~np.isnan(dataset.actions[:, 0])].astype(np.float64)
    assert len(actions) == dataset.n_frames - dataset.n_episodes
    np.testing.assert_allclose(dataset.action_mean, actions.mean(0), atol=1e-7)
    np.testing.assert_allclose(dataset.action_std, actions.std(0), rtol=1e-6)
    assert dataset.action_mean.dtype == dataset.action_std.dtype == np.float32


def test_a_single_episode_cannot_be_split_and_the_error_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="needs at least 2 episodes, got 1: collect at least 2 episodes"):
        write(tmp_path, range(1)).split()


def test_split_is_by_episodes_disjoint_and_repeatable(dataset):
    fit, held_out = dataset.split(0.1, seed=3)
    assert len(held_out) == 5
    assert sorted([*fit, *held_out]) == list(range(53))
    np.testing.assert_array_equal(held_out, dataset.split(0.1, seed=3)[1])
    assert held_out.tolist() != dataset.split(0.1, seed=4)[1].tolist()
    assert len(dataset.split(0.0)[1]) == 0
    with pytest.raises(ValueError, match="within"):
        dataset.split(1.0)


def test_content_hash_does_not_depend_on_the_shards(dataset, tmp_path):
    again = write(tmp_path, [*range(53)][::-1])
    assert again.content_hash == dataset.content_hash
    write(tmp_path / "other", range(20))
    longer = write(tmp_path / "other", range(20, 53))
    assert longer.content_hash == dataset.content_hash
    assert write(tmp_path / "different", range(52)).content_hash != dataset.content_hash


def test_shards_have_the_same_bytes_whatever_the_history(dataset, tmp_path):
    write(tmp_path, range(10, 30))
    write(tmp_path, range(51, 53))
    write(tmp_path, range(53))
    for info in dataset.manifest.shards:
        assert (tmp_path / info.file).read_bytes() == (dataset.folder / info.file).read_bytes()
    assert sorted(p.name for p in tmp_path.glob("*.arrow")) == [info.file for info in dataset.manifest.shards]
    assert (tmp_path / MANIFEST_NAME).read_bytes() == (dataset.folder / MANIFEST_NAME).read_bytes()


def test_two_ranges_merge_by_moving_files(dataset, tmp_path):
    low, high = tmp_path / "low", tmp_path / "high"
    write(low, range(50))
    write(high, range(50, 53))
    for path in high.glob("*.arrow"):
        path.rename(low / path.name)
    merged = Dataset.open(low)
    assert merged.content_hash == dataset.content_hash
    assert verify(low) == []
    (low / MANIFEST_NAME).unlink()
    assert Dataset.open(low).content_hash == dataset.content_hash


def test_a_range_keeps_its_numbers(tmp_path):
    there = write(tmp_path, range(60, 63))
    assert there.episode_numbers.tolist() == [60, 61, 62]
    np.testing.assert_array_equal(there.episode(1).state, made_up_episode(61, 9).state)


def test_shards_of_another_recipe_are_refused(tmp_path):
    write(tmp_path / "a", range(3))
    write(tmp_path / "b", range(50, 53), header=replace(HEADER, seed=1))
    (tmp_path / "b" / "episodes-000050-000052.arrow").rename(tmp_path / "a" / "episodes-000050-000052.arrow")
    with pytest.raises(ValueError, match="does not belong to this dataset.*seed 0 and 1"):
        Dataset.open(tmp_path / "a")


def test_writing_another_recipe_into_a_folder_is_refused(tmp_path):
    write(tmp_path, range(3))
    with pytest.raises(ValueError, match="holds another dataset.*task 'two_room' and 'pusht'"):
        write(tmp_path, range(3), header=replace(HEADER, task="pusht"))


def test_shards_with_frames_stored_in_another_way_are_refused(tmp_path):
    write(tmp_path, range(3))
    with pytest.raises(ValueError, match="holds another dataset .codec .*chw.* and .*hwc"):
        write(tmp_path, range(5), header=replace(HEADER, codec=FrameCodec("hwc").as_json()))
    assert write(tmp_path, range(5), header=replace(HEADER, codec=FrameCodec("chw", level=9).as_json())).n_episodes == 5


def test_arrow_readers_can_read_a_shard(dataset):
    with pa.memory_map(str(dataset.folder / dataset.manifest.shards[0].file)) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.column_names == ["episode", "step", "action", "state", "success", "angle", "pixels"]
    assert table["step"].to_pylist()[:10] == [*range(8), 0, 1]


def test_manifest_says_what_is_in_the_folder(dataset):
    record = json.loads((dataset.folder / MANIFEST_NAME).read_text())
    assert (record["episodes"], record["frames"], record["task"]) == (53, dataset.n_frames, "two_room")
    assert record["columns"]["angle"]["units"] == "rad"
    assert record["content_hash"] == dataset.content_hash


CODECS = [FrameCodec("chw"), FrameCodec("hwc"), FrameCodec("hwc", segment_frames=4), FrameCodec("chw", 5, 1)]


def decode(decoder, codec, frames, step, name=0):
    out, key = np.empty(codec.stored_shape, np.uint8), codec.key_step(step, len(frames))
    decoder.decode_into(out, (name, key), None if key == step else memoryview(frames[key]), [memoryview(frames[step])])
    return out if codec.layout == "hwc" else out.transpose(1, 2, 0)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("length", [2, 3, 4, 8, 9, 11])
def test_codec_is_lossless_and_every_frame_readable_by_itself(codec, length):
    pixels = made_up_episode(0, length).pixels
    encoder, drawn = EpisodeEncoder(codec), np.empty_like(pixels[0])
    for frame in pixels:
        drawn[:] = frame  # an environment may draw into the same array again
        encoder.add(drawn)
    frames = encoder.finish()
    assert len(frames) == length
    for step in np.random.default_rng(0).permutation(length).tolist():
        np.testing.assert_array_equal(decode(FrameDecoder(), codec, frames, step), pixels[step])


def test_codec_is_lossless_for_frames_that_have_nothing_in_common():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    encoder = EpisodeEncoder(FrameCodec(level=1))
    for frame in pixels:
        encoder.add(frame)
    frames = encoder.finish()
    for step, frame in enumerate(pixels):
        np.testing.assert_array_equal(decode(FrameDecoder(), FrameCodec(), frames, step), frame)


def test_a_segments_key_is_its_middle():
    codec = FrameCodec(segment_frames=16)
    assert [codec.key_step(step, 40) for step in (0, 15, 16, 31, 32, 39)] == [8, 8, 24, 24, 39, 39]
    assert codec.key_step(30, 20) == 19 and FrameCodec().key_step(30, 40) == 0


def test_pixels_hash_depends_on_the_pixels_and_not_on_how_they_are_compressed():
    hashes = {
        pixels_hash(encode(made_up_episode(1), FrameCodec("hwc", segment, level)).frames)
        for segment, level in ((0, 1), (0, 9), (4, 3))
    }
    assert len(hashes) == 1
    assert pixels_hash(encode(made_up_episode(2), FrameCodec()).frames) not in hashes


@pytest.mark.parametrize("kind", ["direct", "portable"])
def test_both_decompressors_give_frames_that_share_a_key_in_one_go(kind, monkeypatch):
    if kind == "portable":
        monkeypatch.setattr(zstd, "_library", lambda: None)
    elif zstd._library() is None:
        pytest.skip("python-zstandard brings no C library here")
    pixels, frames = made_up_episode(0).pixels, encode(made_up_episode(0), FrameCodec()).frames
    out = np.empty((3, 224, 224, 3), np.uint8)
    FrameDecoder().decode_into(out, 0, memoryview(frames[0]), [memoryview(frames[step]) for step in (7, 0, 2)])
    np.testing.assert_array_equal(out, pixels[[7, 0, 2]])
    for damage in ([frames[3]], [frames[3]] * 3, [frames[3], frames[4][:-20]], [b"", b""]):
        with pytest.raises(ValueError, match="damaged"):
            FrameDecoder().decode_into(out[:2], 0, memoryview(frames[0]), damage)
    flipped = bytearray(frames[3])
    flipped[-1] ^= 1
    with pytest.raises(ValueError, match="damaged"):
        FrameDecoder().decode_into(out[:1], 0, memoryview(frames[0]), [flipped])


def test_decoder_forgets_old_episodes_and_still_decodes():
    decoder = FrameDecoder(max_cached=2)
    episodes = [encode(made_up_episode(i), FrameCodec()).frames for i in range(4)]
    for _ in range(2):
        for i, frames in enumerate(episodes):
            np.testing.assert_array_equal(decode(decoder, FrameCodec(), frames, 5, i), made_up_episode(i).pixels[5])
    assert len(decoder._local.keys) == 2


@pytest.mark.parametrize("record", [{"name": "zip"}, {"layout": "whc"}, {"level": 1, "bits": 8}])
def test_an_unknown_codec_is_refused(record):
    with pytest.raises(ValueError, match="or collect the dataset again"):
        FrameCodec.from_json(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": np.zeros((12, 3), np.float32)}, "state: expected .* float64, got .* float32"),
        ({"state": np.full((12, 3), np.nan)}, "state: contains NaN"),
        ({"action": np.zeros((12, 2), np.float32)}, "last row must be NaN"),
        ({"action": np.full((12, 2), np.nan, np.float32)}, "row 0 is"),
        ({"action": np.zeros((11, 2), np.float32)}, r"action: expected \(12, any\)"),
        ({"success": np.zeros(12)}, "success: expected"),
        ({"pixels": np.zeros((12, 3, 224, 224), np.uint8)}, "pixels: expected"),
        ({"quantities": {"angle": np.zeros(12, np.float32)}}, "angle: expected"),
    ],
)
def test_faulty_episodes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_episode(replace(made_up_episode(0), **change))


def test_twenty_thousand_episodes_open_within_a_second(tmp_path):
    part = tmp_path / "one"
    encoded = encode(replace(made_up_episode(0), pixels=None), FrameCodec("chw", level=1))
    header = replace(HEADER, codec=None, states_only=True)
    dataset = write_states(part, header, encoded)
    info = dataset.manifest.shards[0]
    shards = []
    for k in range(400):
        name = f"episodes-{50 * k:06d}-{50 * k + 49:06d}.arrow"
        (part / name).write_bytes(b"0" * info.bytes) if k else None
        shards.append(replace(info, file=name, first_episode=50 * k, lengths=(12,) * 50))
    replace(dataset.manifest, shards=tuple(shards)).save(part)
    begin = time.perf_counter()
    assert Dataset.open(part).n_episodes == 20_000
    assert time.perf_counter() - begin < 1.0


def write_states(folder, header, encoded):
    with open_writer(folder, header, range(50)) as writer:
        for number in range(50):
            save_episode(folder, header, number, encoded)
            writer.add(number)
        writer.close()
    return Dataset.open(folder)


def test_a_dataset_of_states_has_no_frames_and_says_what_to_do(tmp_path):
    encoded = encode(replace(made_up_episode(0), pixels=None), FrameCodec("chw", level=1))
    dataset = write_states(tmp_path, replace(HEADER, codec=None, states_only=True), encoded)
    assert dataset.episode(0).pixels is None and not dataset.has_pixels
    with pytest.raises(ValueError, match="states only.*python -m collect render"):
        dataset.frames(0, [0])


def test_a_part_waits_in_the_same_format(tmp_path):
    with open_writer(tmp_path, HEADER, range(3)) as writer:
        save_episode(tmp_path, HEADER, 1, encode(made_up_episode(1), FrameCodec("chw", level=1)))
        writer.add(1)
    assert len(Shard(part_path(tmp_path, 1))) == 1
    with pytest.raises(FileNotFoundError, match="interrupted"):
        Dataset.open(tmp_path)


def test_checksums_can_be_left_out_and_are_noticed_otherwise():
    frames = [bytearray(frame) for frame in encode(made_up_episode(0), FrameCodec()).frames]
    out = np.empty((224, 224, 3), np.uint8)
    frames[3][-1] ^= 1  # of the checksum itself
    FrameDecoder().decode_into(out, 0, memoryview(frames[0]), [memoryview(frames[3])], check=False)
    np.testing.assert_array_equal(out, made_up_episode(0).pixels[3])
    with pytest.raises(ValueError, match="damaged"):
        FrameDecoder().decode_into(out, 0, memoryview(frames[0]), [memoryview(frames[3])])
