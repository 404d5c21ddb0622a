"""The cache of a frozen encoder's features: what pixels would have given, resumed where it was killed."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest
import tiny
import torch
from test_agents_contract import PATCHES, POLICY, WORLD, write_random_dino

from agents.__main__ import main
from agents.dino_wm import DinoWM, DinoWMAgent, DinoWMConfig, RandomViTAgent
from agents.gcbc import GCBCAgent, GCBCConfig
from agents.lewm import LeWMAgent
from agents.planning import PlanningConfig
from agents.run import train_run
from lewm_gym import checkpoint
from lewm_gym.data import features as caching
from lewm_gym.data.clips import ClipSampler
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.features import FOLDER, FeatureClips, FeatureGoals, cached_features
from lewm_gym.data.goals import GoalSampler
from lewm_gym.files import exclusive, sha256


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


def test_damaged_features_are_refused_and_computed_again_once_they_are_deleted(dataset):
    whole = np.array(cached(dataset, Encoder()))
    (file,) = (dataset.folder / FOLDER).glob("*.f16")
    content = bytearray(file.read_bytes())
    content[17] ^= 4
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file.name} is damaged.*delete it"):
        cached(dataset, Encoder())
    file.unlink()
    np.testing.assert_array_equal(cached(dataset, Encoder()), whole)


def test_features_that_another_process_computes_are_waited_for(dataset):
    whole, other, waited = np.array(cached(dataset, Encoder())), dataset.folder / FOLDER, []
    files = {path: path.read_bytes() for path in other.glob("*.*6")}
    for path in files:
        path.unlink()
    waiting = threading.Thread(target=lambda: waited.append(np.array(cached(dataset, Encoder(), pytest.fail))))
    with exclusive(other):
        waiting.start()
        time.sleep(0.2)
        assert not waited
        for path, content in files.items():
            path.write_bytes(content)
    waiting.join(30)
    np.testing.assert_array_equal(waited[0], whole)


def test_features_that_cannot_be_kept_say_where_they_are_and_what_moves_them(dataset):
    (dataset.folder / FOLDER).write_text("")  # root may write to read-only folders, but not below a file
    with pytest.raises(
        OSError, match=f"cannot write to {dataset.folder / FOLDER} .*: features are kept with their dataset"
    ):
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


# Which encoder -----------------------------------------------------------------------------------------------


class Stopped(Exception):
    """Raised in the middle of a training."""


def policy_on(dataset, tmp_path, encoder="lewm", on_log=None, **changes):
    """Trains a GCBC on the encoder of the run `tmp_path/encoder`, in `tmp_path/gcbc`."""
    of_encoder = {"encoder": "lewm", "encoder_run": str(tmp_path / encoder), "checkpoint_every_s": 0.0}
    settings = {**POLICY, "steps": 6, **of_encoder, **changes}
    train_run(GCBCAgent, dataset.folder, tmp_path / "gcbc", "laptop", settings, "cpu", on_log)
    return checkpoint.load_description(tmp_path / "gcbc")


def stop_at_3(done, total, latest):
    if done == 3:
        raise Stopped


def save_lewm(folder, seed=0):
    model = tiny.model(seed)
    LeWMAgent(model, PlanningConfig(), {**tiny.ENVIRONMENT, "model": dataclasses.asdict(model.config)}).save(folder)


def rewrite(folder, change):
    """Changes a run's description as if another version had written it."""
    description = checkpoint.load_description(folder)
    change(description)
    checkpoint.save_description(folder, description)


def test_a_policy_is_not_resumed_on_another_encoders_features(dataset, tmp_path):
    save_lewm(tmp_path / "lewm")
    with pytest.raises(Stopped):
        policy_on(dataset, tmp_path, on_log=stop_at_3)
    save_lewm(tmp_path / "lewm", seed=1)
    with pytest.raises(ValueError, match="holds another run .features_source: sha256"):
        policy_on(dataset, tmp_path)
    save_lewm(tmp_path / "lewm")
    source = policy_on(dataset, tmp_path)["features_source"]
    assert source == {"file": "lewm/weights.safetensors", "sha256": sha256(tmp_path / "lewm" / checkpoint.WEIGHTS)}
    save_lewm(tmp_path / "lewm", seed=1)
    with pytest.raises(ValueError, match="features_source"):  # nor does it count as finished
        policy_on(dataset, tmp_path)
    (tmp_path / "lewm" / checkpoint.WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="finish that training first"):
        policy_on(dataset, tmp_path)


def test_a_policys_run_that_does_not_know_its_encoders_file_is_resumed(dataset, tmp_path):
    save_lewm(tmp_path / "pldm")
    rewrite(tmp_path / "pldm", lambda run: run.update(agent="pldm"))
    with pytest.raises(Stopped):
        policy_on(dataset, tmp_path, "pldm", stop_at_3)
    rewrite(tmp_path / "gcbc", lambda run: run.pop("features_source"))
    rewrite(tmp_path / "gcbc", lambda run: run.update(features="LeWM"))  # as was written then
    assert policy_on(dataset, tmp_path, "pldm")["features"] == "PLDM"


def test_an_encoders_run_of_an_older_version_has_the_defaults_of_newer_settings(dataset, tmp_path):
    save_lewm(tmp_path / "lewm")
    rewrite(tmp_path / "lewm", lambda run: run["model"].pop("decoder_weight"))
    assert policy_on(dataset, tmp_path)["model"]["encoder_config"]["decoder_weight"] == 0
    rewrite(tmp_path / "lewm", lambda run: run.pop("model"))
    with pytest.raises(ValueError, match="run.json: this version cannot read 'model'"):
        policy_on(dataset, tmp_path)


def test_an_encoder_of_another_task_or_of_no_world_model_is_refused(dataset, tmp_path):
    save_lewm(tmp_path / "lewm")
    rewrite(tmp_path / "lewm", lambda run: run.update(task="pusht"))
    with pytest.raises(ValueError, match="was trained on pusht; this dataset is of two_room"):
        policy_on(dataset, tmp_path)
    rewrite(tmp_path / "lewm", lambda run: run.update(agent="gcbc"))
    with pytest.raises(ValueError, match="must be a run of lewm or pldm"):
        policy_on(dataset, tmp_path)
    assert not (tmp_path / "gcbc").exists()


def test_runs_on_dinov2_name_the_file_and_its_hash(tmp_path):
    file = write_random_dino(tmp_path / "dino.pth")
    expected = {"features": "DINOv2", "features_source": {"file": "dino.pth", "sha256": sha256(file)}}
    assert GCBCAgent.describe(GCBCConfig(encoder="dino", dino_weights=str(file))) == expected
    assert DinoWMAgent.describe(DinoWMConfig(dino_weights=str(file))) == expected


def test_the_command_says_what_features_it_trains_on(dataset, tmp_path, capsys):
    tiny_sizes = [f"{name}={list(v) if isinstance(v, tuple) else v}" for name, v in POLICY.items()]
    main(["gcbc", str(dataset.folder), "--out", str(tmp_path / "run"), "--device", "cpu", "--set", *tiny_sizes])
    line, *_ = capsys.readouterr().out.splitlines()
    assert line.startswith("features: trained with the policy; for those of a frozen encoder: --encoder dino, or")
