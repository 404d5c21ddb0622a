"""`make gpu`: its stages are commands that exist, short, and resume; the whole of it runs at toy size on a CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from test_readme import check_arguments

from benchmarks.__main__ import main
from benchmarks.experiments import gpu


def asked(folder: Path, **changes: Any) -> gpu.Gpu:
    values = {"tasks": ("two_room",), "device": "cpu", "data": folder / "data", "runs": folder / "runs"}
    return gpu.Gpu(**{**values, "out": folder / "out", **changes})


def stage(tmp_path: Path, code: str, **changes: Any) -> gpu.Stage:
    """A stage that runs a module of the test's own."""
    (tmp_path / "a_stage.py").write_text(code)
    return gpu.Stage("mine", ("a_stage",), **changes)


@pytest.fixture
def own_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns a command whose stages are those given."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}")

    def make(*stages: gpu.Stage, **changes: Any) -> gpu.Gpu:
        monkeypatch.setattr(gpu.Gpu, "stages", lambda self: iter(stages))
        return asked(tmp_path, **changes)

    return make


def said(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "stages" / "mine.json").read_text())
    return found


@pytest.mark.parametrize("toy", [True, False])
def test_every_stage_is_a_command_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: bool) -> None:
    wanted = asked(tmp_path, tasks=("two_room", "cube"))
    object.__setattr__(wanted, "toy", toy)
    stages = list(wanted.stages())
    for one in stages:
        program, *words = one.words
        if program != "pytest":
            check_arguments(program, words, monkeypatch)
    assert len({one.name for one in stages}) == len(stages)
    names = [one.name for one in stages]
    assert names.index("data-cube") < names.index("paper-cube") < names.index("guided-cube") < names.index("report")
    assert ("speed-train-512" in names) == (not toy)
    assert {one.resumes for one in stages if one.name.startswith(("data", "paper", "guided"))} == {True}


def test_states_that_are_there_are_rendered(tmp_path: Path) -> None:
    from collect.__main__ import main as collect

    collect(
        [
            "two_room",
            "--episodes",
            "3",
            "--states-only",
            "--workers",
            "1",
            "--out",
            str(tmp_path / "data/two_room-states"),
        ]
    )
    (rendering,) = (one for one in asked(tmp_path).stages() if one.name == "data-two_room")
    assert rendering.words[:2] == ("collect", "render") and rendering.words[-1] == str(tmp_path / "data/two_room")


def test_a_dry_run_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--tasks", "two_room", "--device", "cpu", "--data", "d", "--runs", "r", "--out", "o"]
    assert main(["gpu", "--dry-run", *words]) == 0
    text = capsys.readouterr().out
    assert "toy size, on cpu" in text and "at most 9 min  python -m benchmarks speed plan" in text
    assert not list(Path().iterdir())


def test_a_stage_that_is_done_is_left_out_and_a_failed_one_runs_again(own_stages: Any, tmp_path: Path) -> None:
    command = own_stages(stage(tmp_path, "import sys; print('ill'); sys.exit(4)"))
    lines: list[str] = []
    assert command.run(lines.append) == 1
    assert (said(tmp_path)["state"], said(tmp_path)["status"], said(tmp_path)["output"]) == ("failed", 4, "ill\n")
    assert lines[-1].startswith("failed: mine")
    command = own_stages(stage(tmp_path, "open('ran', 'a').write('x')"))
    assert command.run(lines.append) == command.run(lines.append) == 0
    assert said(tmp_path)["state"] == "done" and Path("ran").read_text() == "x"


#: Counts its turns, and is done in the third; a turn before that is longer than it may be.
SLOW = """
import sys, time
from pathlib import Path
Path("turns").open("a").write("x")
if len(Path("turns").read_text()) < 3:
    time.sleep(60)
"""


def test_a_stage_that_resumes_gets_another_turn(own_stages: Any, tmp_path: Path) -> None:
    assert own_stages(stage(tmp_path, SLOW, resumes=True), stage_min=0.05).run(lambda text: None) == 0
    assert (said(tmp_path)["state"], said(tmp_path)["turns"]) == ("done", 3)


def test_a_stage_that_does_not_resume_has_failed_after_one(own_stages: Any, tmp_path: Path) -> None:
    assert own_stages(stage(tmp_path, SLOW), stage_min=0.05).run(lambda text: None) == 1
    assert (said(tmp_path)["state"], said(tmp_path)["turns"]) == ("stopped", 1)


def test_a_call_ends_in_time_and_the_next_goes_on(own_stages: Any, tmp_path: Path) -> None:
    lines: list[str] = []
    one = stage(tmp_path, SLOW.replace("< 3", "< 2"), resumes=True)
    assert own_stages(one, call_min=0.05).run(lines.append) == 3
    assert said(tmp_path)["state"] == "no time" and "run the same command again" in lines[-1]
    assert own_stages(one).run(lines.append) == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_of_it_runs_at_toy_size_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "TESTS", tmp_path / "none")  # pytest within pytest shows nothing here
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    lines: list[str] = []
    assert asked(tmp_path).run(lines.append) == 0, "\n".join(lines)
    states = {path.stem: json.loads(path.read_text())["state"] for path in (tmp_path / "out/stages").iterdir()}
    assert set(states.values()) == {"done"} and len(states) == 8
    assert (tmp_path / "out/report.html").is_file() and (tmp_path / "out/guided-two_room/compare.json").is_file()
