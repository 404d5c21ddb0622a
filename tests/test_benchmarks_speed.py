"""Speed figures: the arithmetic, a short run in processes of their own, and what a table says of what is missing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.speed import Speed, measure
from benchmarks.speed_envs import Row, measure_envs, save, table
from lewm_gym.results import is_result

FAST = Speed(median=2_000.0, low=1_900.0, high=2_100.0, repeats=5, core_share=0.99)
SLOW = Speed(median=500.0, low=400.0, high=600.0, repeats=5, core_share=0.5)


def test_a_step_of_ten_milliseconds_runs_a_hundred_times_a_second() -> None:
    speed = measure(lambda: time.sleep(0.01), seconds=0.3, repeats=3)
    assert speed.low <= speed.median <= speed.high and speed.repeats == 3
    assert 50 < speed.median < 101
    assert speed.disturbed  # it slept most of the time
    assert measure(lambda: None, seconds=0.01, repeats=1, weight=1_000).median > 1e6


@pytest.mark.parametrize(("seconds", "repeats"), [(0.0, 3), (-1.0, 3), (1.0, 0)])
def test_no_time_is_refused(seconds: float, repeats: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        measure(lambda: None, seconds, repeats)


def test_the_command_measures_prints_and_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    assert main(["speed", "envs", "--tasks", "two_room", "--seconds", "0.2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| Two-Room |" in printed and "4,096 agents" in printed
    kept = json.loads(out.read_text())
    rows = {row["what"]: row for row in kept["rows"]}
    assert rows["ours"]["speed"]["median"] > 500
    assert rows["batched"]["speed"]["median"] > 10 * rows["ours"]["speed"]["median"]
    assert {"command", "commit", "versions", "hardware"} <= kept.keys()
    assert not is_result(out)  # the report must not take it for a success rate


def test_a_task_that_cannot_be_measured_says_why() -> None:
    rows = measure_envs(["two_room"], seconds=0.1, render_quality="best")
    assert rows[0].speed is None and "render_quality" in str(rows[0].why_not)
    with pytest.raises(ValueError, match="unknown task"):
        measure_envs(["three_room"])
    with pytest.raises(ValueError, match="seconds"):
        measure_envs(["two_room"], seconds=0.0)


def test_the_table_compares_and_explains(tmp_path: Path) -> None:
    rows = [
        Row("pusht", "ours", FAST, None, "lewm/PushT-v0"),
        Row("pusht", "reference", SLOW, None, "swm/PushT-v1"),
        Row("reacher", "ours", None, "no OpenGL", "lewm/Reacher-v0"),
        Row("reacher", "reference", None, "not installed", "stable-worldmodel"),
    ]
    text = table(rows)
    assert "| Push-T | 2,000 | 1,900-2,100 | 3,000 | 500 | 4.0x |" in text
    assert "| Reacher | - | - | 250 | - | - |" in text
    for note in ("Reacher: not measured: no OpenGL", "stable-worldmodel: not measured: not installed", "used 50 %"):
        assert note in text
    save(tmp_path / "speed.json", rows)
    assert json.loads((tmp_path / "speed.json").read_text())["rows"][0]["speed"]["median"] == 2_000.0
