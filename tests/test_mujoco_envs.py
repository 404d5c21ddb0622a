"""What holds for both MuJoCo tasks, Reacher and Cube."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image

import lewm_gym  # noqa: F401  (registers the tasks)
from collect.policies import make_policy
from lewm_gym.tasks import TASKS

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("reacher", "cube")
pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("mujoco", "dm_control", "ogbench", "fast_simplification"))),
    reason='needs pip install "lewm-gym[mujoco]"',
)
both = pytest.mark.parametrize("name", NAMES)


def make(name: str, **kwargs: Any) -> Any:
    return gymnasium.make(TASKS[name].env_id, terminate_on_success=False, **kwargs).unwrapped


def without_pictures(env: Any) -> Any:
    env.render_state = lambda state: np.zeros((224, 224, 3), np.uint8)
    return env


def play(env: Any, policy: str | None, steps: int, seed: int = 0) -> tuple[list[Any], list[Any], list[str]]:
    """Returns states, actions and hashes of the frames of an episode."""
    actor = make_policy(next(n for n in NAMES if TASKS[n].env_id == env.spec.id), policy)
    obs, info = actor.begin(env, np.random.default_rng(seed))
    states, actions, frames = [info["state"]], [], [digest(obs["pixels"])]
    for _ in range(steps):
        actions.append(actor.act(info))
        obs, *_, info = env.step(actions[-1])
        states.append(info["state"])
        frames.append(digest(obs["pixels"]))
    return states, actions, frames


def digest(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.gl
@both
def test_checkers_of_gymnasium_and_stable_baselines_are_silent(name: str) -> None:
    from gymnasium.utils.env_checker import check_env
    from stable_baselines3.common.env_checker import check_env as check_env_sb3

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        env = gymnasium.make(TASKS[name].env_id, render_mode="rgb_array")
        check_env(env.unwrapped)
        check_env_sb3(env)
        env.close()


@both
@pytest.mark.parametrize("policy", [None, "random"])
def test_replaying_from_any_recorded_state_repeats_the_states_bit_for_bit(name: str, policy: str | None) -> None:
    states, actions, _ = play(without_pictures(make(name)), policy, 60)
    env = without_pictures(make(name))
    env.reset(seed=5)
    for start in (0, 1, 17, 43):
        env.step(np.zeros(env.action_size, np.float32))  # something else in between
        env.reset(options={"state": states[start]})
        for step in range(start, len(actions)):
            *_, info = env.step(actions[step])
            assert np.array_equal(info["state"], states[step + 1]), f"from {start}, at {step}"


@both
def test_environments_do_not_disturb_each_other(name: str) -> None:
    states, actions, _ = play(without_pictures(make(name)), None, 20)
    first, second = without_pictures(make(name)), without_pictures(make(name))
    first.reset(options={"state": states[0]})
    second.reset(seed=1)
    for step, action in enumerate(actions):
        *_, info = first.step(action)
        second.step(-action)
        assert np.array_equal(info["state"], states[step + 1])


@pytest.mark.gl
@both
def test_replay_in_another_process_repeats_states_and_frames(name: str, tmp_path: Path) -> None:
    env = make(name)
    states, actions, frames = play(env, None, 12)
    np.savez(tmp_path / "episode.npz", state=states[4], actions=actions[4:])
    code = f"""
import hashlib, json, gymnasium, lewm_gym, numpy as np
episode = np.load({str(tmp_path / "episode.npz")!r})
env = gymnasium.make({TASKS[name].env_id!r})
obs, info = env.reset(options={{"state": episode["state"]}})
digests = []
for action in episode["actions"]:
    obs, *_, info = env.step(action)
    digests.append([hashlib.sha256(a.tobytes()).hexdigest() for a in (info["state"], obs["pixels"])])
print(json.dumps(digests))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr  # of renderers at the end of the interpreter
    expected = [[digest(state), frame] for state, frame in zip(states[5:], frames[5:], strict=True)]
    assert json.loads(done.stdout) == expected


@pytest.mark.gl
@both
def test_goal_image_is_the_picture_of_the_goal_state(name: str) -> None:
    env = make(name)
    obs, info = env.reset(seed=3)
    assert not info["is_success"]
    assert np.array_equal(obs["goal"], env.render_state(info["goal_state"]))
    at_goal, info = env.reset(options={"state": info["goal_state"], "goal_state": info["goal_state"]})
    assert info["is_success"]
    assert np.array_equal(at_goal["pixels"], obs["goal"])


@both
def test_episodes_depend_on_the_seed_only(name: str) -> None:
    env, other = without_pictures(make(name)), without_pictures(make(name))
    _, first = env.reset(seed=11)
    other.reset(seed=4)
    other.reset()
    _, again = other.reset(seed=11)
    for key in ("state", "goal_state"):
        assert np.array_equal(first[key], again[key])
    _, different = env.reset(seed=12)
    assert not np.array_equal(first["state"], different["state"])


@both
def test_a_behaviour_episode_is_a_function_of_its_random_stream(name: str) -> None:
    env = without_pictures(make(name))
    states, actions, _ = play(env, None, 40, seed=2)
    np.random.seed(0)  # the oracle of Cube draws from the global generator
    before = np.random.get_state()[1].copy()
    play(env, None, 5, seed=9)
    assert np.array_equal(np.random.get_state()[1], before)
    again, same, _ = play(env, None, 40, seed=2)
    assert np.array_equal(actions, same) and np.array_equal(states, again)
    assert not np.array_equal(actions, play(env, None, 40, seed=3)[1])


@both
def test_an_environment_survives_pickling_in_mid_episode(name: str) -> None:
    env = make(name)
    env.render_state = None  # pickling must not need it
    del env.render_state
    env._set_state(env._sample_state(np.random.default_rng(0)))
    env._advance(np.full(env.action_size, 0.3, np.float32))
    copy = pickle.loads(pickle.dumps(env))
    action = np.full(env.action_size, -0.7, np.float32)
    env._advance(action)
    copy._advance(action)
    assert np.array_equal(env._get_state(), copy._get_state())


@both
def test_reached_states_are_accepted_and_broken_ones_refused(name: str) -> None:
    env = without_pictures(make(name))
    rng = np.random.default_rng(0)
    _, info = env.reset(seed=0)
    action = np.zeros(env.action_size, np.float32)
    for step in range(300):
        if step % 10 == 0:
            action = rng.choice([-1.0, 1.0], env.action_size).astype(np.float32)
        *_, info = env.step(action)
        env.check_state(info["state"])
    for broken in (np.full(env.state_size, np.nan), info["state"][:-1], np.full(env.state_size, 1e3)):
        with pytest.raises(ValueError, match="state|Reacher|Cube"):
            env.reset(options={"state": broken})


@both
def test_bad_actions_options_and_variations_are_refused(name: str) -> None:
    env = without_pictures(make(name))
    env.reset(seed=0)
    for action in (np.zeros(1), np.full(env.action_size, 1.5), np.full(env.action_size, np.nan)):
        with pytest.raises(ValueError, match="action"):
            env.step(action)
    for variation in ({"light_intensity": 2.0}, {"agent_color": 0.5}, {"colour": 1}, {"light_intensity": np.nan}):
        with pytest.raises(ValueError, match="variation"):
            env.reset(options={"variations": variation})
    with pytest.raises(ValueError, match="render_quality"):
        make(name, render_quality="best")


@pytest.mark.gl
@both
def test_every_variation_changes_the_picture_or_the_motion_and_goes_away_again(name: str) -> None:
    env = make(name)
    obs, info = env.reset(seed=0)
    start, goal = info["state"], info["goal_state"]
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, env.action_size).astype(np.float32)
    plain = (digest(obs["pixels"]), digest(obs["goal"]), digest(env.step(action)[-1]["state"]))
    for variation, (low, high, default) in env.variation_ranges.items():
        value = np.clip(np.asarray(default) + 0.4 * (high - low), low, high)
        varied, _ = env.reset(options={"state": start, "goal_state": goal, "variations": {variation: value}})
        seen = (digest(varied["pixels"]), digest(varied["goal"]), digest(env.step(action)[-1]["state"]))
        assert seen != plain, variation
        if "density" not in variation:
            assert seen[0] != plain[0] and seen[1] != plain[1], variation
    obs, _ = env.reset(options={"state": start, "goal_state": goal})
    assert (digest(obs["pixels"]), digest(obs["goal"]), digest(env.step(action)[-1]["state"])) == plain


@pytest.mark.gl
@both
def test_picture_matches_the_golden_frame(name: str) -> None:
    """Within what rasterisers differ by: two grey levels on average, more than 40 at 2 % of the values at most."""
    env = make(name)
    frame = env.render_state(env._sample_state(np.random.default_rng(1)))
    path = GOLDEN / f"{name}.png"
    difference = np.abs(frame.astype(int) - np.asarray(Image.open(path)))
    assert difference.mean() < 2.0
    assert (difference > 40).mean() < 0.02


@pytest.mark.gl
@both
def test_fast_and_reference_pictures_look_alike(name: str) -> None:
    fast, reference = make(name, render_quality="fast"), make(name, render_quality="reference")
    state = fast._sample_state(np.random.default_rng(1))
    difference = np.abs(fast.render_state(state).astype(int) - reference.render_state(state))
    assert 0.0 < difference.mean() < 2.5
    assert (difference > 60).mean() < 0.02


@pytest.mark.gl
@both
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vectorised_episodes_equal_single_ones(name: str, mode: str) -> None:
    arguments = {"vector_kwargs": {"context": "spawn"}} if mode == "async" else {}
    envs = gymnasium.make_vec(TASKS[name].env_id, num_envs=2, vectorization_mode=mode, **arguments)
    single = gymnasium.make(TASKS[name].env_id)
    try:
        obs, info = envs.reset(seed=[3, 4])
        for index, seed in enumerate((3, 4)):
            alone, alone_info = single.reset(seed=seed)
            assert np.array_equal(info["state"][index], alone_info["state"])
            assert np.array_equal(obs["pixels"][index], alone["pixels"])
        actions = np.full(envs.action_space.shape, 0.5, np.float32)
        obs, *_, info = envs.step(actions)
        alone, *_, alone_info = single.step(actions[1])
        assert np.array_equal(info["state"][1], alone_info["state"])
        assert np.array_equal(obs["goal"][1], alone["goal"])
    finally:
        envs.close()
