"""What an import costs: a command line's --help and a worker process must not wait for torch or a simulator."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lewm_gym import TASKS

HEAVY = {
    "dm_control",
    "imageio",
    "matplotlib",
    "mujoco",
    "ogbench",
    "pyarrow",
    "pygame",
    "pymunk",
    "scipy",
    "stable_baselines3",
    "torch",
    "transformers",
}
LIMIT_S = 0.5


def _run(code: str) -> str:
    """Returns what `code` prints last in a fresh process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def _imports(statement: str) -> set[str]:
    """Returns the top-level modules that `statement` imports in a fresh process."""
    return set(_run(f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})").split())


@pytest.mark.parametrize("package", ["lewm_gym", "envs", "agents", "collect", "benchmarks"])
def test_importing_a_package_imports_neither_torch_nor_a_simulator(package: str) -> None:
    assert not _imports(f"import {package}") & HEAVY


@pytest.mark.parametrize("command", ["agents", "collect", "benchmarks"])
def test_help_imports_neither_torch_nor_a_simulator(command: str) -> None:
    statement = f"""
from {command}.__main__ import main
try:
    main(["--help"])
except SystemExit as stop:
    assert not stop.code"""
    assert not _imports(statement) & HEAVY


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.extra is None])
def test_environment_needs_neither_torch_nor_mujoco(task: str) -> None:
    """Worker processes make environments: torch would cost each of them seconds and 200 MB."""
    loaded = _imports(f"import gymnasium\ngymnasium.make('lewm_gym:{TASKS[task].env_id}').reset(seed=0)")
    assert not loaded & {"torch", "mujoco", "dm_control", "ogbench"}


def test_library_imports_well_under_half_a_second() -> None:
    code = "import time\nstart = time.process_time()\nimport lewm_gym\nprint(time.process_time() - start)"
    fastest = float("inf")
    for _ in range(10):  # of its own processor time the best of several: other processes can only make it slower
        fastest = min(fastest, float(_run(code)))
        if fastest < LIMIT_S:
            break
    assert fastest < LIMIT_S
