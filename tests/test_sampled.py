"""Goals that no dataset holds: not reached at the start, and certified to be reachable."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from test_benchmarks_plan import a_run
from tiny import measure

from benchmarks.__main__ import main
from benchmarks.evaluation.protocols import make_job
from benchmarks.evaluation.run import Plan
from benchmarks.evaluation.sampled import KINDS, sample_pairs
from collect.episodes import make_env
from lewm_gym.pairs import load_shipped
from lewm_gym.results import Result
from lewm_gym.tasks import TASKS, get_task


def skip_without_simulator(name):
    if TASKS[name].extra and not all(map(importlib.util.find_spec, ("mujoco", "dm_control", "ogbench"))):
        pytest.skip('needs pip install "lewm-gym[mujoco]"')


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(TASKS))
def test_the_certificates_lead_from_unsolved_starts_to_the_goals(name, kind):
    skip_without_simulator(name)
    task, steps = get_task(name), 25 if kind == "walk" else TASKS[name].max_episode_steps
    sampled = sample_pairs(task, kind, 2, seed=1, steps=steps)
    assert sampled.drawn >= len(sampled.pairs) == 2
    env = make_env(name)
    env.draw_observations = False
    for pair in sampled.pairs:
        _, info = env.reset(options={"state": pair.start_state, "goal_state": pair.goal_state})
        assert not info["is_success"] and pair.phase in task.phases
        assert 1 <= len(pair.actions) <= steps
        for action in pair.actions:
            info = env.step(action)[-1]
        assert info["is_success"]
        if kind == "walk":
            np.testing.assert_array_equal(info["state"], pair.goal_state)


def test_uniform_pairs_are_what_reset_draws_and_functions_of_seed_and_number():
    task = get_task("two_room")
    few, many, other = (sample_pairs(task, "uniform", n, seed, 100).pairs for n, seed in ((2, 0), (4, 0), (2, 1)))
    for one, two, three in zip(few, many, other, strict=False):
        np.testing.assert_array_equal(one.start_state, two.start_state)
        np.testing.assert_array_equal(one.goal_state, two.goal_state)
        assert not np.array_equal(one.goal_state, three.goal_state)


def test_walks_begin_at_shipped_starts_and_are_functions_of_seed_and_number():
    task = get_task("two_room")
    few, many, other = (sample_pairs(task, "walk", n, seed, 25).pairs for n, seed in ((2, 0), (4, 0), (2, 1)))
    starts = {pair.start_state.tobytes() for pair in load_shipped("two_room", 25).pairs}
    assert {pair.start_state.tobytes() for pair in many} < starts
    for one, two, three in zip(few, many, other, strict=False):
        np.testing.assert_array_equal(one.actions, two.actions)
        assert not np.array_equal(one.goal_state, three.goal_state)


def test_more_walks_than_starts_begin_there_again(monkeypatch):
    from benchmarks.evaluation import sampled

    shipped = load_shipped("two_room", 25)
    monkeypatch.setattr(sampled, "load_shipped", lambda *_: type("Set", (), {"pairs": shipped.pairs[:2]}))
    pairs = sample_pairs(get_task("two_room"), "walk", 5, 0, 25).pairs
    assert len({pair.start_state.tobytes() for pair in pairs}) == 2
    assert len({pair.goal_state.tobytes() for pair in pairs}) == 5


@pytest.mark.parametrize("name", list(TASKS))
def test_walks_are_smooth_and_about_as_strong_as_recorded_actions(name):
    skip_without_simulator(name)
    env = make_env(name)
    actions = np.stack([env.sample_walk(np.random.default_rng(i), 50) for i in range(100)])
    assert actions.shape == (100, 50, env.action_size) and np.abs(actions).max() <= 1
    assert np.allclose(actions.std((0, 1)), env.walk_std, rtol=0.25)
    steps, mean = actions.reshape(100, 50, -1), actions.mean((0, 1))
    lagged = ((steps[:, 1:] - mean) * (steps[:, :-1] - mean)).mean((0, 1)) / actions.var((0, 1))
    assert (lagged > 0.8).all()


def test_control_reaches_any_pose_of_reachers_arm():
    skip_without_simulator("reacher")
    sampled = sample_pairs(get_task("reacher"), "uniform", 30, 0, 50)
    assert sampled.drawn == 30  # none is left out: uniform over poses


def test_goals_out_of_reach_are_drawn_again_and_counted(monkeypatch):
    sampled = sample_pairs(get_task("two_room"), "uniform", 5, 0, 25)
    assert sampled.drawn > 5
    assert all(np.abs(pair.goal_state - pair.start_state).max() < 25 * 5 + 16 for pair in sampled.pairs)
    monkeypatch.setattr("benchmarks.evaluation.sampled._DRAWS", 3)
    with pytest.raises(ValueError, match="reaches none of 3 goals within 1 steps: raise --budget"):
        sample_pairs(get_task("two_room"), "uniform", 1, 0, 1)
    with pytest.raises(ValueError, match="--sampled-goals must be one of uniform, walk, got 'far'"):
        sample_pairs(get_task("two_room"), "far", 1, 0, 1)


def test_the_command_measures_sampled_goals(tmp_path, monkeypatch, capsys):
    run = a_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    command = ["plan", str(run), "--n-pairs", "3", "--workers", "1", "--sampled-goals"]
    assert main(command) == 0 and main([*command, "walk"]) == 0
    printed = capsys.readouterr().out
    assert "goals sampled uniformly, budget 100 steps, protocol sampled" in printed and "strict" in printed
    assert "goals 25 steps of a random walk away, budget 50 steps" in printed
    uniform, walk = (
        Result.load(tmp_path / "results" / f"run-sampled-{k}-3pairs-seed0.json") for k in ("uniform", "walk-25")
    )
    assert (uniform.protocol, uniform.offset_steps, uniform.pairs["source"]) == ("sampled", 0, "uniform")
    assert (walk.offset_steps, walk.budget_steps, walk.pairs["drawn"] >= 3) == (25, 50, True)
    for result in (uniform, walk):
        assert len(result.random) == 3 and result.rates()["replay"]["success"].successes == 3 and result.by_phase()


def test_a_sampled_result_is_filmed_on_its_own_pairs(tmp_path):
    from agents.random import RandomAgent

    pytest.importorskip("imageio_ffmpeg")
    run = a_run(tmp_path / "run")
    asked = {"out": tmp_path / "walk.json", "sampled_goals": "walk", "n_pairs": 2, "budget": 3, "strict": False}
    first = measure(run, agent=RandomAgent(2), **asked)
    filmed = measure(run, agent=RandomAgent(2), film=True, overwrite=False, **asked)
    assert filmed.film == "walk.mp4" and filmed.outcomes == first.outcomes


def test_the_name_of_a_result_says_the_kind(tmp_path):
    run = a_run(tmp_path / "run")
    plan = Plan(run=run, sampled_goals="walk", offset=(50,), n_pairs=1)
    assert plan.default_path(make_job(run, {"task": "two_room"}, plan)).name == "run-sampled-walk-50-1pairs-seed0.json"
