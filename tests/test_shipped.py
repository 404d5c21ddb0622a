"""Agents in the package: small, whole, loaded by name, and as good as the result that they were shipped with."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from agents.__main__ import main
from agents.lewm import LeWMAgent
from agents.pretrained import SHIPPED, locate, shipped_names
from agents.shipping import MOST_BYTES, Ship
from benchmarks.evaluation.run import Plan
from lewm_gym.files import sha256
from lewm_gym.pairs import load_shipped
from lewm_gym.results import Rate, Result
from lewm_gym.tasks import get_task


def described(name: str) -> dict:
    return json.loads((SHIPPED / name / "run.json").read_text())


def measured(name: str, n_pairs: int, folder: Path) -> Result:
    return Plan(run=locate(name), n_pairs=n_pairs, workers=1, strict=False, out=folder / "result.json").measure()


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_agent_is_small_and_whole_and_says_what_made_it(name: str) -> None:
    files = {file.name for file in (SHIPPED / name).iterdir()}
    assert files == {"run.json", "weights.safetensors"}
    assert sum((SHIPPED / name / file).stat().st_size for file in files) <= MOST_BYTES
    run = described(name)
    assert run["shipped"]["weights"] == sha256(SHIPPED / name / "weights.safetensors")
    assert re.fullmatch(r"[0-9a-f]{32}", run["dataset"]["hash"])
    assert run["command"].startswith("python -m agents lewm data/") and run["finished"]
    pairs = load_shipped(name, run["result"]["offset_steps"])
    assert run["result"]["pairs"]["hash"] == pairs.content_hash
    assert not re.search(r"(?<![\w.])/\w", (SHIPPED / name / "run.json").read_text()), "a path of some machine"


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_agent_loads_by_name_in_float32(name: str) -> None:
    agent = LeWMAgent.from_pretrained(name, device="cpu")
    assert agent.description["task"] == name
    assert {t.dtype for t in agent.model.state_dict().values()} <= {torch.float32, torch.int64}
    stored = load_file(SHIPPED / name / "weights.safetensors")
    assert stored["predictor.blocks.0.modulation.weight"].dtype == torch.float16
    assert stored["projector.norm.running_var"].dtype == torch.float32
    assert agent.act(tiny.observation()).shape == (get_task(name).action_size,)


def test_the_agent_in_the_box_reaches_two_rooms_goals(tmp_path: Path) -> None:
    expected = 6 - sum(pair < 6 for pair in described("two_room")["result"]["failed"])
    assert abs(measured("two_room", 6, tmp_path).success.successes - expected) <= 1


@pytest.mark.slow
@pytest.mark.gl
@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_agent_is_as_good_as_its_result(name: str, tmp_path: Path) -> None:
    failed = {pair for pair in described(name)["result"]["failed"] if pair < 40}
    stored = Rate.count([pair not in failed for pair in range(40)])
    assert stored.low <= measured(name, 40, tmp_path).success.rate <= stored.high


# Shipping --------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Path, Path]:
    """A run with heads and a decoder, as a training would leave it in some folder, and its result on two pairs."""
    made = tiny.model(information_weight=0.01, decoder_weight=0.1, decoder_depth=1)
    described = {**tiny.ENVIRONMENT, "model": dataclasses.asdict(made.config), "preset": "laptop", "finished": True}
    described |= {"command": "python -m agents lewm /home/me/data/two_room", "identity": "f" * 64}
    described |= {"dataset": {"folder": "/home/me/data/two_room", "hash": "0" * 32, "seed": 0}}
    agent = LeWMAgent(made, tiny.agent().planning, described)
    agent.save(tmp_path / "run")
    tiny.measure(tmp_path / "run", n_pairs=2, budget=5, out=tmp_path / "result.json", planning={"n_samples": 12})
    return tmp_path / "run", tmp_path / "result.json"


def test_a_run_is_shipped_by_one_command_and_acts_as_it_did(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, result = finished
    out = tmp_path / "box"
    for _ in range(2):  # a second time it takes the place of the first
        assert main(["ship", str(run), "--result", str(result), "--out", str(out)]) == 0
    assert "of 2 pairs" in capsys.readouterr().out
    said = json.loads((out / "run.json").read_text())
    assert said["command"] == "python -m agents lewm data/two_room" and said["dataset"]["folder"] == "data/two_room"
    assert said["shipped"]["left_out"] == ["decoder", "heads"]
    assert said["shipped"]["from"] == sha256(run / "weights.safetensors")
    assert said["planning"]["search"]["n_samples"] == 12, "it plans as in the result"
    shipped, before = LeWMAgent.from_pretrained(out, device="cpu"), LeWMAgent.load(run, planning={"n_samples": 12})
    np.testing.assert_allclose(shipped.act(tiny.observation()), before.act(tiny.observation()), atol=0.02)


def test_what_cannot_be_shipped_is_refused_and_leaves_what_was_there(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, result = finished
    out = tmp_path / "box"
    Ship(run=run, result=result, out=out).ship()
    before = (out / "run.json").read_bytes()
    with pytest.raises(ValueError, match="needs its result: python -m benchmarks plan"):
        Ship(run=run, out=out).ship()
    monkeypatch.setattr("agents.shipping.MOST_BYTES", 10_000)
    with pytest.raises(ValueError, match="MB in float16, and an agent that ships at most 0.01: train a smaller model"):
        Ship(run=run, result=result, out=out).ship()
    other = tmp_path / "other"
    tiny.planning_run(other)
    with pytest.raises(ValueError, match="is the result of other weights than those in"):
        Ship(run=other, result=result, out=out).ship()
    told = Result.load(result)
    replace(told, metrics={**told.metrics, "steps_left": 25}).save(tmp_path / "told.json")
    with pytest.raises(ValueError, match="was told the steps left"):
        Ship(run=run, result=tmp_path / "told.json", out=out).ship()
    (tmp_path / "told.json").unlink()
    assert (out / "run.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["box", "other", "result.json", "run"]


def test_an_unknown_name_lists_those_that_ship() -> None:
    with pytest.raises(FileNotFoundError, match=r"agents that ship are: .*two_room.*; an id .* has a slash"):
        LeWMAgent.from_pretrained("tworoom")


def test_a_name_in_the_box_goes_before_a_folder_of_that_name() -> None:
    Path("two_room").mkdir()
    assert locate("two_room") == SHIPPED / "two_room"
    assert locate("./two_room") == Path("two_room") == locate(Path("two_room"))


def test_watch_films_the_agent_in_the_box(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lewm_gym.__main__ import main as lewm_gym

    assert lewm_gym(["watch", "two_room", "--n-pairs", "1", "--out", str(tmp_path / "film.mp4")]) == 0
    assert "1 of 1 goals reached" in capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} == {"film.mp4", "film.png"}


def test_a_film_is_played_in_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.evaluation import watch

    monkeypatch.setattr(watch.films, "FPS", 1000)
    watch._play([np.zeros((32, 48, 3), np.uint8)] * 3, "title")  # SDL's dummy driver takes the window
