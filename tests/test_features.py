"""The cache of a frozen encoder's features: what pixels would have given, resumed where it was killed."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from test_agents_contract import PATCHES, POLICY, WORLD

from agents.dino_wm import DinoWM, DinoWMConfig, RandomViTAgent
from agents.gcbc import GCBCAgent
from agents.lewm import LeWMAgent
from agents.run import train_run
from lewm_gym.data import features as caching
from lewm_gym.data.clips import ClipSampler
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.features import FOLDER, FeatureClips, FeatureGoals, cached_features
from lewm_gym.data.files import exclusive
from lewm_gym.data.goals import GoalSampler


@pytest.fixture
def dataset(tmp_path):
    return Dataset.open(tiny.collect_two_room(tmp_path / "two_room", episodes=3))


class Encoder(torch.nn.Linear):
    """Says four numbers of a frame, and counts the frames that it saw."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__(3, 4)
        self.seen = 0

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        self.seen += len(frames)
        return self(frames[:, 40:60, 100:130].float().mean(dim=(1, 2)) / 255)


def cached(dataset, encoder, progress=None):
    return cached_features(dataset, encoder, encoder.encode, progress)


def test_features_are_computed_once_and_named_by_what_made_them(dataset):
    encoder, again, other = Encoder(), Encoder(), Encoder(seed=1)
    features = cached(dataset, encoder)
    with torch.no_grad():
        expected = encoder.encode(torch.from_numpy(dataset.frames(1, [5]))).half().numpy()
    np.testing.assert_array_equal(features[dataset.starts[1] + 5], expected[0])
    np.testing.assert_array_equal(cached(dataset, again), features)
    assert again.seen == 1  # to see the shape
    assert not np.array_equal(cached(dataset, other), features)
    files = list((dataset.folder / FOLDER).glob("*.f16"))
    assert len(files) == 2 and {f.stat().st_size for f in files} == {dataset.n_frames * 4 * 2}
    assert Dataset.open(dataset.folder).content_hash == dataset.content_hash


def test_killed_computation_goes_on_after_the_last_whole_episode(dataset):
    def die(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(dataset, Encoder(), die)
    (partial,) = (dataset.folder / FOLDER).glob("*.partial")
    assert not list((dataset.folder / FOLDER).glob("*.f16"))
    with open(partial, "ab") as file:
        file.truncate(int(dataset.starts[2]) * 8 - 3)  # cut off within a row of the second episode
    encoder = Encoder()
    resumed = cached(dataset, encoder)
    assert encoder.seen == 1 + dataset.lengths[1] + dataset.lengths[2]
    whole = np.concatenate(
        [
            caching._encoded(dataset.frames(i, np.arange(n)), encoder.encode, "cpu")
            for i, n in enumerate(dataset.lengths)
        ]
    )
    np.testing.assert_array_equal(resumed, whole)


def test_a_second_writer_is_refused(dataset):
    (dataset.folder / FOLDER).mkdir()
    with exclusive(dataset.folder / FOLDER), pytest.raises(ValueError, match="written by another process"):
        cached(dataset, Encoder())


def test_samplers_deliver_the_features_of_the_frames_that_they_would_deliver(dataset):
    encoder = Encoder()
    features = cached(dataset, encoder)
    clips, pixels = FeatureClips(features, dataset, seed=3), ClipSampler(dataset, seed=3)
    got, frames = clips.batch(7, 5), pixels.batch(7, 5)
    with torch.no_grad():
        expected = encoder.encode(frames.pixels.flatten(0, 1)).half().view(5, 4, 4)
    torch.testing.assert_close(got.pixels, expected)
    assert torch.equal(got.actions, frames.actions)
    goals, shown = FeatureGoals(features, dataset, seed=3).batch(7, 5), GoalSampler(dataset, seed=3).batch(7, 5)
    with torch.no_grad():
        torch.testing.assert_close(goals.actor_goals, encoder.encode(shown.actor_goals).half())
    assert torch.equal(goals.actions, shown.actions) and torch.equal(goals.reached, shown.reached)
    assert sum(1 for _ in clips.batches(0, 3, 4)) == 3


def test_training_on_the_cache_is_training_on_pixels_to_half_precision(dataset, tmp_path):
    losses = []
    for cache in (True, False):
        settings = {**PATCHES, "cache_features": cache, "image_size": 28}
        agent = train_run(RandomViTAgent, dataset.folder, tmp_path / str(cache), "laptop", settings, "cpu")
        losses.append(torch.cat([p.flatten() for p in agent.model.predictor.parameters()]))
    torch.testing.assert_close(*losses, rtol=1e-2, atol=1e-3)


def test_every_seed_of_random_vit_has_the_same_encoder():
    encoders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = DinoWM(DinoWMConfig(image_size=28, predictor_depth=1, predictor_mlp_width=16))
        RandomViTAgent.initialise(model)
        encoders.append(model.encoder.state_dict())
    assert all(torch.equal(tensor, encoders[1][name]) for name, tensor in encoders[0].items())


def test_policies_on_a_frozen_encoder_use_the_cache(dataset, tmp_path):
    train_run(LeWMAgent, dataset.folder, tmp_path / "lewm", "laptop", WORLD, "cpu")
    settings = {**POLICY, "encoder": "lewm", "encoder_run": str(tmp_path / "lewm")}
    train_run(GCBCAgent, dataset.folder, tmp_path / "gcbc", "laptop", settings, "cpu")
    (file,) = (dataset.folder / FOLDER).glob("*.f16")
    assert file.stat().st_size == dataset.n_frames * WORLD["latent_size"] * 2
