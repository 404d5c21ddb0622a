"""Reacher: its physics against dm_control's, success with and without wrapping, the trained expert."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collect.policies.reacher import Actor, SACPolicy, observe, sample_target
from envs.mujoco_rendering import load_mujoco
from envs.reacher import ReacherEnv, Simulation, finger_position

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("mujoco", "dm_control"))), reason='needs pip install "lewm-gym[mujoco]"'
)

SUBSTEP = 2


def make(**kwargs: Any) -> ReacherEnv:
    """Returns an environment that draws nothing."""
    env = ReacherEnv(terminate_on_success=False, **kwargs)
    env.render_state = lambda state: np.zeros((224, 224, 3), np.uint8)  # type: ignore[method-assign]
    return env


def test_physics_follow_dm_control() -> None:
    load_mujoco()
    from dm_control import suite

    theirs, ours = suite.load("reacher", "hard", task_kwargs={"random": 0}), make()
    theirs.reset()
    data = theirs.physics.data
    ours.reset(options={"state": np.concatenate([data.qpos, data.qvel, data.qacc_warmstart])})
    rng = np.random.default_rng(0)
    for step in range(200):
        action = rng.uniform(-1, 1, 2).astype(np.float32)
        if step % 40 < 20:
            action[1] = 1.0  # against the wrist's limit
        for _ in range(SUBSTEP):
            theirs.step(action)
        *_, info = ours.step(action)
        assert np.allclose(info["state"][:4], np.concatenate([data.qpos, data.qvel]), rtol=0, atol=1e-9), step
        finger = theirs.physics.named.data.geom_xpos["finger", :2]
        assert np.allclose(finger_position(info["state"]), finger, atol=1e-9)


@pytest.mark.parametrize(
    ("difference", "wrapped", "reference"),
    [
        ((0.049, -0.049), True, True),
        ((0.051, 0.0), False, False),
        ((0.0, 0.051), False, False),
        ((2 * np.pi - 0.02, 0.02), True, False),  # a full turn away, and the same to the eye
        ((-4 * np.pi, 0.0), True, False),
        ((0.0, 2 * np.pi), False, False),  # the wrist cannot turn fully
    ],
)
def test_success_on_hand_made_states(difference: tuple[float, float], wrapped: bool, reference: bool) -> None:
    goal = np.array([0.3, 0.4, 0, 0, 0, 0])
    state = goal.copy()
    state[:2] += difference
    assert make().is_goal(state, goal) is wrapped
    assert make(reference_rules=True).is_goal(state, goal) is reference


def test_success_is_looked_for_at_both_physics_steps() -> None:
    """A fast arm that is within 0.05 rad of the goal only in the middle of a step has reached it."""
    state, still = np.array([0.0, 0.5, 7.0, 0.0, 0.0, 0.0]), np.zeros(2, np.float32)
    simulation = Simulation()
    middle = simulation.step(state, still)
    end = simulation.step(middle, still)
    env = make()
    goal = middle.copy()
    assert not env.is_goal(end, goal) and not env.is_goal(state, goal)
    env.reset(options={"state": state, "goal_state": goal})
    *_, info = env.step(still)
    assert info["is_success"]


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [(0, 1e15, "shoulder"), (1, 3.2, "wrist"), (2, 80.0, "velocities"), (4, 1e300, "warm")],
)
def test_impossible_states_are_refused(index: int, value: float, message: str) -> None:
    state = np.zeros(6)
    state[index] = value
    with pytest.raises(ValueError, match=message):
        make().reset(options={"state": state})


def test_densities_change_the_motion() -> None:
    state, action = np.zeros(6), np.array([1.0, 0.0], np.float32)
    light, heavy = Simulation(500.0, 500.0), Simulation(1500.0, 1500.0)
    assert light.step(state, action)[2] > 1.2 * heavy.step(state, action)[2] > 0.0


def test_what_the_actor_sees_does_not_depend_on_the_shoulder() -> None:
    rng = np.random.default_rng(0)
    state = np.concatenate([rng.uniform(-2, 2, 4), np.zeros(2)])
    target, turn = sample_target(rng), 1.3
    turned = state + np.array([turn, 0, 0, 0, 0, 0])
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    assert np.allclose(observe(state, target), observe(turned, rotation @ target), atol=1e-6)


def test_the_numpy_actor_equals_the_trained_network() -> None:
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import SAC

    from collect.policies.reacher_train import ReachTarget, actor_weights

    model = SAC("MlpPolicy", ReachTarget(), policy_kwargs={"net_arch": [32, 32]}, seed=0, device="cpu", buffer_size=10)
    actor = Actor(actor_weights(model))
    for _ in range(10):
        observation = model.observation_space.sample()
        assert np.allclose(actor(observation), model.predict(observation, deterministic=True)[0], atol=1e-5)


def test_the_shipped_actor_reaches_and_stays() -> None:
    from collect.policies.reacher_train import quick_returns

    assert quick_returns(Actor.load(), episodes=3).min() > 900  # of 1,000


@pytest.mark.slow
def test_the_shipped_actor_returns_800_on_dm_controls_reacher_hard() -> None:
    from collect.policies.reacher_train import suite_returns

    assert suite_returns(Actor.load()).mean() >= 800


def test_the_expert_does_not_park() -> None:
    """Few windows of 25 steps end where they began; with one target per episode, 28 % do."""
    env, policy = make(), SACPolicy()
    solved = windows = 0
    for episode in range(5):
        _, info = policy.begin(env, np.random.default_rng(episode))
        states = [info["state"]]
        for _ in range(policy.max_steps):
            *_, info = env.step(policy.act(info))
            states.append(info["state"])
        pairs = list(zip(states, states[25:], strict=False))
        solved += sum(env.is_goal(*pair) for pair in pairs)
        windows += len(pairs)
    assert solved < 0.03 * windows


def test_a_missing_actor_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="reacher_train"):
        Actor.load(tmp_path / "none.safetensors")


@pytest.mark.slow
def test_training_resumes_and_exports(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    from collect.policies.reacher_train import train

    train(tmp_path, steps=2_400, seed=0)
    weights = train(tmp_path, steps=2_800, seed=0)
    assert (tmp_path / "model.zip").exists() and Actor(weights)(np.zeros(6, np.float32)).shape == (2,)
