"""Changed worlds, lambda by bisection, ablations, equal operations: what they try, measure, reuse and refuse."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from test_benchmarks_plan import PAIRS, KeepingSeeker, a_run

from benchmarks import ablate, equal_flops, record_sections, shift, tune_lambda
from benchmarks.__main__ import main
from benchmarks.environments import Rules
from benchmarks.plan import evaluate
from benchmarks.report import write_report
from collect.collector import TUNING_SEED, collect
from collect.episodes import make_env
from lewm_gym.results import Rate
from lewm_gym.tasks import TASKS, get_task


class BlindSeeker(KeepingSeeker):
    """Stands still where it sees no red dot."""

    def act(self, obs: Any) -> Any:
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(super().act(obs))


class KilledSeeker(BlindSeeker):
    def act(self, obs: Any) -> Any:
        if len(self.batches) == 60:
            raise KeyboardInterrupt
        return super().act(obs)


TOY = ["--steps", "2", "--set", "batch_size=8", "recalibration_batches=1", "conv_channels=[8,8,8]", "encoder_width=16"]
TOY += ["predictor_depth=1", "sigreg_directions=16", "latent_size=8"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.collect_two_room(tmp_path_factory.mktemp("lab") / "data", 4)


# A changed world ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_change_is_one_that_the_environment_offers_and_is_not_its_default(task: str) -> None:
    changes = shift.CHANGES[task]
    assert len({change.name for change in changes}) == len(changes)
    ranges = type(make_env(task).unwrapped).variation_ranges
    for change in changes:
        assert len(change.variations) == 1, "one at a time"
        ((name, value),) = change.variations.items()
        allowed = ranges[name]
        default = allowed[0] if isinstance(allowed, list) else allowed[2]
        assert json.dumps(value) != json.dumps(default), change.name


def test_changed_rooms_change_what_is_seen_and_done(tmp_path: Path) -> None:
    record = shift.measure_shift(a_run(tmp_path / "run"), tmp_path / "s.json", episodes=6, agent=BlindSeeker())
    assert [change["name"] for change in record["changes"]] == [change.name for change in shift.CHANGES["two_room"]]
    before = evaluate(BlindSeeker(), "two_room", PAIRS[:6], strict=False)
    assert record["unchanged"]["successes"] == Rate.of(before).successes
    by_name = {change["name"]: change for change in record["changes"]}
    rules = Rules(variations={"agent_radius": 10.5})
    kept = shift.possible_pairs(get_task("two_room"), PAIRS[:6], rules)
    again = evaluate(BlindSeeker(), "two_room", PAIRS, indices=kept, rules=rules, strict=False)
    larger = by_name["agent 1.5 times as large"]["success"]
    assert (larger["successes"], larger["episodes"]) == (Rate.of(again).successes, len(kept))
    # A seeker that looks for red sees no blue agent.
    assert by_name["agent blue"]["success"]["successes"] < record["unchanged"]["successes"]
    out = write_report([tmp_path / "s.json"], tmp_path / "page.html")
    assert "door 91 px further down" in out.read_text() and "| door 91 px" in out.with_suffix(".md").read_text()


def test_pairs_that_a_changed_world_does_not_allow_are_left_out() -> None:
    solved = dataclasses.replace(PAIRS[1], goal_state=PAIRS[1].start_state)
    outside = dataclasses.replace(PAIRS[2], start_state=PAIRS[2].start_state * 0 + 1e4)
    assert shift.possible_pairs(get_task("two_room"), [PAIRS[0], solved, outside, PAIRS[3]], Rules()) == [0, 3]


def test_killed_shift_resumes_to_the_same_record(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    whole = shift.measure_shift(run, tmp_path / "whole.json", episodes=4, agent=BlindSeeker())
    with pytest.raises(KeyboardInterrupt):
        shift.measure_shift(run, tmp_path / "s.json", episodes=4, agent=KilledSeeker())
    assert (tmp_path / "s.json.partial").is_file()
    again = shift.measure_shift(run, tmp_path / "s.json", episodes=4, agent=BlindSeeker())
    assert (again["unchanged"], again["changes"]) == (whole["unchanged"], whole["changes"])
    assert not (tmp_path / "s.json.partial").exists()


# Lambda ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peak", [0.002, 0.03, 0.09, 0.7])
def test_bisection_closes_in_on_the_peak_by_two_trainings_a_round(peak: float) -> None:
    asked = []

    def score(weight: float) -> float:
        asked.append(weight)
        return -abs(math.log(weight / peak))

    for rounds in (0, 2, 6):
        asked.clear()
        scores = tune_lambda.bisect(score, 0.001, 1.0, rounds)
        assert len(asked) == len(set(asked)) == len(scores) <= 3 + 2 * rounds
    width = math.log(1000) / 2 / 2**6  # of half the interval, halved six times
    assert abs(math.log(tune_lambda._best(scores) / peak)) <= 2 * width + 0.02  # values are rounded to three digits


def test_bisection_takes_the_middle_of_a_plateau() -> None:
    assert tune_lambda._best({0.01: 0.9, 0.05: 0.9, 0.2: 0.9, 0.5: 0.1}) == 0.05


@pytest.mark.parametrize(("low", "high", "rounds"), [(0.0, 1.0, 1), (1.0, 0.5, 1), (0.1, math.inf, 1), (0.1, 1.0, -1)])
def test_bisection_refuses_impossible_intervals(low: float, high: float, rounds: int) -> None:
    with pytest.raises(ValueError, match="--low|--rounds"):
        tune_lambda.bisect(lambda _: 0.0, low, high, rounds)


def test_tuning_pairs_are_of_a_seed_that_nothing_else_may_use(tmp_path: Path) -> None:
    pairs = tune_lambda.tuning_pairs("two_room", 25, 3, tmp_path)
    assert pairs.seed == TUNING_SEED
    assert tune_lambda.tuning_pairs("two_room", 25, 3, tmp_path).content_hash == pairs.content_hash
    with pytest.raises(ValueError, match="reserved for evaluation pairs"):
        collect("two_room", tmp_path / "data", 1, seed=TUNING_SEED, workers=1)


def test_lambda_is_tuned_by_one_command_that_uses_finished_trainings_again(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["tune-lambda", str(dataset), "--rounds", "0", "--n-pairs", "2", "--low", "0.01", *TOY]
    assert main(command) == 0
    assert "lambda by bisection" in capsys.readouterr().out
    record = json.loads((tmp_path / "results" / "tune-lambda-data.json").read_text())
    assert [trial["weight"] for trial in record["trials"]] == [0.01, 0.1, 1.0]
    assert record["best"] in (0.01, 0.1, 1.0) and record["pairs"]["seed"] == TUNING_SEED
    described = json.loads((tmp_path / "runs/tune-lambda/two_room-lambda0.1-seed0/run.json").read_text())
    assert described["model"]["sigreg_weight"] == 0.1 and described["training"]["steps"] == 2
    monkeypatch.setattr("benchmarks.trials.measure", lambda *_, **__: pytest.fail("measured again"))
    assert main(command) == 0


# Ablations ---------------------------------------------------------------------------------------------------


def test_every_ablation_is_a_setting_that_lewm_takes() -> None:
    from agents.lewm import PRESETS, LeWM

    for study, variants in ablate.STUDIES.items():
        assert len({variant.name for variant in variants}) == len(variants), study
        for variant in variants:
            for name in ("laptop", "paper"):
                config = dataclasses.replace(PRESETS[name].model, **variant.settings)
                if variant.settings.keys() & {"encoder", "predictor_width", "decoder_weight"} and name == "laptop":
                    LeWM(config)


def test_ablations_are_one_command_and_one_table(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    studies = (ablate.Variant("5 knots", {"sigreg_knots": 5}), ablate.Variant("9 knots", {"sigreg_knots": 9}, 50.0))
    monkeypatch.setitem(ablate.STUDIES, "knots", studies)
    assert main(["ablate", str(dataset), "--studies", "knots", "--n-pairs", "2", *TOY]) == 0
    printed = capsys.readouterr().out
    assert "| as the preset |" in printed and "| 9 knots |" in printed and "*50*" in printed
    record = json.loads((tmp_path / "results" / "ablate-data.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["as the preset", "5 knots", "9 knots"]
    runs = tmp_path / "runs" / "ablate"
    settings = [json.loads(path.read_text())["model"]["sigreg_knots"] for path in sorted(runs.glob("*/run.json"))]
    assert sorted(settings) == [5, 9, 17]
    with pytest.raises(ValueError, match=r"unknown studies \['depth'\]; expected all, or some of: predictor, "):
        main(["ablate", str(dataset), "--studies", "depth", *TOY])


# Equal operations --------------------------------------------------------------------------------------------


def test_operations_of_a_plan_are_counted() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    agent, obs = tiny.agent(), tiny.observation()
    cost = equal_flops.cost_of_plan(agent, obs)
    assert cost.fixed > 0 and cost.per_candidate > 0
    for n_samples, iterations in ((50, 1), (30, 3)):
        with FlopCounterMode(display=False) as tally:
            equal_flops._with_search(agent, n_samples, iterations).plan(obs)
        expected = cost.fixed + cost.per_candidate * n_samples * iterations
        assert tally.get_total_flops() == pytest.approx(expected, rel=0.02)
        assert cost.samples_within(1.0001 * expected, iterations) == n_samples


def test_models_get_what_the_budget_allows_and_the_record_says_so(tmp_path: Path) -> None:
    agent = tiny.agent()
    run = tmp_path / "lewm"
    agent.description["finished"] = True
    agent.save(run)
    cost = equal_flops.cost_of_plan(agent, tiny.observation())
    budgets = [cost.fixed + 10 * cost.per_candidate * n for n in (5, 40)]
    record = equal_flops.measure_equal_flops([run], tmp_path / "f.json", budgets, episodes=2)
    poor, rich = record["models"][0]["points"]
    assert poor["success"] is None and poor["n_samples"] in (4, 5)
    assert rich["n_samples"] in (39, 40) and rich["success"]["episodes"] == 2 and rich["seconds_per_plan"] > 0
    text = record_sections.load(tmp_path / "f.json", 1).section.markdown
    assert "cannot afford it" in text
    with pytest.raises(ValueError, match="--flops must be positive"):
        equal_flops.measure_equal_flops([run], tmp_path / "f.json", [0.0])
    with pytest.raises(ValueError, match="holds 'random', which does not plan"):
        equal_flops.measure_equal_flops([a_run(tmp_path / "random")], tmp_path / "f.json", [1e9])


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"task": "pusht"}, {}, r"different task \(one: pusht, other: two_room\)"),
        (
            {"dataset": {"render_quality": "fast"}},
            {"dataset": {"render_quality": "best"}},
            "different render quality",
        ),
    ],
)
def test_runs_of_different_scenes_are_not_compared(one: dict[str, Any], other: dict[str, Any], message: str) -> None:
    base = {"task": "two_room", "dataset": {}}
    with pytest.raises(ValueError, match=message):
        equal_flops.check_same_scene({Path("one"): base | one, Path("other"): base | other})
