"""A bundle for a machine without a network: what is in it, what its script does, and what is refused."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.experiments import bundle
from collect.__main__ import main as collect

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def states(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "two_room-states"
    collect(["two_room", "--episodes", "2", "--states-only", "--workers", "1", "--out", str(folder)])
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(requirements: list[str], folder: Path, python: str, machine: str) -> None:
        (folder / "mujoco-3.0-any.whl").write_bytes(os.urandom(3000))
        (folder / "numpy-2.0-any.whl").write_bytes(os.urandom(200_000))

    monkeypatch.setattr(bundle, "download", download)
    if not (bundle.ROOT / ".git").exists():
        pytest.skip("no git checkout")


def packed(folder: Path, **changes: Any) -> bundle.Bundle:
    return bundle.Bundle(**{"out": folder / "out" / "bundle.tar.gz", "python": HERE, "machine": "x86_64", **changes})


def test_a_bundle_holds_source_wheels_and_states(states: Path, tmp_path: Path) -> None:
    command = packed(tmp_path, data=(states,))
    assert command() == 0
    with tarfile.open(command.out) as tar:
        names = set(tar.getnames())
    assert {"lewm-gym/benchmarks/experiments/gpu.py", "wheels/numpy-2.0-any.whl"} <= names
    assert any(name.startswith("data/two_room-states/") for name in names)
    assert not any(name.startswith(("lewm-gym/results", "lewm-gym/docs")) for name in names)
    assert {path.name for path in command.out.parent.iterdir()} == {"bundle.tar.gz", "bundle.sh"}


def test_its_script_unpacks_and_measures(states: Path, tmp_path: Path) -> None:
    command = packed(tmp_path, data=(states,), machine=platform.machine(), tasks=("two_room",))
    command.pack()
    python = tmp_path / "python"  # runs everything but pip, which would refuse wheels of noise
    python.write_text(f'#!/bin/sh\ncase "$*" in "-m pip "*) exit 0;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHON": str(python)}
    words = ["sh", str(command.script), "--dry-run", "--device", "cpu"]
    done = subprocess.run(words, capture_output=True, text=True, env=clean, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "collect render data/two_room-states" in done.stdout and "cube" not in done.stdout


def test_a_bundle_for_another_platform_says_so(states: Path, tmp_path: Path) -> None:
    command = packed(tmp_path, python="3.99")
    command.pack()
    done = subprocess.run(["sh", str(command.script)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: this bundle is for Python 3.99 on x86_64, here is")
    assert len(done.stderr.splitlines()) == 1


def test_what_cannot_be_packed_is_refused_and_leaves_nothing(states: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at most 0\.1 are allowed; the largest wheels \(MB\): numpy"):
        packed(tmp_path, most_mb=0.1).pack()
    assert not list((tmp_path / "out").iterdir())
    collect(["two_room", "--episodes", "2", "--workers", "1", "--no-pictures", "--out", str(tmp_path / "frames")])
    with pytest.raises(ValueError, match="holds frames, too large to travel: collect it with --states-only"):
        packed(tmp_path, data=(tmp_path / "frames",)).pack()
    with pytest.raises(ValueError, match="--python is a version"):
        packed(tmp_path, python="312")


def test_what_is_needed_follows_from_the_requirements() -> None:
    names = [
        requirement.split("==")[0].lower() for requirement in bundle.needed((), HERE, "x86_64", ("torch", "scipy"))
    ]
    assert {"numpy", "gymnasium", "pyarrow", "farama-notifications", "jinja2", "markupsafe", "msgspec"} <= set(names)
    assert not {"torch", "scipy", "sympy", "pytest"} & set(names), "nor what torch alone requires"
    assert "pytest" in " ".join(bundle.needed(("test",), HERE, "x86_64", ("torch",)))
