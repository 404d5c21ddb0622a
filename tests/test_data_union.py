"""Several datasets as one: the same episodes, statistics over all, and a run that names each part."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import tiny

from agents.lewm import LeWMAgent
from agents.run import train_run
from benchmarks.evaluation.protocols import open_training_set
from collect.collector import collect
from lewm_gym.data import ClipSampler, Dataset, DatasetUnion, open_datasets
from lewm_gym.data.union import parts_of
from lewm_gym.tasks import get_task


def quick(folder, episodes=3, **options):
    return collect("two_room", folder, episodes, **{"workers": 1, "pictures": False, **options})


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return quick(folder / "one"), quick(folder / "two", 2, policy="random", noise=None)


@pytest.fixture(scope="module")
def union(parts):
    return open_datasets([part.folder for part in parts])


def test_a_union_holds_the_episodes_of_its_parts(parts, union):
    assert isinstance(union, DatasetUnion) and parts_of(union) == union.parts
    assert union.n_episodes == 5 and union.n_frames == sum(part.n_frames for part in parts)
    np.testing.assert_array_equal(union.actions, np.concatenate([part.actions for part in parts]))
    for index, (part, i) in enumerate([(parts[0], 0), (parts[0], 1), (parts[0], 2), (parts[1], 0), (parts[1], 1)]):
        ours, theirs = union.episode(index), part.episode(i)
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        np.testing.assert_array_equal(ours.state, theirs.state)
    everything = union.actions[~np.isnan(union.actions).any(1)].astype(np.float64)
    np.testing.assert_allclose(union.action_mean, everything.mean(0), atol=1e-6)
    np.testing.assert_allclose(union.action_std, everything.std(0), atol=1e-6)
    assert union.header.policy == f"{parts[0].header.policy} + random"
    assert union.content_hash not in {part.content_hash for part in parts}
    assert union.content_hash == open_datasets([part.folder for part in reversed(parts)]).content_hash


def test_a_union_can_be_given_to_another_process(union):
    copied = pickle.loads(pickle.dumps(union))
    for index in (0, 4):
        np.testing.assert_array_equal(copied.episode(index).state, union.episode(index).state)


def test_clips_come_from_all_parts(parts, union):
    sampler = ClipSampler(union, image_size=56)
    assert sampler.n_clips == sum(ClipSampler(part).n_clips for part in parts)
    which, starts = sampler.clips(0, 64)
    assert {0, 1, 2, 3, 4} == set(which.tolist())
    small = ClipSampler(union, image_size=56, memory_budget=0)
    with pytest.warns(RuntimeWarning, match="5 episodes"):
        small.preload()
    assert (next(sampler.batches(0, 1, 16)).pixels == small.batch(0, 16).pixels).all()


def test_one_folder_is_that_dataset(parts):
    alone = open_datasets(parts[0].folder)
    assert type(alone) is Dataset and parts_of(alone) == (alone,)
    assert type(open_datasets([parts[0].folder])) is Dataset
    with pytest.raises(ValueError, match="at least one"):
        open_datasets([])


def test_what_cannot_be_one_dataset_is_refused(parts, tmp_path):
    sparse = quick(tmp_path / "sparse", 1, picture_every=5)
    with pytest.raises(ValueError, match="do not fit together: picture_every 1 and 5"):
        open_datasets([parts[0].folder, sparse.folder])
    with pytest.raises(ValueError, match="hold the same episodes"):
        open_datasets([parts[0].folder, parts[1].folder, parts[0].folder])
    pusht = collect("pusht", tmp_path / "pusht", 1, workers=1, pictures=False, policy="random")
    with pytest.raises(ValueError, match="task 'two_room' and 'pusht'"):
        open_datasets([parts[0].folder, pusht.folder])
    wider = replace(parts[1].manifest, header=replace(parts[1].header, action_low=(-2.0, -2.0)))
    with pytest.raises(ValueError, match="action bounds"):
        DatasetUnion([parts[0], Dataset(parts[1].folder, wider)])


def test_a_run_names_the_parts_it_was_trained_on(parts, tmp_path):
    folders = [part.folder for part in parts]
    settings = {**tiny.SETTINGS, "steps": 2}
    train_run(LeWMAgent, folders, tmp_path / "run", "laptop", settings, "cpu")
    description = json.loads((tmp_path / "run" / "run.json").read_text())
    trained = description["dataset"]
    assert trained["folder"] == f"{folders[0]} + {folders[1]}"
    assert [part["policy"] for part in trained["parts"]] == [part.header.policy for part in parts]
    assert [part["hash"] for part in trained["parts"]] == [part.content_hash for part in parts]
    assert trained["episodes"] == 5 and trained["seed"] == 0
    train_run(LeWMAgent, folders, tmp_path / "run", "laptop", settings, "cpu")  # finished
    with pytest.raises(ValueError, match="holds another run"):
        train_run(LeWMAgent, folders[0], tmp_path / "run", "laptop", settings, "cpu")
    with pytest.raises(ValueError, match="trained on several datasets"):
        open_training_set(tmp_path / "run", get_task("two_room"), description["dataset"])
