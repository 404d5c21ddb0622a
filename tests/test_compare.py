"""`python -m benchmarks compare`: trains, evaluates and tabulates in one command, and repeats nothing that is done."""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import tiny
import torch

from agents import agent_class, learning
from benchmarks.__main__ import main
from benchmarks.experiments import compare as comparing
from benchmarks.experiments import trial as trials
from benchmarks.experiments.calibrate import Calibration, calibrate
from benchmarks.experiments.compare import Compare, named_agents
from lewm_gym import checkpoint, provenance
from lewm_gym.data.dataset import Dataset
from lewm_gym.files import exclusive
from lewm_gym.nn import dino
from lewm_gym.training import TrainingDiverged

SMALL = ["batch_size=4", "recalibration_batches=1", "conv_channels=[8,8,8]", "encoder_width=16"]
LEWM = [*SMALL, "latent_size=8", "projection_width=16", "predictor_mlp_width=16", "sigreg_directions=16"]
SETTINGS = [f"gcbc.{s}" for s in [*SMALL, "hidden_widths=[16]"]] + [f"lewm.{s}" for s in LEWM]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.collect_two_room(tmp_path_factory.mktemp("compare") / "two_room", episodes=3)


@pytest.fixture(scope="module")
def folder(data):
    return data.parent


def command(folder, *options):
    fixed = ["--agents", "gcbc", "lewm", "--seeds", "0", "1", "--n-pairs", "1", "--set", *SETTINGS]
    places = ["--runs", str(folder / "runs"), "--out", str(folder / "out")]
    return main(["compare", str(folder / "two_room"), *fixed, *places, *options])


@pytest.fixture(scope="module")
def finished(folder):
    assert command(folder, "--steps", "2", "two_room/lewm=1") == 0
    return folder


def test_one_command_gives_a_row_for_every_agent_and_reference(finished):
    table = json.loads((finished / "out" / "compare.json").read_text())
    rows = {row["agent"]: row for row in table["rows"]}
    assert set(rows) == {"random", "oracle", "expert", "gcbc", "lewm"}
    assert rows["oracle"]["success_mean"] == 1 and rows["oracle"]["seeds"][0]["high"] == 1
    assert (rows["gcbc"]["steps"], rows["lewm"]["steps"]) == (2, 1)
    assert [seed["seed"] for seed in rows["gcbc"]["seeds"]] == [0, 1]
    assert rows["gcbc"]["features"] == "trained with the policy" and rows["gcbc"]["published"] == 100
    text = (finished / "out" / "compare.md").read_text()
    assert "**Two-Room, 1 pairs**" in text and "Unfinished" not in text
    description = checkpoint.load_description(finished / "runs" / "two_room-gcbc-2steps-seed1")
    assert description["training"]["steps"] == 2 and description["training"]["seed"] == 1


def test_the_table_says_how_to_repeat_it(finished):
    repeat = json.loads((finished / "out" / "compare.json").read_text())["repeat"]
    assert "--steps two_room/gcbc=2 two_room/lewm=1" in repeat and "--seeds 0 1" in repeat
    assert "'gcbc.hidden_widths=[16]'" in repeat


def test_what_is_finished_is_not_done_again(finished, capsys):
    files = [file for file in finished.rglob("*") if file.is_file() and file.name not in ("compare.json", "compare.md")]
    lost = finished / "out" / "two_room-lewm-1steps-seed1-25-1pairs.json"
    for name in ("compare.json", "compare.md", lost.name):
        path = finished / "out" / name
        path.with_name(f".{name}.0123.tmp{path.suffix}").write_text("of a killed process")
    before = {file: file.stat().st_mtime_ns for file in files if file != lost}
    outcomes = json.loads(lost.read_text())["outcomes"]
    lost.unlink()
    assert command(finished, "--steps", "2", "two_room/lewm=1") == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert not list(finished.rglob(".*.tmp*"))
    assert json.loads(lost.read_text())["outcomes"] == outcomes
    said = capsys.readouterr().out
    assert "left to do: 1 of 7" in said and "[7/7] two_room-lewm-1steps-seed1" in said and "[6/7]" not in said


def test_an_interrupted_call_keeps_what_is_finished_in_the_table(finished, monkeypatch):
    lost = finished / "out" / "two_room-gcbc-2steps-seed0-25-1pairs.json"
    kept = lost.read_bytes()
    lost.unlink()

    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(trials.Trial, "result", interrupt)
    with pytest.raises(KeyboardInterrupt):
        command(finished, "--steps", "2", "two_room/lewm=1")
    table = json.loads((finished / "out" / "compare.json").read_text())
    rows = {row["agent"]: [seed["seed"] for seed in row["seeds"]] for row in table["rows"]}
    assert rows["gcbc"] == [1] and rows["lewm"] == [0, 1] and table["missing"] == 1
    lost.write_bytes(kept)


def test_processes_divide_a_comparison_and_each_ends_with_the_whole_table(finished, monkeypatch):
    lost = [finished / "out" / f"two_room-{name}-25-1pairs.json" for name in ("gcbc-2steps-seed0", "lewm-1steps-seed1")]
    kept, order, measure, others = [path.read_bytes() for path in lost], [], trials.Trial.result, contextlib.ExitStack()
    for path in lost:
        path.unlink()

    def result(one, bars):
        order.append(one.name)
        found = measure(one, bars)
        if "lewm" in one.name:  # then the other process finishes, too
            lost[0].write_bytes(kept[0])
            others.close()
        return found

    monkeypatch.setattr(trials.Trial, "result", result)
    others.enter_context(exclusive(finished / "runs" / "two_room-gcbc-2steps-seed0.trial"))
    assert command(finished, "--steps", "2", "two_room/lewm=1") == 0
    assert order == ["two_room-lewm-1steps-seed1", "two_room-gcbc-2steps-seed0"]
    assert lost[0].read_bytes() == kept[0]  # and it is not measured again
    found = json.loads((finished / "out" / "compare.json").read_text())
    assert [seed["seed"] for row in found["rows"] if row["steps"] for seed in row["seeds"]] == [0, 1, 0, 1]
    assert found["missing"] == 0 and not list(finished.rglob("*.trial.lock"))


def test_a_trial_of_another_process_is_waited_for_and_done_if_that_was_killed(tmp_path):
    some = [SimpleNamespace(name=name, run=tmp_path / name, claim=tmp_path / f"{name}.trial") for name in "ab"]
    done, other = [], contextlib.ExitStack()
    other.enter_context(exclusive(some[0].claim))

    def wait(stage, *progress):
        assert stage == "wait for another process" and progress[-1] == "a" and done == ["b"]
        other.close()  # as the kernel does for a killed process

    trials.share(some, lambda one: done.append(one.name), wait)
    assert done == ["b", "a"] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("shared", [True, False])
def test_trials_done_on_a_cluster_leave_what_trials_here_leave(finished, folder, tmp_path, monkeypatch, shared):
    def run(function, calls, address, cpus, gpus):  # stands in for a cluster; tests/test_cluster.py has one
        assert (address, cpus, gpus) == ("auto", 1, 0)
        for number, (one, caller) in enumerate(calls):
            if not shared:  # as on a machine that does not see our files
                caller = replace(caller, marker=caller.marker / "no")
            yield number, partial(function, *pickle.loads(pickle.dumps((one, caller))))

    def left(place):
        weights = {path.parent.name: path.read_bytes() for path in (place / "runs").glob("*/weights.safetensors")}
        results = [json.loads(path.read_text()) for path in sorted((place / "out").glob("two_room-*.json"))]
        return weights, [(result["outcomes"], result["run"]["steps"]) for result in results]

    monkeypatch.setattr(trials, "run_on_ray", run)
    monkeypatch.setattr(provenance, "scheduled_by", None)
    (tmp_path / "two_room").symlink_to(folder / "two_room")
    options = ["--steps", "2", "two_room/lewm=1", "--ray", "auto", "--ray-cpus", "1"]
    threads = torch.get_num_threads()
    try:
        assert command(tmp_path, *options) == 0
    finally:
        torch.set_num_threads(threads)
    assert left(tmp_path) == left(finished) and len(left(finished)[0]) >= 4
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["missing"] == 0 and len(found["rows"]) == 5
    assert not list(tmp_path.rglob(".shared-*")) and not list(tmp_path.rglob("*.trial.lock"))
    monkeypatch.setattr(trials, "run_on_ray", None)  # would fail if anything were left to do
    assert command(tmp_path, *options) == 0


def test_a_calibration_that_another_process_made_meanwhile_is_used(data, tmp_path, monkeypatch):
    asked = Compare(datasets=(data,), agents=("gcbc",), out=tmp_path)
    dataset, timed = Dataset.open(data), Calibration(0.5, 0.1, 1)
    monkeypatch.setattr(comparing, "calibrate", lambda *_: timed)
    ours, theirs = comparing.Calibrations(asked), comparing.Calibrations(asked)
    assert theirs.measure(dataset, "gcbc", None) == timed
    monkeypatch.setattr(comparing, "calibrate", None)  # would fail if it were asked again
    assert ours.known(dataset, "gcbc") is None and ours.measure(dataset, "gcbc", None) == timed


def test_dry_run_says_the_cost_and_writes_nothing(folder, tmp_path, capsys):
    places = ["--runs", str(tmp_path / "r"), "--out", str(tmp_path / "o")]
    assert main(["compare", str(folder / "two_room"), "--budget-min", "10", *places, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "24 trainings" in said and "24 x 10 min" in said and "200 pairs of two_room" in said
    assert not list(tmp_path.iterdir())


def test_budget_becomes_steps_that_a_second_call_uses_again(data, tmp_path, monkeypatch):
    settings = ("gcbc.batch_size=4", "gcbc.conv_channels=[8,8]", "gcbc.encoder_width=8", "gcbc.hidden_widths=[8]")
    places = {"runs": tmp_path / "runs", "out": tmp_path / "out"}
    given = {"datasets": (data,), "agents": ("gcbc",), "seeds": (0,), "budget_min": 0.002, "n_pairs": 1}
    asked = Compare(**given, settings=settings, **places)
    asked.compare(say=lambda line: None)
    timed = json.loads((asked.out / "calibration.json").read_text())["two_room/gcbc"]["timed"]
    steps = Calibration(**timed).steps_within(0.002)
    assert (asked.runs / f"two_room-gcbc-{steps}steps-seed0" / checkpoint.WEIGHTS).is_file()
    monkeypatch.setattr(comparing, "calibrate", None)  # would fail if it were asked again
    assert len(asked.compare(say=lambda line: None)) == 4


def test_calibration_rounds_to_two_digits_and_counts_plans():
    timed = Calibration(seconds_per_step=0.05, seconds_per_choice=2.0, steps_per_choice=25)
    assert timed.steps_within(10) == 12_000 and Calibration(0.049, 1, 1).steps_within(10) == 12_000
    assert timed.steps_within(0.0001) == 1 and timed.steps_within(0.04) == 48
    assert timed.evaluation_seconds(n_pairs=10, budget_steps=50) == 40
    assert timed.evaluation_seconds(n_pairs=10, budget_steps=51) == 60


def test_calibration_measures_a_real_training(data):
    settings = {"batch_size": 4, "conv_channels": (8, 8), "encoder_width": 8, "hidden_widths": (8,)}
    timed = calibrate(agent_class("gcbc"), data, "laptop", settings, "cpu", None)
    assert 0 < timed.seconds_per_step < 5 and 0 < timed.seconds_per_choice < 5 and timed.steps_per_choice == 1


def test_a_training_that_diverges_does_not_end_the_others(finished, monkeypatch):
    train = trials.train_run

    def diverge(kind, *rest):
        if kind.name == "lewm":
            raise TrainingDiverged("the loss is nan")
        return train(kind, *rest)

    monkeypatch.setattr(trials, "train_run", diverge)
    assert command(finished, "--steps", "gcbc=2", "lewm=3") == 0
    text = (finished / "out" / "compare.md").read_text().replace("\\_", "_")
    assert "two_room-lewm-3steps-seed0 diverged: the loss is nan" in text and "| GCBC |" in text


def test_timm_without_a_network_is_no_weights(tmp_path, monkeypatch):
    class Timm:
        @staticmethod
        def create_model(name, pretrained):
            raise OSError("the hub cannot be reached")

    monkeypatch.setattr(dino, "PLACES", (tmp_path / "none.pth",))
    monkeypatch.setitem(sys.modules, "timm", Timm)
    assert not dino.available()
    assert "random_vit" in named_agents(("all",))


@pytest.mark.filterwarnings("ignore:there are no DINOv2")
@pytest.mark.parametrize(
    ("options", "different"),
    [
        (["gcbc.learning_rate=0.5"], "learning_rate 0.001 there, 0.5 asked"),
        (["--preset", "paper"], "preset: 'laptop' there, 'paper' asked"),
    ],
)
def test_results_of_another_training_are_not_taken_for_its_own(finished, options, different):
    settings = ["--set", *SETTINGS[:5], *options]
    places = ["--runs", str(finished / "runs"), "--out", str(finished / "out2")]
    with pytest.raises(ValueError, match=f"holds another run.*{different}"):
        main(
            ["compare", str(finished / "two_room"), "--agents", "gcbc", "--steps", "2", "--n-pairs", "1"]
            + [*settings, *places]
        )


def test_results_on_other_data_are_not_taken_for_its_own(finished, tmp_path):
    other = tiny.collect_two_room(tmp_path / "two_room", episodes=2)
    places = ["--runs", str(finished / "runs"), "--out", str(finished / "out")]
    with pytest.raises(ValueError, match="holds another run.*hash"):
        main(
            ["compare", str(other), "--agents", "gcbc", "--steps", "2", "--n-pairs", "1", "--set", *SETTINGS[:5]]
            + places
        )


def test_calibration_gives_the_agent_what_it_senses(data):
    settings = {"batch_size": 2, "proprioception": True, "predictor_depth": 1, "predictor_mlp_width": 16}
    settings |= {"predictor_heads": 2, "predictor_head_width": 8, "cache_features": False}
    assert calibrate(agent_class("random_vit"), data, "laptop", settings, "cpu", None).seconds_per_choice > 0


@pytest.mark.parametrize("content", ["{", "[]", '{"two_room/gcbc": {}}', '{"two_room/gcbc": 3}', "of words"])
def test_a_damaged_calibration_is_named(data, tmp_path, content):
    if content == "of words":
        conditions = comparing.Calibrations(Compare(datasets=(data,)))._conditions(Dataset.open(data), "gcbc")
        timed = {"seconds_per_step": "x", "seconds_per_choice": None, "steps_per_choice": 1}
        content = json.dumps({"two_room/gcbc": {"of": conditions, "timed": timed}})
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(ValueError, match="calibration.json.*delete it"):
        main(["compare", str(data), "--agents", "gcbc", "--out", str(tmp_path), "--dry-run"])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": [3]}'])
def test_a_damaged_record_is_named(data, tmp_path, content):
    (tmp_path / "compare.json").write_text(content)
    with pytest.raises(ValueError, match="compare.json.*delete it"):
        main(["compare", str(data), "--agents", "gcbc", "--out", str(tmp_path), "--dry-run"])


def test_steps_for_one_agent_leave_the_others_their_budget(data, tmp_path, capsys):
    assert main(["compare", str(data), "--agents", "gcbc", "lewm", "--steps", "gcbc=5", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "optimiser steps as given (gcbc 5)" in said and "3 x 10 min" in said and "two_room/lewm" in said


def test_random_features_stand_in_where_there_are_no_weights(monkeypatch):
    monkeypatch.setattr(dino, "available", lambda: False)
    assert named_agents(("lewm", "dino_wm", "random_vit")) == ("lewm", "random_vit")
    assert set(named_agents(("all",))) == set(learning()) - {"dino_wm"}
    assert named_agents(("dino_wm",), {"dino_wm": {"dino_weights": "here.pth"}}) == ("dino_wm",)
    monkeypatch.setattr(dino, "available", lambda: True)
    assert named_agents(("dino_wm",)) == ("dino_wm",)
    assert set(named_agents(("all",))) == set(learning()) - {"random_vit"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--agents", "tdmpc"], "unknown agent 'tdmpc'"),
        (["--agents", "random"], "unknown agent 'random'"),
        (["--preset", "huge"], "has no preset 'huge'"),
        (["--seeds", "0", "0"], "none twice"),
        (["--seeds", "-1"], "must not be negative"),
        (["--budget-min", "0"], "--budget-min must be at least"),
        (["--budget-min", "nan"], "--budget-min must be at least"),
        (["--steps", "0"], "N at least 1"),
        (["--steps", "lewm=many"], "N at least 1"),
        (["--agents", "lewm", "--steps", "gcbc=2"], "'gcbc', which is not compared"),
        (["--agents", "gcbc", "--steps", "two_rom/gcbc=7"], "'two_rom/gcbc', but the datasets are of two_room"),
        (["--set", "batch_size=3"], "AGENT.NAME=VALUE"),
        (["--set", "gcbc.steps=50"], "gcbc.steps is not a setting of a comparison: --steps"),
        (["--set", "gcbc.seed=5"], "gcbc.seed is not a setting of a comparison: --seeds"),
        (["--agents", "gcbc", "lewm", "--set", "lewm.nonsense=1"], "unknown settings .'nonsense'"),
        (["--agents", "gcbc", "--set", "gcbc.nonsense=1", "--dry-run"], "unknown settings .'nonsense'"),
        (["--n-pairs", "201"], "within 1 and 200"),
        (["--offset", "33"], "ship at 33 steps"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--threads", "2147483648"], "--threads must be at most 1024"),
        (["--device", "warp"], "cannot compute on device"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(data, tmp_path, options, message):
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=message):
        main(["compare", str(data), *places, *options])
    assert not list(tmp_path.iterdir())


def test_two_datasets_of_one_task_are_refused(data, tmp_path):
    other = tiny.collect_two_room(tmp_path / "other", episodes=2)
    with pytest.raises(ValueError, match="second dataset of two_room"):
        main(["compare", str(data), str(other), "--out", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="no dataset"):
        main(["compare", str(tmp_path / "none")])
