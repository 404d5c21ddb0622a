"""Training clips: which, in what order, with which pixels."""

from __future__ import annotations

import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import HEADER, made_up_episode, write

from lewm_gym.data import ClipSampler
from lewm_gym.data.clips import box_average
from lewm_gym.data.codec import FrameCodec


@pytest.fixture(scope="module", params=[FrameCodec("chw", level=1), FrameCodec("hwc", 4, level=1)], ids=["chw", "hwc"])
def dataset(tmp_path_factory, request):
    header = replace(HEADER, codec=request.param.as_json())
    return write(tmp_path_factory.mktemp("clips"), range(6), header, lambda number: 18 + number if number else 9)


def test_a_clip_has_frames_at_the_stride_and_the_actions_between(dataset):
    sampler = ClipSampler(dataset, n_frames=4, frame_skip=5, seed=1)
    batch = sampler.batch(3, 8)
    assert batch.pixels.shape == (8, 4, 224, 224, 3) and batch.pixels.dtype == torch.uint8
    assert batch.actions.shape == (8, 3, 10) and batch.actions.dtype == torch.float32
    which, starts = sampler.clips(3, 8)
    for j in range(8):
        episode = made_up_episode(int(which[j]), 18 + int(which[j]))
        t = starts[j]
        np.testing.assert_array_equal(batch.pixels[j].numpy(), episode.pixels[t : t + 16 : 5])
        np.testing.assert_array_equal(batch.actions[j, 1].numpy().reshape(5, 2), episode.action[t + 5 : t + 10])
        np.testing.assert_array_equal(batch.actions[j].numpy(), episode.action[t : t + 15].reshape(3, 10))


def test_an_epoch_visits_every_clip_once_and_the_next_in_another_order(dataset):
    sampler = ClipSampler(dataset, seed=0)
    assert sampler.n_clips == sum(18 + i - 15 for i in range(1, 6))
    epochs = []
    for epoch in range(2):
        clips = [sampler.clips(step, 1) for step in range(epoch * sampler.n_clips, (epoch + 1) * sampler.n_clips)]
        epochs.append([(int(which[0]), int(start[0])) for which, start in clips])
    assert len(set(epochs[0])) == sampler.n_clips
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]


def test_a_batch_is_a_function_of_seed_step_and_size_alone(dataset):
    one = ClipSampler(dataset, seed=5, threads=1)
    two = ClipSampler(dataset, seed=5, threads=3)
    late = list(two.batches(17, 3, 4))  # straddles an epoch
    for step, batch in zip(range(17, 20), late, strict=True):
        expected = one.batch(step, 4)
        assert torch.equal(batch.pixels, expected.pixels) and torch.equal(batch.actions, expected.actions)
    other = ClipSampler(dataset, seed=6).clips(0, 16)
    assert not all(np.array_equal(a, b) for a, b in zip(one.clips(0, 16), other, strict=True))


def test_only_the_episodes_asked_for_are_drawn(dataset):
    sampler = ClipSampler(dataset, episodes=[2, 5])
    which, _ = sampler.clips(0, sampler.n_clips)
    assert {int(sampler.episodes[w]) for w in which} == {2, 5}


def test_averaged_frames_equal_pillows_reduce(dataset):
    whole = ClipSampler(dataset, seed=2).batch(1, 3).pixels.numpy()
    small = ClipSampler(dataset, seed=2, image_size=56).batch(1, 3).pixels.numpy()
    for j in range(3):
        for t in range(4):
            np.testing.assert_array_equal(small[j, t], np.asarray(Image.fromarray(whole[j, t]).reduce(4)))


@pytest.mark.parametrize("size", [1, 7, 28, 32, 56, 112, 224])
def test_box_average_rounds_half_up(size):
    planes = np.random.default_rng(size).integers(0, 256, (3, 224, 224), np.uint8)
    k = 224 // size
    sums = planes.reshape(3, size, k, size, k).astype(np.int64).sum((2, 4))
    np.testing.assert_array_equal(box_average(planes, size), (sums + k * k // 2) // (k * k))
    white = np.full((3, 224, 224), 255, np.uint8)
    assert (box_average(white, size) == 255).all()


def test_memory_and_disk_give_the_same_small_frames(dataset):
    in_memory = ClipSampler(dataset, image_size=112)
    seen = []
    in_memory.preload(lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6) and len(seen) == 6
    from_disk = ClipSampler(dataset, image_size=112, memory_budget=1000)
    assert torch.equal(in_memory.batch(4, 5).pixels, from_disk.batch(4, 5).pixels)


def test_batches_still_held_are_not_written_over(dataset):
    sampler = ClipSampler(dataset)
    held = list(sampler.batches(0, 6, 2))
    for step, batch in enumerate(held):
        assert torch.equal(batch.pixels, ClipSampler(dataset).batch(step, 2).pixels)


def test_memory_of_batches_let_go_is_used_again(dataset):
    sampler = ClipSampler(dataset, threads=1)
    for batch in sampler.batches(0, 10, 2):
        view = batch.pixels[0, 0]  # a view holds its batch's memory
        del batch
    assert view.shape == (224, 224, 3)
    assert len(sampler._buffers._arrays) <= 4


def test_leaving_the_loop_ends_the_threads(dataset):
    sampler = ClipSampler(dataset, threads=2)
    batches = sampler.batches(0, 1000, 2)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("clips")]


def test_an_error_in_the_background_reaches_the_consumer(dataset, monkeypatch):
    sampler = ClipSampler(dataset)
    monkeypatch.setattr(
        type(dataset), "decode_into", lambda *args, **options: (_ for _ in ()).throw(ValueError("damaged"))
    )
    with pytest.raises(ValueError, match="damaged"):
        list(sampler.batches(0, 3, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frame_skip": 8}, "spans 25 frames, but the longest of 6 episodes.*has 23"),
        ({"episodes": [0]}, "the longest of 1 episodes.*has 9"),
        ({"episodes": []}, "longest of 0 episodes"),
        ({"episodes": [6]}, "within 0 to 5"),
        ({"image_size": 100}, "must divide 224"),
        ({"n_frames": 1}, "n_frames must be at least 2"),
        ({"frame_skip": 0}, "frame_skip must be at least 1"),
    ],
)
def test_bad_arguments_are_named(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        ClipSampler(dataset, **arguments)


def test_bad_batches_are_named(dataset):
    with pytest.raises(ValueError, match="batch_size"):
        ClipSampler(dataset).batch(0, 0)


def test_a_dataset_can_be_given_to_the_workers_of_a_data_loader(dataset):
    copied = pickle.loads(pickle.dumps(dataset))
    assert copied.content_hash == dataset.content_hash
    np.testing.assert_array_equal(copied.frames(0, [1]), dataset.frames(0, [1]))
    loader = torch.utils.data.DataLoader(
        _Episodes(dataset), batch_size=None, num_workers=2, multiprocessing_context="spawn"
    )
    for index, state in enumerate(loader):
        np.testing.assert_array_equal(state.numpy(), dataset.episode(index, pixels=False).state)


class _Episodes(torch.utils.data.Dataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.dataset.episode(index, pixels=False).state.copy()
