"""LeRobot datasets: v2.1 and v3.0 are read, v3.0 is written.

LeRobot itself pins an older torch than ours, so that its own reader cannot be installed beside it: files are written
and read here by hand as its documentation and its code (0.5.4) have them, and by the libraries that it reads with.
"""

from __future__ import annotations

import io
import json

import imageio.v2 as imageio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_data import made_up_episode, write

from lewm_gym.data.foreign.lerobot import import_lerobot
from lewm_gym.data.foreign.lerobot_export import export_lerobot
from lewm_gym.data.verify import verify

FPS, LENGTHS = 30, (17, 21)


def grey(episode, step):
    return 10 + 8 * step + 40 * episode


def recorded(episode):
    """Returns the columns of an episode as a robot records them: an action in every row."""
    length = LENGTHS[episode]
    rng = np.random.default_rng(episode)
    steps = np.arange(length)
    return {
        "action": rng.normal(size=(length, 3)).astype(np.float32),
        "observation.state": rng.normal(size=(length, 6)).astype(np.float32),
        "observation.effort": rng.normal(size=(length, 2)).astype(np.float32),
        "next.success": steps >= length - 2,
        "timestamp": (steps / FPS).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(length, episode),
        "task_index": np.zeros(length, np.int64),
    }


def info(version, video=True, **paths):
    features = {
        "observation.images.front": {"dtype": "video" if video else "image", "shape": [96, 128, 3]},
        "action": {"dtype": "float32", "shape": [3]},
        "observation.state": {"dtype": "float32", "shape": [6]},
        "observation.effort": {"dtype": "float32", "shape": [2]},
    }
    return {"codebase_version": version, "fps": FPS, "chunks_size": 1000, "features": features, **paths}


def as_table(columns, pictures=None):
    arrays = {name: pa.array(list(v) if v.ndim > 1 else v) for name, v in columns.items()}
    if pictures is not None:
        arrays["observation.images.front"] = pa.array(pictures, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    return pa.table(arrays)


def film(path, greys):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [np.full((96, 128, 3), value, np.uint8) for value in greys]
    imageio.mimwrite(path, frames, fps=FPS, codec="libx264", quality=9, macro_block_size=16)


def v21(folder, video=True):
    (folder / "meta").mkdir(parents=True)
    paths = {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (folder / "meta/info.json").write_text(json.dumps(info("v2.1", video, **paths)))
    rows = [{"episode_index": e, "tasks": ["push"], "length": n} for e, n in enumerate(LENGTHS)]
    (folder / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "data/chunk-000").mkdir(parents=True)
    for episode, length in enumerate(LENGTHS):
        pictures = None
        if video:
            path = folder / f"videos/chunk-000/observation.images.front/episode_{episode:06d}.mp4"
            film(path, [grey(episode, step) for step in range(length)])
        else:
            pictures = [{"bytes": png(grey(episode, step)), "path": "x.png"} for step in range(length)]
        path = folder / f"data/chunk-000/episode_{episode:06d}.parquet"
        pq.write_table(as_table(recorded(episode), pictures), path)
    return folder


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((96, 128, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def v30(folder):
    """Both episodes in one table and one film."""
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    paths = {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    (folder / "meta/info.json").write_text(json.dumps(info("v3.0", **paths)))
    key = "videos/observation.images.front/"
    rows = [
        {
            "episode_index": e,
            "length": n,
            "tasks": ["push"],
            "data/chunk_index": 0,
            "data/file_index": 0,
            "stats/action/min": [0.0],
            f"{key}chunk_index": 0,
            f"{key}file_index": 0,
            f"{key}from_timestamp": e * LENGTHS[0] / FPS,
        }
        for e, n in enumerate(LENGTHS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "meta/episodes/chunk-000/file-000.parquet")
    (folder / "data/chunk-000").mkdir(parents=True)
    pq.write_table(
        pa.concat_tables([as_table(recorded(e)) for e in (0, 1)]), folder / "data/chunk-000/file-000.parquet"
    )
    greys = [grey(e, step) for e, n in enumerate(LENGTHS) for step in range(n)]
    film(folder / "videos/observation.images.front/chunk-000/file-000.mp4", greys)
    return folder


@pytest.mark.parametrize("make", [v21, v30, lambda folder: v21(folder, video=False)], ids=["v2.1", "v3.0", "images"])
def test_recordings_of_robots_train_here(tmp_path, make):
    dataset = import_lerobot(make(tmp_path / "robot"), tmp_path / "data")
    assert dataset.task == "lerobot:robot" and dataset.lengths.tolist() == list(LENGTHS)
    assert verify(dataset.folder) == []
    for number, length in enumerate(LENGTHS):
        wrote, read = recorded(number), dataset.episode(number)
        np.testing.assert_array_equal(read.action[:-1], wrote["action"][:-1])
        np.testing.assert_array_equal(read.state, wrote["observation.state"])
        np.testing.assert_array_equal(read.quantities["observation.effort"], wrote["observation.effort"])
        assert read.success.tolist() == [False] * (length - 1) + [True]
        seen = read.pixels.reshape(length, -1).mean(1)
        np.testing.assert_allclose(seen, [grey(number, step) for step in range(length)], atol=3)
    everything = np.concatenate([recorded(0)["action"], recorded(1)["action"]])
    np.testing.assert_array_equal(dataset.action_low, everything.min(0))
    np.testing.assert_array_equal(dataset.action_high, everything.max(0))
    from lewm_gym.data import ClipSampler  # torch, which the other tests need not wait for

    assert ClipSampler(dataset).batch(0, 4).pixels.shape == (4, 4, 224, 224, 3)


def test_damaged_recordings_are_named(tmp_path):
    robot = v30(tmp_path / "robot")
    with pytest.raises(ValueError, match="no camera 'side'; its cameras: observation.images.front"):
        import_lerobot(robot, tmp_path / "data", camera="side")
    video = robot / "videos/observation.images.front/chunk-000/file-000.mp4"
    video.write_bytes(video.read_bytes()[:700])
    with pytest.raises(ValueError, match="episode 0: the video .*file-000.mp4 cannot be read"):
        import_lerobot(robot, tmp_path / "data")
    video.unlink()
    with pytest.raises(ValueError, match="video .* is missing"):
        import_lerobot(robot, tmp_path / "data")
    described = json.loads((robot / "meta/info.json").read_text())
    (robot / "meta/info.json").write_text(json.dumps({**described, "codebase_version": "v1.6"}))
    with pytest.raises(ValueError, match="of v1.6; v2.0, v2.1 and v3.0 can be read"):
        import_lerobot(robot, tmp_path / "data")
    with pytest.raises(ValueError, match="not a LeRobot dataset"):
        import_lerobot(tmp_path, tmp_path / "data")


OUTSIDE = {
    "a pattern of tables": {"data_path": "../other/{episode_index}.parquet"},
    "an absolute pattern": {"data_path": "/etc/{episode_index}"},
    "a pattern of films": {"video_path": "../../{video_key}.mp4"},
}
NO_PATTERN = {
    "an attribute": {"data_path": "{episode_index.real}"},
    "a width that fills the memory": {"data_path": "{episode_index:99999999999d}"},
    "an unknown name": {"data_path": "data/{no_such_name}.parquet"},
}


@pytest.mark.parametrize("what", [*OUTSIDE, *NO_PATTERN])
def test_only_files_of_the_dataset_are_opened(tmp_path, what):
    robot = v21(tmp_path / "robot")
    described = json.loads((robot / "meta/info.json").read_text())
    (robot / "meta/info.json").write_text(json.dumps(described | {**OUTSIDE, **NO_PATTERN}[what]))
    message = "not a file in that folder" if what in OUTSIDE else "not a valid path pattern"
    with pytest.raises(ValueError, match=f"robot.*{message}"):
        import_lerobot(robot, tmp_path / "data")


@pytest.mark.parametrize("path", ["x.png", "../../x.png"])
def test_a_picture_elsewhere_is_not_opened(tmp_path, path):
    robot = v21(tmp_path / "robot", video=False)
    (tmp_path / "x.png").write_bytes(png(7))
    table = robot / "data/chunk-000/episode_000000.parquet"
    where = str(tmp_path / "x.png") if path == "x.png" else path
    pictures = [{"bytes": None, "path": where} for _ in range(LENGTHS[0])]
    pq.write_table(as_table(recorded(0), pictures), table)
    with pytest.raises(ValueError, match="x.png', which is not a file in that folder"):
        import_lerobot(robot, tmp_path / "data")


WRONG = {
    "fps": ["fast", 0, None],
    "features": [[], {"action": 3}, {"action": {}}],
    "codebase_version": [3],
    "data_path": [None, 5],
    "chunks_size": [0, "1000"],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_description_with_a_field_of_a_wrong_kind_is_named_with_the_field(tmp_path, name):
    robot = v21(tmp_path / "robot", video=False)
    described = json.loads((robot / "meta/info.json").read_text())
    for value in WRONG[name]:
        (robot / "meta/info.json").write_text(json.dumps({**described, name: value}))
        with pytest.raises(ValueError, match=f"info.json is damaged.*{name}"):
            import_lerobot(robot, tmp_path / "data")
    for content in (b"[" * 100_000, b"\xff", b"[]"):
        (robot / "meta/info.json").write_bytes(content)
        with pytest.raises(ValueError, match="info.json is damaged"):
            import_lerobot(robot, tmp_path / "data")


@pytest.mark.parametrize(
    "row", [{"episode_index": "x", "length": 5}, {"length": 5}, [], {"episode_index": 0, "length": -1}, "x"]
)
def test_a_list_of_episodes_of_a_wrong_kind_is_named(tmp_path, row):
    robot = v21(tmp_path / "robot", video=False)
    (robot / "meta/episodes.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="robot: its list of episodes cannot be read"):
        import_lerobot(robot, tmp_path / "data")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"), range(3), length=lambda number: 17 + number)


@pytest.fixture(scope="module")
def exported(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot") / "exported"
    export_lerobot(dataset, folder)
    return folder


def test_an_export_has_the_layout_of_v3(dataset, exported):
    described = json.loads((exported / "meta/info.json").read_text())
    assert described["codebase_version"] == "v3.0" and described["total_frames"] == dataset.n_frames
    assert (exported / described["data_path"].format(chunk_index=0, file_index=0)).is_file()
    table = pq.read_table(exported / "data/chunk-000/file-000.parquet")
    assert set(described["features"]) == set(table.column_names)
    assert table.column("index").to_pylist() == list(range(dataset.n_frames))
    row = pq.read_table(exported / "meta/episodes/chunk-000/file-000.parquet").to_pylist()[1]
    assert (row["dataset_from_index"], row["dataset_to_index"], row["length"]) == (17, 35, 18)
    statistics = json.loads((exported / "meta/stats.json").read_text())
    assert np.shape(statistics["observation.image"]["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(statistics["action"]["max"], dataset.action_high, atol=0.2)


def test_an_export_comes_back_with_its_pictures_and_actions(dataset, exported, tmp_path):
    again = import_lerobot(exported, tmp_path / "again")
    for index in range(3):
        wrote, read = made_up_episode(index, 17 + index), again.episode(index)
        np.testing.assert_array_equal(read.pixels, wrote.pixels)
        np.testing.assert_array_equal(read.action, wrote.action)
        np.testing.assert_array_equal(read.state, wrote.state.astype(np.float32))
        np.testing.assert_array_equal(read.success[1:], wrote.success[1:])
        np.testing.assert_array_equal(read.quantities["observation.angle"], wrote.quantities["angle"])


def test_the_libraries_that_lerobot_reads_with_read_an_export(exported):
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    tasks = pandas.read_parquet(exported / "meta/tasks.parquet")
    assert tasks.iloc[0].name == "two_room" and tasks.loc["two_room"].task_index == 0
    described = json.loads((exported / "meta/info.json").read_text())["features"]
    loaded = datasets.Dataset.from_parquet(
        str(exported / "data/chunk-000/file-000.parquet"), features=hugging_face(datasets, described)
    )
    np.testing.assert_array_equal(np.asarray(loaded[20]["observation.image"]), made_up_episode(1, 18).pixels[3])
    np.testing.assert_array_equal(np.float32(loaded[20]["action"]), made_up_episode(1, 18).action[3])


def hugging_face(datasets, described):
    """Returns the features as LeRobot 0.5.4 tells `datasets` of them (get_hf_features_from_features)."""
    found = {}
    for name, feature in described.items():
        if feature["dtype"] == "image":
            found[name] = datasets.Image()
        elif feature["shape"] == [1]:
            found[name] = datasets.Value(dtype=feature["dtype"])
        else:
            value = datasets.Value(dtype=feature["dtype"])
            found[name] = datasets.Sequence(length=feature["shape"][0], feature=value)
    return datasets.Features(found)
