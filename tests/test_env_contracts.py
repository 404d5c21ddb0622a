"""The contract that every task keeps; what is particular to one is tested in its own file."""

from __future__ import annotations

import importlib
import multiprocessing
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import lewm_gym  # noqa: F401  registers the tasks
from lewm_gym.tasks import TASKS

Arrays = list[np.ndarray]

every_task = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.gl] * bool(task.extra)) for name, task in TASKS.items()]
)


def make(name: str, **kwargs: Any) -> Any:
    return gymnasium.make(TASKS[name].env_id, **kwargs)


def bare(name: str, **kwargs: Any) -> Any:
    return make(name, **kwargs).unwrapped


def random_actions(name: str, steps: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields actions that change every few steps, so that things move."""
    rng = np.random.default_rng(seed)
    action = np.zeros(TASKS[name].action_size, np.float32)
    for step in range(steps):
        if step % 4 == 0:
            action = rng.uniform(-1, 1, len(action)).astype(np.float32)
        yield action


def play(name: str, options: dict[str, Any], actions: Arrays, **kwargs: Any) -> tuple[Arrays, Arrays]:
    """Returns the states and frames, each of len(actions) + 1, of an episode in a new environment."""
    env = bare(name, terminate_on_success=False, **kwargs)
    obs, info = env.reset(options=options)
    states, frames = [info["state"]], [obs["pixels"]]
    for action in actions:
        obs, *_, info = env.step(action)
        states.append(info["state"])
        frames.append(obs["pixels"])
    env.close()
    return states, frames


def assert_equal(ours: Any, theirs: Any) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def extreme(env: Any, part: float) -> dict[str, Any]:
    """Returns a value for every variation, `part` of the way from its lowest to its highest, or its last choice."""
    return {
        name: allowed[-1] if isinstance(allowed, list) else np.full(np.shape(allowed[2]), between(allowed, part))
        for name, allowed in env.variation_ranges.items()
    }


def varied(env: Any, seed: int) -> dict[str, Any]:
    """Returns a random value for every variation."""
    rng = np.random.default_rng(seed)
    return {
        name: allowed[-1] if isinstance(allowed, list) else between(allowed, rng.uniform(size=np.shape(allowed[2])))
        for name, allowed in env.variation_ranges.items()
    }


def between(allowed: Any, part: Any) -> Any:
    low, high, _ = allowed
    return np.asarray(low) + part * (np.asarray(high) - np.asarray(low))


@every_task
def test_checkers_of_gymnasium_and_stable_baselines_find_no_fault(name: str) -> None:
    check_env = importlib.import_module("gymnasium.utils.env_checker").check_env
    checkers = pytest.importorskip("stable_baselines3.common.env_checker", reason="pip install stable-baselines3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make(name, render_mode="rgb_array")
        check_env(env.unwrapped)
        checkers.check_env(env)
        env.close()


@every_task
def test_spaces_are_those_of_the_task_table(name: str) -> None:
    env, task = make(name), TASKS[name]
    picture = spaces.Box(0, 255, (224, 224, 3), np.uint8)
    assert env.observation_space == spaces.Dict({"pixels": picture, "goal": picture})
    assert env.action_space == spaces.Box(-1.0, 1.0, (task.action_size,), np.float32)
    begun = env.reset(seed=0)
    for obs, info in (begun, env.step(np.zeros(task.action_size, np.float32))[::4]):
        assert obs in env.observation_space
        assert set(info) == {"state", "goal_state", "is_success"}
        for state in (info["state"], info["goal_state"]):
            assert state.shape == (task.state_size,) and state.dtype == np.float64 and np.isfinite(state).all()
        assert type(info["is_success"]) is bool
    assert env.spec.max_episode_steps == task.max_episode_steps
    assert all(value.dtype == np.float32 and value.ndim == 1 for value in env.unwrapped.quantities(state).values())


@every_task
def test_the_same_seed_gives_the_same_episode(name: str) -> None:
    first, other = bare(name), bare(name)
    other.reset(seed=1)
    other.step(np.zeros(first.action_size, np.float32))
    (obs, info), (again, same) = first.reset(seed=5), other.reset(seed=5)
    assert_equal((obs["pixels"], obs["goal"], info["state"]), (again["pixels"], again["goal"], same["state"]))
    unseeded, same = first.reset(), other.reset()  # the stream goes on alike
    assert_equal((unseeded[0]["goal"], unseeded[1]["state"]), (same[0]["goal"], same[1]["state"]))
    assert not np.array_equal(unseeded[1]["state"], info["state"])
    assert not np.array_equal(first.reset(seed=6)[1]["state"], info["state"])


@every_task
def test_random_starts_are_not_solved_and_goals_are_valid(name: str) -> None:
    env = bare(name)
    for seed in range(8):
        _, info = env.reset(seed=seed)
        assert not info["is_success"]
        env.check_state(info["state"]), env.check_state(info["goal_state"])


@every_task
@pytest.mark.parametrize("variations", [False, True])
def test_replay_from_any_recorded_state_is_exact(name: str, variations: bool) -> None:
    """States bit for bit, frames pixel for pixel; half-way through an episode of random play."""
    chosen = varied(bare(name), 0) if variations else {}
    actions = list(random_actions(name, 24))
    env = bare(name)
    _, info = env.reset(seed=3, options={"variations": chosen})
    options = {"goal_state": info["goal_state"], "variations": chosen}
    states, frames = play(name, {"state": info["state"], **options}, actions)
    assert_equal(states[:1], [info["state"]])
    assert not np.array_equal(states[0], states[-1]) and not np.array_equal(frames[0], frames[-1])
    for begin in (0, 1, 13, 22):
        again = play(name, {"state": states[begin], **options}, actions[begin:])
        assert_equal(again[0], states[begin:])
        assert_equal(again[1], frames[begin:])


@every_task
def test_replay_in_another_process_is_exact(name: str) -> None:
    actions = list(random_actions(name, 12, seed=1))
    _, info = bare(name).reset(seed=4)
    options = {"state": info["state"], "goal_state": info["goal_state"]}
    states, frames = play(name, options, actions)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.apply(play, (name, {**options, "state": states[5]}, actions[5:]))
    assert_equal(elsewhere[0], states[5:])
    assert_equal(elsewhere[1], frames[5:])


@every_task
def test_the_goal_image_is_the_picture_of_the_goal_state(name: str) -> None:
    env = bare(name)
    obs, info = env.reset(seed=2)
    np.testing.assert_array_equal(obs["goal"], env.render_state(info["goal_state"]))
    later, *_ = env.step(np.ones(env.action_size, np.float32))
    np.testing.assert_array_equal(later["goal"], obs["goal"])
    there, info = env.reset(options={"state": info["goal_state"], "goal_state": info["goal_state"]})
    np.testing.assert_array_equal(there["pixels"], obs["goal"])
    assert info["is_success"]


@every_task
def test_success_terminates_with_reward_zero_unless_told_otherwise(name: str) -> None:
    for terminate in (True, False):
        env = bare(name, terminate_on_success=terminate)
        _, info = env.reset(seed=0)
        far = info["goal_state"]
        still = np.zeros(env.action_size, np.float32)
        _, reward, terminated, truncated, info = env.step(still)
        assert (reward, terminated, truncated, info["is_success"]) == (-1.0, False, False, False)
        env.reset(options={"state": info["state"], "goal_state": info["state"]})
        _, reward, terminated, truncated, info = env.step(still)
        assert (reward, terminated, truncated, info["is_success"]) == (0.0, terminate, False, True)
        assert type(reward) is float and type(terminated) is bool
        env.set_goal_state(far)
        assert env.step(still)[1] == -1.0


@every_task
def test_an_episode_is_truncated_at_its_limit(name: str) -> None:
    env = make(name, max_episode_steps=3)
    env.reset(seed=0)
    still = np.zeros(TASKS[name].action_size, np.float32)
    assert [env.step(still)[3] for _ in range(3)] == [False, False, True]


@every_task
def test_a_picture_can_be_the_goal(name: str) -> None:
    env = bare(name)
    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    obs, info = env.reset(seed=0, options={"goal_image": picture})
    np.testing.assert_array_equal(obs["goal"], picture)
    assert np.isnan(info["goal_state"]).all() and not info["is_success"]
    picture[:] = 0  # a copy was taken
    obs, reward, terminated, _, info = env.step(np.zeros(env.action_size, np.float32))
    assert obs["goal"].any() and (reward, terminated, info["is_success"]) == (-1.0, False, False)


@every_task
def test_success_of_many_goals_is_that_of_each(name: str) -> None:
    env = bare(name, terminate_on_success=False)
    states = []
    _, info = env.reset(seed=0)
    for action in random_actions(name, 12):
        *_, info = env.step(action)
        states.append(info["state"])
    goals = np.array([env.achieved_goal(state) for state in states])
    table = env.reached(goals[:, None], goals[None])
    assert table.shape == (12, 12) and table.dtype == bool
    assert table.tolist() == [[env.is_goal(a, b) for b in states] for a in states]
    assert table.diagonal().all() and not env.is_goal(states[0], np.full_like(states[0], np.nan))


@every_task
def test_variations_are_accepted_within_their_ranges_and_refused_outside(name: str) -> None:
    env = bare(name)
    assert env.variation_ranges
    plain, info = env.reset(seed=0)
    for part in (0.0, 0.5, 1.0):
        obs, _ = env.reset(seed=0, options={"variations": extreme(env, part)})
        assert obs in env.observation_space
        assert not np.array_equal(obs["pixels"], plain["pixels"])
    for variation, allowed in env.variation_ranges.items():
        wrong: list[Any] = ["no such choice"]
        if not isinstance(allowed, list):
            low, high, default = allowed
            wrong = [np.full(np.shape(default), value) for value in (np.min(low) - 1e-3, np.max(high) + 1e-3, np.nan)]
            wrong.append(np.zeros(7))  # the shape of none
        for value in wrong:
            with pytest.raises(ValueError, match=variation):
                env.reset(options={"variations": {variation: value}})
    with pytest.raises(ValueError, match="unknown variations"):
        env.reset(options={"variations": {"colour_of_the_sky": 1}})
    back, same = env.reset(seed=0)  # refused variations leave nothing behind, and the next reset has the defaults
    assert_equal((back["pixels"], back["goal"], same["state"]), (plain["pixels"], plain["goal"], info["state"]))


@every_task
def test_variations_of_a_refused_reset_leave_the_episode_alone(name: str) -> None:
    env = bare(name)
    obs, _ = env.reset(seed=0)
    before = dict(env.variations)
    with pytest.raises(ValueError):
        env.reset(options={"state": np.full(env.state_size, np.nan), "variations": varied(env, 1)})
    assert_equal(env.variations.values(), before.values())
    np.testing.assert_array_equal(env.render_state(env._get_state()), obs["pixels"])


@every_task
def test_bad_actions_are_refused_before_the_simulator_sees_them(name: str) -> None:
    env = bare(name)
    size = env.action_size
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(size, np.float32))
    _, info = env.reset(seed=0)
    for action in (
        np.zeros(size + 1),
        np.zeros((1, size)),
        0.0,
        np.full(size, np.nan),
        np.full(size, np.inf),
        np.full(size, 1.01),
        np.full(size, 0.1 + 0.1j),
        [0.1j] * size,
        "left",
        None,
    ):
        with pytest.raises(ValueError, match="action"):
            env.step(action)
    np.testing.assert_array_equal(env._get_state(), info["state"])
    env.step([1.0] * size)  # a list at the bounds will do


@every_task
def test_bad_options_are_refused(name: str) -> None:
    env = bare(name)
    _, info = env.reset(seed=0)
    state, picture = info["state"], np.zeros((224, 224, 3), np.uint8)
    for options, message in (
        ({"start": state}, "unknown reset options"),
        ({"state": state[:-1]}, "shape"),
        ({"goal_state": state[None]}, "shape"),
        ({"state": np.full_like(state, np.inf)}, "finite"),
        ({"goal_state": np.full_like(state, 1e6)}, None),
        ({"goal_image": picture[:100]}, "goal_image"),
        ({"goal_image": picture.astype(np.float32)}, "goal_image"),
        ({"goal_image": picture, "goal_state": state}, "not both"),
        ({"state": "left"}, "state must be an array of numbers"),
        ({"variations": 3}, "variations"),
        ({"variations": False}, "variations must be a dict"),
        ({"variations": {1: 2}}, "unknown variations"),
        ({"state": state.astype(complex)}, "state must be an array of numbers"),
        ([1], "options must be a dict"),
        ([], "options must be a dict"),
        ("abc", "options must be a dict"),
    ):
        with pytest.raises(ValueError, match=message):
            env.reset(options=options)
        np.testing.assert_array_equal(env._get_state(), state)
    with pytest.raises(ValueError, match="goal_state"):
        env.set_goal_state(np.full_like(state, np.nan))
    env.step(np.zeros(env.action_size, np.float32))


@every_task
@pytest.mark.filterwarnings("ignore:.*not in the possible render_modes")
def test_bad_settings_are_refused(name: str) -> None:
    for settings in ({"render_mode": "ansi"}, {"render_quality": "best"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            bare(name, **settings)


@every_task
def test_what_is_returned_is_not_changed_afterwards(name: str) -> None:
    env = bare(name)
    obs, info = env.reset(seed=0)
    arrays = (obs["pixels"], obs["goal"], info["state"], info["goal_state"])
    kept = [array.copy() for array in arrays]
    state = info["state"].copy()
    for action in random_actions(name, 3):
        env.step(action)
    env.reset(seed=1, options={"state": state})
    state[:] = 0.0
    assert_equal(arrays, kept)
    for array in arrays:  # nor does writing to it change the environment
        array[:] = 0
    assert np.array_equal(env._get_state(), kept[2]) and env.goal_state.any()


@every_task
def test_render_shows_the_present_in_every_mode(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(name, render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), obs["pixels"])
    assert bare(name).render() is None
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with pytest.warns(UserWarning, match="HumanRendering"):
        window = make(name, render_mode="human")
    window.reset(seed=0)
    window.step(np.zeros(env.unwrapped.action_size, np.float32))
    assert window.render_mode == "human" and window.render() is None
    window.close()


@every_task
@pytest.mark.parametrize("reference_rules", [False, True])
def test_the_reference_rules_play_too(name: str, reference_rules: bool) -> None:
    env = bare(name, reference_rules=reference_rules, terminate_on_success=False)
    first = env.reset(seed=0)[1]["state"]
    for action in random_actions(name, 10):
        obs, reward, *_, info = env.step(action)
        assert obs in env.observation_space and reward in (-1.0, 0.0)
    assert not np.array_equal(info["state"], first)


@every_task
def test_a_pickled_environment_continues_the_episode(name: str) -> None:
    env = bare(name)
    pickle.loads(pickle.dumps(env)).reset(seed=0)  # before the first reset, too
    env.reset(seed=0, options={"variations": varied(env, 2)})
    actions = list(random_actions(name, 6))
    for action in actions[:3]:
        env.step(action)
    copy = pickle.loads(pickle.dumps(env))
    for action in actions[3:]:
        ours, theirs = env.step(action), copy.step(action)
        assert_equal((ours[0]["pixels"], ours[0]["goal"]), (theirs[0]["pixels"], theirs[0]["goal"]))
        np.testing.assert_array_equal(ours[-1]["state"], theirs[-1]["state"])
    np.testing.assert_array_equal(env.reset()[1]["state"], copy.reset()[1]["state"])  # the random stream, too


@every_task
def test_environments_do_not_disturb_one_another(name: str) -> None:
    """Not even where they share a renderer and look different."""
    env, other = bare(name), bare(name)
    _, info = env.reset(seed=0)
    actions = list(random_actions(name, 6))
    states, frames = play(name, {"state": info["state"], "goal_state": info["goal_state"]}, actions)
    other.reset(seed=1, options={"variations": varied(other, 3)})
    for step, action in enumerate(actions):
        other.step(-action)
        obs, *_, info = env.step(action)
        np.testing.assert_array_equal(info["state"], states[step + 1])
        np.testing.assert_array_equal(obs["pixels"], frames[step + 1])
