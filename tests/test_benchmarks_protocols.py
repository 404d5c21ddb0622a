"""The protocols: strict success, worker processes, frames drawn, and starts and goals as published or drawn anew."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from test_benchmarks_plan import PAIRS, Seeker, a_run
from tiny import measure

from agents.random import RandomAgent
from benchmarks.__main__ import main
from benchmarks.evaluation import protocols as official
from benchmarks.evaluation.envs import Environments, Settings, View
from benchmarks.evaluation.evaluate import HOLD_STEPS, _Attempt, evaluate
from envs.cube.simulation import cube_turn
from envs.two_room import TwoRoomEnv
from lewm_gym.data.dataset import Dataset
from lewm_gym.results import Outcome
from lewm_gym.tasks import get_task


def test_strict_success_is_five_strict_steps_in_a_row_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    budget, seen = 12, set()
    for _ in range(2000):
        strict = rng.random(budget) < rng.choice([0.0, 0.3, 0.8, 0.95])
        success = strict | (rng.random(budget) < 0.05)
        attempt = _Attempt(7, View(None, None, False, False), np.empty(0, np.uint8))
        how = Settings(budget)
        for step in range(1, budget + 1):
            attempt.note(View(None, None, bool(success[step - 1]), bool(strict[step - 1])), step)
            if attempt.is_over(step, how):
                break
        held = any(strict[i : i + HOLD_STEPS].all() for i in range(budget - HOLD_STEPS + 1))
        first = int(np.argmax(success)) + 1 if success.any() else None
        assert attempt.outcome(how) == Outcome(7, bool(success.any()), first, held)
        assert how.strict and attempt.outcome(replace(how, strict=False)).strict is None
        seen.add((bool(success.any()), held, step < budget))
    assert len(seen) == 5  # failures last the whole budget; the others end early or do not


def test_judging_strictly_changes_no_success() -> None:
    strict = evaluate(Seeker(), "two_room", PAIRS)
    plain = evaluate(Seeker(), "two_room", PAIRS, strict=False)
    assert [replace(outcome, strict=None) for outcome in strict] == list(plain)
    assert {outcome.strict for outcome in strict if outcome.success} == {True, False}  # otherwise this shows little


def test_a_cubes_turn_is_the_smallest_over_its_24_rotations() -> None:
    def matrix(q: np.ndarray) -> np.ndarray:
        w, v = q[0], q[1:]
        cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
        return (w * w - v @ v) * np.eye(3) + 2 * np.outer(v, v) + 2 * w * cross

    signed = [
        np.array(s)[:, None] * np.eye(3)[list(p)]
        for p in itertools.permutations(range(3))
        for s in itertools.product((1, -1), repeat=3)
    ]
    turns = [turn for turn in signed if np.linalg.det(turn) > 0]
    assert len(turns) == 24
    rng = np.random.default_rng(1)
    for _ in range(200):
        one, other = (q / np.linalg.norm(q) for q in rng.normal(size=(2, 4)))
        between = matrix(one).T @ matrix(other)
        angles = [np.arccos(np.clip((np.trace(between @ turn) - 1) / 2, -1, 1)) for turn in turns]
        assert cube_turn(one, other) == pytest.approx(min(angles), abs=1e-6)


def test_outcomes_are_the_same_for_any_number_of_workers() -> None:
    alone = evaluate(Seeker(), "two_room", PAIRS, n_envs=4)
    assert evaluate(Seeker(), "two_room", PAIRS, n_envs=4, workers=3) == alone


def test_planning_agents_outcomes_are_the_same_in_worker_processes() -> None:
    agent = tiny.agent()
    alone = evaluate(agent, "two_room", PAIRS[:5], n_envs=1)
    assert evaluate(agent, "two_room", PAIRS[:5], n_envs=5, workers=2) == alone


def test_a_dead_worker_and_an_error_in_one_are_told() -> None:
    task = get_task("two_room")
    with Environments(task, 2, workers=2) as envs:
        with pytest.raises(ValueError, match="must be within"):
            envs.reset([replace(PAIRS[0], start_state=np.array([1e4, 0.0]))], [0], [False])
        assert envs.reset(PAIRS[:2], [0, 1], [True, False])[0].pixels.shape == (224, 224, 3)
        envs._workers[0].process.kill()
        with pytest.raises(ChildProcessError, match="process died.*fewer --workers"):
            envs.reset(PAIRS[:1], [0], [False])


class WithoutNeeds:
    """An agent that does not say which frames it needs."""

    def __init__(self, agent: Any) -> None:
        self.reset, self.act, self.select_envs = agent.reset, agent.act, agent.select_envs
        self.predict, self.share_rng, self.plans, self.proprioception = agent.predict, agent.share_rng, 0, False

    def needs_frame(self) -> None:
        return None


def test_only_frames_that_a_plan_starts_from_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, drawn = tiny.agent(), []
    everything = evaluate(WithoutNeeds(agent), "two_room", PAIRS[:4])
    draw = TwoRoomEnv.render_state
    monkeypatch.setattr(TwoRoomEnv, "render_state", lambda env, state: drawn.append(1) or draw(env, state))
    before = agent.plans
    assert evaluate(agent, "two_room", PAIRS[:4]) == everything
    plans = agent.plans - before
    assert len(drawn) == plans + len(everything)  # what each plan starts from, and each goal
    drawn.clear()
    evaluate(RandomAgent(2), "two_room", PAIRS[:4])
    assert not drawn


# official ------------------------------------------------------------------------------------------------------


def test_official_rows_are_drawn_as_published() -> None:
    lengths = np.array([30, 10, 100, 26, 27])
    valid = []
    row = 0
    for length in lengths:
        for step in range(length):
            if step <= length - 26:
                valid.append(row)
            row += 1
    assert len(valid) == 5 + 0 + 75 + 1 + 2
    expected = sorted(valid[i] for i in np.random.default_rng(42).choice(len(valid), 50, replace=False))
    assert official.draw_rows(lengths).tolist() == expected
    with pytest.raises(ValueError, match="83 rows lie 25 steps before the end .* fewer than the 84 .* collect more"):
        official.draw_rows(lengths, 84)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from collect.collector import collect

    folder = tmp_path_factory.mktemp("official") / "data"
    collect("two_room", folder, 4, workers=1)
    return folder


def trained_on(run: Path, dataset: Path, **changes: Any) -> Path:
    opened = Dataset.open(dataset)
    known = {"folder": str(dataset), "hash": opened.content_hash, "render_quality": "fast", "seed": 0}
    return a_run(run, dataset=known | changes)


def test_official_pairs_are_recorded_frames_and_outcomes_count_solved_starts(tmp_path: Path, dataset: Path) -> None:
    opened = Dataset.open(dataset)
    pairs = official.recorded_pairs(opened, 20)
    rows = official.draw_rows(opened.lengths, 20)
    for pair, row in zip(pairs, rows, strict=True):
        np.testing.assert_array_equal(pair.start_state, opened.states[row])
        np.testing.assert_array_equal(pair.goal_state, opened.states[row + 25])
        np.testing.assert_array_equal(pair.actions, opened.actions[row : row + 25])
        env = TwoRoomEnv()
        np.testing.assert_array_equal(pair.goal_image, env.reset(options={"goal_state": pair.goal_state})[0]["goal"])
    seeker = Seeker()
    run = trained_on(tmp_path / "run", dataset)
    result = measure(run, protocol="official", n_pairs=20, agent=seeker, out=tmp_path / "r.json", film=True)
    assert (result.protocol, result.offset_steps, result.budget_steps) == ("official", 25, 50)
    assert {outcome.strict for outcome in result.outcomes} == {None}
    assert result.rates()["replay"]["success"].rate >= 0.8  # inexact rules
    assert max(seeker.batches) == 20  # all at once: they share one random stream
    (tmp_path / "r.mp4").unlink()
    again = {"protocol": "official", "n_pairs": 20, "film": True, "overwrite": False, "out": tmp_path / "r.json"}
    assert measure(run, agent=Seeker(), **again) == result and (tmp_path / "r.mp4").is_file()


def test_official_random_stream_is_one_for_all_and_restarts_with_the_evaluation(tmp_path: Path, dataset: Path) -> None:
    pairs = official.recorded_pairs(Dataset.open(dataset), 4)
    agent = tiny.agent()
    how = {"shared_rng": True, "solved_starts": True, "strict": False, "budget_steps": 30}
    together = evaluate(agent, "two_room", pairs, **how)
    assert len({id(slot.generator) for slot in agent._controller.slots}) <= 1
    assert evaluate(agent, "two_room", pairs, **how) == together
    evaluate(agent, "two_room", pairs, solved_starts=True, budget_steps=1)
    assert len({id(slot.generator) for slot in agent._controller.slots}) == len(agent._controller.slots)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"hash": "0" * 32}, {}, "not the dataset that .* was trained on: its hash is"),
        ({"render_quality": "reference"}, {}, "its render quality is 'fast', not 'reference'"),
        ({"folder": "nowhere"}, {}, "no dataset in nowhere, .*--dataset FOLDER"),
        ({"folder": None}, {}, "does not say which dataset"),
        ({}, {"n_pairs": 10_000}, "fewer than the 10000 that are asked"),
        ({}, {"n_pairs": 0}, "--n-pairs must be at least 1"),
        ({}, {"budget": 60}, "official protocol's budget is 50, got --budget 60"),
        ({}, {"offset": (50,)}, "official protocol's distance is 25, got 50"),
        ({}, {"pairs": Path("x.json")}, "--pairs is for the heldout protocol"),
        ({}, {"protocol": "sloppy"}, "--protocol must be one of heldout, official, sampled"),
        ({}, {"protocol": "heldout", "dataset": "x"}, "--dataset is for the official protocol"),
        ({}, {"workers": 0}, "--workers must be at least 1, got 0"),
    ],
)
def test_official_misfits_are_refused(
    tmp_path: Path, dataset: Path, change: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    run = trained_on(tmp_path / "run", dataset, **change)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        measure(run, out=tmp_path / "r.json", **({"protocol": "official"} | arguments))
    assert not list(tmp_path.glob("r.json*"))


def test_dataset_of_another_task_is_refused(dataset: Path) -> None:
    with pytest.raises(ValueError, match="its task is 'two_room', not 'pusht'"):
        official.open_training_set(Path("run"), get_task("pusht"), {"folder": str(dataset)})


def test_killed_official_evaluation_begins_again(tmp_path: Path, dataset: Path) -> None:
    run = trained_on(tmp_path / "run", dataset)

    class Killed(Seeker):
        def act(self, obs: Any) -> Any:
            if len(self.batches) == 45:
                raise KeyboardInterrupt
            return super().act(obs)

    with pytest.raises(KeyboardInterrupt):
        measure(run, protocol="official", n_pairs=5, agent=Killed(), out=tmp_path / "r.json")
    again = Seeker()
    measure(run, protocol="official", n_pairs=5, agent=again, out=tmp_path / "r.json")
    assert set(again.batches) == {5}


def test_several_distances_leave_a_result_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(run), "--offset", "25", "50", "--n-pairs", "1", "--workers", "1"]) == 0
    found = [json.loads(path.read_text()) for path in sorted((tmp_path / "results").glob("*.json"))]
    assert [(one["offset_steps"], one["budget_steps"]) for one in found] == [(25, 50), (50, 100)]
    with pytest.raises(ValueError, match="--out names one result"):
        main(["plan", str(run), "--offset", "25", "50", "--out", "x.json"])


def test_stricter_than_success_is_contradictory() -> None:
    with pytest.raises(ValueError, match="strict success without success"):
        Outcome(0, False, None, True)
