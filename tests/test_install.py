"""What an installation offers: a wheel and an sdist that work from any folder, commands, and a word on intruders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from lewm_gym import neighbours

ROOT = Path(__file__).parent.parent
COMMANDS = ("lewm-gym", "lewm-collect", "lewm-agents", "lewm-benchmarks")

DEMO = ["--episodes", "4", "--steps", "2", "--pairs", "2", "--workers", "1", "--out", "demo", "--device", "cpu"]
USE = """
import importlib.resources, sys
import gymnasium as gym
import lewm_gym
assert "site-packages" in lewm_gym.__file__, lewm_gym.__file__
gym.register_envs(lewm_gym)
env = gym.make("lewm/TwoRoom-v0")
env.reset(seed=0)
from lewm_gym.pairs import load_shipped
for task in lewm_gym.TASKS.values():
    for offset in task.goal_offsets:
        load_shipped(task.name, offset)
for package in ("lewm_gym", "envs", "agents", "collect", "benchmarks"):
    assert (importlib.resources.files(package) / "py.typed").is_file(), package
from lewm_gym import LeWMAgent
from agents.pretrained import shipped_names
assert {"two_room", "pusht", "cube"} <= set(shipped_names()), shipped_names()
for name in shipped_names():
    LeWMAgent.from_pretrained(name, device="cpu")
from importlib.resources import files
assert any(file.name.endswith(".safetensors") for file in files("collect.policies").iterdir())
assert all((files("benchmarks.report") / name).is_file() for name in ("page.html.j2", "page.md.j2", "published.toml"))
print("used")
"""


def run(command: list[str], folder: Path, **environment: str) -> str:
    """Returns what a command prints; fails with its errors."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An sdist of this tree and a wheel built from that sdist."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("lewm_gym", *neighbours.NAMES):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    hook = "import sys, setuptools.build_meta as backend; backend.build_{}(sys.argv[1])"
    run([sys.executable, "-c", hook.format("sdist"), str(dist)], source)
    (sdist,) = dist.glob("*.tar.gz")
    unpacked = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(sdist, unpacked, filter="data")
    (tree,) = unpacked.iterdir()
    run([sys.executable, "-c", hook.format("wheel"), str(dist)], tree)
    (wheel,) = dist.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def installed(request: pytest.FixtureRequest, built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a fresh environment with the package, and by a .pth file with what it requires."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall"]
    run([str(folder / "bin/python"), *pip, str(built[request.param])], folder)
    return folder / "bin"


def test_everything_that_is_shipped_is_there_from_any_folder(installed: Path, tmp_path: Path) -> None:
    assert "used" in run([str(installed / "python"), "-W", "error::RuntimeWarning", "-c", USE], tmp_path)


def test_commands_run_and_name_themselves_beside_folders_of_their_names(installed: Path, tmp_path: Path) -> None:
    for name in neighbours.NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('one of the user')\n")
    for command in COMMANDS:
        assert f"usage: {command} " in run([str(installed / command), "--help"], tmp_path)


@pytest.mark.parametrize("installed", ["wheel"], indirect=True)
def test_the_demo_runs_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    assert "LeWM reaches its goal" in run([str(installed / "lewm-gym"), "demo", *DEMO], tmp_path)
    assert (tmp_path / "demo/index.html").is_file()


def test_tasks_are_registered_by_import() -> None:
    import gymnasium as gym

    import lewm_gym

    gym.register_envs(lewm_gym)
    env = gym.make("lewm/TwoRoom-v0")
    assert env.spec is not None and env.spec.id == "lewm/TwoRoom-v0"
    env.close()


@pytest.mark.parametrize("name", neighbours.NAMES)
def test_an_intruder_is_named_with_its_path_and_the_cure_at_the_first_import(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    said = run([sys.executable, "-c", "import lewm_gym"], tmp_path, PYTHONPATH=str(ROOT)).splitlines()
    line = next(line for line in said if "RuntimeWarning" in line)
    assert f"Python finds {tmp_path / name / '__init__.py'} for '{name}'" in line and "rename or uninstall" in line
    assert sum("RuntimeWarning" in line for line in said) == 1


def test_a_package_installed_over_ours_and_a_missing_one_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lewm_gym", "agents"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    monkeypatch.setattr(neighbours, "__file__", str(tmp_path / "lewm_gym/neighbours.py"))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "editable" not in str(finder)])
    for name in ("agents", "envs"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert "was installed over LeWM-Gym's" in str(neighbours.intruder("agents"))
    assert "'envs' is missing" in str(neighbours.intruder("envs"))


def test_ours_pass() -> None:
    assert [neighbours.intruder(name) for name in neighbours.NAMES] == [None] * 4
