"""Changed worlds, sweeps and searches: what they try, measure, reuse and refuse."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from test_benchmarks_plan import PAIRS, KeepingSeeker, a_run

from benchmarks.__main__ import main
from benchmarks.evaluation.envs import Rules
from benchmarks.evaluation.evaluate import evaluate
from benchmarks.experiments import robustness, search, sweep
from benchmarks.experiments import trial as trials
from benchmarks.report.build import write_report
from collect.collector import TUNING_SEED, collect
from lewm_gym.files import exclusive
from lewm_gym.paired import Difference, compare
from lewm_gym.results import Rate, Record, Result
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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.planning_run(tmp_path_factory.mktemp("lab") / "run")


# Distribution shift -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_change_is_one_that_the_environment_offers_and_is_not_its_default(task: str) -> None:
    env_class = TASKS[task].env_class()
    assert env_class.shifts
    for name, variations in env_class.shifts.items():
        assert len(variations) == 1, "one at a time"
        ((changed, value),) = variations.items()
        allowed = env_class.variation_ranges[changed]
        default = allowed[0] if isinstance(allowed, list) else allowed[2]
        assert json.dumps(value) != json.dumps(default), name


def shift(run: Path, out: Path, agent: Any, n_pairs: int) -> Record:
    return robustness.Shift(run=run, out=out, n_pairs=n_pairs, workers=1).record(agent=agent)


def test_changed_rooms_change_what_is_seen_and_done(tmp_path: Path) -> None:
    record = shift(a_run(tmp_path / "run"), tmp_path / "s.json", BlindSeeker(), 6)
    by_name = {change["name"]: change for change in record["changes"]}
    assert list(by_name) == list(TASKS["two_room"].env_class().shifts)
    before = evaluate(BlindSeeker(), "two_room", PAIRS[:6], strict=False)
    assert record["unchanged"]["successes"] == Rate.of(before).successes
    rules = Rules(variations={"agent_radius": 10.5})
    kept = robustness.possible_pairs(get_task("two_room"), PAIRS[:6], rules)
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
    chosen = [PAIRS[0], solved, outside, PAIRS[3]]
    assert robustness.possible_pairs(get_task("two_room"), chosen, Rules()) == [0, 3]


def test_killed_shift_resumes_to_the_same_record(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    whole = shift(run, tmp_path / "whole.json", BlindSeeker(), 4)
    with pytest.raises(KeyboardInterrupt):
        shift(run, tmp_path / "s.json", KilledSeeker(), 4)
    assert (tmp_path / "s.json.partial").is_file()
    assert shift(run, tmp_path / "s.json", BlindSeeker(), 4).body == whole.body
    assert not (tmp_path / "s.json.partial").exists()
    with exclusive(tmp_path / "s.json"), pytest.raises(ValueError, match="s.json is being written by another process"):
        shift(run, tmp_path / "s.json", BlindSeeker(), 4)


# Lambda ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peak", [0.002, 0.03, 0.09, 0.7])
def test_bisection_closes_in_on_the_peak_by_two_trainings_a_round(peak: float) -> None:
    asked = []

    def score(weights: Sequence[float]) -> dict[float, float]:
        asked.extend(weights)
        return {weight: -abs(math.log(weight / peak)) for weight in weights}

    for rounds in (0, 2, 6):
        asked.clear()
        scores = sweep.bisect(score, 0.001, 1.0, rounds)
        assert len(asked) == len(set(asked)) == len(scores) <= 3 + 2 * rounds
    width = math.log(1000) / 2 / 2**6  # of half the interval, halved six times
    assert abs(math.log(sweep.best_of(scores) / peak)) <= 2 * width + 0.02  # values are rounded to three digits


def test_bisection_takes_the_middle_of_a_plateau() -> None:
    assert sweep.best_of({0.01: 0.9, 0.05: 0.9, 0.2: 0.9, 0.5: 0.1}) == 0.05


@pytest.mark.parametrize("wrong", [("--low", "0"), ("--low", "1"), ("--high", "inf"), ("--rounds", "-1")])
def test_bisection_refuses_impossible_intervals(wrong: tuple[str, str], dataset: Path) -> None:
    with pytest.raises(ValueError, match="--low|--high|--rounds"):
        main(["tune-lambda", str(dataset), *wrong])


def test_tuning_pairs_are_of_a_seed_that_nothing_else_may_use(tmp_path: Path) -> None:
    pairs = sweep.tuning_pairs("two_room", 25, 3, tmp_path)
    assert pairs.seed == TUNING_SEED
    assert sweep.tuning_pairs("two_room", 25, 3, tmp_path).content_hash == pairs.content_hash
    with pytest.raises(ValueError, match="reserved for evaluation pairs"):
        collect("two_room", tmp_path / "data", 1, seed=TUNING_SEED, workers=1)


def test_lambda_is_tuned_by_one_command_that_uses_finished_trainings_again(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tune-lambda", str(dataset), "--rounds", "0", "--n-pairs", "2", "--low", "0.01", *TOY]
    assert main(command) == 0
    assert "lambda by bisection" in capsys.readouterr().out
    record = Record.load("results/tune-lambda-data.json", "tune-lambda")
    assert [trial["weight"] for trial in record["trials"]] == [0.01, 0.1, 1.0]
    assert record["best"] in (0.01, 0.1, 1.0) and record["pairs"]["seed"] == TUNING_SEED
    described = json.loads(Path("runs/tune-lambda/two_room-lambda0.1-seed0/run.json").read_text())
    assert described["model"]["sigreg_weight"] == 0.1 and described["training"]["steps"] == 2
    monkeypatch.setattr("benchmarks.evaluation.run.evaluate", lambda *_, **__: pytest.fail("measured again"))
    assert main(command) == 0


# Ablations ---------------------------------------------------------------------------------------------------


def test_every_ablation_is_a_setting_that_lewm_takes() -> None:
    from agents.lewm import PRESETS, LeWM

    for study, variants in sweep.STUDIES.items():
        assert len({variant.name for variant in variants}) == len(variants), study
        for variant in variants:
            for name in ("laptop", "paper"):
                config = dataclasses.replace(PRESETS[name].model, **variant.settings)
                if variant.settings.keys() & {"encoder", "predictor_width", "decoder_weight"} and name == "laptop":
                    LeWM(config)


def test_ablations_are_one_command_and_one_table(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = (sweep.Variant("5 knots", {"sigreg_knots": 5}), sweep.Variant("9 knots", {"sigreg_knots": 9}, 50.0))
    monkeypatch.setitem(sweep.STUDIES, "knots", variants)
    Path("runs/ablate").mkdir(parents=True)
    order, measure, other = [], trials.Trial.result, contextlib.ExitStack()

    def result(one: Any, bars: Any) -> Result:
        order.append(one.name)
        if len(order) == 2:
            other.close()
        return measure(one, bars)

    monkeypatch.setattr(trials.Trial, "result", result)
    other.enter_context(exclusive(Path("runs/ablate/two_room-sigreg_knots5-seed0.trial")))  # another process is at it
    assert main(["ablate", str(dataset), "--studies", "knots", "--n-pairs", "2", *TOY]) == 0
    assert [name.split("-")[1] for name in order] == ["preset", "sigreg_knots9", "sigreg_knots5"]
    printed = capsys.readouterr().out
    assert "as the preset" in printed and "9 knots" in printed and "  50\n" in printed
    record = Record.load("results/ablate-data.json", "ablate")
    assert [row["name"] for row in record["rows"]] == ["as the preset", "5 knots", "9 knots"]
    runs = sorted(Path("runs/ablate").glob("*/run.json"))
    assert sorted(json.loads(path.read_text())["model"]["sigreg_knots"] for path in runs) == [5, 9, 17]
    with pytest.raises(ValueError, match=r"unknown studies \['depth'\]; expected all, or some of: predictor, "):
        main(["ablate", str(dataset), "--studies", "depth", *TOY])


# Searches ----------------------------------------------------------------------------------------------------


def test_operations_of_a_plan_are_counted() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    agent, obs = tiny.agent(), tiny.observation()
    cost = search.cost_of_plan(agent, obs)
    assert cost.fixed > 0 and cost.per_candidate > 0
    for n_samples, iterations in ((50, 1), (30, 3)):
        with FlopCounterMode(display=False) as tally:
            agent.with_planning(search.cem(n_samples, iterations)).plan(obs)
        expected = cost.fixed + cost.per_candidate * n_samples * iterations
        assert tally.get_total_flops() == pytest.approx(expected, rel=0.02)
        assert cost.samples_within(1.0001 * expected, iterations) == n_samples


def test_models_get_what_the_budget_allows_and_the_record_says_so(run: Path, tmp_path: Path) -> None:
    cost = search.cost_of_plan(tiny.agent(), tiny.observation())
    budgets = tuple(cost.fixed + 10 * cost.per_candidate * n for n in (5, 40))
    asked = search.EqualFlops(runs=(run,), out=tmp_path / "f.json", flops=budgets, n_pairs=2, workers=1)
    record = asked.record()
    poor, rich = record["models"][0]["points"]
    assert poor["success"] is None and poor["n_samples"] in (4, 5)
    assert rich["n_samples"] in (39, 40) and rich["success"]["episodes"] == 2 and rich["seconds_per_plan"] > 0
    assert "cannot afford it" in asked.show(record).text()
    with pytest.raises(ValueError, match="--flops must be at least 1"):
        search.EqualFlops(runs=(run,), flops=(0.0,))
    with pytest.raises(ValueError, match="holds 'RandomAgent', which does not plan"):
        search.EqualFlops(runs=(a_run(tmp_path / "random"),), out=tmp_path / "g.json").record()


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
        search.check_same_scene({Path("one"): base | one, Path("other"): base | other})


GRID = ["--planners", "cem", "gradient", "--candidates", "8", "--iterations", "1", "--workers", "1"]


def test_tradeoff_measures_the_grid_and_goes_on_where_it_was_stopped(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tradeoff.json"
    command = ["tradeoff", str(run), "--n-pairs", "2", "--out", str(out), *GRID]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "cem 8 x 1" in printed and "gradient 8 x 1" in printed
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    first = Record.load(out)
    assert [p["settings"]["planner"] for p in first["points"]] == ["cem", "gradient"]
    assert all(p["success"]["episodes"] == 2 and p["seconds_per_plan"] > 0 for p in first["points"])
    assert "success against latency" in write_report([out], tmp_path / "report.html").read_text()

    measured = []
    real = search._latency
    monkeypatch.setattr(search, "_latency", lambda agent, obs: measured.append(agent.planning) or real(agent, obs))
    assert main([*command[:-2], "--iterations", "1", "2", "--workers", "1"]) == 0
    assert [planning.search.n_iterations for planning in measured] == [2, 2]
    assert Record.load(out)["points"][:2] == first["points"]
    with pytest.raises(ValueError, match="another measurement"):
        main(["tradeoff", str(run), "--n-pairs", "3", "--out", str(out), *GRID])


@pytest.mark.parametrize("wrong", [["--planners", "adam"], ["--candidates", "4"], ["--iterations", "0"]])
def test_impossible_grids_are_refused(wrong: list[str], run: Path) -> None:
    with pytest.raises(ValueError, match="expected some|at least"):
        main(["tradeoff", str(run), *wrong])


def test_precision_measures_both_on_the_same_pairs_and_compares_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    assert main(["precision", str(run), "--n-pairs", "3", "--workers", "1", "--out", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "bf16 against float32: " in printed and "points [" in printed
    files = [str(folder / f"run-{precision}.json") for precision in ("float32", "bf16")]
    assert main(["compare-results", *files]) == 0
    said = capsys.readouterr().out
    assert "the second against the first: " in said and "McNemar's exact test, p = " in said
    first = Result.load(files[0])
    shown = {who: getattr(first, who)[:2] for who in ("outcomes", "random", "replay")}
    fewer = dataclasses.replace(first, pairs={**first.pairs, "phases": first.pairs["phases"][:2]}, **shown)
    with pytest.raises(ValueError, match="differ in their pairs"):
        compare(first, fewer)


# The paired difference ---------------------------------------------------------------------------------------


def outcomes(both: int, first_only: int, second_only: int, neither: int) -> tuple[list[bool], list[bool]]:
    first = [True] * (both + first_only) + [False] * (second_only + neither)
    second = [True] * both + [False] * first_only + [True] * second_only + [False] * neither
    return first, second


def test_interval_is_newcombes_and_p_is_mcnemars() -> None:
    # Worked example of Newcombe (1998), table II, method 10: 36, 12, 2, 0.
    found = Difference.of(*reversed(outcomes(36, 12, 2, 0)))
    assert (found.rate, round(found.low, 4), round(found.high, 4)) == (pytest.approx(0.2), 0.0569, 0.3404)
    assert (found.both, found.first_only, found.second_only, found.neither) == (36, 2, 12, 0)
    tail = sum(math.comb(14, k) for k in range(3)) / 2**14  # of 14 pairs that differ, 2 or fewer on one side
    assert found.p == pytest.approx(2 * tail)


@pytest.mark.parametrize("cells", [(150, 20, 10, 20), (120, 30, 5, 45), (90, 20, 20, 70)])
def test_interval_agrees_with_the_bootstrap_over_pairs(cells: tuple[int, int, int, int]) -> None:
    first, second = (np.array(row, float) for row in outcomes(*cells))
    found = Difference.of(*outcomes(*cells))
    rows = np.random.default_rng(0).integers(0, 200, (20_000, 200))
    low, high = np.quantile((second - first)[rows].mean(axis=1), (0.025, 0.975))
    assert found.low == pytest.approx(low, abs=0.012) and found.high == pytest.approx(high, abs=0.012)


def test_interval_covers_the_true_difference_of_rates_near_one() -> None:
    cells = np.random.default_rng(1).multinomial(200, (0.95, 0.02, 0.01, 0.02), 500)
    found = [Difference.of(*outcomes(*row)) for row in cells]
    assert 0.93 < np.mean([one.low <= -0.01 <= one.high for one in found])
    assert np.mean([one.high - one.low for one in found]) < 0.08  # and is of use


def test_equal_outcomes_leave_a_narrow_interval_and_other_pairs_are_refused() -> None:
    same = Difference.of(*outcomes(195, 0, 0, 5))
    assert same.rate == 0 and -0.03 < same.low < 0 < same.high < 0.03 and same.p == 1
    assert str(Difference.of([False] * 10, [True] * 10)).startswith("+100.0 points")
    for wrong in (([], []), ([True], [True, False])):
        with pytest.raises(ValueError, match="same pairs"):
            Difference.of(*wrong)
