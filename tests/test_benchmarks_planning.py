"""Paired differences, success against latency, and bf16 against float32."""

import dataclasses
import json

import numpy as np
import pytest
import tiny

from benchmarks import tradeoff
from benchmarks.__main__ import main
from benchmarks.report import write_report
from lewm_gym.paired import Difference, compare
from lewm_gym.results import Result


def outcomes(both, first_only, second_only, neither):
    first = [True] * (both + first_only) + [False] * (second_only + neither)
    second = [True] * both + [False] * first_only + [True] * second_only + [False] * neither
    return first, second


# The paired difference ---------------------------------------------------------------------------------------


def test_interval_is_newcombes():
    # Worked example of Newcombe (1998), table II, method 10: 36, 12, 2, 0.
    found = Difference.of(*reversed(outcomes(36, 12, 2, 0)))
    assert (found.rate, round(found.low, 4), round(found.high, 4)) == (pytest.approx(0.2), 0.0569, 0.3404)
    assert (found.both, found.first_only, found.second_only, found.neither) == (36, 2, 12, 0)


@pytest.mark.parametrize("cells", [(150, 20, 10, 20), (120, 30, 5, 45), (90, 20, 20, 70)])
def test_interval_agrees_with_the_bootstrap_over_pairs(cells):
    first, second = (np.array(row, float) for row in outcomes(*cells))
    found = Difference.of(*outcomes(*cells))
    rows = np.random.default_rng(0).integers(0, 200, (20_000, 200))
    low, high = np.quantile((second - first)[rows].mean(axis=1), (0.025, 0.975))
    assert found.low == pytest.approx(low, abs=0.012) and found.high == pytest.approx(high, abs=0.012)


def test_interval_covers_the_true_difference_of_rates_near_one():
    cells = np.random.default_rng(1).multinomial(200, (0.95, 0.02, 0.01, 0.02), 2_000)
    found = [Difference.of(*outcomes(*row)) for row in cells]
    assert 0.94 < np.mean([one.low <= -0.01 <= one.high for one in found])
    assert np.mean([one.high - one.low for one in found]) < 0.08  # and is of use


def test_equal_outcomes_leave_a_narrow_interval_and_other_pairs_are_refused():
    same = Difference.of(*outcomes(195, 0, 0, 5))
    assert same.rate == 0 and -0.03 < same.low < 0 < same.high < 0.03
    assert str(Difference.of([False] * 10, [True] * 10)).startswith("+100.0 points")
    for wrong in (([], []), ([True], [True, False])):
        with pytest.raises(ValueError, match="same pairs"):
            Difference.of(*wrong)


# One trained agent -------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    agent = tiny.agent()
    agent.description.update(model=dataclasses.asdict(agent.model.config), preset="laptop")
    agent.save(tmp_path / "run")
    return tmp_path / "run"


GRID = ["--planners", "cem", "gradient", "--candidates", "8", "--iterations", "1", "--workers", "1"]


def test_tradeoff_measures_the_grid_and_goes_on_where_it_was_stopped(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "tradeoff.json"
    command = ["tradeoff", str(run), "--n-pairs", "2", "--out", str(out), *GRID]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "cem 8 x 1" in printed and "gradient 8 x 1" in printed
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    first = json.loads(out.read_text())
    assert [p["settings"]["planner"] for p in first["points"]] == ["cem", "gradient"]
    assert all(p["success"]["episodes"] == 2 and p["seconds_per_plan"] > 0 for p in first["points"])
    report = write_report([out], tmp_path / "report.html").read_text()
    assert "success against latency" in report

    measured = []
    real = tradeoff._measure_point
    monkeypatch.setattr(tradeoff, "_measure_point", lambda *args: measured.append(args[1]) or real(*args))
    assert main([*command[:-2], "--iterations", "1", "2", "--workers", "1"]) == 0
    assert [settings["n_iterations"] for settings in measured] == [2, 2]
    assert json.loads(out.read_text())["points"][:2] == first["points"]
    with pytest.raises(ValueError, match="another measurement"):
        main(["tradeoff", str(run), "--n-pairs", "3", "--out", str(out), *GRID])


@pytest.mark.parametrize("wrong", [["--planners", "adam"], ["--candidates", "4"], ["--iterations", "0"]])
def test_impossible_grids_are_refused(wrong, run, tmp_path):
    with pytest.raises(ValueError, match="expected some|at least"):
        main(["tradeoff", str(run), *wrong])


def test_precision_measures_both_on_the_same_pairs_and_compares_them(run, tmp_path, capsys):
    folder = tmp_path / "results"
    options = ["--n-pairs", "3", "--workers", "1", "--out", str(folder)]
    assert main(["precision", str(run), *options]) == 0
    printed = capsys.readouterr().out
    assert "bf16 against float32: " in printed and "points [" in printed
    files = [str(folder / f"run-{precision}.json") for precision in ("float32", "bf16")]
    assert main(["compare-results", *files]) == 0
    assert "the second against the first: " in capsys.readouterr().out
    first = Result.load(files[0])
    fewer = dataclasses.replace(first, outcomes=first.outcomes[:2], floor=first.floor[:2], ceiling=first.ceiling[:2])
    with pytest.raises(ValueError, match="differ in their pairs"):
        compare(first, fewer)
