"""The whole paper in one command: what it costs, what it does, what it uses again, what it refuses."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from benchmarks.__main__ import main
from benchmarks.experiments import suite
from lewm_gym.results import Record, Result

TOY = {"conv_channels": "[8,8,8]", "encoder_width": 16, "predictor_depth": 1, "sigreg_directions": 16, "batch_size": 8}
TOY |= {"latent_size": 8, "recalibration_batches": 1}


def asked(folder: Path, **changes: Any) -> suite.Suite:
    values: dict[str, Any] = {
        "tasks": ("two_room",),
        "agents": ("lewm",),
        "seeds": (0,),
        "steps": 2,
        "episodes": 6,
        "n_pairs": 2,
        "settings": tuple(f"lewm.{name}={value}" for name, value in TOY.items()),
        "data": folder / "data",
        "runs": folder / "runs",
        "out": folder / "results",
    }
    return suite.Suite(**(values | changes))


#: Smaller than the commands' defaults, so that the test takes seconds.
FEW = {
    "collect": ("--workers", "1"),
    "plan": ("--workers", "1"),
    "shift": ("--workers", "1"),
    "probe": ("--steps", "5", "--episodes", "2", "--fit-episodes", "2"),
    "rollout": ("--horizon", "2", "--episodes", "1"),
    "surprise": ("--trajectories", "2"),
}


def in_this_process(done: list[str]) -> Any:
    def do(stage: suite.Stage, say: Any) -> int:
        package, *words = stage.words
        verb = "collect" if package == "collect" else words[0]
        done.append(verb)
        return int(importlib.import_module(f"{package}.__main__").main([*words, *FEW.get(verb, ())]) or 0)

    return do


def test_suite_does_everything_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, done, said = asked(tmp_path), [], []
    monkeypatch.setattr(suite, "_do", in_this_process(done))
    assert wanted.run(said.append) == 0
    knowledge = ["probe", "rollout", "straightness", "curves", "surprise"]
    assert done == ["collect", "compare", "plan", "plan", "plan", *knowledge, "shift", "report"]
    results = [Result.load(path) for path in wanted.out.glob("*.json") if '"kind": "plan"' in path.read_text()]
    assert {(r.protocol, r.offset_steps) for r in results if r.agent == "lewm"} == {
        ("heldout", 25),
        ("heldout", 50),
        ("heldout", 75),
        ("official", 25),
    }
    page = (wanted.out / "report.html").read_text()
    for text in (
        "Comparison of agents",
        "Probing",
        "success under distribution shift",
        "official pairs",
        "random baseline",
    ):
        assert text in page, text
    done.clear()
    assert wanted.run(said.append) == 0
    assert done == ["compare", "report"]  # which find everything there themselves
    # Other weights are measured again.
    run = next((wanted.runs).glob("two_room-lewm-*"))
    (run / "weights.safetensors").write_bytes((run / "weights.safetensors").read_bytes() + b" ")
    assert not any(stage.done for stage in wanted.measuring())


def test_cost_is_told_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite, "_do", lambda *_: pytest.fail("something was done"))
    arguments = ["suite", "--tasks", "two_room", "cube", "--agents", "lewm", "gcbc", "--dry-run"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for text in (
        "Two-Room     collect 300 episodes: about 4 s",
        "OGBench-Cube collect 500 episodes: about 16.2 min",
        "12 trainings: lewm, gcbc; seeds 0, 1, 2; preset laptop",
        "12 x 10 min of optimiser steps = 2 h",
        "12 evaluations on 200 pairs",
        "python -m benchmarks compare data/two_room data/cube --agents lewm gcbc --seeds 0 1 2",
    ):
        assert text in printed, text
    assert not list(tmp_path.iterdir())
    assert main([*arguments, "--preset", "paper"]) == 0
    assert "optimiser steps: lewm 100,000, gcbc 500,000" in capsys.readouterr().out


def test_datasets_are_used_again_and_extended_where_they_are_too_small(tmp_path: Path) -> None:
    wanted = asked(tmp_path, episodes=3)
    tiny.collect_two_room(wanted.data / "two_room", 3)
    assert [stage.done for stage in wanted.collection()] == [True]
    assert "reuse 3 episodes" in wanted.cost()
    assert [stage.done for stage in replace(wanted, episodes=4).collection()] == [False]
    (wanted.data / "two_room" / suite.PARTS).mkdir()  # as an interrupted collection leaves it
    assert [stage.done for stage in wanted.collection()] == [False]


def test_a_stage_that_fails_stops_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(suite, "_do", lambda stage, say: done.append(stage.words[0]) or 2)
    assert asked(tmp_path).run(lambda _: None) == 2
    assert done == ["collect"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("chess",)}, "unknown task 'chess'"),
        ({"preset": "huge"}, "--preset must be one of laptop, paper"),
        ({"seeds": (0, 0)}, "expected at least one seed, and none twice; got 0, 0"),
        ({"seeds": (-1,)}, "--seeds must not be negative"),
        ({"agents": ()}, "expected at least one agent, and none twice"),
        ({"agents": ("nonsense",)}, "unknown agent 'nonsense'; expected all, or some of: lewm, "),
        ({"agents": ("random",)}, "unknown agent 'random'"),
        ({"episodes": 1}, "--episodes must be at least 2, got 1"),
        ({"n_pairs": 0}, "--n-pairs must be at least 1, got 0"),
        ({"budget_min": 0.0}, "--budget-min must be at least 1e-06, got 0.0"),
        ({"settings": ("foo",)}, "--set takes AGENT.NAME=VALUE, got 'foo'"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asked(tmp_path, **change)


def test_commands_name_what_they_measure(tmp_path: Path) -> None:
    wanted = asked(tmp_path)
    wanted.out.mkdir(parents=True)
    rows = [{"task": "two_room", "agent": "lewm", "steps": 2, "seeds": [{"seed": 0}]}]
    rows.append({"task": "two_room", "agent": "random", "steps": None, "seeds": [{"seed": None}]})
    Record("compare", {"rows": rows}, {}).save(wanted.out / "compare.json")
    run = wanted.runs / "two_room-lewm-2steps-seed0"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    commands = [stage.command for stage in wanted.measuring()]
    assert all(str(run) in command for command in commands)
    assert sum("--protocol official" in command for command in commands) == 1
