"""Collecting from any environment of the user's, shown on Pendulum and small made-up ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from collect.gym_env import CollectedEnv, PolicyChoice, collect_gym
from lewm_gym.data import ClipSampler, Dataset
from lewm_gym.data.format.manifest import MANIFEST_NAME
from lewm_gym.data.verify import verify

QUICK = {"workers": 1, "pictures": False}


class Line(gymnasium.Env):
    """A point on a line that leaves it after a few steps to the right; its actions have unequal bounds."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    action_space = spaces.Box(np.array([-0.1, 0.0]), np.array([0.3, 5.0]), dtype=np.float64)

    def __init__(self, render_mode=None, picture_observation=False):
        self.render_mode, self._picture_observation = render_mode, picture_observation
        picture = spaces.Box(0, 255, (32, 48, 3), np.uint8)
        position = spaces.Dict({"x": spaces.Box(-9, 9, (1,)), "n": spaces.Discrete(2)})
        self.observation_space = picture if picture_observation else position

    def _observe(self):
        return self.render() if self._picture_observation else {"x": np.array([self.x], np.float32), "n": 1}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = float(self.np_random.uniform(0, 0.1))
        return self._observe(), {}

    def step(self, action):
        assert action.dtype == np.float64 and action in self.action_space
        self.x += float(action[0])
        return self._observe(), 0.0, self.x > 1.0, False, {"is_success": self.x > 1.0}

    def render(self):
        picture = np.zeros((32, 48, 3), np.uint8)
        picture[:, : max(int(self.x * 48), 0)] = 255
        return picture


def to_the_right(env, rng):
    return lambda observation: np.array([0.3, rng.uniform(0, 5)])


def nothing(env, rng):
    return lambda observation: np.full(2, np.nan)


def too_long(env, rng):
    return lambda observation: np.zeros(3)


def too_large(env, rng):
    return lambda observation: np.array([0.4, 0.0])


def faulty_later(env, rng):
    return (lambda observation: np.array([0.3, 9.0])) if faulty_later.calls.pop() else to_the_right(env, rng)


no_function = 7

for name, settings in (("Line-v0", {}), ("LinePicture-v0", {"picture_observation": True})):
    gymnasium.register(name, lambda settings=settings, **kwargs: Line(**settings, **kwargs))


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    return collect_gym("Pendulum-v1", tmp_path_factory.mktemp("pendulum"), 2, **QUICK)


def test_pendulum_becomes_a_dataset_in_its_own_units(pendulum):
    assert pendulum.task == "gym:Pendulum-v1" and pendulum.lengths.tolist() == [201, 201]
    assert pendulum.action_low.tolist() == [-2.0] and pendulum.action_high.tolist() == [2.0]
    assert 1.5 < np.nanmax(pendulum.actions) <= 2.0 and pendulum.frame_size == 224
    assert pendulum.states.shape == (402, 3) and list(pendulum.quantities) == ["observation"]
    assert verify(pendulum.folder) == []
    assert ClipSampler(pendulum).batch(0, 2).pixels.shape == (2, 4, 224, 224, 3)


def test_recorded_actions_replay_in_the_users_environment(pendulum):
    env = CollectedEnv("Pendulum-v1")
    policy_rng = np.random.default_rng(0)  # any start: put the simulator where the recording began
    env.reset(seed=int(policy_rng.integers(9)))
    episode = pendulum.episode(1)
    x, y, velocity = episode.state[0]
    env.inner.unwrapped.state = np.array([np.arctan2(y, x), velocity])
    for step, action in enumerate(episode.action[:5]):
        obs, _, _, _, info = env.step(action)
        np.testing.assert_allclose(info["state"], episode.state[step + 1], atol=1e-5)
        assert np.abs(obs["pixels"].astype(int) - episode.pixels[step + 1]).mean() < 0.5


def test_workers_do_not_change_a_users_episodes(pendulum, tmp_path):
    collect_gym("Pendulum-v1", tmp_path, 2, **{**QUICK, "workers": 2})
    assert (tmp_path / MANIFEST_NAME).read_bytes() == (pendulum.folder / MANIFEST_NAME).read_bytes()


def test_an_episode_ends_where_the_environment_ends_it(tmp_path):
    dataset = collect_gym("Line-v0", tmp_path, 3, PolicyChoice(f"{__name__}:to_the_right"), **QUICK)
    assert set(dataset.lengths.tolist()) <= {4, 5}
    for index in range(3):
        assert dataset.episode(index).success.tolist() == [False] * (dataset.lengths[index] - 1) + [True]
    assert dataset.header.policy.endswith(":to_the_right") and dataset.states.shape[1] == 3
    np.testing.assert_allclose(dataset.action_high, [0.3, 5.0])
    with pytest.raises(ValueError, match="holds another dataset .policy"):
        collect_gym("Line-v0", tmp_path, 3, **QUICK)


def test_a_collection_with_pygame_ends_when_it_is_told_to(tmp_path):
    command = [sys.executable, "-m", "collect", "gym", "--env", "Pendulum-v1", "--episodes", "9999", "--workers", "1"]
    quiet = {k: v for k, v in os.environ.items() if not k.startswith("SDL")}
    process = subprocess.Popen([*command, "--out", str(tmp_path)], env=quiet, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if list(tmp_path.glob("parts/*.arrow")):
                break
            time.sleep(0.05)
        process.terminate()  # SDL would take the signal for the closing of a window
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    finally:
        process.kill()


def test_noise_stays_within_the_bounds(tmp_path):
    policy = PolicyChoice(f"{__name__}:to_the_right", noise=0.5)
    dataset = collect_gym("Line-v0", tmp_path, 3, policy, **QUICK)
    actions = dataset.actions[~np.isnan(dataset.actions[:, 0])]
    assert (actions >= dataset.action_low).all() and (actions <= dataset.action_high).all() and actions.std(0)[0] > 0
    assert dataset.header.noise == 0.5


def test_a_picture_as_observation_is_not_stored_twice(tmp_path):
    dataset = collect_gym("LinePicture-v0", tmp_path, 1, PolicyChoice(f"{__name__}:to_the_right"), **QUICK)
    assert dataset.states[:, 0].tolist() == list(range(len(dataset.states)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"nothing', episode 0, step 0: expected an action of shape \(2,\) within .* got \[nan, nan\]"),
        ("too_long", r"got shape \(3,\)"),
        ("too_large", r"within \[-0.1\d*, 0.0\] to \[0.3\d*, 5.0\], got \[0.4"),
        ("no_function", "must be a function"),
        ("missing", "cannot import the policy"),
    ],
)
def test_a_faulty_policy_of_the_users_is_named(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        collect_gym("Line-v0", tmp_path, 2, PolicyChoice(f"{__name__}:{name}"), **QUICK)


def test_a_policy_that_fails_later_leaves_finished_episodes_untouched(tmp_path):
    faulty_later.calls = [True, False, False]
    with pytest.raises(ValueError, match="episode 2, step 0"):
        collect_gym("Line-v0", tmp_path, 4, PolicyChoice(f"{__name__}:faulty_later"), **QUICK)
    before = {path.name: path.read_bytes() for path in (tmp_path / "parts").glob("*.arrow")}
    assert len(before) == 2
    faulty_later.calls = [False] * 2
    dataset = collect_gym("Line-v0", tmp_path, 4, PolicyChoice(f"{__name__}:faulty_later"), **QUICK)
    assert dataset.n_episodes == 4 and verify(tmp_path) == []


@pytest.mark.parametrize(
    ("env_id", "policy", "message"),
    [
        ("Nothing-v9", PolicyChoice(), "cannot make the environment 'Nothing-v9'"),
        ("CartPole-v1", PolicyChoice(), "needs a Box action space"),
        ("Pendulum-v1", PolicyChoice("expert"), "must be 'random' or package.module:factory"),
        ("Pendulum-v1", PolicyChoice("random", noise=0.1), "takes no noise"),
        ("Pendulum-v1", PolicyChoice("random", noise=-1), "noise must be at least 0"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_nothing(tmp_path, env_id, policy, message):
    with pytest.raises(ValueError, match=message):
        collect_gym(env_id, tmp_path / "new", 1, policy, **QUICK)
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_acts_only_if_it_is_trusted(tmp_path):
    sb3 = pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")
    path = tmp_path / "agent.zip"
    sb3.SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, buffer_size=10).save(path)
    with pytest.raises(ValueError, match="unpickled .* add --trust"):
        collect_gym("Pendulum-v1", tmp_path / "data", 1, PolicyChoice(checkpoint=path), **QUICK)
    dataset = collect_gym("Pendulum-v1", tmp_path / "data", 1, PolicyChoice(checkpoint=path, trust=True), **QUICK)
    assert dataset.header.policy.startswith("sb3:agent.zip@")
    with pytest.raises(ValueError, match="was trained with observations"):
        collect_gym("Line-v0", tmp_path / "line", 1, PolicyChoice(checkpoint=path, trust=True), **QUICK)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("data", "{}")
    with pytest.raises(ValueError, match="not a stable-baselines3 checkpoint"):
        collect_gym("Pendulum-v1", tmp_path / "x", 1, PolicyChoice(checkpoint=tmp_path / "other.zip", trust=True))


def test_a_lewm_trains_on_a_users_environment(tmp_path):
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 250}
    collect = [sys.executable, "-m", "collect", "gym", "--env", "Pendulum-v1", "--episodes", "2", "--workers", "1"]
    done = subprocess.run(collect, **run)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/Pendulum-v1/contact_sheet.png").exists()
    assert Dataset.open(tmp_path / "data/Pendulum-v1").n_episodes == 2
    train = [sys.executable, "-m", "agents", "lewm", "data/Pendulum-v1", "--steps", "2", "--batch-size", "4"]
    done = subprocess.run(train, **run)
    assert done.returncode == 0, done.stderr
    from agents.lewm import LeWMAgent

    agent = LeWMAgent.load(tmp_path / "runs/Pendulum-v1-lewm-0")
    assert agent.action_low.tolist() == [-2.0] and agent.action_high.tolist() == [2.0]
