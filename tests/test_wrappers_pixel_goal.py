"""PixelGoal: any environment with a Box action and a picture, shown on Pendulum."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from envs.pixel_goal import PixelGoal

FULL: dict[str, Any] = {
    "get_state": lambda env: env.state,
    "set_state": lambda env, state: setattr(env, "state", state.copy()),
    "success": lambda state, goal: bool(np.abs(state - goal).max() < 0.1),
}
UP, DOWN = np.array([0.0, 0.0]), np.array([np.pi, 0.0])


def make(**kwargs: Any) -> PixelGoal:
    return PixelGoal(gymnasium.make("Pendulum-v1", render_mode="rgb_array"), **kwargs)


# Gymnasium's checker says this of every wrapper.
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.parametrize("settings", [{}, FULL, {"success": 2.0, "size": 96}])
@pytest.mark.filterwarnings("error")  # but the one above
def test_the_checkers_find_no_fault(settings: dict[str, Any]) -> None:
    checkers = pytest.importorskip("stable_baselines3.common.env_checker", reason="pip install stable-baselines3")
    env = make(**settings)
    check_env(env)
    checkers.check_env(env)


def test_the_interface_is_that_of_the_tasks() -> None:
    env = make(**FULL)
    obs, info = env.reset(seed=0)
    assert {name: space.shape for name, space in env.observation_space.items()} == {
        "pixels": (224, 224, 3),
        "goal": (224, 224, 3),
    }
    assert obs in env.observation_space and env.action_space == spaces.Box(-1.0, 1.0, (1,), np.float32)
    assert {"state", "goal_state", "is_success"} <= info.keys()
    obs, reward, terminated, truncated, info = env.step(np.array([0.5], np.float32))
    assert (reward, terminated, truncated, info["is_success"]) == (-1.0, False, False, False)
    assert info["env_reward"] < 0


def test_actions_are_stretched_to_the_environments_bounds() -> None:
    ours, kept = make(), make(rescale_action=False)
    assert kept.action_space == gymnasium.make("Pendulum-v1").action_space
    for env, action in ((ours, 0.25), (kept, 0.5)):  # of +-2
        env.reset(seed=0)
        env.step(np.array([action], np.float32))
        assert env.unwrapped.last_u == pytest.approx(0.5)


def test_start_and_goal_follow_the_seed() -> None:
    first, again = make(**FULL).reset(seed=5), make(**FULL).reset(seed=5)
    np.testing.assert_array_equal(first[0]["goal"], again[0]["goal"])
    np.testing.assert_array_equal(first[1]["state"], again[1]["state"])
    env = make(**FULL)
    env.reset(seed=5)
    assert not np.array_equal(env.reset()[0]["goal"], first[0]["goal"])


def test_a_random_goal_can_be_reached_from_the_start() -> None:
    """The actions that led to the goal lead there again."""
    env = make(**FULL, goal_steps=4)
    taken = []
    step = env.env.step
    env.env.step = lambda action: (taken.append(action), step(action))[1]  # type: ignore[method-assign, func-returns-value]
    obs, info = env.reset(seed=2)
    assert len(taken) == 4
    for action in list(taken):
        obs, *_, info = env.step(action / 2)
    np.testing.assert_allclose(info["state"], info["goal_state"], atol=1e-5)
    assert info["is_success"]
    assert np.abs(obs["pixels"].astype(int) - obs["goal"]).mean() < 0.5


def test_recorded_states_are_restored() -> None:
    env = make(**FULL)
    obs, info = env.reset(options={"state": DOWN, "goal_state": UP})
    np.testing.assert_array_equal(info["state"], DOWN)
    np.testing.assert_array_equal(info["goal_state"], UP)
    upright, _ = env.reset(options={"state": UP, "goal_state": DOWN})
    np.testing.assert_array_equal(obs["goal"], upright["pixels"])
    np.testing.assert_array_equal(obs["pixels"], upright["goal"])


def test_success_is_the_users_and_ends_the_episode() -> None:
    still = np.zeros(1, np.float32)
    for terminate in (True, False):
        env = make(**FULL, terminate_on_success=terminate)
        _, info = env.reset(options={"state": UP, "goal_state": UP})
        assert info["is_success"]
        _, reward, terminated, _, info = env.step(still)
        assert (reward, terminated, info["is_success"]) == (0.0, terminate, True)
        env.reset(options={"state": DOWN, "goal_state": UP})
        assert env.step(still)[1:3] == (-1.0, False)


def test_success_may_be_told_from_the_pictures() -> None:
    env = make(success=1.0, get_state=FULL["get_state"], set_state=FULL["set_state"])
    assert env.reset(options={"state": UP, "goal_state": UP + 0.001})[1]["is_success"]
    assert not env.reset(options={"state": DOWN, "goal_state": UP})[1]["is_success"]


def test_a_goal_may_be_a_picture_or_a_function() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (100, 60, 3), dtype=np.uint8)
    env = make(**FULL)
    obs, info = env.reset(options={"goal_image": picture})
    assert obs["goal"].shape == (224, 224, 3) and not info["is_success"] and np.isnan(info["goal_state"]).all()
    seen = []

    def goal(env: Any, rng: np.random.Generator) -> np.ndarray:
        env.state = UP + rng.uniform(-0.1, 0.1, 2)
        seen.append(env.state)
        return env.render()

    env = make(**FULL, goal=goal)
    obs, info = env.reset(seed=0)
    np.testing.assert_array_equal(info["goal_state"], seen[0])
    shown, _ = env.reset(options={"state": seen[0]})
    np.testing.assert_array_equal(shown["pixels"], obs["goal"])


def test_a_time_limit_inside_truncates() -> None:
    env = PixelGoal(gymnasium.make("Pendulum-v1", render_mode="rgb_array", max_episode_steps=3), goal_steps=25)
    env.reset(seed=0)
    assert [env.step(np.zeros(1, np.float32))[3] for _ in range(3)] == [False, False, True]


def test_what_cannot_be_wrapped_is_refused_with_advice() -> None:
    pendulum = gymnasium.make("Pendulum-v1")
    unbounded = gymnasium.wrappers.TransformAction(
        gymnasium.make("Pendulum-v1", render_mode="rgb_array"), lambda a: a, spaces.Box(-np.inf, np.inf, (1,))
    )
    for build, message in (
        (lambda: PixelGoal(gymnasium.make("CartPole-v1", render_mode="rgb_array")), "Box action"),
        (lambda: PixelGoal(pendulum), 'make it with render_mode="rgb_array"'),
        (lambda: PixelGoal(unbounded), "bounded"),
        (lambda: make(success=lambda state, goal: True), "needs get_state"),
        (lambda: make(goal_steps=0), "at least 1"),
        (lambda: make(goal_steps=2.5), "integer"),
        (lambda: make(success=-1.0), "above 0"),
        (lambda: make(success=np.nan), "above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            build()


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({}, {"state": UP}, "needs set_state"),
        ({}, {"goal_state": UP}, "needs set_state"),
        (FULL, {"goal_state": UP, "goal_image": np.zeros((9, 9, 3), np.uint8)}, "not both"),
        (FULL, {"state": [np.nan, 0.0]}, "finite"),
        (FULL, {"goal_image": np.zeros((9, 9))}, "uint8"),
        ({}, [1], "options must be a dict"),
        ({}, "abc", "options must be a dict"),
    ],
)
def test_bad_options_are_refused(settings: dict[str, Any], options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings).reset(options=options)


@pytest.mark.parametrize("action", [np.zeros(2), np.array([1.5]), np.array([np.nan]), np.array([0.5j])])
def test_bad_actions_are_refused(action: np.ndarray) -> None:
    env = make()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(1, np.float32))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action"):
        env.step(action)


def test_an_agent_acts_in_it() -> None:
    from agents.random import RandomAgent

    env = make()
    agent = RandomAgent(env.action_space.shape[0])
    obs, _ = env.reset(seed=0)
    for _ in range(3):
        obs, *_ = env.step(agent.act(obs))
