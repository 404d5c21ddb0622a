"""The training loop: repeatable, resumable, and honest about divergence; run folders."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
import torch

from agents import load_agent
from agents.__main__ import main
from agents.lewm import LeWMAgent
from agents.run import train_run
from lewm_gym import checkpoint, processes, training
from lewm_gym.data.dataset import Dataset
from lewm_gym.diagnostics import collapse_warning, latent_statistics
from lewm_gym.training import TrainingConfig, TrainingDiverged
from lewm_gym.types import Batch


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny.collect_two_room(tmp_path_factory.mktemp("data") / "two_room")


def run(dataset, folder, on_log=None, **overrides):
    return train_run(LeWMAgent, dataset, folder, "laptop", {**tiny.SETTINGS, "steps": 12, **overrides}, "cpu", on_log)


def weights(folder):
    return checkpoint.load_tensors(folder / checkpoint.WEIGHTS)


def assert_same(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def test_same_seed_gives_the_same_weights_and_another_does_not(dataset, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(dataset, tmp_path / name, seed=seed)
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    name = "predictor.positions"
    assert not torch.equal(weights(tmp_path / "a")[name], weights(tmp_path / "c")[name])


class Killed(BaseException):
    """Stands for Ctrl-C: not an error that code may catch."""


@pytest.mark.parametrize("kill_at", [1, 7, 11])
def test_resumed_run_equals_an_undisturbed_one(dataset, tmp_path, kill_at):
    run(dataset, tmp_path / "whole", dropout=0.1)

    def kill(done, total, logs):
        if done == kill_at:
            raise Killed

    settings = {"dropout": 0.1, "checkpoint_every_s": 0.0, "log_every_steps": 2}
    run(dataset, tmp_path / "reference", **settings)
    with pytest.raises(Killed):
        run(dataset, tmp_path / "killed", kill, **settings)
    assert not (tmp_path / "killed" / checkpoint.WEIGHTS).exists()
    assert checkpoint.load_description(tmp_path / "killed")["finished"] is False
    run(dataset, tmp_path / "killed", **settings)
    assert_same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    logs = [training.read_log(tmp_path / name / checkpoint.LOG) for name in ("killed", "reference")]
    steps = [[row["step"] for row in log] for log in logs]
    assert steps[0] == steps[1] == [1, 2, 4, 6, 8, 10, 12]


def test_fit_is_the_same_training(dataset, tmp_path):
    run(dataset, tmp_path / "command line")
    LeWMAgent.fit(dataset, tmp_path / "python", steps=12, device="cpu", **tiny.SETTINGS)
    assert_same(weights(tmp_path / "python"), weights(tmp_path / "command line"))


def test_finished_run_is_loaded_not_trained_again(dataset, tmp_path):
    run(dataset, tmp_path / "run")
    before = (tmp_path / "run" / checkpoint.WEIGHTS).stat().st_mtime_ns
    agent = run(dataset, tmp_path / "run", on_log=lambda *a: pytest.fail("trained again"))
    assert (tmp_path / "run" / checkpoint.WEIGHTS).stat().st_mtime_ns == before
    assert agent.act(tiny.observation()).shape == (2,)


def test_folder_of_another_run_is_refused(dataset, tmp_path):
    run(dataset, tmp_path / "run")
    with pytest.raises(ValueError, match="another run.*latent_size 8 there, 6 asked"):
        run(dataset, tmp_path / "run", latent_size=6)


def test_run_of_a_version_that_lacked_a_setting_is_the_same(dataset, tmp_path):
    run(dataset, tmp_path / "run")
    description = checkpoint.load_description(tmp_path / "run")
    for part, name in (("model", "decoder_weight"), ("training", "weight_decay")):
        del description[part][name]
    checkpoint.save_description(tmp_path / "run", description)
    run(dataset, tmp_path / "run", on_log=lambda *a: pytest.fail("trained again"))
    with pytest.raises(ValueError, match="another run.*decoder_weight 0.0 there, 0.5 asked"):
        run(dataset, tmp_path / "run", decoder_weight=0.5)


@pytest.mark.parametrize("setting", [{"checkpoint_every_s": 0.0}, {"log_every_steps": 2}, {"validate_every_steps": 5}])
def test_settings_without_effect_on_the_weights_may_change_on_resume(dataset, tmp_path, setting):
    run(dataset, tmp_path / "whole")

    def kill(done, total, logs):
        if done == 7:
            raise Killed

    with pytest.raises(Killed):
        run(dataset, tmp_path / "run", kill, checkpoint_every_s=0.0)
    run(dataset, tmp_path / "run", **setting)
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_second_training_in_a_run_folder_is_refused(dataset, tmp_path):
    """As two commands with other seeds that are given the same --out."""
    began = []

    def another(done, total, logs):
        if not began:
            began.append(done)
            description = (tmp_path / "run" / checkpoint.DESCRIPTION).read_bytes()
            (tmp_path / "run" / checkpoint.DESCRIPTION).unlink()  # as if both had looked before either wrote
            with pytest.raises(ValueError, match=rf"run is being written by another process .pid {os.getpid()}.*wait"):
                run(dataset, tmp_path / "run", seed=1)
            (tmp_path / "run" / checkpoint.DESCRIPTION).write_bytes(description)

    run(dataset, tmp_path / "run", another)
    run(dataset, tmp_path / "alone")
    assert began
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "alone"))


def test_a_run_that_another_process_finished_meanwhile_is_loaded(dataset, tmp_path, monkeypatch):
    sample = LeWMAgent.samplers.__func__

    def meanwhile(cls, *arguments):
        monkeypatch.undo()
        run(dataset, tmp_path / "run")
        return sample(cls, *arguments)

    monkeypatch.setattr(LeWMAgent, "samplers", classmethod(meanwhile))
    run(dataset, tmp_path / "run", on_log=lambda *_: pytest.fail("trained again"))
    steps = [row["step"] for row in training.read_log(tmp_path / "run" / checkpoint.LOG)]
    assert steps == [1, 10, 12]


def test_what_a_killed_training_left_is_removed_at_the_next_start(dataset, tmp_path):
    (tmp_path / "run").mkdir()
    left = tmp_path / "run" / ".checkpoint.safetensors.0123456789ab.tmp.safetensors"
    left.write_bytes(b"half")
    run(dataset, tmp_path / "run")
    assert not left.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_saves_a_checkpoint_and_goes_on_as_if_it_had_not(dataset, tmp_path, number):
    """Ctrl-C, and what clusters send; through the command line, whose handlers count after the step."""
    settings = [f"{name}={json.dumps(value)}" for name, value in tiny.SETTINGS.items()]
    command = [sys.executable, "-m", "agents", "lewm", str(dataset), "--out", "run", "--steps", "4000", "--device"]
    command += ["cpu", "--set", "checkpoint_every_s=1e6", *settings]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    for _ in range(1200):
        if training.read_log(tmp_path / "run" / checkpoint.LOG)[2:] or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and b"stopped" in errors and b"Traceback" not in errors, errors.decode()
    tensors = checkpoint.load_tensors(tmp_path / "run" / checkpoint.CHECKPOINT)
    done = int(tensors["progress/step"])
    assert done >= 10 and training.read_log(tmp_path / "run" / checkpoint.LOG)[-1]["step"] <= done
    assert not list((tmp_path / "run").glob(".*.tmp*"))


def test_resuming_after_a_stop_equals_an_undisturbed_run(dataset, tmp_path):
    run(dataset, tmp_path / "whole")

    def stop(done, total, logs):
        if done == 5:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(dataset, tmp_path / "run", stop)
    finally:
        signal.signal(signal.SIGINT, before)
    assert int(checkpoint.load_tensors(tmp_path / "run" / checkpoint.CHECKPOINT)["progress/step"]) == 5
    run(dataset, tmp_path / "run")
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_second_ctrl_c_ends_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), processes.stops_noted() as stops:
            signal.raise_signal(signal.SIGINT)
            assert stops == [signal.SIGINT]
            signal.raise_signal(signal.SIGINT)
            pytest.fail("went on")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_damaged_line_within_the_log_is_named(tmp_path):
    for damage in (b'{"step": "x"}', b"[" * 100_000, b"\xff\xfe", b"3"):
        (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 2}\n')
        with pytest.raises(ValueError, match="log.jsonl, line 2, is damaged"):
            training.read_log(tmp_path / "log.jsonl")
        (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n' + damage)  # cut off by a kill
        assert training.read_log(tmp_path / "log.jsonl") == [{"step": 1}]


def test_dataset_that_was_moved_is_still_the_same(dataset, tmp_path):
    moved = shutil.copytree(dataset, tmp_path / "moved")
    run(dataset, tmp_path / "run")
    run(moved, tmp_path / "run", on_log=lambda *a: pytest.fail("trained again"))


def test_deleted_weights_are_made_again_by_the_same_command(dataset, tmp_path):
    run(dataset, tmp_path / "run")
    before = weights(tmp_path / "run")
    (tmp_path / "run" / checkpoint.WEIGHTS).unlink()
    run(dataset, tmp_path / "run", on_log=lambda *a: pytest.fail("trained again"))
    assert_same(weights(tmp_path / "run"), before)


BAD_SETTINGS = {
    "steps": "abc",
    "latent_size": 2.5,
    "dropout": "x",
    "learning_rate": -1.0,
    "conv_channels": 5,
    "predictor_heads": 0,
    "seed": -1,
    "image_size": 50,
    "frame_skip": 90,
    "sigreg_knots": 1,
    "encoder": 3,
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings_are_refused_and_leave_nothing_behind(dataset, tmp_path, name):
    with pytest.raises(ValueError):
        run(dataset, tmp_path / "run", **{name: BAD_SETTINGS[name]})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"latent_size": 99_999_999_999_999_999}, "too large for 64-bit"),
        ({"latent_size": 1_000_000}, "training this model takes [0-9,.]+ GiB; this machine has"),
        ({"steps": 10**30}, "steps must be a whole number of 64 bits"),
        ({"predictor_depth": 10**9}, "predictor_depth must be at most 1000"),
        ({"batch_size": 2_147_483_648}, "batch_size 2,147,483,648 takes [0-9,.]+ GiB"),
    ],
)
def test_numbers_beyond_the_memory_are_refused_before_work_begins(dataset, tmp_path, monkeypatch, setting, message):
    monkeypatch.setattr(LeWMAgent, "samplers", lambda *arguments: pytest.fail("work began"))
    with pytest.raises(ValueError, match=message):
        run(dataset, tmp_path / "run", **setting)
    assert not (tmp_path / "run").exists()


def test_runs_of_ones_own_environments_are_named_like_datasets_and_say_what_to_do_next(dataset, monkeypatch, capsys):
    folders = []
    monkeypatch.setattr("agents.run.train_run", lambda kind, data, folder, *a: folders.append(folder.name))
    monkeypatch.setattr(Dataset, "task", "gym:my_package:My/Env-v0")
    main(["lewm", str(dataset)])
    assert folders == ["my_package-My-Env-v0-lewm-0"]
    said = capsys.readouterr().out
    assert "agents.load_agent('runs/my_package-My-Env-v0-lewm-0')" in said and "benchmarks" not in said


def test_folder_is_named_after_the_presets_seed(dataset, monkeypatch):
    folders = []
    monkeypatch.setattr("agents.run.train_run", lambda kind, data, folder, *a: folders.append(folder.name))
    main(["lewm", str(dataset), "--preset", "paper"])
    main(["lewm", str(dataset), "--preset", "paper", "--seed", "1"])
    assert folders == ["two_room-lewm-3072", "two_room-lewm-1"]


def test_run_folder_is_complete(dataset, tmp_path):
    run(dataset, tmp_path / "run")
    description = checkpoint.load_description(tmp_path / "run")
    assert description["finished"] and description["task"] == "two_room"
    assert description["dataset"]["hash"] and description["versions"]["torch"] == torch.__version__
    assert description["training"]["steps"] == 12
    assert (tmp_path / "run" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    rows = training.read_log(tmp_path / "run" / checkpoint.LOG)
    assert {"loss", "prediction", "sigreg", "validation_loss"} <= set(rows[-1])
    actions = Dataset.open(dataset).actions
    np.testing.assert_allclose(weights(tmp_path / "run")["action_std"], np.nanstd(actions, axis=0), rtol=1e-5)


def test_curves_that_were_cut_off_are_drawn_again(finished, dataset):
    curves = finished / "curves.png"
    whole = curves.read_bytes()
    for damage in (b"", whole[:-20]):
        curves.write_bytes(damage)
        run(dataset, finished)
        assert curves.read_bytes() == whole


def test_loss_that_is_not_a_number_stops_training(dataset, tmp_path):
    with pytest.raises(TrainingDiverged, match="at step"):
        run(dataset, tmp_path / "run", learning_rate=1e30, schedule="constant", clip_norm=1e30)
    assert not (tmp_path / "run" / checkpoint.WEIGHTS).exists()


def test_batchnorm_is_recalibrated_on_a_copy(dataset, tmp_path):
    run(dataset, tmp_path / "run")
    trained = checkpoint.load_tensors(tmp_path / "run" / checkpoint.CHECKPOINT)
    name = "projector.norm.running_mean"
    assert not torch.equal(trained["learner/" + name], weights(tmp_path / "run")[name])
    torch.testing.assert_close(
        trained["learner/projector.linear_in.weight"], weights(tmp_path / "run")["projector.linear_in.weight"]
    )


def test_schedules():
    paper = TrainingConfig(steps=1000)
    assert paper.rate_factor(0) == pytest.approx(1 / 100)
    assert paper.rate_factor(100) == 1.0
    assert paper.rate_factor(999) == pytest.approx(0.98, abs=0.005)  # where the authors stop
    cosine = TrainingConfig(steps=1000, schedule="cosine")
    assert cosine.rate_factor(50) == 1.0
    assert cosine.rate_factor(999) < 1e-4
    assert TrainingConfig(steps=10, schedule="constant").rate_factor(0) == 1.0


@pytest.mark.parametrize("bad", [{"steps": 0}, {"schedule": "linear"}, {"precision": "fp8"}, {"batch_size": 1}])
def test_bad_training_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TrainingConfig(**{"steps": 1, **bad})


def test_unknown_settings_and_presets_are_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match="unknown settings.*latent"):
        run(dataset, tmp_path / "a", latent=8)
    with pytest.raises(ValueError, match="laptop"):
        train_run(LeWMAgent, dataset, tmp_path / "a", "desktop")
    assert not (tmp_path / "a").exists()


# Damaged run folders ------------------------------------------------------------------------------------------


@pytest.fixture
def finished(dataset, tmp_path):
    run(dataset, tmp_path / "run")
    return tmp_path / "run"


def test_truncated_weights_are_refused(finished):
    path = finished / checkpoint.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        load_agent(finished)


def test_weights_of_another_model_are_refused(finished):
    description = checkpoint.load_description(finished)
    tiny.edit_run(finished, model={**description["model"], "latent_size": 6})
    with pytest.raises(ValueError, match="another shape"):
        load_agent(finished)


def test_missing_damaged_and_foreign_folders_are_refused(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run"):
        load_agent(tmp_path / "nothing")
    description = checkpoint.load_description(finished)
    tiny.edit_run(finished, agent="gcbc")
    with pytest.raises(ValueError, match="gcbc"):
        LeWMAgent.load(finished)
    path = finished / checkpoint.DESCRIPTION
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 99'))
    with pytest.raises(ValueError, match="schema 99"):
        LeWMAgent.load(finished)
    for damage in ({"planning": None}, {"model": {**description["model"], "of_the_future": 1}}, {"model": None}):
        checkpoint.save_description(finished, {**description, **damage})
        with pytest.raises(ValueError, match="this version cannot read"):
            LeWMAgent.load(finished)
    path.write_text("{")
    with pytest.raises(ValueError, match="JSON"):
        LeWMAgent.load(finished)


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.DESCRIPTION])
def test_any_flipped_bit_of_a_run_is_noticed_as_it_is_loaded(finished, name):
    path = finished / name
    whole = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(whole), 40).tolist() + [0, 9, 20, 60, 90]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            LeWMAgent.load(finished)
        except ValueError as error:
            assert str(path) in str(error) and "again" in str(error)
        else:  # white space of JSON, or a digit beyond the precision of numbers, says the same
            assert name == checkpoint.DESCRIPTION and json.loads(damaged) == json.loads(whole), position
    path.write_bytes(whole)
    LeWMAgent.load(finished)


def test_any_flipped_bit_of_a_checkpoint_is_noticed_before_training_goes_on(finished):
    path = finished / checkpoint.CHECKPOINT
    whole = path.read_bytes()
    for position in np.random.default_rng(1).integers(0, len(whole), 40).tolist() + [0, 9, 20, 60, 90]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="checkpoint.safetensors is damaged.*delete it"):
            checkpoint.load_tensors(path)


def test_checkpoint_of_another_run_is_refused(dataset, tmp_path):
    for seed in (0, 1):
        run(dataset, tmp_path / str(seed), seed=seed)
        (tmp_path / str(seed) / checkpoint.WEIGHTS).unlink()
    shutil.copy(tmp_path / "1" / checkpoint.CHECKPOINT, tmp_path / "0")
    with pytest.raises(ValueError, match="0/checkpoint.safetensors belongs to another run"):
        run(dataset, tmp_path / "0", seed=0)


def test_run_of_a_version_without_checksums_is_loaded_as_it_is(finished):
    from safetensors.torch import save_file

    before = LeWMAgent.load(finished).act(tiny.observation())
    save_file(weights(finished), finished / checkpoint.WEIGHTS)
    with pytest.raises(ValueError, match="of a version without checksums"):  # as its run.json is of this version
        LeWMAgent.load(finished)
    old = {k: v for k, v in checkpoint.load_description(finished).items() if k != "sha256"}
    (finished / checkpoint.DESCRIPTION).write_text(json.dumps({**old, "schema": 1}))
    np.testing.assert_array_equal(LeWMAgent.load(finished).act(tiny.observation()), before)


def test_failed_write_leaves_neither_a_partial_nor_a_damaged_file(tmp_path, monkeypatch):
    checkpoint.save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)})

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lewm_gym.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="x.safetensors"):
        checkpoint.save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)})
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    np.testing.assert_array_equal(checkpoint.load_tensors(tmp_path / "x.safetensors")["a"], np.ones(2))


# What the log says -------------------------------------------------------------------------------------------


LEARNING = {"steps": 120, "learning_rate": 3e-3, "validate_every_steps": 120, "batch_size": 16, "schedule": "cosine"}


def test_collapse_without_sigreg_is_seen_and_warned_of(dataset, tmp_path):
    with pytest.warns(RuntimeWarning, match="collapsed"):
        run(dataset, tmp_path / "run", sigreg_weight=0.0, **LEARNING)
    last = training.read_log(tmp_path / "run" / checkpoint.LOG)[-1]
    assert last["validation_latent_std"] < 0.1


class OnePicture:
    """Clips that all show one grey picture."""

    def batch(self, step, batch_size):
        actions = torch.rand(batch_size, 3, 10, generator=torch.Generator().manual_seed(step))
        return Batch(torch.full((batch_size, 4, 56, 56, 3), 127, dtype=torch.uint8), actions)

    def batches(self, start_step, n_steps, batch_size, rank=0, world_size=1):
        return (self.batch(step, batch_size) for step in range(start_step, start_step + n_steps))


def test_training_on_one_picture_collapses_and_is_warned_of(tmp_path):
    config = TrainingConfig(steps=20, batch_size=8, validate_every_steps=20)
    with pytest.warns(RuntimeWarning, match="collapsed.*more than one picture"):
        training.train(tiny.model(), OnePicture(), OnePicture(), config, tmp_path)
    last = training.read_log(tmp_path / checkpoint.LOG)[-1]
    assert last["validation_latent_std"] < 0.1
    assert last["validation_effective_rank"] < 1.5
    assert last["validation_sigreg"] > 0.4 * 8  # a single point's, and more where it is not 0


TOY_PAPER = {"image_size": 56, "encoder_width": 24, "encoder_depth": 2, "dropout": 0.1, "precision": "float32"}


@pytest.mark.filterwarnings("error:the latents have collapsed")
@pytest.mark.parametrize("preset", ["laptop", "paper"])
def test_presets_do_not_collapse_at_toy_size(dataset, tmp_path, preset):
    small = {k: v for k, v in tiny.SETTINGS.items() if preset == "laptop" or k != "encoder_width"}
    settings = {**small, **LEARNING, **(TOY_PAPER if preset == "paper" else {})}
    train_run(LeWMAgent, dataset, tmp_path / "run", preset, settings, "cpu")
    last = training.read_log(tmp_path / "run" / checkpoint.LOG)[-1]
    assert last["validation_latent_std"] > 0.3
    assert last["validation_effective_rank"] > 2.5


def test_latent_statistics_of_known_latents():
    torch.manual_seed(0)
    spread = latent_statistics(torch.randn(500, 4, 8))
    assert spread["latent_std"] == pytest.approx(1, abs=0.05)
    assert spread["effective_rank"] == pytest.approx(8, abs=0.1)
    assert spread["straightness"] == pytest.approx(-0.5, abs=0.05)  # of three independent points
    line = latent_statistics(torch.linspace(0, 1, 4)[None, :, None] * torch.randn(50, 1, 1) * torch.ones(8))
    assert line["effective_rank"] == pytest.approx(1, abs=0.01)
    assert line["straightness"] == pytest.approx(1, abs=1e-4)
    assert collapse_warning(spread) is None
    assert "collapsed" in collapse_warning(line)
    assert "collapsed" in collapse_warning(latent_statistics(torch.ones(5, 4, 8)))


def test_drawing_the_curves_leaves_the_users_backend_alone(tmp_path):
    import matplotlib

    from lewm_gym.plots import save_curves

    before = matplotlib.get_backend()
    matplotlib.use("svg")
    try:
        save_curves([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], tmp_path / "curves.png", "title")
        assert matplotlib.get_backend() == "svg"
    finally:
        matplotlib.use(before)
    assert (tmp_path / "curves.png").stat().st_size > 1000
