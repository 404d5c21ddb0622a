"""Push-T's behaviour policies. `PYTHONPATH=. python tests/test_pusht_expert.py 500` prints the slow test's figures."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest

from collect.policies.pusht.experts import COVERED, POLICIES, Expert, Weak, draw_start_and_goal
from collect.policies.pusht.moves import action_to
from collect.policies.pusht.planner import ExpertConfig, misplacement
from collect.policies.pusht.primitives import START_GAP, primitives
from collect.policies.pusht.routes import Pose, Routes, inside_arena
from envs.pusht import PushTEnv
from envs.pusht.geometry import AGENT_RADIUS, coverage, distance, outline, wall_overlap
from envs.pusht.physics import advance
from lewm_gym.types import BehaviourPolicy

ANYWHERE = ExpertConfig(wide_starts=1.0, wide_goals=1.0)


class BlindPushT(PushTEnv):
    """Push-T without pictures."""

    blank = np.zeros((224, 224, 3), np.uint8)

    def render_state(self, state: np.ndarray) -> np.ndarray:
        return self.blank

    def _observe(self) -> dict[str, np.ndarray]:
        return {"pixels": self.blank, "goal": self.blank}


def play(policy: BehaviourPolicy, seed: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Returns states, actions, goal state and whether the episode ended in success."""
    env = BlindPushT()
    _, info = policy.begin(env, np.random.default_rng([seed, number]))
    states, actions = [info["state"]], []
    while len(actions) < policy.max_steps:
        actions.append(policy.act(info))
        _, _, _, _, info = env.step(actions[-1])
        states.append(info["state"])
        if policy.done(info):
            break
    return np.array(states), np.array(actions), info["goal_state"], info["is_success"]


@dataclass(frozen=True)
class Figures:
    """What many episodes of the expert amount to."""

    covered: float
    succeeded: float
    length: float
    near_wall: float
    action_std: np.ndarray
    velocity_std: np.ndarray
    state_mean: np.ndarray
    state_std: np.ndarray
    steps_per_second: float


def measure(episodes: int, seed: int, config: ExpertConfig) -> Figures:
    """Plays `episodes`; the speed is that of planning and physics, per CPU second."""
    primitives()
    policy = Expert(config)
    begin = time.process_time()
    played = [play(policy, seed, number) for number in range(episodes)]
    seconds = time.process_time() - begin
    states = np.concatenate([states for states, *_ in played])
    actions = np.concatenate([actions for _, actions, *_ in played])
    poses = [(s[0, 2:5], goal[2:5]) for s, _, goal, _ in played]
    return Figures(
        covered=np.mean([max(coverage(s[2:5], goal[2:5]) for s in states) > COVERED for states, _, goal, _ in played]),
        succeeded=np.mean([success for *_, success in played]),
        length=len(actions) / episodes,
        near_wall=np.mean([max(wall_overlap(start), wall_overlap(goal)) > -2 * AGENT_RADIUS for start, goal in poses]),
        action_std=actions.std(axis=0),
        velocity_std=states[:, 5:7].std(axis=0),
        state_mean=states[:, :4].mean(axis=0),
        state_std=states[:, :4].std(axis=0),
        steps_per_second=len(actions) / seconds,
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_expert_solves_the_task_and_moves_like_the_published_data() -> None:
    figures = measure(150, seed=7, config=ExpertConfig())
    assert figures.covered >= 0.95
    assert 170 <= figures.length <= 220
    assert figures.near_wall > 0.04  # of starts or goals, within 30 px of a wall
    # Published: human demonstrations replayed with noise. Within 10 %; the rest is the error of 150 episodes.
    np.testing.assert_allclose(figures.action_std, (0.202, 0.200), rtol=0.12)
    np.testing.assert_allclose(figures.velocity_std, (75, 74), rtol=0.12)
    np.testing.assert_allclose(figures.state_mean, (237, 265, 255, 266), rtol=0.12)
    np.testing.assert_allclose(figures.state_std, (101, 87, 53, 58), rtol=0.14)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_expert_solves_starts_and_goals_anywhere() -> None:
    assert measure(150, seed=8, config=ANYWHERE).covered >= 0.95


def test_expert_solves_a_few_episodes() -> None:
    policy = POLICIES["expert"]()
    for number in range(6):
        states, actions, goal, success = play(policy, 0, number)
        assert success, number
        assert max(coverage(state[2:5], goal[2:5]) for state in states) > COVERED
        assert actions.dtype == np.float32 and np.abs(actions).max() <= 1.0


@pytest.mark.parametrize("angle", [0.0, math.pi / 2, math.pi, 4.0])
@pytest.mark.parametrize("corner", [False, True])
def test_expert_frees_a_block_from_a_wall_or_a_corner(angle: float, corner: bool) -> None:
    start = np.array([256.0, 400.0, 256.0, 256.0, angle, 0, 0, 0, 0, 0])
    to_walls = 7.5 - outline(start[2:5]).min(axis=0)  # half a pixel off the left and the upper one
    start[2:4] += to_walls * (corner, True)
    goal = np.array([150.0, 350.0, 300.0, 300.0, 5.0, 0, 0, 0, 0, 0])
    env, policy = BlindPushT(), Expert()
    policy.begin(env, np.random.default_rng(0))
    _, info = env.reset(options={"state": start, "goal_state": goal})
    for _ in range(400):
        _, _, _, _, info = env.step(policy.act(info))
        if policy.done(info):
            break
    assert info["is_success"]


@pytest.mark.parametrize("name", list(POLICIES))
def test_an_episode_is_a_function_of_its_random_stream_alone(name: str) -> None:
    policy = POLICIES[name]()
    first = play(policy, 0, 3)
    play(policy, 0, 4)
    again, elsewhere = play(policy, 0, 3), play(POLICIES[name](), 0, 3)
    for i in range(3):
        np.testing.assert_array_equal(first[i], again[i])
        np.testing.assert_array_equal(first[i], elsewhere[i])


def test_noise_is_respected_and_checked() -> None:
    assert POLICIES["expert"](noise=0.1).noise == 0.1
    assert not np.array_equal(play(POLICIES["expert"](0.0), 0, 0)[1], play(POLICIES["expert"](0.05), 0, 0)[1])
    for name in POLICIES:
        with pytest.raises(ValueError, match="noise"):
            POLICIES[name](noise=-1.0)


def test_weak_policy_moves_the_block_about() -> None:
    moved = []
    for number in range(4):
        states, actions, _, _ = play(Weak(), 0, number)
        assert len(actions) == 200
        moved.append(np.abs(np.diff(states[:, 2:4], axis=0)).sum())
    assert np.mean(moved) > 50.0  # px


def test_starts_and_goals_are_valid_apart_and_reach_the_walls() -> None:
    env, rng = PushTEnv(), np.random.default_rng(0)
    overlaps = []
    for _ in range(300):
        start, goal = draw_start_and_goal(ExpertConfig(), rng)
        for state in (start, goal):
            env.check_state(state)
            overlaps.append(wall_overlap(state[2:5]))
        assert coverage(start[2:5], goal[2:5]) < COVERED
    assert max(overlaps) <= 0.0
    assert np.mean(np.array(overlaps) > -10.0) > 0.005  # some touch the walls


def test_simulated_pushes_hold_at_any_pose() -> None:
    library, rng = primitives(), np.random.default_rng(0)
    errors = []
    for push in rng.integers(len(library.turn), size=40):
        pose = Pose(*rng.uniform(230, 280, 2), rng.uniform(0, 2 * math.pi))
        state = [*pose.arena(library.contacts[library.contact[push]]), *pose.origin, pose.angle, 0, 0, 0, 0, 0]
        for position in pose.arena(library.path[push, : library.steps[push]]):
            state = advance(state, action_to(position, np.array(state)).tolist())
        state = advance(state, (0.0, 0.0))
        foreseen = np.array([0, 0, *pose.arena(library.moved[push]), pose.angle + library.turn[push], 0, 0])
        if wall_overlap(foreseen[2:5]) < -5.0:
            errors.append(misplacement(Pose(*state[2:5]), foreseen)[0])
    assert np.median(errors) < 0.05  # px; corners can be sharp
    assert np.percentile(errors, 90) < 1.0


def test_contacts_touch_nothing_and_pushes_come_in_mirrored_pairs() -> None:
    library = primitives()
    gaps = [distance(contact, (0.0, 0.0, 0.0)) - AGENT_RADIUS for contact in library.contacts]
    np.testing.assert_allclose(gaps, START_GAP, atol=1e-9)
    half = len(library.turn) // 2
    np.testing.assert_allclose(library.turn[:half], -library.turn[half:])
    np.testing.assert_allclose(
        library.contacts[library.contact[:half]] * (-1, 1), library.contacts[library.contact[half:]], atol=1e-9
    )


def test_routes_go_round_the_block_inside_the_arena() -> None:
    rng = np.random.default_rng(0)
    library = primitives()
    walked = 0
    for _ in range(60):
        state = draw_start_and_goal(ANYWHERE, rng)[0]
        pose = Pose(*state[2:5])
        routes = Routes(pose, state[:2])
        lengths = routes.lengths(library.contacts)
        straight = np.hypot(*(pose.arena(library.contacts) - state[:2]).T)
        assert (lengths >= straight - 1e-6).all()
        for contact in rng.integers(len(lengths), size=4):
            end = library.contacts[contact]
            if not (np.isfinite(lengths[contact]) and inside_arena(pose.arena(end))):
                continue
            way = [state[:2], *routes.way(end)]
            points = np.concatenate([np.linspace(a, b, 40) for a, b in zip(way, way[1:], strict=False)])
            length = np.hypot(*np.diff(way, axis=0).T).sum()
            assert length == pytest.approx(lengths[contact], abs=1e-6)
            assert min(distance(point, state[2:5]) for point in points) > AGENT_RADIUS
            walked += 1
    assert walked > 100


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    for title, chosen in (("as collected", ExpertConfig()), ("starts and goals anywhere", ANYWHERE)):
        print(title)
        for key, value in vars(measure(count, seed=0, config=chosen)).items():
            print(f"  {key:17} {np.round(value, 3)}")
