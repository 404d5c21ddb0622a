"""Work on a Ray cluster, shown on a local instance: the same files, and tasks that die are run again."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import tiny

from benchmarks.__main__ import main
from benchmarks.experiments import trial as trials
from collect.cluster import play_on_ray, run_on_ray
from collect.collector import collect as run_collect
from collect.episodes import EpisodeRunner, make_header
from lewm_gym.data.format.manifest import MANIFEST_NAME
from lewm_gym.data.verify import verify
from lewm_gym.files import sha256

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'lewm-gym[ray]'")


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield "local"
    ray.shutdown()


class DiesOnce:
    """Plays, but the first attempt kills its process, as a machine that is switched off."""

    def __init__(self, header, marker):
        self._runner, self._marker = EpisodeRunner(header), Path(marker)

    def save(self, folder, number):
        if number == 11 and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self._runner.save(folder, number)

    def close(self):
        self._runner.close()


class Faulty:
    def save(self, folder, number):
        raise ValueError(f"policy 'mine', episode {number}: got nan")

    def close(self):
        pass


class Maker:
    """A picklable way to make a source: Ray cannot import a test module."""

    def __init__(self, kind, *arguments):
        self.kind, self.arguments = kind, arguments

    def __call__(self):
        return self.kind(*self.arguments)


@pytest.fixture(autouse=True)
def pickled_by_value():
    import sys

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_a_cluster_writes_the_same_bytes(cluster, tmp_path):
    options = {"workers": 1, "pictures": False}
    here = run_collect("two_room", tmp_path / "here", 23, **options)
    calls = []
    run_collect("two_room", tmp_path / "there", 23, ray=cluster, progress=lambda *c: calls.append(c), **options)
    for name in (MANIFEST_NAME, *(info.file for info in here.manifest.shards)):
        assert (tmp_path / "there" / name).read_bytes() == (here.folder / name).read_bytes()
    assert [call[0] for call in calls] == list(range(1, 24)) and verify(tmp_path / "there") == []


def test_a_task_that_dies_is_run_again(cluster, tmp_path):
    (tmp_path / "parts").mkdir()
    header = make_header("two_room", states_only=True)
    played = play_on_ray(Maker(DiesOnce, header, tmp_path / "marker"), tmp_path, list(range(15)), cluster)
    assert sorted(number for number, _ in played) == list(range(15))
    assert (tmp_path / "marker").exists() and len(list((tmp_path / "parts").glob("*.arrow"))) == 15


def test_what_an_episode_raises_is_raised_here(cluster, tmp_path):
    with pytest.raises(ValueError, match=r"^policy 'mine', episode 4: got nan$"):
        list(play_on_ray(Maker(Faulty), tmp_path, [4, 5], cluster))


def test_a_task_for_which_no_machine_has_room_is_refused(cluster):
    with pytest.raises(ValueError, match="no machine of the Ray cluster has 64 CPUs and 0 GPUs for one task"):
        list(run_on_ray(os.getpid, [()], cluster, cpus=64))


# Trainings -----------------------------------------------------------------------------------------------------


def compare(folder, *options):
    small = [
        "conv_channels=[8,8,8]",
        "encoder_width=16",
        "hidden_widths=[16]",
        "batch_size=4",
        "recalibration_batches=1",
    ]
    words = ["--agents", "gcbc", "--seeds", "0", "1", "--steps", "2", "--n-pairs", "1", "--threads", "1"]
    places = ["--runs", str(folder / "runs"), "--out", str(folder / "out")]
    return main(
        ["compare", str(folder / "two_room"), *words, *places, "--set", *(f"gcbc.{s}" for s in small), *options]
    )


def outcome(folder):
    runs = {path.parent.name: sha256(path) for path in (folder / "runs").glob("*/weights.safetensors")}
    results = {path.name: json.loads(path.read_text())["outcomes"] for path in (folder / "out").glob("two_room-*.json")}
    return runs, results


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    tiny.collect_two_room(folder / "two_room", episodes=3)
    assert compare(folder) == 0
    return folder


def test_trainings_on_a_cluster_give_the_same_weights_and_outcomes(cluster, compared, tmp_path, monkeypatch):
    (tmp_path / "two_room").symlink_to(compared / "two_room")
    assert compare(tmp_path, "--ray", cluster) == 0
    assert outcome(tmp_path) == outcome(compared) and len(outcome(compared)[0]) >= 2
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["missing"] == 0
    monkeypatch.setattr(trials, "run_on_ray", None)  # would fail if anything were left to do
    assert compare(tmp_path, "--ray", cluster) == 0
