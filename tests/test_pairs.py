"""Evaluation pairs: exact on disk, exact in the environment, held out, unsolved, balanced."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from collect.collector import RESERVED_SEED
from collect.episodes import make_env
from collect.pairs import make_pairs
from lewm_gym.pairs import PairSet, load_shipped
from lewm_gym.tasks import TASKS

SHIPPED = [(name, offset) for name in TASKS for offset in TASKS[name].goal_offsets]


def load(name, offset):
    try:
        return load_shipped(name, offset)
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def pairs():
    return make_pairs("two_room", 25, count=9)


@pytest.mark.parametrize(("name", "offset"), SHIPPED)
def test_shipped_pairs_are_held_out_unsolved_and_of_different_episodes(name, offset):
    pairs, env = load(name, offset), make_env(name)
    assert len(pairs.pairs) >= 200
    assert pairs.seed == RESERVED_SEED and all(pair.seed == RESERVED_SEED for pair in pairs.pairs)
    assert len({pair.episode for pair in pairs.pairs}) == len(pairs.pairs)
    for pair in pairs.pairs:
        assert not env.is_goal(pair.start_state, pair.goal_state)


@pytest.mark.parametrize(("name", "offset"), SHIPPED)
def test_shipped_pairs_replay_exactly(name, offset):
    pairs, env = load(name, offset), make_env(name)
    blank = np.zeros((224, 224, 3), np.uint8)
    env.render_state = lambda state: blank
    for pair in pairs.pairs[:: 1 if name == "two_room" else 20]:
        _, info = env.reset(options={"state": pair.start_state, "goal_state": pair.goal_state})
        assert not info["is_success"]
        for action in pair.actions:
            info = env.step(action)[4]
        np.testing.assert_array_equal(info["state"], pair.goal_state)
        assert info["is_success"]


@pytest.mark.parametrize("offset", [25, 50, 75])
def test_a_quarter_of_two_rooms_pairs_lie_in_opposite_rooms(offset):
    pairs = load_shipped("two_room", offset).pairs
    opposite = [(p.start_state[0] <= 100) != (p.goal_state[0] <= 100) for p in pairs]
    outside = [not (100 < x < 124) for p in pairs for x in (p.start_state[0], p.goal_state[0])]
    both = np.array(opposite) & np.array(outside).reshape(-1, 2).all(1)
    assert both.mean() >= 0.25


def test_pairs_are_a_function_of_seed_and_number(pairs):
    again = make_pairs("two_room", 25, count=5)
    for one, two in zip(pairs.pairs, again.pairs, strict=False):
        np.testing.assert_array_equal(one.actions, two.actions)
    shipped = load_shipped("two_room", 25).pairs[:9]
    assert [(p.episode, p.start_step) for p in shipped] == [(p.episode, p.start_step) for p in pairs.pairs]


def test_numbers_are_exact_on_disk(pairs, tmp_path):
    pairs.save(tmp_path / "pairs.json")
    read = PairSet.load(tmp_path / "pairs.json")
    assert read.content_hash == pairs.content_hash
    for one, two in zip(pairs.pairs, read.pairs, strict=True):
        for name in ("start_state", "goal_state", "actions"):
            first, second = getattr(one, name), getattr(two, name)
            assert first.dtype == second.dtype
            np.testing.assert_array_equal(first, second)
        assert (one.episode, one.start_step, one.seed) == (two.episode, two.start_step, two.seed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["pairs"][0]["start_state"].append(1.0), "pair 0: start_state must be"),
        (lambda record: record["pairs"][2]["actions"].pop(), r"pair 2: actions must be finite and of shape \(25, 2\)"),
        (lambda record: record["pairs"][1]["actions"][3].__setitem__(0, 2.0), "pair 1: actions must lie within"),
        (lambda record: record["pairs"][1]["goal_state"].__setitem__(0, float("nan")), "is not valid JSON"),
        (lambda record: record["pairs"][1]["goal_state"].__setitem__(0, 30.0), "was modified after it was written"),
        (lambda record: record.update(task="chess"), "unknown task 'chess'"),
        (lambda record: record.update(schema=2), "schema 2"),
        (lambda record: record.update(kind="else"), "not a file of evaluation pairs"),
        (lambda record: record.pop("policy"), "'policy' is missing"),
        (lambda record: record.update(pairs=[]), "at least one pair"),
    ],
)
def test_damaged_pair_files_are_refused(pairs, tmp_path, change, message):
    path = tmp_path / "pairs.json"
    pairs.save(path)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message) as caught:
        PairSet.load(path)
    assert str(path) in str(caught.value)


def test_a_distance_that_does_not_ship_is_named():
    with pytest.raises(ValueError, match="no evaluation pairs of two_room ship at 30 steps.*25, 50, 75.*collect pairs"):
        load_shipped("two_room", 30)
    with pytest.raises(ValueError, match="unknown task"):
        load_shipped("chess", 25)


def test_episodes_too_short_for_the_distance_are_named():
    with pytest.raises(ValueError, match="in a row have no unsolved pair 150 steps apart"):
        make_pairs("two_room", 150, count=1)
    with pytest.raises(ValueError, match="count must be at least 1"):
        make_pairs("two_room", 25, count=0)


def test_a_set_must_fit_its_distance(pairs):
    with pytest.raises(ValueError, match="actions must be finite and of shape"):
        replace(pairs, offset_steps=24)
