"""Two-Room: walls, doors, success, picture and variations; the contract shared by all tasks is tested elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reference import reference

from envs.two_room import TwoRoomEnv
from envs.two_room.rooms import Rooms

GOLDEN = Path(__file__).parent / "golden" / "two_room.png"
START, GOAL = np.array([60.0, 120.0]), np.array([170.0, 60.0])
ROOMS = {
    "default": Rooms(),
    "horizontal wall, three doors": Rooms(vertical=False, doors=((49.0, 14.0), (100.0, 8.0), (180.0, 21.0))),
    "fast and small": Rooms(speed=10.5, thickness=7.0, doors=((60.0, 8.0), (70.0, 14.0))),  # overlapping doors
    "slow and large": Rooms(agent_radius=14.0, thickness=41.0, speed=1.75, doors=((189.0, 8.0),)),
}


def random_walk(rooms: Rooms, agents: int, steps: int, seed: int) -> Any:
    """Yields (before, after), each (agents, 2), of dots that linger around the doors."""
    rng = np.random.default_rng(seed)
    positions = np.empty((agents, 2))
    x, y = (0, 1) if rooms.vertical else (1, 0)
    along = rng.choice([door[0] for door in rooms.doors], agents) + rng.normal(0, 15, agents)
    positions[:, y] = np.clip(along, rooms.low, rooms.high)
    positions[:, x] = rng.uniform(rooms.near - 4.0, rooms.far + 4.0, agents)
    positions[rooms.is_inside_wall(positions), x] = rooms.near - 2.0
    for _ in range(steps):
        actions = np.clip(rng.normal(0, 0.9, (agents, 2)), -1, 1).astype(np.float32)
        after = rooms.move(positions, actions)
        yield positions, after
        positions = after


@pytest.mark.parametrize("name", ROOMS)
def test_no_path_leads_through_the_wall_in_a_million_steps(name: str) -> None:
    """Whoever is on the other side has been in the passage, and nobody is ever inside the wall."""
    rooms = ROOMS[name]
    agents, steps = 2_000, 500 if name == "default" else 100
    half = rooms.thickness // 2  # of the drawn wall
    through = 0
    for before, after in random_walk(rooms, agents, steps, seed=0):
        assert not rooms.is_inside_wall(after).any()
        assert ((after >= rooms.low) & (after <= rooms.high)).all()
        (x0, y0), (x1, y1) = (p.T if rooms.vertical else p.T[::-1] for p in (before, after))
        # The straight segment between the two, at 21 points, against the wall as it is drawn.
        parts = np.linspace(0.0, 1.0, 21)[:, None]
        x, y = x0 + parts * (x1 - x0), y0 + parts * (y1 - y0)
        in_wall = np.abs(x - 112.0) < half
        in_door = np.any([np.abs(y - centre) <= size + 1.75 + 1e-9 for centre, size in rooms.doors], axis=0)
        assert not (in_wall & ~in_door).any()
        through += int(((x0 < 112.0) != (x1 < 112.0)).sum())
    assert through > 100  # the door is used


def test_the_reference_lets_dots_slip_past_the_doors_edge_and_we_do_not() -> None:
    rooms = Rooms()
    before = np.array([[99.0, 67.0]])  # left of the zone, below the passage, which ends at 64.75
    action = np.array([[1.0, -1.0]], np.float32)  # meets the zone at y 66, ends at y 62
    np.testing.assert_allclose(rooms.move(before, action, reference_rules=True), [[104.0, 62.0]])
    np.testing.assert_allclose(rooms.move(before, action), [[99.5, 62.0]])


@pytest.mark.parametrize("reference_rules", [False, True])
@pytest.mark.parametrize(
    ("start", "action", "end"),
    [
        ((60, 120), (1, 0.5), (65, 122.5)),
        ((22, 202), (-1, 1), (21, 203)),  # the border
        ((98, 120), (1, 0.2), (99.5, 121)),  # the wall, from the left: slides
        ((126, 120), (-1, 0.2), (124.5, 121)),  # from the right
        ((98, 49), (1, 0), (103, 49)),  # into the door
        ((121, 49), (1, 0), (126, 49)),  # out of it
        ((123, 63), (1, 1), (128, 68)),  # out of it, and round its edge
        ((100, 120), (-1, 0), (95, 120)),  # away from the wall's face
    ],
)
def test_steps_on_hand_made_states(
    start: tuple[float, float], action: tuple[float, float], end: tuple[float, float], reference_rules: bool
) -> None:
    env = TwoRoomEnv(reference_rules=reference_rules)
    env.reset(options={"state": start, "goal_state": GOAL})
    *_, info = env.step(np.array(action, np.float32))
    np.testing.assert_allclose(info["state"], end, atol=1e-6)


def test_within_the_door_a_dot_slides_along_its_side_and_the_reference_throws_it_out() -> None:
    rooms, before, down = Rooms(), np.array([[110.0, 62.0], [114.0, 62.0]]), np.array([[0.0, 1.0]] * 2, np.float32)
    np.testing.assert_allclose(rooms.move(before, down), [[110.0, 64.75], [114.0, 64.75]])
    np.testing.assert_allclose(rooms.move(before, down, reference_rules=True), [[99.5, 67.0], [124.5, 67.0]])


def test_overlapping_doors_are_one_passage() -> None:
    rooms = Rooms(doors=((60.0, 8.0), (64.0, 21.0), (150.0, 8.0)))
    ends = np.array([41.0, 41.3, 55.0, 80.0, 86.7, 86.8, 140.3, 150.0, 160.0])
    assert rooms.in_passage(ends).tolist() == [False, True, True, True, True, False, True, True, False]


def test_one_dot_moves_as_it_does_among_many() -> None:
    for rooms in ROOMS.values():
        rng = np.random.default_rng(1)
        positions = rng.uniform(rooms.low, rooms.high, (3_000, 2))
        positions = positions[~rooms.is_inside_wall(positions)]
        actions = rng.uniform(-1, 1, positions.shape).astype(np.float32)
        for rules in (False, True):
            together = rooms.move(positions, actions, rules)
            alone = [rooms.move(positions[i : i + 1], actions[i : i + 1], rules)[0] for i in range(len(positions))]
            np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(("distance", "success"), [(0.0, True), (15.9, True), (16.001, False), (30.0, False)])
def test_success_is_within_16_px(distance: float, success: bool) -> None:
    env = TwoRoomEnv()
    for direction in ((1.0, 0.0), (0.6, -0.8)):
        assert env.is_goal(GOAL + distance * np.array(direction), GOAL) is success
    assert env.is_goal(GOAL, np.full(2, np.nan)) is False


@pytest.mark.parametrize("state", [(10, 120), (120, 204), (112, 120), (101, 66), (50, np.inf)])
def test_states_outside_the_rooms_are_refused(state: tuple[float, float]) -> None:
    env = TwoRoomEnv()
    for option in ("state", "goal_state"):
        with pytest.raises(ValueError, match="Two-Room|finite"):
            env.reset(options={option: state})


def test_a_state_in_the_doorway_is_accepted() -> None:
    TwoRoomEnv().reset(options={"state": (112, 49), "goal_state": (112, 64.75)})


def test_states_are_checked_under_the_doors_of_the_same_reset() -> None:
    env = TwoRoomEnv()
    variations = {"door_position": (150, 49, 49)}
    env.reset(options={"state": (112, 150), "variations": variations})
    with pytest.raises(ValueError, match="inside the wall"):
        env.reset(options={"state": (112, 49), "variations": variations})
    env.reset(options={"state": (112, 49)})  # the defaults again


def test_doors_open_where_they_are_drawn() -> None:
    env = TwoRoomEnv(terminate_on_success=False)
    doors = {"door_number": 2, "door_position": (60, 150, 49), "door_size": (8, 12, 14), "wall_axis": "horizontal"}
    for x, is_open in ((60, True), (150, True), (105, False), (49, False)):
        env.reset(options={"state": (x, 90), "goal_state": (180, 40), "variations": doors})
        for _ in range(12):
            obs, *_, info = env.step(np.array([0, 1], np.float32))
        assert bool(info["state"][1] > 124) is is_open, x
        assert bool((env._picture._background[112, x] == 255).all()) is is_open


def test_speed_and_radius_change_the_motion() -> None:
    env = TwoRoomEnv()
    start = {"state": (60, 120), "goal_state": GOAL}
    right = np.array([1, 0], np.float32)
    env.reset(options={**start, "variations": {"agent_speed": 10.5}})
    assert env.step(right)[-1]["state"][0] == pytest.approx(70.5)
    env.reset(options={**start, "variations": {"agent_radius": 14.0, "agent_speed": 10.0}})
    for _ in range(6):
        *_, info = env.step(right)
    assert info["state"][0] == pytest.approx(112 - 5 - 14 - 0.5)


def test_picture_has_the_reference_geometry() -> None:
    frame = TwoRoomEnv().render_state(START)
    assert frame[120, 60].tolist() == [255, 0, 0]
    wall = (frame[150] == 0).all(axis=1)
    assert np.flatnonzero(wall[20:200]).tolist() == list(range(107 - 20, 118 - 20))
    door = (frame[:, 112] == 255).all(axis=1)
    assert np.flatnonzero(door[20:200]).tolist() == list(range(35 - 20, 64 - 20))
    lines = np.flatnonzero((frame[180] == 0).all(axis=1))
    assert lines.tolist() == [*range(10, 14), *range(107, 118), *range(210, 214)]
    assert (frame[[0, 5, 220], 12] == 0).all()  # lines run to the picture's edge
    # Alpha of a Gaussian of 7 px at one standard deviation.
    assert frame[120, 67].tolist() == [255, *[round(255 * (1 - np.exp(-0.5)))] * 2]


def test_picture_matches_the_golden_frame() -> None:
    difference = np.abs(TwoRoomEnv().render_state(START + 0.3).astype(int) - np.asarray(Image.open(GOLDEN)))
    assert difference.max() <= 1  # numpy's exp may differ in its last digit between processors


def test_positions_within_a_pixel_are_seen() -> None:
    env = TwoRoomEnv()
    assert not np.array_equal(env.render_state(START), env.render_state(START + [0.2, 0.0]))


def test_the_goal_is_drawn_on_demand() -> None:
    env = TwoRoomEnv()
    options = {"state": START, "goal_state": GOAL}
    plain, _ = env.reset(options=options)
    shown, _ = env.reset(options={**options, "variations": {"goal_visible": True, "goal_color": (0, 0, 255)}})
    assert shown["pixels"][60, 170].tolist() == [0, 0, 255]
    assert plain["pixels"][60, 170].tolist() == [255, 255, 255]
    hidden, _ = env.reset(options={"state": START, "goal_image": plain["goal"], "variations": {"goal_visible": True}})
    np.testing.assert_array_equal(hidden["pixels"], plain["pixels"])  # where it is is not known


def test_light_dims_every_colour() -> None:
    env = TwoRoomEnv()
    plain, _ = env.reset(options={"state": START})
    dim, _ = env.reset(options={"state": START, "variations": {"light_intensity": 0.5}})
    np.testing.assert_allclose(dim["pixels"], plain["pixels"] / 2, atol=1)


def test_quantities_are_the_position() -> None:
    assert TwoRoomEnv().quantities(START)["agent_position"].tolist() == START.tolist()


def test_the_reference_rules_are_those_of_stable_worldmodel() -> None:
    reference("utils", "loguru")  # which its spaces look for in the package
    theirs = reference("envs.two_room.env", "loguru").TwoRoomEnv(render_mode="rgb_array")
    ours = TwoRoomEnv(reference_rules=True, terminate_on_success=False)
    theirs.reset(seed=0)
    rng = np.random.default_rng(0)
    for episode in range(40):
        goal, start = ours._sample_state(rng), ours._sample_state(rng)
        if episode % 2:
            start = np.array([rng.choice([96.0, 128.0]), rng.uniform(25, 75)])  # beside the door
        ours.reset(options={"state": start, "goal_state": goal})
        theirs._set_state(start), theirs._set_goal_state(goal)
        for _ in range(40):
            action = np.clip(rng.normal(0, 0.8, 2), -1, 1).astype(np.float32)
            obs, *_, info = ours.step(action)
            _, _, success, _, their_info = theirs.step(action)
            np.testing.assert_allclose(info["state"], their_info["state"], atol=1e-3)
            assert bool(success) is info["is_success"]
        assert np.abs(obs["pixels"].astype(int) - theirs.render()).max() <= 2


@pytest.mark.slow
def test_stepping_and_rendering_is_fast() -> None:
    env = TwoRoomEnv(terminate_on_success=False)
    env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (1_000, 2)).astype(np.float32)
    best = 0.0
    for _ in range(5):
        begun = time.process_time()
        for action in actions:
            env.step(action)
        best = max(best, len(actions) / (time.process_time() - begun))
    assert best > 6_000
