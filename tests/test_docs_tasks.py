"""docs/tasks.md and a page per task: their code runs, its tables are those of the code, its pictures exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import lewm_gym  # noqa: F401  registers the tasks
from lewm_gym.tasks import TASKS

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "tasks.md").read_text(encoding="utf-8")


def test_the_table_of_tasks_is_that_of_the_code() -> None:
    for task in TASKS.values():
        row = f"`{task.env_id}` | {task.action_size} | {task.state_size} | {task.max_episode_steps} |"
        assert row in PAGE, row


def test_the_speeds_are_those_of_the_stored_measurement() -> None:
    rows = json.loads((DOCS.parent / "results" / "speed-envs.json").read_text(encoding="utf-8"))["rows"]
    for name, task in TASKS.items():
        speed = next(row["speed"]["median"] for row in rows if (row["task"], row["what"]) == (name, "ours"))
        line = next(line for line in PAGE.splitlines() if f"| `{task.env_id}` |" in line)
        assert line.split("|")[-2].strip() == f"{speed:,.0f}", line


def shown(value: Any) -> str:
    array = np.asarray(value)
    return f"{float(array):g}" if not array.ndim else f"({', '.join(shown(v) for v in array)})"


@pytest.mark.parametrize("name", TASKS)
def test_variations_are_documented_with_their_ranges(name: str) -> None:
    ranges = TASKS[name].env_class().variation_ranges
    section = (DOCS / "tasks" / f"{name}.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `(\w+)` \| (.* \| .*) \| .* \|$", section, re.MULTILINE))
    expected = {}
    for variation, allowed in ranges.items():
        if isinstance(allowed, list):
            expected[variation] = f"{', '.join(map(str, allowed))} | {allowed[0]}"
        else:
            expected[variation] = f"{shown(allowed[0])} .. {shown(allowed[1])} | {shown(allowed[2])}"
    assert documented == expected


@pytest.mark.gl
def test_the_code_runs_and_draws_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("stable_baselines3")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)):
        exec(compile(block, f"block {number} of docs/tasks.md", "exec"), names)
    for name in TASKS:
        assert f"images/{name}.png" in PAGE
        drawn, kept = (np.asarray(image) for image in map(open_image, (tmp_path / "docs", DOCS), (name, name)))
        assert_alike(name, drawn, kept)


def assert_alike(name: str, drawn: Any, kept: Any) -> None:
    """Exact where numpy draws; OpenGL's implementations differ a little, and pygame's releases by a canvas pixel."""
    difference = np.abs(drawn.astype(int) - kept)
    if name == "two_room":
        assert not difference.any()
        return
    assert difference.mean() < 3.0
    blocks = difference[:, : difference.shape[1] // 8 * 8].reshape(difference.shape[0] // 8, 8, -1, 8, 3)
    assert blocks.mean(axis=(1, 3, 4)).max() < 40.0  # of 8x8 px: what stands elsewhere changes its blocks by more


def draw(name: str, **options: Any) -> Any:
    obs, _ = gymnasium.make(TASKS[name].env_id).reset(seed=0, options=options)
    return np.hstack([obs["pixels"], np.full((224, 8, 3), 255, np.uint8), obs["goal"]])


def state_elsewhere(name: str, state: Any) -> Any:
    """Returns a state with what is drawn smallest displaced by little: dot, disc, cube or forearm."""
    index, by = {"two_room": (0, 1.0), "pusht": (0, 20.0), "cube": (14, 0.03), "reacher": (1, 0.5)}[name]
    moved = state.copy()
    moved[index] += by
    return moved


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.gl] * bool(task.extra)) for name, task in TASKS.items()]
)
def test_a_displaced_body_would_be_seen_in_the_comparison_of_pictures(name: str) -> None:
    _, info = gymnasium.make(TASKS[name].env_id).reset(seed=0)
    options = {"state": info["state"], "goal_state": info["goal_state"]}
    kept = np.asarray(open_image(DOCS, name))
    assert_alike(name, draw(name, **options), kept)
    for moved in options:
        with pytest.raises(AssertionError):
            assert_alike(name, draw(name, **options | {moved: state_elsewhere(name, options[moved])}), kept)


def open_image(docs: Path, name: str) -> Any:
    from PIL import Image

    return Image.open(docs / "images" / f"{name}.png")
