"""Minari datasets, both ways, through Minari's own reader and writer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gymnasium import spaces
from test_data import made_up_episode, write

from lewm_gym.data import ClipSampler
from lewm_gym.data.foreign.minari import export_minari, import_minari
from lewm_gym.data.verify import verify

minari = pytest.importorskip("minari", reason="minari is not installed: pip install 'lewm-gym[minari]'")
pytest.importorskip("h5py", reason="h5py is not installed: pip install 'lewm-gym[minari]'")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"), range(3), length=lambda number: 17 + number)


@pytest.fixture(scope="module")
def exported(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("minari") / "exported"
    export_minari(dataset, folder)
    return folder


def test_minari_reads_what_we_export(exported):
    opened = minari.MinariDataset(exported / "data")
    assert opened.total_episodes == 3 and opened.total_steps == 16 + 17 + 18
    for index, episode in enumerate(opened.iterate_episodes()):
        wrote = made_up_episode(index, 17 + index)
        np.testing.assert_array_equal(episode.observations["pixels"], wrote.pixels)
        np.testing.assert_array_equal(episode.observations["state"], wrote.state)
        np.testing.assert_array_equal(episode.actions, wrote.action[:-1])
        np.testing.assert_array_equal(episode.infos["success"], wrote.success)
        assert episode.terminations[-1] == wrote.success[-1] and episode.truncations[-1] == (not wrote.success[-1])
        assert opened.observation_space.contains({k: v[0] for k, v in episode.observations.items()})
        assert all(opened.action_space.contains(action) for action in episode.actions)


def test_minari_finds_an_export_in_its_own_folder(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    (tmp_path / "lewm-gym").mkdir()
    exported_copy = tmp_path / "lewm-gym" / "exported-v0"
    exported_copy.symlink_to(exported)
    assert minari.load_dataset("lewm-gym/exported-v0").total_episodes == 3


def test_what_was_exported_comes_back_the_same(dataset, exported, tmp_path):
    again = import_minari(exported, tmp_path / "again")
    assert again.content_hash == dataset.content_hash and again.task == "two_room"
    assert verify(again.folder) == []


def test_jpeg_is_smaller_and_close(dataset, exported, tmp_path):
    export_minari(dataset, tmp_path / "jpeg", lossy=True)
    size = [(folder / "data/main_data.hdf5").stat().st_size for folder in (tmp_path / "jpeg", exported)]
    assert size[0] < size[1]
    assert import_minari(tmp_path / "jpeg", tmp_path / "data").n_frames == dataset.n_frames


def foreign(path, observation_space, observations, action_space, actions, infos=None):
    """Writes a dataset with Minari's own writer."""
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    (path / "data").mkdir(parents=True)
    storage = MinariStorage.new(path / "data", observation_space, action_space, data_format="hdf5")
    n = len(actions)
    buffer = EpisodeBuffer(
        observations=observations,
        actions=actions,
        rewards=np.zeros(n),
        terminations=np.zeros(n, bool),
        truncations=np.zeros(n, bool),
        infos=infos or {},
    )
    storage.update_episodes([buffer, buffer])
    storage.update_metadata({"dataset_id": "somebody/something-v3", "minari_version": minari.__version__})
    return path


def robot(path, **changes):
    rng = np.random.default_rng(0)
    camera = spaces.Box(0, 255, (48, 64, 3), np.uint8)
    settings = {
        "observation_space": spaces.Dict(
            {"camera": camera, "arm": spaces.Dict({"angles": spaces.Box(-9, 9, (4,)), "grip": spaces.Discrete(2)})}
        ),
        "observations": {
            "camera": np.repeat(rng.integers(0, 255, (21, 1, 1, 3), np.uint8), 48 * 64, 1).reshape(21, 48, 64, 3),
            "arm": {"angles": rng.normal(size=(21, 4)).astype(np.float32), "grip": np.ones(21, np.int64)},
        },
        "action_space": spaces.Box(-3, 5, (2,)),
        "actions": rng.uniform(-3, 5, (20, 2)).astype(np.float32),
        "infos": {"is_success": np.arange(20) == 19},
    }
    return foreign(path, **{**settings, **changes})


def test_other_peoples_minari_datasets_train_here(tmp_path):
    dataset = import_minari(robot(tmp_path / "robot"), tmp_path / "data")
    assert dataset.task == "minari:somebody/something-v3" and dataset.lengths.tolist() == [21, 21]
    assert dataset.action_low.tolist() == [-3, -3] and dataset.action_high.tolist() == [5, 5]
    assert sorted(dataset.quantities) == ["arm/angles", "arm/grip"] and dataset.states.shape == (42, 5)
    assert dataset.episode(1).success.tolist() == [False] * 20 + [True]
    assert ClipSampler(dataset).batch(0, 4).pixels.shape == (4, 4, 224, 224, 3)
    calls = []
    import_minari(tmp_path / "robot", tmp_path / "data", progress=lambda *call: calls.append(call))
    assert calls == []  # it was there


def test_what_cannot_be_a_dataset_is_named(tmp_path):
    actions = {"action_space": spaces.Discrete(3), "actions": np.zeros(20, np.int64)}
    with pytest.raises(ValueError, match="actions must be a bounded Box"):
        import_minari(robot(tmp_path / "discrete", **actions), tmp_path / "data")
    blind = {"observation_space": spaces.Box(-9, 9, (4,)), "observations": np.zeros((21, 4), np.float32)}
    with pytest.raises(ValueError, match="needs one image.*none; others: observation"):
        import_minari(robot(tmp_path / "blind", **blind), tmp_path / "data")
    with pytest.raises(ValueError, match="no image 'front'.*camera"):
        import_minari(robot(tmp_path / "robot"), tmp_path / "data", pixels="front")
    with pytest.raises(ValueError, match="not a Minari dataset"):
        import_minari(tmp_path, tmp_path / "data")
    described = tmp_path / "robot/data/metadata.json"
    whole = json.loads(described.read_text())
    for change, message in (
        ({"lewm_gym_task": [[]]}, "robot calls its task .*, which is no name: add --task"),
        ({"lewm_gym_task": 1.5}, "robot calls its task 1.5"),
        ({"total_episodes": "x"}, "robot is not a Minari dataset"),
        ({"total_episodes": 10**20}, "robot is not a Minari dataset"),
    ):
        described.write_text(json.dumps({**whole, **change}))
        with pytest.raises(ValueError, match=message):
            import_minari(tmp_path / "robot", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_an_export_overwrites_nothing_and_leaves_nothing_half(dataset, exported, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="exists already"):
        export_minari(dataset, exported)
    monkeypatch.setattr(type(dataset), "episode", lambda *_: (_ for _ in ()).throw(ValueError("damaged")))
    with pytest.raises(ValueError, match="damaged"):
        export_minari(dataset, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
