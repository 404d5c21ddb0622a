"""The agent in vectorised environments: it plans anew exactly where episodes begin, in each autoreset mode."""

import gymnasium as gym
import numpy as np
import pytest
import tiny
import torch
from gymnasium.vector import AutoresetMode

from lewm_gym.controller import Reply

LENGTHS = (3, 7, 31)  # environment i lasts so many steps, one more in each episode; the last needs two plans
PLAN_STEPS = 25
FRAME = (224, 224, 3)


class Clock(gym.Env):
    """Shows its number, episode and step as the first pixel; its goal never changes."""

    observation_space = gym.spaces.Dict({k: gym.spaces.Box(0, 255, FRAME, np.uint8) for k in ("pixels", "goal")})
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, number=0):
        self.number, self.episode = number, -1

    def reset(self, *, seed=None, options=None):
        self.episode, self.time = self.episode + 1, 0
        return self.observe(), {}

    def step(self, action):
        self.time += 1
        return self.observe(), 0.0, False, self.time == LENGTHS[self.number] + self.episode, {}

    def observe(self):
        pixels = np.zeros(FRAME, np.uint8)
        pixels[0, 0] = self.number, self.episode, self.time
        return {"pixels": pixels, "goal": np.zeros(FRAME, np.uint8)}


def clocks():
    return [lambda number=number: Clock(number) for number in range(len(LENGTHS))]


def recording_agent():
    """An agent that plans nothing, and the (environment, episode, step) of every plan it was asked for."""
    agent, planned = tiny.agent(), []

    def search(requests):
        planned.extend(tuple(int(v) for v in request.frames[-1][0, 0]) for request in requests)
        return [Reply(np.zeros((PLAN_STEPS, 2), np.float32), torch.zeros(5, 10)) for _ in requests]

    agent._controller._search = search
    return agent, planned


def due(seen):
    """Of the observations that were acted on, those where a plan is due."""
    return [point for point in seen if point[2] % PLAN_STEPS == 0]


def first_pixels(obs):
    return [tuple(int(v) for v in frame[0, 0]) for frame in obs["pixels"]]


@pytest.mark.parametrize("mode", AutoresetMode)
def test_plans_begin_where_episodes_do_in_each_autoreset_mode(mode):
    envs = gym.vector.SyncVectorEnv(clocks(), autoreset_mode=mode)
    agent, planned = recording_agent()
    obs, _ = envs.reset()
    start, over, seen = np.ones(3, bool), np.zeros(3, bool), []
    for _ in range(80):
        seen += first_pixels(obs)
        actions = agent.act(obs, episode_start=start)
        before = over
        obs, _, terminated, truncated, _ = envs.step(actions)
        over = terminated | truncated
        start = before if mode == AutoresetMode.NEXT_STEP else over
        if mode == AutoresetMode.DISABLED and over.any():
            obs, _ = envs.reset(options={"reset_mask": over})
    assert planned == due(seen)
    assert len({point[:2] for point in planned}) > 15  # episodes


def test_make_vec_with_changing_goals_needs_no_flags():
    envs = gym.make_vec("lewm_gym:lewm/TwoRoom-v0", 2, vectorization_mode="sync", max_episode_steps=3)
    agent, planned = recording_agent()
    obs, _ = envs.reset(seed=0)
    for _ in range(9):  # NextStep, the default: actions for frames 0 to 2 count, that for frame 3 resets
        obs, *_ = envs.step(agent.act(obs))
    assert len(planned) == 2 * 3


def test_predict_in_stable_baselines3s_vectors():
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    envs = vec_env.DummyVecEnv(clocks())
    agent, planned = recording_agent()
    obs, start, state, seen = envs.reset(), np.ones(3, bool), None, []
    for _ in range(80):
        seen += first_pixels(obs)
        actions, state = agent.predict(obs, state, episode_start=start, deterministic=True)
        obs, _, start, _ = envs.step(actions)
    assert planned == due(seen)
