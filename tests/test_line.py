"""The whole line, as a user runs it: command lines in a fresh folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = ["--set", "conv_channels=[8,8,8]", "encoder_width=16", "predictor_depth=1", "sigreg_directions=16"]


def python(folder: Path, *arguments: str, timeout: float = 250) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    environment = {**os.environ, "LEWM_DEBUG": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)


def succeed(folder: Path, *arguments: str, timeout: float = 250) -> str:
    done = python(folder, *arguments, timeout=timeout)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_parts_by_hand(tmp_path):
    succeed(tmp_path, "collect", "two_room", "--episodes", "8", "--workers", "2")
    succeed(
        tmp_path, "agents", "lewm", "data/two_room", "--preset", "laptop", "--steps", "3", "--batch-size", "8", *TINY
    )
    out = succeed(tmp_path, "benchmarks", "plan", "runs/two_room-lewm-0", "--n-pairs", "3", "--film")
    assert "of 3 held-out pairs" in out and "random" in out
    succeed(tmp_path, "benchmarks", "report", "results/")
    result = json.loads(next((tmp_path / "results").glob("*.json")).read_text())
    assert result["task"] == "two_room" and len(result["outcomes"]) == 3
    assert result["hardware"] and result["versions"]["torch"] and result["command"].startswith("python -m benchmarks")
    assert (tmp_path / "results" / "report.html").exists()


def test_demo_leaves_everything_and_its_second_call_only_shows_it(tmp_path):
    arguments = ("lewm_gym", "--episodes", "8", "--steps", "3", "--pairs", "3", "--workers", "1")
    first = succeed(tmp_path, *arguments)
    assert "the random baseline, on the same pairs" in first
    folder = tmp_path / "runs" / "demo"
    for name in ("index.html", "result.mp4", "curves.png", "result.json", "weights.safetensors", "run.json"):
        assert (folder / name).stat().st_size > 0, name
    before = (folder / "weights.safetensors").stat().st_mtime_ns
    second = succeed(tmp_path, *arguments)
    assert (folder / "weights.safetensors").stat().st_mtime_ns == before
    (folder / "result.mp4").unlink()
    succeed(tmp_path, *arguments)
    assert (folder / "result.mp4").stat().st_size > 0
    line = next(line for line in first.splitlines() if line.startswith("LeWM reaches"))
    assert line in second


WRONG = {
    "unknown task": (["collect", "three_room"], "three_room"),
    "no episodes": (["collect", "two_room", "--episodes", "0"], "0"),
    "unknown agent": (["agents", "nonsense", "data/two_room"], "lewm"),
    "no dataset": (["agents", "lewm", "data/nothing"], "data/nothing"),
    "untrainable agent": (["agents", "random", "data/nothing"], "nothing to train"),
    "no run": (["benchmarks", "plan", "runs/nothing"], "runs/nothing"),
    "no results": (["benchmarks", "report", "results/nothing"], "nothing"),
    "unknown option": (["lewm_gym", "--fast"], "--fast"),
    "a single episode": (["lewm_gym", "--episodes", "1"], "--episodes"),
    "zero steps": (["lewm_gym", "--steps", "0"], "--steps"),
    "negative seed": (["lewm_gym", "--seed", "-1"], "--seed"),
    "zero pairs": (["lewm_gym", "--pairs", "0"], "--pairs"),
    "bad device": (["lewm_gym", "--device", "abacus"], "abacus"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_end_in_one_line_and_status_2(name, tmp_path):
    arguments, named = WRONG[name]
    done = python(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: ") and named in lines[0], done.stderr
    assert not (tmp_path / "runs").exists()


def test_demo_refuses_the_folder_of_another_before_changing_it(tmp_path):
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    training = {"seed": 0, "steps": 1000}
    described = {"schema": 1, "agent": "lewm", "dataset": {"episodes": 300}, "training": training}
    (folder / "run.json").write_text(json.dumps(described))
    done = python(tmp_path, "lewm_gym", "--episodes", "301")
    assert done.returncode == 2 and "'episodes': 300" in done.stderr, done.stderr
    assert [p.name for p in folder.iterdir()] == ["run.json"]


SWALLOWED = """
import os, signal
from lewm_gym import cli
from lewm_gym.progress import Bars
def main():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        pass  # as a library's optional import does
    with Bars() as bars:
        bars("train", 1, 2)
    print("went on")
cli.run(main)
"""


def test_ctrl_c_that_a_library_swallows_still_stops(tmp_path):
    done = subprocess.run([sys.executable, "-c", SWALLOWED], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and "went on" not in done.stdout
    assert "the same command resumes" in done.stderr


@pytest.mark.parametrize("package", ["lewm_gym", "collect", "agents", "benchmarks"])
def test_help_is_there(package, tmp_path):
    printed = succeed(tmp_path, package, "--help")
    assert "usage: python -m" in printed
    assert package != "lewm_gym" or "watch AGENT" in printed
