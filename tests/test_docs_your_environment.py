"""docs/your_environment.md: its files and commands lead from nothing to a success rate, on a toy scale."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import tiny

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "your_environment.md").read_text(encoding="utf-8")
#: Appended to a command of the page, where the last value of a flag counts; the settings make a model of a second.
SMALLER = {
    "collect": ["--episodes", "2", "--workers", "1", "--no-pictures"],
    "agents": [
        "--steps",
        "2",
        "--set",
        *(f"{k}={str(list(v) if isinstance(v, tuple) else v)}" for k, v in tiny.SETTINGS.items()),
    ],
}


def test_the_page_leads_from_nothing_to_a_success_rate(tmp_path: Path) -> None:
    for name, text in re.findall(r"^`(\w+\.py)`:\n\n```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SDL_VIDEODRIVER": "dummy"}
    printed = ""
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        words = shlex.split(block)
        assert words[0] == "python"
        more = SMALLER[words[2]] if words[1] == "-m" else []
        arguments = [*words[1:], *more] if more else [words[1], "1"]
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250
        )
        assert done.returncode == 0, done.stderr[-3000:]
        printed = done.stdout
    assert re.search(r"^LeWM: [01] of 1, .*\nrandom: [01] of 1, ", printed), printed


def test_the_goal_of_the_page_shows_the_motion(tmp_path: Path, monkeypatch) -> None:
    import gymnasium as gym
    import numpy as np

    text = re.search(r"^`swing\.py`:\n\n```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert text
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    names: dict = {}
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.envs.registration.registry))
    exec(compile(text[1], "swing.py", "exec"), names)
    pendulum = names["Swing"](render_mode="rgb_array")
    pendulum.reset(seed=0)
    pendulum.state = np.array([np.pi / 2, 6.0])
    for _ in range(5):
        pendulum.step(np.zeros(1))
    now, before = pendulum.render()[..., 0], pendulum.render()[..., 2]
    assert now.shape == (224, 224) and (now != before).mean() > 0.005
