"""Wrappers around the tasks: action blocks, histories, states, hindsight goals, random variations."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

import lewm_gym  # noqa: F401  registers the tasks
from envs.wrappers import FrameSkip, HindsightGoal, PixelHistory, RandomVariations, StateObservation
from lewm_gym.tasks import TASKS

needs_extra = {name: [pytest.mark.gl] * bool(task.extra) for name, task in TASKS.items()}
every_task = pytest.mark.parametrize("name", [pytest.param(name, marks=needs_extra[name]) for name in TASKS])


def make(name: str = "two_room", **kwargs: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(TASKS[name].env_id, **kwargs)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: FrameSkip(env, 3),
        lambda env: PixelHistory(env, 3),
        StateObservation,
        HindsightGoal,
        RandomVariations,
        lambda env: HindsightGoal(FrameSkip(RandomVariations(env, strength=0.5), 2)),
    ],
)
# Gymnasium's checker says this of every wrapper.
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
# It would like states to have bounds and pictures to have three dimensions.
@pytest.mark.filterwarnings("ignore:.*Box observation space (minimum|maximum) value is")
@pytest.mark.filterwarnings("error")
def test_gymnasiums_checker_accepts_wrapped_tasks(wrap: Any) -> None:
    check_env(wrap(make(render_mode="rgb_array")))


def test_a_block_is_its_actions_one_after_the_other() -> None:
    block, single = FrameSkip(make(), 3), make()
    _, info = block.reset(seed=1)
    single.reset(seed=1)
    assert block.action_space == spaces.Box(-1.0, 1.0, (6,), np.float32)
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 2)).astype(np.float32)
    obs, reward, terminated, truncated, info = block.step(actions.ravel())
    for action in actions:
        expected, *_, expected_info = single.step(action)
    np.testing.assert_array_equal(info["state"], expected_info["state"])
    np.testing.assert_array_equal(obs["pixels"], expected["pixels"])
    assert (reward, terminated, truncated, info["steps"]) == (-3.0, False, False, 3)


def test_a_block_ends_where_the_episode_does() -> None:
    env = FrameSkip(make(), 5)
    env.reset(options={"state": (60, 120), "goal_state": (83, 120)})  # 23 px: success at the second step
    right = np.tile(np.array([1, 0], np.float32), 5)
    _, reward, terminated, _, info = env.step(right)
    assert (reward, terminated, info["steps"]) == (-1.0, True, 2)
    assert info["state"].tolist() == [70.0, 120.0]
    env = FrameSkip(make(max_episode_steps=7), 5)
    env.reset(seed=0)
    still = np.zeros(10, np.float32)
    assert env.step(still)[3] is False
    *_, truncated, info = env.step(still)
    assert truncated and info["steps"] == 2


@pytest.mark.parametrize(
    "block",
    [
        np.zeros(2),
        np.zeros((3, 2)),
        np.full(6, np.nan),
        np.full(6, 2.0),
        [0.5, 0.5, 0.5, 0.5, 0.5, np.nan],  # the first actions are good
        [0.5, 0.5, 0.5, 0.5, 0.5, 1.1],
        np.full(6, 0.5j),
    ],
)
def test_bad_blocks_are_refused_before_the_first_step(block: Any) -> None:
    env = FrameSkip(make(), 3)
    _, info = env.reset(seed=0)
    with pytest.raises(ValueError, match="action block"):
        env.step(block)
    np.testing.assert_array_equal(env.unwrapped._get_state(), info["state"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [[1], "abc", {"variations": False}])
@pytest.mark.parametrize("wrap", [RandomVariations, StateObservation, lambda env: FrameSkip(env, 2)])
def test_options_that_are_no_dict_are_refused(wrap: Any, options: Any) -> None:
    with pytest.raises(ValueError, match="must be a dict"):
        wrap(make()).reset(options=options)


def test_history_begins_with_the_first_frame_and_rolls() -> None:
    env = PixelHistory(make(), 3)
    obs, _ = env.reset(seed=0)
    assert obs["pixels"].shape == (3, 224, 224, 3) and obs["goal"].shape == (224, 224, 3)
    first = obs["pixels"][0]
    np.testing.assert_array_equal(obs["pixels"], [first] * 3)
    newest = []
    for _ in range(4):
        obs, *_ = env.step(np.array([0.5, 0.5], np.float32))
        newest.append(obs["pixels"][-1])
        assert obs in env.observation_space
    np.testing.assert_array_equal(obs["pixels"], newest[-3:])
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs["pixels"], [first] * 3)


@every_task
def test_states_are_observed_and_nothing_is_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrap in (StateObservation, HindsightGoal):
        env = wrap(make(name))
        task = env.unwrapped
        monkeypatch.setattr(task, "render_state", None)
        obs, info = env.reset(seed=0)
        assert obs in env.observation_space
        obs, *_, info = env.step(np.full(task.action_size, 0.3, np.float32))
        assert obs in env.observation_space
        quantities = np.concatenate(list(task.quantities(info["state"]).values()))
        goal = task.achieved_goal(info["goal_state"])
        if wrap is HindsightGoal:
            np.testing.assert_array_equal(obs["observation"], quantities)
            np.testing.assert_array_equal(obs["achieved_goal"], task.achieved_goal(info["state"]))
            np.testing.assert_array_equal(obs["desired_goal"], goal)
        else:
            np.testing.assert_allclose(obs, [*quantities, *goal], rtol=1e-6)


def test_states_and_pictures_have_the_same_episodes() -> None:
    plain, states = make(), StateObservation(make(render_mode="rgb_array"))
    obs, info = plain.reset(seed=4)
    _, same = states.reset(seed=4)
    np.testing.assert_array_equal(info["state"], same["state"])
    np.testing.assert_array_equal(states.render(), obs["pixels"])  # render still draws


@every_task
def test_rewards_of_relabelled_goals_are_those_of_the_success_test(name: str) -> None:
    env = HindsightGoal(make(name, terminate_on_success=False))
    task = env.unwrapped
    rng = np.random.default_rng(0)
    obs, info = env.reset(seed=0)
    states, achieved = [info["state"]], [obs["achieved_goal"]]
    for _ in range(12):
        obs, reward, *_, info = env.step(rng.uniform(-1, 1, task.action_size).astype(np.float32))
        states.append(info["state"])
        achieved.append(obs["achieved_goal"])
        assert reward == env.compute_reward(obs["achieved_goal"], obs["desired_goal"], info)
    pairs = [(i, j) for i in range(13) for j in range(13)]
    rewards = env.compute_reward(
        np.array([achieved[i] for i, _ in pairs]), np.array([achieved[j] for _, j in pairs]), [{}] * len(pairs)
    )
    assert rewards.shape == (len(pairs),)
    expected = [0.0 if task.is_goal(states[i], states[j]) else -1.0 for i, j in pairs]
    assert rewards.tolist() == expected
    assert 0.0 in expected


def test_goal_images_have_no_state_to_observe() -> None:
    env = StateObservation(make())
    with pytest.raises(ValueError, match="goal_state instead"):
        env.reset(options={"goal_image": np.zeros((224, 224, 3), np.uint8)})


def test_stable_baselines_learns_with_hindsight() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_checker import check_env as check_env_sb3

    env = HindsightGoal(make())
    check_env_sb3(env)
    model = sb3.SAC(
        "MultiInputPolicy",
        env,
        replay_buffer_class=sb3.HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 4, "goal_selection_strategy": "future"},
        learning_starts=150,
        batch_size=64,
        policy_kwargs={"net_arch": [16]},
        seed=0,
        device="cpu",
        buffer_size=1_000,
    )
    model.learn(400)
    batch = model.replay_buffer.sample(256)
    achieved, desired = (batch.next_observations[key].numpy() for key in ("achieved_goal", "desired_goal"))
    success = np.linalg.norm(achieved - desired, axis=1) < 16.0
    rewards = batch.rewards.numpy()[:, 0]
    # The buffer computes with float32 copies of the goals.
    unclear = np.abs(np.linalg.norm(achieved - desired, axis=1) - 16.0) < 1e-3
    np.testing.assert_array_equal(rewards[~unclear], np.where(success, 0.0, -1.0)[~unclear])
    assert 0 < success.sum() < len(success)


def test_stable_baselines_learns_from_states() -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    env = StateObservation(make())
    model = sb3.SAC("MlpPolicy", env, learning_starts=50, policy_kwargs={"net_arch": [16]}, buffer_size=1_000)
    model.learn(100)
    assert model.predict(env.reset(seed=0)[0])[0] in env.action_space


def test_variations_are_drawn_at_every_reset_within_their_ranges() -> None:
    env = RandomVariations(make())
    ranges = env.unwrapped.variation_ranges
    drawn = []
    for seed in range(30):
        _, info = env.reset(seed=seed)
        drawn.append(info["variations"])
        assert info["variations"].keys() == ranges.keys()
    for name, allowed in ranges.items():
        values = np.array([variations[name] for variations in drawn])
        if isinstance(allowed, list):
            assert set(values.tolist()) == set(allowed)
        else:
            low, high, default = allowed
            assert values.shape[1:] == np.shape(default)
            assert values.min() < low + 0.2 * (high - low) and values.max() > high - 0.2 * (high - low)


def test_random_variations_follow_the_seed_and_the_choice() -> None:
    env, other = RandomVariations(make(), ["agent_color"], 0.1), RandomVariations(make(), ["agent_color"], 0.1)
    obs, info = env.reset(seed=3)
    other.reset(seed=9)
    again, same = other.reset(seed=3)
    np.testing.assert_array_equal(obs["pixels"], again["pixels"])
    assert np.abs(info["variations"]["agent_color"] - [255, 0, 0]).max() <= 25.5
    np.testing.assert_array_equal(info["state"], make().reset(seed=3)[1]["state"])
    assert not np.array_equal(env.reset()[1]["variations"]["agent_color"], info["variations"]["agent_color"])
    given = {"agent_color": (1, 2, 3), "wall_color": (9, 9, 9)}
    assert env.reset(options={"variations": given})[1]["variations"] == given


def test_wrappers_refuse_what_they_cannot_wrap() -> None:
    pendulum, discrete = gymnasium.make("Pendulum-v1"), gymnasium.make("CartPole-v1")
    for wrap, message in (
        (lambda: FrameSkip(discrete, 2), "Box action"),
        (lambda: FrameSkip(pendulum, 0), "at least 1"),
        (lambda: FrameSkip(pendulum, 2.5), "integer"),  # type: ignore[arg-type]
        (lambda: PixelHistory(pendulum, 2), "pixels"),
        (lambda: PixelHistory(make(), 0), "at least 1"),
        (lambda: StateObservation(pendulum), "tasks"),
        (lambda: HindsightGoal(pendulum), "tasks"),
        (lambda: RandomVariations(pendulum), "no variations"),
        (lambda: RandomVariations(make(), ["colour"]), "unknown variations"),
        (lambda: RandomVariations(make(), "agent_color"), r"names=\['agent_color'\]"),
        (lambda: RandomVariations(make(), strength=0.0), "strength"),
    ):
        with pytest.raises(ValueError, match=message):
            wrap()
