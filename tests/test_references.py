"""Floor and ceilings: what the pairs and the environments allow, and the collector's policy told where to go."""

from __future__ import annotations

import numpy as np
import pytest

from agents import load_agent
from benchmarks.evaluation.evaluate import evaluate
from benchmarks.experiments.references import expert_actions, make_reference
from collect.episodes import make_env
from collect.policies import make_goal_expert
from envs.goal_env import GoalEnv
from lewm_gym.pairs import load_shipped
from lewm_gym.tasks import TASKS

N_PAIRS = {"two_room": 20, "pusht": 10, "cube": 1, "reacher": 2}


@pytest.fixture(params=[task for task in TASKS if task not in ("cube", "reacher")])
def task(request):
    return request.param


def reached(name, task, folder, n_pairs):
    pairs = load_shipped(task, 25).pairs[:n_pairs]
    agent = load_agent(make_reference(name, folder / name, task, pairs, seed=0, budget_steps=50))
    return np.mean([outcome.success for outcome in evaluate(agent, task, pairs, budget_steps=50)])


def test_replay_reaches_every_goal_and_the_collectors_policy_nearly_every(task, tmp_path):
    n_pairs = N_PAIRS[task]
    assert reached("oracle", task, tmp_path, n_pairs) == 1
    assert reached("expert", task, tmp_path, n_pairs) >= 0.9
    assert reached("random", task, tmp_path, n_pairs) < 0.5


@pytest.mark.gl
@pytest.mark.parametrize("task", ["cube", "reacher"])
def test_replay_reaches_every_goal_in_simulators(task, tmp_path):
    pytest.importorskip("mujoco")
    assert reached("oracle", task, tmp_path, N_PAIRS[task]) == 1


@pytest.mark.parametrize("task", list(TASKS))
def test_policies_pursue_the_goal_they_are_told(task):
    pytest.importorskip({"cube": "ogbench", "reacher": "mujoco"}.get(task, "numpy"))
    env: GoalEnv = make_env(task)
    env.draw_observations = False
    pair = load_shipped(task, 25).pairs[0]
    policy = make_goal_expert(task)
    _, info = policy.pursue(env, np.random.default_rng(0), pair.start_state, pair.goal_state)
    np.testing.assert_array_equal(info["state"], pair.start_state)
    np.testing.assert_array_equal(info["goal_state"], pair.goal_state)
    assert env.action_space.contains(policy.act(info))


def test_experts_actions_end_at_the_goal():
    pairs = load_shipped("two_room", 25).pairs[:3]
    env = make_env("two_room")
    for pair, actions in zip(pairs, expert_actions("two_room", pairs, 0, 50), strict=True):
        _, info = env.reset(options={"state": pair.start_state, "goal_state": pair.goal_state})
        solved = [env.step(action)[-1]["is_success"] for action in actions]
        assert solved[-1] and not any(solved[:-1]) and not info["is_success"]


def test_unknown_reference_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown reference 'lewm'"):
        make_reference("lewm", tmp_path, "two_room", [], 0, 50)
