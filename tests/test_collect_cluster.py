"""Collecting on a Ray cluster, shown on a local instance: the same files, and tasks that die are run again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from collect.cluster import play_on_ray
from collect.collector import collect as run_collect
from collect.episodes import EpisodeRunner, make_header
from lewm_gym.data.format.manifest import MANIFEST_NAME
from lewm_gym.data.verify import verify

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
