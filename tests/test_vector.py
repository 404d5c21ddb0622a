"""Many environments at once: every mode has the episodes of single environments with the same seeds."""

from __future__ import annotations

import multiprocessing
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

import lewm_gym  # noqa: F401  registers the tasks
from envs.two_room.vector import TwoRoomVectorEnv
from lewm_gym.tasks import TASKS

ID = TASKS["two_room"].env_id
STATES = np.array([[60.0, 120.0], [170.0, 60.0], [112.0, 49.0]])


def make(n: int = 3, mode: str = "vector_entry_point", **kwargs: Any) -> Any:
    return gymnasium.make_vec(ID, num_envs=n, vectorization_mode=mode, **kwargs)


def assert_same(ours: Any, theirs: Any, path: str = "") -> None:
    """Asserts that nested dicts, tuples and arrays are equal, dtypes included."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), path
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{path}/{key}")
    elif isinstance(theirs, tuple):
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{path}/{index}")
    elif isinstance(theirs, np.ndarray) and theirs.dtype == object:
        assert_same(tuple(ours), tuple(theirs), path)
    else:
        np.testing.assert_array_equal(ours, theirs, err_msg=path)
        assert getattr(ours, "dtype", None) == getattr(theirs, "dtype", None), path


@pytest.mark.parametrize("autoreset", list(AutoresetMode))
@pytest.mark.parametrize("terminate_on_success", [True, False])
def test_batched_episodes_equal_those_of_gymnasiums_vector_environment(
    autoreset: AutoresetMode, terminate_on_success: bool
) -> None:
    settings = {"terminate_on_success": terminate_on_success, "max_episode_steps": 20}
    batched = make(4, autoreset_mode=autoreset, **settings)
    sync = make(4, "sync", vector_kwargs={"autoreset_mode": autoreset}, **settings)
    assert batched.observation_space == sync.observation_space
    assert batched.action_space == sync.action_space
    assert batched.metadata == sync.metadata
    assert_same(batched.reset(seed=3), sync.reset(seed=3))
    goals = np.array([goal for goal in sync.call("goal_state")])
    rng = np.random.default_rng(0)
    ended = np.zeros(4, int)
    apart = 0
    for step in range(60):
        actions = rng.uniform(-1, 1, (4, 2)).astype(np.float32)
        if step % 4:  # towards the goals, so that some are reached
            actions = np.clip((goals - batched._positions) / 5, -1, 1).astype(np.float32)
        ours, theirs = batched.step(actions), sync.step(actions)
        assert_same(ours, theirs, f"step {step}")
        ended += ours[2] | ours[3]
        apart += 0 < ours[2].sum() < 4
        if autoreset is AutoresetMode.DISABLED and (ours[2] | ours[3]).any():
            mask = ours[2] | ours[3]
            assert_same(batched.reset(options={"reset_mask": mask}), sync.reset(options={"reset_mask": mask.copy()}))
    assert (ended >= 2).all()
    assert apart or not terminate_on_success  # some went on while others began anew


def test_states_and_goals_may_be_given_to_each() -> None:
    env = make(terminate_on_success=False)
    obs, info = env.reset(options={"state": STATES, "goal_state": STATES[0]})
    np.testing.assert_array_equal(info["state"], STATES)
    np.testing.assert_array_equal(info["goal_state"], STATES[[0, 0, 0]])
    assert info["is_success"].tolist() == [True, False, False]
    single = gymnasium.make(ID)
    for index, state in enumerate(STATES):
        alone, _ = single.reset(options={"state": state, "goal_state": STATES[0]})
        np.testing.assert_array_equal(obs["pixels"][index], alone["pixels"])
        np.testing.assert_array_equal(obs["goal"][index], alone["goal"])


def test_an_episode_does_not_depend_on_how_many_there_are() -> None:
    few, many = make(2, observe="state"), make(1_000, observe="state")
    few.reset(seed=5), many.reset(seed=5)
    rng = np.random.default_rng(0)
    for _ in range(250):  # beyond two autoresets
        actions = rng.uniform(-1, 1, (1_000, 2)).astype(np.float32)
        assert_same(
            tuple(part[:2] if not isinstance(part, dict) else part["state"][:2] for part in many.step(actions)),
            tuple(part if not isinstance(part, dict) else part["state"] for part in few.step(actions[:2])),
        )


def test_states_are_observed_without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(observe="state")
    monkeypatch.setattr(env.unwrapped, "_draw", None)
    obs, info = env.reset(seed=0)
    assert obs in env.observation_space
    np.testing.assert_array_equal(obs["state"], info["state"].astype(np.float32))
    obs, *_ = env.step(env.action_space.sample())
    assert obs in env.observation_space


def test_variations_hold_for_all_across_autoresets() -> None:
    env = make(max_episode_steps=2)
    red, _ = env.reset(seed=0, options={"variations": {"background_color": (255, 0, 0)}})
    for _ in range(4):
        obs, *_ = env.step(np.zeros((3, 2), np.float32))
    assert (obs["pixels"][:, 0, 0] == [255, 0, 0]).all() and (obs["goal"][:, 0, 0] == [255, 0, 0]).all()
    mask = np.array([True, False, False])
    with pytest.raises(ValueError, match="reset them all"):
        env.reset(options={"reset_mask": mask, "variations": {"background_color": (0, 0, 0)}})
    obs, _ = env.reset(seed=0)
    assert (obs["pixels"][:, 0, 0] == 255).all()


def test_what_is_returned_is_not_changed_afterwards() -> None:
    env = make(render_mode="rgb_array")
    obs, info = env.reset(seed=0)
    kept = {**{k: v.copy() for k, v in obs.items()}, **{k: v.copy() for k, v in info.items()}}
    for _ in range(3):
        env.step(np.full((3, 2), 0.5, np.float32))
    env.reset(seed=1)
    assert_same({**obs, **info}, kept)
    frames = env.render()
    assert len(frames) == 3 and frames[0].shape == (224, 224, 3)
    assert make().render() is None
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": np.zeros((2, 2))}, "shape"),
        ({"state": STATES + [[0, 0], [0, 0], [0, 100.0]]}, "environment 2: .*inside the wall"),
        ({"goal_state": np.full((3, 2), np.nan)}, "environment 0: .*finite"),
        ({"goal_image": np.zeros((224, 224, 3), np.uint8)}, "sync"),
        ({"colour": 1}, "unknown"),
        ({"variations": {"agent_radius": 99.0}}, "agent_radius"),
        ({"reset_mask": [True, False]}, "reset_mask"),
        ({"reset_mask": np.zeros(3, bool)}, "reset_mask"),
    ],
)
def test_bad_options_are_refused_and_change_nothing(options: dict[str, Any], message: str) -> None:
    env = make()
    before = env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)
    assert_same((env._observation(), env._positions), (before[0], before[1]["state"]))


def test_bad_actions_are_refused_with_the_environments_number() -> None:
    env = make()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros((3, 2), np.float32))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.reset(options={"reset_mask": np.array([True, False, False])})
    _, info = env.reset(seed=0)
    for actions, message in (
        (np.zeros((2, 2)), "shape"),
        (np.zeros((3, 2), complex), "array of numbers"),
        (np.array([[0, 0], [0, 1.1], [0, 0]]), "environment 1"),
        (np.array([[0, 0], [0, 0], [np.nan, 0]]), "environment 2"),
    ):
        with pytest.raises(ValueError, match=message):
            env.step(actions)
    np.testing.assert_array_equal(env._positions, info["state"])


@pytest.mark.parametrize(
    "kwargs",
    [{"num_envs": 0}, {"num_envs": 2.5}, {"observe": "latents"}, {"max_episode_steps": 0}, {"render_mode": "ansi"}],
)
def test_bad_settings_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        TwoRoomVectorEnv(**kwargs)


def test_finished_environments_must_be_reset_by_hand_if_asked_for() -> None:
    env = make(autoreset_mode=AutoresetMode.DISABLED, max_episode_steps=1)
    env.reset(seed=0)
    env.step(np.zeros((3, 2), np.float32))
    with pytest.raises(gymnasium.error.ResetNeeded, match="finished"):
        env.step(np.zeros((3, 2), np.float32))


def rollout(n: int, mode: str, task: str, context: str | None = None) -> list[Any]:
    """Returns states, goals and corner-sampled frames of a few steps, for each environment."""
    kwargs = {"vector_kwargs": {"context": context}} if mode == "async" else {}
    env = gymnasium.make_vec(TASKS[task].env_id, num_envs=n, vectorization_mode=mode, **kwargs)
    try:
        obs, info = env.reset(seed=11)
        seen = [(obs["pixels"], obs["goal"], info["state"], info["goal_state"])]
        rng = np.random.default_rng(0)
        for _ in range(3):
            action = rng.uniform(-1, 1, TASKS[task].action_size).astype(np.float32)
            obs, *_, info = env.step(np.tile(action, (n, 1)))
            seen.append((obs["pixels"], obs["goal"], info["state"], info["goal_state"]))
    finally:
        env.close()
    return seen


@pytest.mark.parametrize(
    "task", [pytest.param(name, marks=[pytest.mark.gl] * bool(TASKS[name].extra)) for name in TASKS]
)
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_episodes_are_those_of_single_environments(task: str, mode: str) -> None:
    context = "spawn" if mode == "async" else None
    together = rollout(2, mode, task, context)
    env = gymnasium.make(TASKS[task].env_id)
    for index in range(2):
        obs, info = env.reset(seed=11 + index)
        rng = np.random.default_rng(0)
        for step, batch in enumerate(together):
            alone = (obs["pixels"], obs["goal"], info["state"], info["goal_state"])
            for ours, theirs in zip(batch, alone, strict=True):
                np.testing.assert_array_equal(ours[index], theirs, err_msg=f"environment {index}, step {step}")
            obs, *_, info = env.step(rng.uniform(-1, 1, TASKS[task].action_size).astype(np.float32))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_fork_works_where_no_gl_context_exists() -> None:
    assert_same(tuple(rollout(2, "async", "two_room", "fork")), tuple(rollout(2, "sync", "two_room")))
