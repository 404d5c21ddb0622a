"""What every test runs under: one thread per process, no window, and a reason for each skip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch or a simulator is imported. Spinning OpenMP threads of two test workers slow each other 10x on 2 cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

_DRAW = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(data)
renderer.render()
"""


def _why_no_gl() -> str | None:
    """Returns None if MuJoCo can draw here, otherwise why not; sets MUJOCO_GL to what works."""
    backends = [os.environ["MUJOCO_GL"]] if "MUJOCO_GL" in os.environ else ["egl", "osmesa"]
    if sys.platform == "darwin":
        backends = ["cgl"]
    for backend in backends:
        # In a process of its own: a failed GL start-up can abort the interpreter.
        command = [sys.executable, "-c", _DRAW]
        try:
            if not subprocess.run(
                command, env={**os.environ, "MUJOCO_GL": backend}, capture_output=True, timeout=60
            ).returncode:
                os.environ["MUJOCO_GL"] = backend
                return None
        except subprocess.TimeoutExpired:
            continue
    return f"MuJoCo cannot draw with {' or '.join(backends)}; `make setup-gl` installs what is missing"


def _why_no_gpu() -> str | None:
    """Returns None if torch sees a CUDA device, otherwise why not."""
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets default folders (`data/`, `runs/`, `results/`) be empty ones, not those of the working tree."""
    monkeypatch.chdir(tmp_path_factory.mktemp("working"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB, mounted where root may."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, why_not in (("gl", _why_no_gl), ("gpu", _why_no_gpu)):
        marked = [item for item in items if item.get_closest_marker(marker)]
        reason = why_not() if marked else None
        if reason:
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))
