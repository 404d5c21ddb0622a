"""Push-T: physics, success, picture and bad input; the contract shared by all tasks is tested elsewhere."""

from __future__ import annotations

import multiprocessing
import pickle
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from PIL import Image

import lewm_gym  # noqa: F401  registers the tasks
from envs.pusht import PushTEnv
from envs.pusht.geometry import OUTLINE, centre_of_gravity, coverage, distance, outline, wall_overlap
from envs.pusht.physics import ContinuousSpace, Sizes, advance

GOLDEN = Path(__file__).parent / "golden" / "pusht.png"
REST = np.array([100.0, 120.0, 256.0, 200.0, 1.0, 0, 0, 0, 0, 0])


def pushing_actions(env: PushTEnv, steps: int, seed: int) -> list[np.ndarray]:
    """Returns actions recorded while chasing the block from the environment's present state, leaving it moved on."""
    rng = np.random.default_rng(seed)
    actions = []
    for _ in range(steps):
        state = env._get_state()
        towards = (np.array(centre_of_gravity(state[2:5])) - state[:2]) / 100 + rng.normal(0, 0.3, 2)
        actions.append(np.clip(towards, -1, 1).astype(np.float32))
        env.step(actions[-1])
    return actions


def replay(start: np.ndarray, goal: np.ndarray, actions: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns states and frames of `actions` from `start` in a new environment."""
    env = PushTEnv(terminate_on_success=False)
    obs, info = env.reset(options={"state": start, "goal_state": goal})
    states, frames = [info["state"]], [obs["pixels"]]
    for action in actions:
        obs, _, _, _, info = env.step(action)
        states.append(info["state"])
        frames.append(obs["pixels"])
    return np.array(states), np.array(frames)


@pytest.mark.parametrize("reference_rules", [False, True])
def test_gymnasium_and_stable_baselines_find_no_fault(reference_rules: bool) -> None:
    checkers = pytest.importorskip("stable_baselines3.common.env_checker", reason="pip install stable-baselines3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("lewm/PushT-v0", render_mode="rgb_array", reference_rules=reference_rules).unwrapped
        check_env(env)
        checkers.check_env(env)


def test_replay_from_any_recorded_state_is_exact_in_another_process_too() -> None:
    env = PushTEnv(terminate_on_success=False)
    _, info = env.reset(seed=3)
    actions = pushing_actions(env, 60, seed=3)
    states, frames = replay(info["state"], info["goal_state"], actions)
    assert np.ptp(states[:, 2:4], axis=0).max() > 5.0  # the block was pushed
    for begin in (0, 17, 42):
        again = replay(states[begin], info["goal_state"], actions[begin:])
        np.testing.assert_array_equal(again[0], states[begin:])
        np.testing.assert_array_equal(again[1], frames[begin:])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.apply(replay, (states[17], info["goal_state"], actions[17:]))
    np.testing.assert_array_equal(elsewhere[0], states[17:])
    np.testing.assert_array_equal(elsewhere[1], frames[17:])


@pytest.mark.parametrize("reference_rules", [False, True])
def test_pickled_environment_continues(reference_rules: bool) -> None:
    env = PushTEnv(reference_rules=reference_rules)
    env.reset(seed=1)
    env.step(np.zeros(2, np.float32))
    copy = pickle.loads(pickle.dumps(env))
    after = env.step(np.array([0.3, -0.2], np.float32)), copy.step(np.array([0.3, -0.2], np.float32))
    tolerance = 4.0 if reference_rules else 0.0  # the reference's restore runs a physics step
    np.testing.assert_allclose(after[0][4]["state"], after[1][4]["state"], atol=tolerance)
    np.testing.assert_array_equal(env.np_random.random(3), copy.np_random.random(3))


def test_same_seed_gives_the_same_episode() -> None:
    first, second = PushTEnv().reset(seed=5), PushTEnv().reset(seed=5)
    np.testing.assert_array_equal(first[1]["state"], second[1]["state"])
    np.testing.assert_array_equal(first[0]["goal"], second[0]["goal"])
    assert not np.array_equal(first[1]["state"], PushTEnv().reset(seed=6)[1]["state"])


def test_picture_matches_the_golden_frame() -> None:
    frame = PushTEnv().render_state(REST)
    golden = np.asarray(Image.open(GOLDEN))
    difference = np.abs(frame.astype(int) - golden)
    # pygame rasterises polygons with integers: only another release can move an edge, by one canvas pixel.
    assert (difference > 0).mean() < 0.005
    assert difference.mean() < 0.2


def test_picture_has_the_reference_colours() -> None:
    frame = PushTEnv().render_state(REST)
    expected = {
        (70, 200): (255, 255, 255),  # background
        (146, 78): (144, 238, 144),  # the end of the goal T's stem
        (2, 100): (211, 211, 211),  # wall
        (round(120 * 7 / 16), round(100 * 7 / 16)): (78, 126, 255),  # agent's inner disc
    }
    for (row, column), colour in expected.items():
        assert tuple(frame[row, column]) == colour, (row, column)
    column, row = (round(c * 7 / 16) for c in centre_of_gravity(REST[2:5]))
    assert tuple(frame[row, column]) == (142, 163, 183)


def test_picture_depends_on_the_state_alone() -> None:
    env = PushTEnv()
    before = env.render_state(REST)
    rng = np.random.default_rng(0)
    for _ in range(30):
        env.render_state(np.concatenate([rng.uniform(-100, 600, 4), rng.uniform(-7, 7, 6)]))
    np.testing.assert_array_equal(env.render_state(REST), before)


def test_goal_image_is_the_render_of_the_goal_state() -> None:
    env = PushTEnv()
    obs, info = env.reset(seed=2)
    np.testing.assert_array_equal(obs["goal"], env.render_state(info["goal_state"]))
    assert not info["is_success"]


@pytest.mark.parametrize(
    ("change", "success"),
    [
        ((0, 0, 0, 0, 0), True),
        ((19.9, 0, 0, 0, 0), True),
        ((20.1, 0, 0, 0, 0), False),
        ((12, 0, 12, 0, 0), True),
        ((15, 0, 0, 15, 0), False),  # 21.2 px over the four coordinates
        ((0, 0, 0, 0, np.pi / 9 - 0.01), True),
        ((0, 0, 0, 0, np.pi / 9 + 0.01), False),
        ((0, 0, 0, 0, 2 * np.pi - 0.1), True),  # wrapped
    ],
)
def test_success_is_the_rule_of_dino_wm(change: tuple[float, ...], success: bool) -> None:
    env = PushTEnv()
    assert env.is_goal(REST + [*change, 0, 0, 0, 0, 0], REST) is success


def test_reaching_the_goal_terminates_with_reward_zero() -> None:
    goal = REST + [25, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    env = PushTEnv()
    env.reset(options={"state": REST, "goal_state": goal})
    _, reward, terminated, truncated, info = env.step(np.array([0.3, 0], np.float32))
    assert (reward, terminated, truncated, info["is_success"]) == (0.0, True, False, True)
    assert env.step(np.array([-1, 0], np.float32))[1] == -1.0


def test_free_motion_equals_pymunk() -> None:
    """The shortcut for an agent far from the block gives what a Space gives, bit for bit."""
    state = [60.0, 60.0, 400.0, 400.0, 3.0, 20.0, -30.0, 0.0, 0.0, 0.0]
    near_state = [*state[:2], 60.0 + 30.0, 60.0 + 200.0, *state[4:]]  # a block close enough that a Space is built
    for action in ([0.5, 0.2], [-0.3, 0.8]):
        free, simulated = advance(state, action), advance(near_state, action)
        assert free[:2] + free[5:7] == simulated[:2] + simulated[5:7]
        assert free[2:5] == state[2:5]


def test_fresh_space_stays_close_to_the_reference_space() -> None:
    rng = np.random.default_rng(0)
    off = []
    for _ in range(60):
        angle = rng.uniform(0, 2 * np.pi)
        centre = np.array(centre_of_gravity((256.0, 256.0, angle)))
        start = centre + 110.0 * np.array([np.cos(angle + 1.0), np.sin(angle + 1.0)])
        state = [*start, 256.0, 256.0, angle, 0.0, 0.0, 0.0, 0.0, 0.0]
        space = ContinuousSpace(state)
        for _ in range(10):
            action = np.clip((centre - state[:2]) / 250, -1, 1)
            state, other = advance(state, action), space.advance(action)
        off.append(np.abs(np.array(state[2:4]) - other[2:4]).max())
    assert np.median(off) < 0.5  # px after 10 steps


def test_reference_rules_restore_inexactly_and_let_the_agent_leave() -> None:
    env = PushTEnv(reference_rules=True)
    moving = REST + [0, 0, 0, 0, 0, -300.0, 0, 0, 0, 0]
    _, info = env.reset(options={"state": moving, "goal_state": REST})
    assert info["state"][0] == pytest.approx(REST[0] - 3.0)
    for _ in range(10):
        _, _, _, _, info = env.step(np.array([-1, 0], np.float32))
    assert info["state"][0] < 0
    exact = PushTEnv()
    assert exact.reset(options={"state": moving, "goal_state": REST})[1]["state"].tolist() == moving.tolist()


def check_robustness(steps: int, seed: int, sizes: Sizes) -> None:
    """Pushes as a wrecker would and asserts that every state is finite, inside the arena and accepted back."""
    env = PushTEnv()
    env.reset(options={"variations": {"agent_scale": sizes.agent_radius / 0.375, "block_scale": sizes.block_scale}})
    rng = np.random.default_rng(seed)
    state: list[float] = []
    for step in range(steps):
        if step % 300 == 0:
            state = env._sample_state(rng).tolist()
        if step % 12 == 0:
            kind, heading, strength = rng.integers(4), rng.uniform(0, 2 * np.pi), rng.uniform()
        towards = np.array(centre_of_gravity(state[2:5], sizes.block_scale)) - state[:2]
        action = (
            np.clip(towards / 50, -1, 1),
            strength * np.array([np.cos(heading), np.sin(heading)]),
            rng.uniform(-1, 1, 2),
            np.sign(towards),
        )[kind]
        state = advance(state, action, sizes)
        assert np.isfinite(state).all()
        assert 7 + sizes.agent_radius - 1e-6 <= min(state[:2]) <= max(state[:2]) <= 504 - sizes.agent_radius + 1e-6
        env.check_state(np.array(state))


@pytest.mark.parametrize("sizes", [Sizes(), Sizes(7.5, 20.0), Sizes(22.5, 60.0)])
def test_wrecking_pushes_keep_the_state_valid(sizes: Sizes) -> None:
    check_robustness(3_000, seed=0, sizes=sizes)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_wrecking_pushes_keep_the_state_valid() -> None:
    check_robustness(1_000_000, seed=1, sizes=Sizes())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (REST + [-200, 0, 0, 0, 0, 0, 0, 0, 0, 0], "agent"),
        (REST + [0, 500, 0, 0, 0, 0, 0, 0, 0, 0], "agent"),
        (REST - [90, 110, 0, 0, 0, 0, 0, 0, 0, 0], "agent"),  # (10, 10): 12 px within both walls
        (REST - [79.1, 0, 0, 0, 0, 0, 0, 0, 0, 0], "agent"),  # 1.1 px
        (REST + [0, 0, 0, 0, 1e12, 0, 0, 0, 0, 0], "angle"),
        (REST + [0, 0, 300, 0, 0, 0, 0, 0, 0, 0], "block"),
        (np.concatenate([centre_of_gravity(REST[2:5]), REST[2:]]), "inside the block"),
        (REST + [0, 0, 0, 0, 0, 0, 1e6, 0, 0, 0], "velocities"),
        (REST + [0, 0, 0, 0, 0, 0, 0, 0, 0, -1e3], "velocities"),
        (np.full(10, np.nan), "finite"),
        (np.zeros(7), "shape"),
    ],
)
def test_impossible_states_are_refused(state: np.ndarray, message: str) -> None:
    env = PushTEnv()
    for option in ("state", "goal_state"):
        with pytest.raises(ValueError, match=message):
            env.reset(options={option: state})


@pytest.mark.parametrize("action", [np.zeros(3), np.array([1.5, 0]), np.array([np.nan, 0])])
def test_impossible_actions_are_refused_and_leave_the_state(action: np.ndarray) -> None:
    env = PushTEnv()
    _, info = env.reset(seed=0)
    with pytest.raises(ValueError, match="action"):
        env.step(action)
    np.testing.assert_array_equal(env._get_state(), info["state"])


def test_variations_change_present_and_goal_picture_alike() -> None:
    env = PushTEnv()
    plain, info = env.reset(seed=0)
    states = {"state": info["state"], "goal_state": info["goal_state"]}
    looks = {"agent_color": (255, 0, 0), "block_color": (10, 20, 30), "background_color": (0, 0, 100)}
    for variations in (looks, {"goal_position": (300.0, 200.0)}, {"goal_visible": False}, {"block_scale": 25.0}):
        first, _ = env.reset(options={**states, "variations": variations})
        again, _ = env.reset(options={**states, "variations": variations})
        for picture in ("pixels", "goal"):
            assert not np.array_equal(first[picture], plain[picture]), variations
            np.testing.assert_array_equal(first[picture], again[picture])
    for variations in ({"agent_color": (300, 0, 0)}, {"block_scale": 10.0}, {"shape": 1}):
        with pytest.raises(ValueError, match="variation"):
            env.reset(options={"variations": variations})
    back, _ = env.reset(options=states)
    np.testing.assert_array_equal(back["pixels"], plain["pixels"])


def test_states_are_checked_under_the_sizes_of_the_same_reset() -> None:
    env = PushTEnv()
    state = np.array([256.0, 345.0, 256.0, 200.0, 0.0, 0, 0, 0, 0, 0])  # 25 px below a stem of scale 30
    env.reset(options={"state": state, "goal_state": REST})
    with pytest.raises(ValueError, match="inside the block"):
        env.reset(options={"state": state, "variations": {"block_scale": 60.0}})
    assert env.sizes == Sizes()  # a refused reset changes nothing


def test_sizes_change_the_physics() -> None:
    env = PushTEnv(terminate_on_success=False)
    state = np.array([256.0, 320.0, 256.0, 200.0, 0.0, 0, 0, 0, 0, 0])  # 0 px below a stem of scale 30
    moved = {}
    for scale in (20.0, 30.0):
        env.reset(
            options={"state": state + [0, 15, *np.zeros(8)], "goal_state": REST, "variations": {"block_scale": scale}}
        )
        for _ in range(3):
            _, _, _, _, info = env.step(np.array([0, -0.3], np.float32))
        moved[scale] = 200.0 - info["state"][3]
    assert moved[30.0] > moved[20.0] + 10.0


def test_quantities_have_the_reference_state() -> None:
    state = np.arange(10, dtype=np.float64)
    quantities = PushTEnv().quantities(state)
    assert quantities["agent_position"].tolist() == [0, 1]
    assert quantities["block_position"].tolist() == [2, 3]
    assert quantities["agent_velocity"].tolist() == [5, 6]
    np.testing.assert_allclose(quantities["block_angle"], [np.cos(4), np.sin(4)], rtol=1e-6)
    assert all(value.dtype == np.float32 and value.ndim == 1 for value in quantities.values())


def test_coverage_agrees_with_counting_points() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 512, (60_000, 2))

    def inside(pose: np.ndarray) -> np.ndarray:
        cos, sin = np.cos(pose[2]), np.sin(pose[2])
        x, y = ((points - pose[:2]) @ np.array([[cos, -sin], [sin, cos]])).T
        return ((abs(x) < 60) & (y > 0) & (y < 30)) | ((abs(x) < 15) & (y >= 30) & (y < 120))

    for _ in range(10):
        goal = np.array([256, 256, rng.uniform(0, 6)])
        pose = goal + rng.normal(0, (20, 20, 0.4))
        counted = (inside(pose) & inside(goal)).sum() / inside(goal).sum()
        assert coverage(pose, goal) == pytest.approx(counted, abs=0.03)
    assert coverage(goal, goal) == pytest.approx(1.0)
    assert coverage(goal, goal + [300, 0, 0]) == 0.0


def test_distance_and_wall_overlap_agree_with_the_outline() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        pose = (*rng.uniform(0, 512, 2), rng.uniform(-7, 7))
        vertices = outline(pose)
        assert wall_overlap(pose) == pytest.approx(max(7 - vertices.min(), vertices.max() - 504))
        for vertex in vertices:
            assert distance(vertex, pose) == pytest.approx(0.0, abs=1e-9)
    assert distance((0.0, -5.0), (0.0, 0.0, 0.0)) == pytest.approx(5.0)
    assert distance((75.0, 140.0), (60.0, 0.0, 0.0)) == pytest.approx(20.0)
    assert len(OUTLINE) == 8
