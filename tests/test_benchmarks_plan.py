"""Planning success: the protocol, its independence of batching, and evaluations that are killed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny import measure

from agents.random import RandomAgent
from benchmarks.__main__ import main
from benchmarks.evaluation.envs import Rules
from benchmarks.evaluation.evaluate import evaluate
from benchmarks.evaluation.protocols import Asked, make_job
from benchmarks.evaluation.run import Session
from benchmarks.evaluation.runs import load_description, read_curves
from lewm_gym.files import exclusive
from lewm_gym.pairs import Pair, PairSet, load_shipped, stream_seed
from lewm_gym.results import Result

PAIRS = load_shipped("two_room", 25).pairs[:10]


class Seeker:
    """Walks from its dot towards the goal's, with noise from a random stream of each environment's own."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self._streams: list[np.random.Generator] = []

    def reset(self, seeds: list[int] | None = None) -> None:
        assert seeds is not None
        self._streams = [np.random.default_rng(seed) for seed in seeds]

    def act(self, obs: Any) -> NDArray[np.float32]:
        assert len(obs["pixels"]) == len(self._streams)
        self.batches.append(len(self._streams))
        noise = np.stack([stream.normal(0.0, 1.0, 2) for stream in self._streams])
        way = np.stack([_dot(goal) - _dot(now) for now, goal in zip(obs["pixels"], obs["goal"], strict=True)])
        return np.clip(0.006 * way + noise, -1, 1).astype(np.float32)

    def predict(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("benchmarks call act")


class KeepingSeeker(Seeker):
    proprioception, plans = False, 0

    def select_envs(self, rows: list[int]) -> None:
        self._streams = [self._streams[row] for row in rows]

    def needs_frame(self) -> None:
        return None

    def share_rng(self) -> None:
        raise AssertionError("nothing is shared here")


class Replay(Seeker):
    """Takes the recorded actions of the pair whose stream it was given."""

    def __init__(self, pairs: Any, seed: int = 0) -> None:
        self._recorded = {stream_seed(seed, i): pair.actions for i, pair in enumerate(pairs)}

    def reset(self, seeds: list[int] | None = None) -> None:
        self._plans = [list(self._recorded[seed]) for seed in seeds or []]

    def act(self, obs: Any) -> NDArray[np.float32]:
        rest = np.zeros(2, np.float32)
        return np.stack([plan.pop(0) if plan else rest for plan in self._plans])


def _dot(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    red = picture[..., 0].astype(float) - picture[..., 1]
    rows, columns = np.indices(red.shape)
    return np.array([(columns * red).sum(), (rows * red).sum()]) / red.sum()


def a_run(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    description = {"schema": 1, "agent": "random", "task": "two_room", "training": {"seed": 0}} | changes
    (folder / "run.json").write_text(json.dumps(description))
    rows = [{"step": s, "loss": 1 / s, "seconds": s / 10} for s in range(1, 21)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_outcomes_do_not_depend_on_how_many_environments_run_at_once() -> None:
    outcomes = evaluate(Seeker(), "two_room", PAIRS, n_envs=1)
    assert 0 < sum(outcome.success for outcome in outcomes) < len(PAIRS)  # otherwise this shows nothing
    for n_envs in (3, len(PAIRS)):
        assert evaluate(Seeker(), "two_room", PAIRS, n_envs=n_envs) == outcomes
    some = [9, 2, 5]
    assert evaluate(Seeker(), "two_room", PAIRS, indices=some) == tuple(outcomes[i] for i in some)


def test_agent_that_can_drop_finished_environments_is_fed_the_others_only() -> None:
    keeping, feeding = KeepingSeeker(), Seeker()
    assert evaluate(keeping, "two_room", PAIRS) == evaluate(feeding, "two_room", PAIRS)
    assert set(feeding.batches) == {len(PAIRS)}
    assert sum(keeping.batches) < sum(feeding.batches)


def test_replaying_the_recorded_actions_always_succeeds_and_random_ones_rarely() -> None:
    oracle = evaluate(Replay(PAIRS), "two_room", PAIRS, n_envs=5)
    assert all(outcome.success and 1 <= outcome.steps <= 25 for outcome in oracle if outcome.steps)
    assert sum(outcome.success for outcome in oracle) == len(PAIRS)
    random = evaluate(RandomAgent(2), "two_room", PAIRS)
    assert sum(outcome.success for outcome in random) < len(PAIRS) / 2


def test_random_floor_does_not_depend_on_batching_either() -> None:
    few = evaluate(RandomAgent(2), "two_room", PAIRS, n_envs=2, budget_steps=150)
    assert any(outcome.success for outcome in few)
    assert evaluate(RandomAgent(2), "two_room", PAIRS, n_envs=10, budget_steps=150) == few


def test_budget_and_seed_change_outcomes() -> None:
    full = evaluate(Seeker(), "two_room", PAIRS)
    steps = [outcome.steps for outcome in full if outcome.steps]
    short = evaluate(Seeker(), "two_room", PAIRS, budget_steps=max(steps) - 1)
    assert sum(o.success for o in short) < len(steps)
    exact = evaluate(Seeker(), "two_room", PAIRS, budget_steps=max(steps))
    assert sum(o.success for o in exact) == len(steps)  # success at the last step of the budget counts
    assert evaluate(Seeker(), "two_room", PAIRS, seed=1) != full


def test_an_agent_is_told_the_steps_left_only_if_that_is_asked() -> None:
    class Told(Seeker):
        def act(self, obs: Any, **told: Any) -> NDArray[np.float32]:
            heard.append(told)
            return super().act(obs)

    heard: list[dict[str, Any]] = []
    evaluate(Told(), "two_room", PAIRS[:2], budget_steps=4, steps_left=3, strict=False)
    assert heard == [{"steps_left": 3}, {"steps_left": 2}, {"steps_left": 1}, {"steps_left": 1}]
    heard.clear()
    evaluate(Told(), "two_room", PAIRS[:2], budget_steps=2, strict=False)
    assert heard == [{}, {}]


def test_streams_of_pairs_and_seeds_differ() -> None:
    seeds = {stream_seed(seed, index) for seed in range(10) for index in range(200)}
    assert len(seeds) == 2000 and max(seeds) < 2**63


def test_pair_that_is_solved_at_its_start_is_refused_before_any_plan() -> None:
    solved = replace(PAIRS[5], goal_state=PAIRS[5].start_state)
    agent = Seeker()
    with pytest.raises(ValueError, match=r"1 of 10 pairs are solved at the start \(the first is pair 5\)"):
        evaluate(agent, "two_room", [*PAIRS[:5], solved, *PAIRS[6:]], n_envs=1)
    assert not agent.batches


def test_actions_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(10, 2\), got \(10, 3\)"):
        evaluate(RandomAgent(3), "two_room", PAIRS)


class Killed(KeepingSeeker):
    def act(self, obs: Any) -> NDArray[np.float32]:
        if len(self.batches) == 60:
            raise KeyboardInterrupt
        return super().act(obs)


@pytest.fixture
def pair_set() -> PairSet:
    return PairSet("two_room", 25, tuple(PAIRS), seed=123, policy="test")


def test_killed_evaluation_resumes_to_the_result_of_an_undisturbed_one(tmp_path: Path, pair_set: PairSet) -> None:
    run = a_run(tmp_path / "run")
    whole = measure(run, pairs=pair_set, agent=Seeker(), out=tmp_path / "whole.json")
    with pytest.raises(KeyboardInterrupt):
        measure(run, pairs=pair_set, agent=Killed(), n_envs=4, out=tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()
    partial = tmp_path / "r.json.partial"
    partial.write_text(partial.read_text()[:-20])  # the kill cut the last line off
    known = sum('"agent"' in line for line in partial.read_text().splitlines()[:-1])
    assert 0 < known < len(PAIRS)
    again, stages = KeepingSeeker(), []
    result = measure(
        run, pairs=pair_set, agent=again, n_envs=4, out=tmp_path / "r.json", progress=lambda *s: stages.append(s)
    )
    assert (result.outcomes, result.random) == (whole.outcomes, whole.random)
    assert Result.load(tmp_path / "r.json") == result
    assert not partial.exists()
    planning = [done for stage, done, total in stages if stage == "planning"]
    assert planning[0] == known and planning[-1] == len(PAIRS)


def test_log_of_another_question_is_not_resumed(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")

    def session(**asked: Any) -> Session:
        return Session(
            make_job(run, load_description(run), Asked(n_pairs=3, workers=1, **asked)), tmp_path / "r", "w", None
        )

    first = session()
    outcomes = first.outcomes("random", RandomAgent(2))
    again = session()
    assert again.started == first.started and again.outcomes("random", None) == outcomes  # nobody needs to act
    assert again.totals()[0] > 0
    with pytest.raises(AttributeError):
        session(seed=1).outcomes("random", None)


def test_a_result_is_never_written_over_by_that_of_another_question(tmp_path: Path, monkeypatch: Any) -> None:
    run, out = a_run(tmp_path / "run"), tmp_path / "r.json"
    asked = {"n_pairs": 2, "out": out, "overwrite": False}
    first = measure(run, **asked)
    kept = out.read_bytes()
    for other in ({"n_pairs": 3}, {"seed": 1}, {"budget": 7}, {"offset": (50,)}, {"strict": False}):
        with pytest.raises(ValueError, match="holds the result of another question.*--overwrite"):
            measure(run, **asked | other)
        assert out.read_bytes() == kept
    monkeypatch.setattr("benchmarks.evaluation.run.evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    assert measure(run, **asked) == first
    monkeypatch.undo()
    assert len(measure(run, **asked | {"n_pairs": 3, "overwrite": True}).outcomes) == 3


def test_a_second_process_with_the_same_question_is_refused_in_one_line(tmp_path: Path) -> None:
    run, out = a_run(tmp_path / "run"), tmp_path / "r.json"
    for path in (out, out.with_suffix(".mp4")):
        path.with_name(f".{path.name}.0123.tmp{path.suffix}").write_bytes(b"of a killed process")
    with exclusive(out), pytest.raises(ValueError, match=r"r.json is being written by another process \(pid \d+\)"):
        measure(run, n_pairs=2, out=out)
    assert not out.exists()
    measure(run, n_pairs=2, out=out)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "r.json"}  # neither lock nor leftovers


def test_what_another_process_has_measured_meanwhile_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = a_run(tmp_path / "run"), {"n_pairs": 2, "overwrite": False}
    first = measure(run, out=tmp_path / "first.json", **asked)

    @contextlib.contextmanager
    def finish_before(path: Path) -> Iterator[None]:
        (tmp_path / "first.json").rename(path)
        yield

    monkeypatch.setattr("benchmarks.evaluation.run.exclusive", finish_before)
    monkeypatch.setattr("benchmarks.evaluation.run.evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    assert measure(run, out=tmp_path / "r.json", **asked) == first


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0], b"\xff\xfe", *lines[2:]],
        lambda lines: [lines[0], b'{"who": 3}', *lines[2:]],
        lambda lines: [lines[0], lines[1].replace(b'"pair": 0', b'"pair": []'), *lines[2:]],
        lambda lines: [lines[0], lines[1].replace(b'"seconds": ', b'"seconds": 1e999'), *lines[2:]],
        lambda lines: [b"[" * 5000, *lines[1:]],
        lambda lines: [b"null", *lines[1:]],
        lambda lines: lines[1:],
    ],
)
def test_a_damaged_log_of_outcomes_is_gone_on_from_before_the_damage(tmp_path: Path, damage: Any) -> None:
    run = a_run(tmp_path / "run")
    whole = measure(run, n_pairs=3, out=tmp_path / "whole.json")
    asked = Asked(n_pairs=3, workers=1)
    session = Session(make_job(run, load_description(run), asked), tmp_path / "r.json", whole.run["weights"], None)
    session.outcomes("random", RandomAgent(2))
    partial = tmp_path / "r.json.partial"
    partial.write_bytes(b"\n".join(damage(partial.read_bytes().splitlines())) + b"\n")
    assert measure(run, n_pairs=3, out=tmp_path / "r.json").outcomes == whole.outcomes
    assert not partial.exists()


def test_results_of_different_questions_have_different_names(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    for other in (
        {},
        {"n_pairs": 1},
        {"seed": 1, "n_pairs": 2},
        {"budget": 7, "n_pairs": 1},
        {"strict": False, "n_pairs": 1},
    ):
        measure(run, **{"n_pairs": 2, **other} if other else {"n_pairs": 3})
    assert len(list(Path("results").glob("run-25-*.json"))) == 5


def test_result_says_what_made_it(tmp_path: Path, pair_set: PairSet) -> None:
    run = a_run(tmp_path / "run", preset="laptop")
    result = measure(run, pairs=pair_set, n_pairs=6, seed=2, out=tmp_path / "r.json")
    assert result.agent == "random" and [o.pair for o in result.outcomes] == list(range(6))
    assert result.outcomes == result.random  # the random policy is its own baseline
    assert result.budget_steps == 50 and result.pairs["hash"] == pair_set.content_hash
    assert result.run["steps"] == 20 and result.run["curves"]["loss"]["value"][0] == 1.0
    assert result.run["description"]["preset"] == "laptop" and len(result.run["weights"]) == 64
    assert result.timing["act_seconds"] > 0 and result.film is None


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, {"n_pairs": 11}, "--n-pairs must be within 1 and 10, got 11"),
        ({}, {"n_pairs": 0}, "--n-pairs must be at least 1, got 0"),
        ({}, {"n_envs": 0}, "--n-envs must be at least 1, got 0"),
        ({}, {"budget": 0}, "--budget must be at least 1, got 0"),
        ({}, {"workers": 10**9}, "--workers must be at most 1024, got 1000000000"),
        ({}, {"seed": -1}, "--seed must not be negative, got -1"),
        ({}, {"seed": 2**70}, "--seed must fit into 64 bits, got 1180591620717411303424"),
        ({}, {"steps_left": 0}, "--steps-left must be at least 1, got 0"),
        ({}, {"steps_left": 25}, "--steps-left is for agents with an actor"),
        ({"task": "gym:Pendulum-v1"}, {}, "'gym:Pendulum-v1', which is none of the tasks .*load_agent"),
        ({"finished": False}, {}, "not finished"),
        ({"dataset": {"seed": 123}}, {}, "pairs come from seed 123, on which"),
    ],
)
def test_misfits_are_refused(
    tmp_path: Path, pair_set: PairSet, change: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    run = a_run(tmp_path / "run", **change)
    with pytest.raises(ValueError, match=message):
        measure(run, pairs=pair_set, out=tmp_path / "r.json", **arguments)
    assert not list(tmp_path.glob("r.json*"))


@pytest.mark.parametrize("option", [("--n-envs", "0"), ("--budget", "0"), ("--seed", "-1"), ("--n-pairs", "0")])
def test_wrong_numbers_are_refused_before_anything_is_loaded_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: tuple[str, str]
) -> None:
    monkeypatch.setattr("benchmarks.evaluation.run.load_agent", lambda *_: pytest.fail("the agent was loaded"))
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "run")
    with pytest.raises(ValueError, match=f"^{option[0]} must .*, got {option[1]}$"):
        main(["plan", "run", *option])
    assert not (tmp_path / "results").exists()


def test_pairs_of_another_task_are_refused(tmp_path: Path) -> None:
    class OfAnotherTask:
        task, offset_steps, seed, content_hash = "pusht", 25, 0, "x"
        pairs: tuple[Pair, ...] = tuple(PAIRS)

    with pytest.raises(ValueError, match="pairs are of task 'pusht', but .* was trained on 'two_room'"):
        measure(a_run(tmp_path / "run"), pairs=OfAnotherTask(), out=tmp_path / "r.json")


def test_curves_are_thinned_by_averaging() -> None:
    rows = [{"step": s, "loss": float(s % 2), "note": "x", "ok": True} for s in range(1000)]
    rows[500]["validation_loss"] = 3.0
    curves = read_curves(rows, points=10)
    assert set(curves) == {"loss", "validation_loss"}
    assert curves["loss"]["value"] == [0.5] * 10 and curves["loss"]["step"][0] == 49.5
    assert curves["validation_loss"] == {"step": [500.0], "value": [3.0]}


def test_command_line_measures_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run")
    out = tmp_path / "results" / "r.json"
    assert main(["plan", str(run), "--n-pairs", "5", "--n-envs", "2", "--out", str(out)]) == 0
    success = Result.load(out).success
    printed = capsys.readouterr().out
    assert f"success  {success}" in printed and "random   " in printed and "Wilson 95 %" in printed
    assert main(["report", str(out.parent)]) == 0
    assert {path.name for path in out.parent.iterdir()} == {"r.json", "report.html", "report.md"}


@pytest.mark.parametrize("arguments", [["plan", "nowhere"], ["report", "nowhere"], ["nonsense"]])
def test_command_line_errors_are_one_line_and_status_2(tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_importing_benchmarks_loads_neither_torch_nor_a_simulator() -> None:
    modules = "benchmarks, benchmarks.__main__, benchmarks.registry, agents.random"
    code = f"import sys, {modules}; print({{'torch', 'pymunk', 'mujoco', 'envs'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_environments_draw_as_they_are_told_to():
    with pytest.raises(ValueError, match="render_quality must be one of"):
        evaluate(RandomAgent(2), "two_room", PAIRS, rules=Rules("blurred"))
    assert evaluate(RandomAgent(2), "two_room", PAIRS, rules=Rules("fast")) == evaluate(
        RandomAgent(2), "two_room", PAIRS
    )
