"""Speed of drawing clips: every reader delivers the frames of the dataset, the command prints and keeps its table."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.speed_data import WRITERS, measure_data, table
from collect import collect
from lewm_gym.tasks import TASKS


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return collect("two_room", tmp_path_factory.mktemp("data") / "two_room", 2, workers=1, pictures=False)


def test_the_speeds_of_the_docs_are_those_of_the_stored_measurement():
    root = Path(__file__).parent.parent
    page = (root / "docs" / "datasets.md").read_text(encoding="utf-8")
    rows = json.loads((root / "results" / "speed-data.json").read_text(encoding="utf-8"))["rows"]
    for name, task in TASKS.items():
        of_task = {row["reader"]: row for row in rows if row["task"] == name}
        speeds = " | ".join(f"{of_task[reader]['speed']['median']:,.0f}" for reader in ("ours", "raw", "hdf5", "png"))
        assert f"| {task.title.removeprefix('OGBench-')} | {speeds} | {of_task['ours']['episodes']:,} |" in page


@pytest.mark.parametrize("name", WRITERS)
def test_every_plain_reader_gives_the_frames_that_were_written(name, dataset, tmp_path):
    if name == "hdf5":
        pytest.importorskip("h5py")
    frames, rows = dataset.frames(0, np.arange(20)), np.array([3, 8, 13, 18])
    with ExitStack() as stack:
        read, size = WRITERS[name](frames, tmp_path, stack)
        np.testing.assert_array_equal(read(rows), frames[rows])
    assert size > 0


def test_the_command_measures_prints_and_keeps(dataset, tmp_path, capsys):
    out = tmp_path / "speed.json"
    options = ["--seconds", "0.05", "--batch-size", "2", "--plain-episodes", "1", "--out", str(out)]
    assert main(["speed", "data", str(dataset.folder), *options]) == 0
    assert "| raw |" in capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    assert [row["reader"] for row in rows] == ["ours", "raw", "hdf5", "png"]
    assert rows[0]["speed"]["median"] > 50 and rows[1]["bytes_per_frame"] > 224 * 224 * 3


def test_a_reader_that_is_not_installed_is_named(dataset, monkeypatch):
    monkeypatch.setattr("benchmarks.speed_data.importlib.util.find_spec", lambda name: None)
    rows = measure_data([dataset.folder], seconds=0.05, batch_size=2, plain_episodes=1)
    assert "hdf5: not measured: h5py is not installed" in table(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seconds": 0.0}, "seconds"), ({"batch_size": 0}, "batch size"), ({"plain_episodes": -1}, "plain episodes")],
)
def test_wrong_numbers_are_refused_before_anything_runs(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        measure_data([dataset.folder], **options)
