"""Proprioception as an option: what environments show of it, what datasets hold, and what DINO-WM makes of it."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from lewm_gym.tasks import TASKS

KEYS = ("proprioception", "goal_proprioception")
every_task = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.gl) if t.extra else n for n, t in TASKS.items()]
)


def make(name, **options):
    env = gymnasium.make(f"lewm_gym:{TASKS[name].env_id}", disable_env_checker=True, **options)
    env.unwrapped.draw_observations = False
    return env


@every_task
def test_environments_show_what_the_actor_senses_of_itself_now_and_at_the_goal(name):
    env, plain = make(name, proprioception=True), make(name)
    names = TASKS[name].proprioception
    begun, same = env.reset(seed=0), plain.reset(seed=0)
    action = env.action_space.sample()
    for (obs, info), (bare, _) in ((begun, same), (env.step(action)[::4], plain.step(action)[::4])):
        assert obs in env.observation_space and set(bare) == {"pixels", "goal"}
        for key, state in zip(KEYS, (info["state"], info["goal_state"]), strict=True):
            quantities = env.unwrapped.quantities(state)
            assert {n: len(quantities[n]) for n in names} == names
            np.testing.assert_array_equal(obs[key], np.concatenate([quantities[n] for n in names]))
    env.close()
    plain.close()


@every_task
def test_no_object_is_sensed(name):
    assert not any(word in quantity for quantity in TASKS[name].proprioception for word in ("block", "cube", "goal"))


def test_vectors_of_two_rooms_sense_as_single_ones_do():
    single = make("two_room", proprioception=True)
    vector = gymnasium.make_vec("lewm_gym:lewm/TwoRoom-v0", num_envs=2, proprioception=True)
    assert vector.single_observation_space == single.observation_space
    stacked, _ = vector.reset(seed=3)
    assert stacked in vector.observation_space
    for key in KEYS:
        np.testing.assert_array_equal(stacked[key][1], single.reset(seed=4)[0][key])
    with pytest.raises(ValueError, match="observe='pixels'"):
        gymnasium.make_vec("lewm_gym:lewm/TwoRoom-v0", num_envs=2, proprioception=True, observe="state")


def test_a_picture_alone_is_no_goal_for_who_senses():
    env = make("two_room", proprioception=True)
    with pytest.raises(ValueError, match="give goal_state"):
        env.reset(options={"goal_image": np.zeros((224, 224, 3), np.uint8)})
