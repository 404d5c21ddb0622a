"""The time of a plan: rollouts beside which it is measured compute the same; what is extrapolated says so."""

import json

import pytest
import tiny
import torch

from benchmarks import speed_plan, speed_reference
from benchmarks.__main__ import main
from benchmarks.speed_plan import Job


def test_plain_rollout_equals_ours():
    model = tiny.model().eval()
    start, actions = torch.randn(2, 1, 8), torch.randn(2, 5, 4, 10)
    plain = speed_plan.plain_rollout(model, start, actions)
    torch.testing.assert_close(plain, model.rollout(start, actions), rtol=1e-4, atol=1e-5)


def test_reference_rollout_predicts_as_many_latents():
    rollout = speed_reference.reference_rollout(tiny.config(), "cpu")
    if rollout is None:
        pytest.skip("pip install --no-deps stable-worldmodel einops")
    assert rollout(None, torch.randn(2, 1, 8), torch.randn(2, 5, 4, 10)).shape == (2, 5, 4, 8)


def test_fewer_candidates_and_iterations_are_timed_as_asked():
    whole, timed = Job("lewm", "laptop", candidates=10, iterations=3).searches()
    assert (whole.n_samples, whole.n_iterations) == (300, 30)
    assert (timed.n_samples, timed.n_elites, timed.n_iterations) == (10, 10, 3)
    whole, timed = Job("lewm", "laptop", "gradient", candidates=4).searches()
    assert (timed.n_starts, timed.n_iterations) == (4, whole.n_iterations)
    assert Job("lewm", "laptop", "icem").searches()[0] == Job("lewm", "laptop", "icem").searches()[1]
    for wrong in ({"n_envs": 0}, {"candidates": 0}, {"iterations": -1}, {"planner": "icem", "iterations": 2}):
        with pytest.raises(ValueError, match="at least 1|icem"):
            Job("lewm", "laptop", **wrong)


def test_extrapolation_counts_all_the_work_of_the_whole():
    few, whole = (
        speed_plan.measure(Job("lewm", "laptop", candidates=candidates, iterations=iterations), 1, "cpu")[0]
        for candidates, iterations in ((10, 1), (None, None))
    )
    assert few.extrapolated and few.measured == (10, 1) and whole.measured == (300, 30)
    assert few.flops == pytest.approx(whole.flops, rel=1e-3)


def test_what_is_too_much_for_a_cpu_is_timed_in_part(monkeypatch):
    job = Job("lewm", "laptop")  # 1 MFLOP for each of 9,000 candidates
    assert speed_plan.affordable(job, "cpu") == job
    monkeypatch.setattr(speed_plan, "MOST_FLOPS", 1e9)
    assert speed_plan.affordable(job, "cpu") == Job("lewm", "laptop", iterations=3)
    monkeypatch.setattr(speed_plan, "MOST_FLOPS", 1e8)
    assert speed_plan.affordable(job, "cpu") == Job("lewm", "laptop", candidates=101, iterations=1)
    monkeypatch.setattr(speed_plan, "MOST_FLOPS", 1e6)
    assert speed_plan.affordable(job, "cpu") == Job("lewm", "laptop", candidates=8, iterations=1)
    for asked in (Job("lewm", "laptop", iterations=30), Job("lewm", "laptop", "icem")):
        assert speed_plan.affordable(asked, "cpu") == asked
    assert speed_plan.affordable(job, "cuda") == job


def test_the_command_prints_a_table_and_writes_what_was_measured(tmp_path, capsys):
    out = tmp_path / "speed.json"
    command = ["speed", "plan", "--presets", "laptop", "--planners", "cem", "mppi", "--repeats", "1"]
    assert (
        main(
            [
                *command,
                "--n-envs",
                "2",
                "--precisions",
                "bf16",
                "--iterations",
                "1",
                "--candidates",
                "20",
                "--device",
                "cpu",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "| lewm | laptop | mppi 300 x 10 | 2 | bf16 | this repository |" in printed
    assert "extrapolated linearly from 20 candidates x 1 iterations" in printed
    figures = json.loads(out.read_text())["figures"]
    assert [f["how"] for f in figures] == ["ours", "plain"] * 2
    assert all(f["seconds"] > 0 and f["flops"] > 1e7 and f["tokens_per_frame"] == 1 for f in figures)
    ours, plain = figures[:2]
    assert ours["flops"] < plain["flops"]


WRONG = {"--planners": "adam", "--precisions": "fp8", "--presets": "huge", "--agents": "random", "--n-envs": "0"}


@pytest.mark.parametrize("option", WRONG)
def test_wrong_options_are_refused_before_anything_is_measured(option, tmp_path):
    with pytest.raises(ValueError, match="expected|at least 1"):
        main(["speed", "plan", option, WRONG[option], "--device", "cpu", "--out", str(tmp_path / "speed.json")])
