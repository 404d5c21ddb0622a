"""Phases: what lies between start and goal, said by the task, kept with the pairs, reported with the results."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_benchmarks_plan import Seeker, a_run
from test_results import make_result
from tiny import measure

from benchmarks.evaluation.protocols import make_job
from benchmarks.evaluation.run import Plan, summary
from collect.__main__ import main
from collect.episodes import make_env
from collect.pairs import make_pairs, with_phases
from lewm_gym.pairs import PairSet, load_shipped, shipped_suites
from lewm_gym.results import Result
from lewm_gym.tasks import TASKS

needs_mujoco = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("mujoco", "dm_control", "ogbench"))),
    reason='needs pip install "lewm-gym[mujoco]"',
)
SUITES = [
    (name, policy, offset) for name in TASKS for policy, offsets in shipped_suites(name).items() for offset in offsets
]


@pytest.mark.parametrize(
    ("start", "goal", "phase"),
    [((30, 100), (90, 200), "same room"), ((30, 100), (150, 50), "other room"), ((110, 49), (111, 60), "same room")],
)
def test_two_rooms_phase_is_the_room(start, goal, phase):
    env = make_env("two_room")
    assert env.phase(np.array([start, goal], float)) == phase
    env.reset(seed=0, options={"variations": {"wall_axis": "horizontal"}})
    assert env.phase(np.array([start[::-1], goal[::-1]], float)) == phase


def test_pushts_phase_is_whether_the_disc_moves_the_block():
    env = make_env("pusht")
    env.draw_observations = False
    state = np.array([100.0, 300.0, 250.0, 250.0, 6.28, *[0.0] * 5])  # the bar's left end is at 190, its edges 250, 280
    for start, phase in (((100.0, 400.0), "free"), ((160.0, 265.0), "contact")):
        state[:2] = start
        states = [env.reset(options={"state": state})[1]["state"]]
        states += [env.step(np.array([0.5, 0.0], np.float32))[-1]["state"] for _ in range(5)]
        assert env.phase(np.stack(states)) == phase
    turned = np.stack([state, state])
    turned[1, 4] += 2 * np.pi
    assert env.phase(turned) == "free"  # the same pose


@needs_mujoco
@pytest.mark.parametrize(
    ("turn", "phase"),
    [
        ((0.3, -0.9), "under 60 degrees"),
        ((1.5, 0.0), "60 to 120 degrees"),
        ((0.0, -2.2), "over 120 degrees"),
        ((2 * np.pi - 0.1, 0.2), "under 60 degrees"),
    ],
)
def test_reachers_phase_is_how_far_the_arm_must_turn(turn, phase):
    start = np.array([1.0, 0.4, 3.0, 3.0, 0.0, 0.0])
    assert make_env("reacher").phase(np.stack([start, start + [*turn, 0, 0, 0, 0]])) == phase


@needs_mujoco
def test_cubes_phase_is_what_the_hand_holds():
    from collect.policies.cube import MarkovPolicy
    from envs.cube.simulation import CUBE_POSITION

    env, policy = make_env("cube"), MarkovPolicy(noise=0.0)
    env.draw_observations = False
    _, info = policy.begin(env, np.random.default_rng(3))
    states = [info["state"]]
    for _ in range(60):
        states.append(env.step(policy.act({"state": states[-1]}))[-1]["state"])
    heights = np.array([state[CUBE_POSITION][2] for state in states])
    lifted, high = int(np.argmax(heights > 0.06)), int(np.argmax(heights))
    assert lifted > 0
    assert env.phase(np.stack([states[0], states[high]])) == "empty hand"
    assert env.phase(np.stack(states[lifted : high + 10])) == "in hand"
    assert env.phase(np.stack(states[:3])) == "arm only"


@pytest.fixture(scope="module")
def pairs():
    return make_pairs("two_room", 25, count=8)


def without_phases(pair_set: PairSet) -> PairSet:
    return replace(pair_set, pairs=tuple(replace(pair, phase=None) for pair in pair_set.pairs))


def test_new_pairs_have_phases_and_older_files_get_them(pairs, tmp_path, capsys):
    assert {pair.phase for pair in pairs.pairs} == {"same room", "other room"}
    older, path = without_phases(pairs), tmp_path / "pairs.json"
    assert older.content_hash == pairs.content_hash
    older.save(path)
    assert "phase" not in path.read_text()
    assert {pair.phase for pair in PairSet.load(path).pairs} == {None}
    assert [p.phase for p in with_phases(older).pairs] == [p.phase for p in pairs.pairs]
    assert main(["phases", str(path)]) == 0
    assert "same room" in capsys.readouterr().out
    pairs.save(tmp_path / "new.json")
    assert path.read_bytes() == (tmp_path / "new.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows[3].update(phase="in hand"),
            "pair 3: phase must be one of 'same room', 'other room', got 'in",
        ),
        (lambda rows: rows[3].pop("phase"), "1 of 8 pairs have no phase"),
    ],
)
def test_wrong_phases_are_refused(pairs, tmp_path, change, message):
    pairs.save(tmp_path / "pairs.json")
    record = json.loads((tmp_path / "pairs.json").read_text())
    change(record["pairs"])
    (tmp_path / "pairs.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        PairSet.load(tmp_path / "pairs.json")


def test_results_have_rates_by_phase_and_print_them(pairs, tmp_path):
    result = measure(a_run(tmp_path / "run"), agent=Seeker(), pairs=pairs, out=tmp_path / "r.json", n_envs=4)
    by_phase = result.by_phase()
    assert list(by_phase) == ["same room", "other room"]
    assert sum(rates["agent"]["success"].episodes for rates in by_phase.values()) == 8
    rooms = [pair.phase for pair in pairs.pairs]
    for phase, rates in by_phase.items():
        assert rates["agent"]["success"].successes == sum(
            o.success for o, room in zip(result.outcomes, rooms, strict=True) if room == phase
        )
        assert rates["random"]["success"].episodes == rates["replay"]["success"].episodes == rooms.count(phase)
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["rates_by_phase"]["other room"]["agent"]["success"]["episodes"] == rooms.count("other room")
    assert Result.load(tmp_path / "r.json") == result
    assert "    same room" in summary(result) and "random" in summary(result)
    data["rates_by_phase"]["other room"]["agent"]["success"]["successes"] += 1
    (tmp_path / "r.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="contradicts itself"):
        Result.load(tmp_path / "r.json")


def test_pairs_without_phases_are_measured_and_said_so(pairs, tmp_path):
    older = without_phases(pairs)
    result = measure(a_run(tmp_path / "run"), agent=Seeker(), pairs=older, out=tmp_path / "r.json", n_envs=4)
    assert result.by_phase() == {} and "rates_by_phase" not in (tmp_path / "r.json").read_text()
    assert "phases   unknown" in summary(result)
    with pytest.raises(ValueError, match="1 phases do not fit 10 outcomes"):
        make_result(pairs={"phases": ["same room"]})


@pytest.mark.parametrize(("name", "policy", "offset"), SUITES)
def test_shipped_pairs_have_phases_of_more_than_one_kind(name, policy, offset):
    pairs = load_shipped(name, offset, policy).pairs
    phases = {pair.phase for pair in pairs}
    assert len(phases) > 1 and phases <= set(TASKS[name].phases)
    if importlib.util.find_spec("mujoco") is None and TASKS[name].extra:
        return
    env = make_env(name)
    if name != "pusht":  # where the states between tell
        for pair in pairs[::5]:
            assert env.phase(np.stack([pair.start_state, pair.goal_state])) == pair.phase


def test_cube_has_a_second_suite_of_its_former_pairs():
    assert set(shipped_suites("cube")) == {None, "markov"}
    hashes = {o: load_shipped("cube", o, "markov").content_hash for o in (25, 50, 75, 100)}
    assert hashes[25] == "642bee5dd628df95fc5739c43a9a9c5c" and hashes[100] == "f13d820476f2e48dafd59d1dc8348842"
    assert load_shipped("cube", 25).policy == "plan" and load_shipped("cube", 25, "markov").policy == "markov"
    with pytest.raises(
        ValueError, match="no evaluation pairs of cube from policy 'other' ship; there are suites of: mark"
    ):
        load_shipped("cube", 25, "other")
    with pytest.raises(ValueError, match="cube-markov ship at 30 steps"):
        load_shipped("cube", 30, "markov")


@needs_mujoco
def test_another_suite_is_chosen_by_its_name_and_named_in_the_result(tmp_path, monkeypatch):
    run = a_run(tmp_path / "run", task="cube")

    def asked(**options):
        plan = Plan(run=run, n_pairs=2, **options)
        job = make_job(run, {"task": "cube"}, plan)
        return job, plan.default_path(job).name

    (job, name), (own, own_name) = asked(pairs=Path("markov")), asked()
    assert job.source["source"] == "shipped, markov"
    assert job.source["hash"] == load_shipped("cube", 25, "markov").content_hash
    assert (name, own_name) == (f"{run.name}-markov-25-2pairs-seed0.json", f"{run.name}-25-2pairs-seed0.json")
    assert own.source["source"] == "shipped" and own.source["hash"] != job.source["hash"]
    with pytest.raises(ValueError, match="suites of: markov"):
        asked(pairs=Path("other"))
