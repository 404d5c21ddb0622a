"""docs/tasks.md: its code runs, its tables are those of the code, its pictures exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lewm_gym.tasks import TASKS

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "tasks.md").read_text(encoding="utf-8")


def test_the_table_of_tasks_is_that_of_the_code() -> None:
    for task in TASKS.values():
        row = f"`{task.env_id}` | {task.action_size} | {task.state_size} | {task.max_episode_steps} |"
        assert row in PAGE, row


def shown(value: Any) -> str:
    array = np.asarray(value)
    return f"{float(array):g}" if not array.ndim else f"({', '.join(shown(v) for v in array)})"


@pytest.mark.parametrize("name", TASKS)
def test_variations_are_documented_with_their_ranges(name: str) -> None:
    module, _, cls = TASKS[name].entry_point.partition(":")
    ranges = getattr(importlib.import_module(module), cls).variation_ranges
    section = PAGE.split(f"\n## {TASKS[name].title}\n")[1].split("\n## ")[0]
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
        assert np.abs(drawn.astype(int) - kept).mean() < 3.0  # OpenGL's implementations differ a little


def open_image(docs: Path, name: str) -> Any:
    from PIL import Image

    return Image.open(docs / "images" / f"{name}.png")
