"""stable-baselines3's `evaluate_policy` runs a LeWM agent, random weights, on every task."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import tiny

from agents.lewm import LeWMAgent
from agents.planning import PlanningConfig
from lewm_gym.planning.cem import CEMConfig
from lewm_gym.tasks import TASKS

STEPS = 7  # a plan lasts 5: the second one is made while episodes go on


def agent_for(name: str) -> LeWMAgent:
    size = TASKS[name].action_size
    bounds = {"action_low": [-1.0] * size, "action_high": [1.0] * size}
    planning = PlanningConfig(CEMConfig(n_samples=8, n_elites=2, n_iterations=1), horizon_blocks=1, execute_blocks=1)
    return LeWMAgent(tiny.model(action_size=size), planning, {**tiny.ENVIRONMENT, "task": name, **bounds})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.gl] * bool(task.extra)) for name, task in TASKS.items()]
)
def test_evaluate_policy_runs_the_agent_on_every_task(name: str) -> None:
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    agent = agent_for(name)
    envs = vec_env.DummyVecEnv([lambda: gymnasium.make(f"lewm_gym:{TASKS[name].env_id}", max_episode_steps=STEPS)] * 2)
    envs.seed(0)
    begun: list[bool] = []
    predict = agent.predict

    def noting(obs, state=None, episode_start=None, deterministic=False):
        begun.extend(episode_start)
        return predict(obs, state, episode_start, deterministic)

    agent.predict = noting  # type: ignore[method-assign]
    try:
        rewards, lengths = evaluation.evaluate_policy(agent, envs, n_eval_episodes=4, return_episode_rewards=True)
    finally:
        envs.close()
    assert len(rewards) == len(lengths) == 4 and max(lengths) <= STEPS
    assert np.isfinite(rewards).all()
    # every episode of 7 steps has two plans of 5, one that ended earlier by success at least one
    assert agent.plans >= sum(-(-length // 5) for length in lengths)
    assert sum(begun) >= 4
