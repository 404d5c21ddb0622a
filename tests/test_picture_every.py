"""Datasets that store the picture of every N-th frame only: the rest is the same, and what needs more says so."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from collect.__main__ import main
from collect.collector import collect
from collect.pictures import contact_sheet, film_frames
from collect.render import render
from lewm_gym.data import ClipSampler, Dataset
from lewm_gym.data.clips import box_average
from lewm_gym.data.describe import describe
from lewm_gym.data.features import FeatureClips, cached_features
from lewm_gym.data.foreign.hdf5 import export_hdf5
from lewm_gym.data.foreign.lerobot_export import export_lerobot
from lewm_gym.data.foreign.minari import export_minari
from lewm_gym.data.goals import GoalSampler
from lewm_gym.data.verify import verify

EVERY = 5


def quick(folder, episodes=3, **options):
    return collect("two_room", folder, episodes, **{"workers": 1, "pictures": False, **options})


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return quick(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    return quick(tmp_path_factory.mktemp("sparse"), picture_every=EVERY)


def test_states_and_actions_of_all_steps_stay_and_every_fifth_picture(full, sparse):
    assert (full.picture_every, sparse.picture_every) == (1, EVERY)
    assert sparse.n_frames == full.n_frames and sparse.content_hash != full.content_hash
    np.testing.assert_array_equal(sparse.states, full.states)
    np.testing.assert_array_equal(sparse.actions, full.actions)
    for index in range(full.n_episodes):
        whole, part = full.episode(index), sparse.episode(index)
        assert part.picture_every == EVERY
        np.testing.assert_array_equal(part.pixels, whole.pixels[::EVERY])
        np.testing.assert_array_equal(sparse.frames(index, [10, 0, 5]), whole.pixels[[10, 0, 5]])
    assert sparse.n_pictures == sum(len(range(0, length, EVERY)) for length in full.lengths)
    assert verify(sparse.folder) == []


@pytest.mark.parametrize("task", ["pusht", pytest.param("reacher", marks=pytest.mark.gl)])
def test_pictures_that_are_not_stored_are_not_drawn(task, tmp_path, monkeypatch):
    from collect.episodes import EpisodeRunner, make_header

    runner = EpisodeRunner(make_header(task, policy="random", picture_every=7))
    drawn = []
    render_state = runner._env.render_state
    monkeypatch.setattr(runner._env, "render_state", lambda state: drawn.append(1) or render_state(state))
    played = runner.play(0)
    assert len(played.encoded.frames) == len(range(0, len(played.encoded.states), 7))
    assert len(drawn) <= len(played.encoded.frames) + 1  # and the goal


def test_steps_without_a_picture_are_named(sparse):
    with pytest.raises(ValueError, match="stores every 5th frame: episode 1 has none at step 7"):
        sparse.frames(1, [5, 7])
    with pytest.raises(IndexError):
        sparse.frames(1, [int(sparse.lengths[1]) + 4])


@pytest.mark.parametrize(("image_size", "budget"), [(224, None), (56, None), (56, 0)])
def test_clips_begin_at_stored_frames_and_hold_what_they_held(full, sparse, image_size, budget):
    sampler = ClipSampler(sparse, n_frames=3, frame_skip=10, seed=1, image_size=image_size, memory_budget=budget)
    assert sampler.n_clips == sum(len(range(0, length - 20, EVERY)) for length in full.lengths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = next(sampler.batches(2, 1, 8))
    which, starts = sampler.clips(2, 8)
    assert not (starts % EVERY).any() and len(set(starts.tolist())) > 1
    for j in range(8):
        frames = full.frames(which[j], starts[j] + 10 * np.arange(3))
        small = box_average(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), image_size).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(batch.pixels[j].numpy(), small)
        row = full.starts[which[j]] + starts[j]
        np.testing.assert_array_equal(batch.actions[j].numpy().ravel(), full.actions[row : row + 20].ravel())


def test_only_stored_frames_take_memory(full, sparse):
    sizes = [ClipSampler(dataset, frame_skip=EVERY, image_size=56).pooled_bytes for dataset in (full, sparse)]
    assert sizes[1] == sparse.n_pictures * 3 * 56 * 56 < sizes[0] / 4


def test_a_frame_skip_between_pictures_is_refused(sparse):
    with pytest.raises(ValueError, match="stores every 5th frame only, so frame_skip must be a multiple of 5"):
        ClipSampler(sparse, frame_skip=4)
    with pytest.raises(ValueError, match="single steps needs the image of every frame.*without --picture-every"):
        GoalSampler(sparse)


@pytest.mark.parametrize("export", [export_hdf5, export_lerobot, export_minari])
def test_formats_that_hold_every_frame_refuse(sparse, tmp_path, export):
    with pytest.raises(ValueError, match="needs the image of every frame"):
        export(sparse, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_features_are_of_the_stored_pictures(sparse):
    def encode(frames):
        return frames.flatten(1).float()[:, :16]

    features = cached_features(sparse, torch.nn.Linear(1, 1), encode)
    assert features.shape == (sparse.n_pictures, 16)
    clips = FeatureClips(features, sparse, n_frames=3, frame_skip=EVERY, seed=0, image_size=56)
    which, starts = clips.clips(0, 4)
    batch = clips.batch(0, 4)
    for j in range(4):
        frames = sparse.frames(which[j], starts[j] + EVERY * np.arange(3))
        np.testing.assert_array_equal(batch.pixels[j].numpy(), encode(torch.from_numpy(frames)).half().numpy())


def test_rendering_states_later_gives_the_same(sparse, tmp_path):
    quick(tmp_path / "states", states_only=True)
    rendered = render(tmp_path / "states", tmp_path / "full", workers=1, picture_every=EVERY)
    assert rendered.content_hash == sparse.content_hash
    assert rendered.manifest.shards[0].sha256 == sparse.manifest.shards[0].sha256


def test_it_resumes_extends_and_refuses_another_number(sparse, tmp_path):
    quick(tmp_path, 2, picture_every=EVERY)
    assert quick(tmp_path, 3, picture_every=EVERY).content_hash == sparse.content_hash
    with pytest.raises(ValueError, match="holds another dataset .picture_every 5 and 1"):
        quick(tmp_path, 3)


def test_pictures_beside_the_dataset_are_made_of_stored_frames(full, sparse):
    assert contact_sheet(sparse, rows=3).shape == (3 * 112, 8 * 112, 3)
    film, first = film_frames(sparse), full.episode(0).pixels[::EVERY]
    assert len(film) == -(-full.lengths.max() // EVERY)
    np.testing.assert_array_equal(film[: len(first), :, :224], first)


def test_a_picture_that_is_not_where_it_belongs_is_found(sparse, tmp_path):
    from lewm_gym.data.format import shard as shards

    episode = sparse.episode(0, pixels=False)
    frames = [bytes(frame) for frame in sparse._shard(0).frames(0)]
    encoded = shards.EncodedEpisode(episode, frames)
    record_batch = shards._record_batch

    def shifted(number, encoded, picture_every):
        rows = [None] * len(episode)
        rows[1::picture_every] = frames[: len(rows[1::picture_every])]
        batch = record_batch(number, encoded, picture_every)
        return batch.set_column(batch.num_columns - 1, "pixels", shards.pa.array(rows, shards.pa.binary()))

    shards._record_batch = shifted
    try:
        shards.write_part(tmp_path / "episodes-000000-000000.arrow", sparse.header, 0, encoded)
    finally:
        shards._record_batch = record_batch
    assert verify(tmp_path)


def test_describe_and_manifest_say_so(sparse, full):
    assert "a picture every 5 frames" in describe(sparse) and "picture every" not in describe(full)
    path = sparse.folder / "manifest.json"
    assert json.loads(path.read_text())["picture_every"] == EVERY


def test_older_datasets_have_every_picture(full):
    record = full.header.as_json()
    del record["picture_every"]
    assert type(full.header).read(msgspec.to_builtins(record)) == replace(full.header, picture_every=1)


def test_command_line(tmp_path, capsys):
    arguments = ["two_room", "--episodes", "1", "--workers", "1", "--no-pictures", "--out", str(tmp_path)]
    assert main([*arguments, "--picture-every", "4"]) == 0
    assert Dataset.open(tmp_path).picture_every == 4
    for wrong, message in (
        (["--picture-every", "0"], "at least 1"),
        (["--picture-every", "2", "--states-only"], "render"),
    ):
        with pytest.raises(ValueError, match=message):
            main([*arguments, *wrong])


def test_frames_beyond_the_memory_budget_are_said_so(full):
    sampler = ClipSampler(full, image_size=56, memory_budget=10**6)
    with pytest.warns(
        RuntimeWarning, match=r"3 episodes at 56 px take .* GiB, more than the memory budget of 0.00 GiB"
    ):
        sampler.preload()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.preload()  # once
        ClipSampler(full, image_size=224, memory_budget=0).preload()  # never kept


def test_the_memory_budget_is_half_of_what_is_available(full, monkeypatch):
    from lewm_gym.data import clips

    monkeypatch.setattr(clips, "available_memory", lambda: 8 * 2**30)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert ClipSampler(full, image_size=56).memory_budget == 4 * 2**30
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert ClipSampler(full, image_size=56).memory_budget == 2**30


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    from lewm_gym import memory

    machine = memory.available_memory()
    assert 2**28 < machine < 2**45
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory() > 2**28
    for name, text in (
        ("memory.max", "1000000"),
        ("memory.current", "700000"),
        ("memory.stat", "anon 1\nactive_file 5\n"),
    ):
        (tmp_path / name).write_text(text)
    assert memory.available_memory() == 300_005
