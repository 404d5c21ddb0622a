"""Off-screen OpenGL: the choice of a backend, and what a user is told where something is missing."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import subprocess
import sys
from multiprocessing.connection import Connection

import numpy as np
import pytest

from envs import mujoco_rendering
from envs.mujoco_rendering import choose_backend, load_mujoco
from envs.reacher import ReacherEnv

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("mujoco", "dm_control"))), reason='needs pip install "lewm-gym[mujoco]"'
)

DRAW = "from envs.reacher import ReacherEnv\nenv = ReacherEnv()\nobs, _ = env.reset(seed=0)\n"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**clean, **environment}
    )


def test_backend_is_egl_then_osmesa_then_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(mujoco_rendering, "_egl_device_count", lambda: 1)
    assert choose_backend() == "egl"
    monkeypatch.setattr(mujoco_rendering, "_egl_device_count", lambda: 0)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: "libOSMesa.so.8")
    assert choose_backend() == "osmesa"
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    assert choose_backend() == "disable"


def test_mujoco_4_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_mujoco(), "__version__", "4.0.0")
    with pytest.raises(ImportError, match="mujoco<4"):
        load_mujoco()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ImportError, match=r"lewm-gym\[mujoco\]"):
        load_mujoco()


def test_without_opengl_states_work_and_pictures_say_what_to_install() -> None:
    code = """
import numpy as np
from envs.reacher import ReacherEnv
env = ReacherEnv()
env._set_state(np.zeros(6))
env._advance(np.ones(2, np.float32))
assert env._get_state()[2] > 0
try:
    env.render_state(np.zeros(6))
except ImportError as error:
    assert "apt-get install -y libegl1" in str(error), error
    print("told")
"""
    done = run(code, MUJOCO_GL="disable")
    assert done.stdout.strip() == "told", done.stderr


@pytest.mark.gl
@pytest.mark.skipif(sys.platform != "linux", reason="the choice concerns Linux")
def test_pictures_need_no_setting_and_leave_no_traceback() -> None:
    """Renderers alive at the end, one closed environment, dm_control imported late."""
    done = run(DRAW + "other = ReacherEnv()\nother.reset(seed=1)\nenv.close()\nfrom dm_control import suite\n")
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.gl
def test_mujoco_imported_first_without_a_choice_still_draws() -> None:
    done = run("import mujoco\n" + DRAW + "print(obs['pixels'].std() > 5)")
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.gl
@pytest.mark.skipif(not mujoco_rendering.ctypes.util.find_library("OSMesa"), reason="OSMesa is not installed")
def test_osmesa_draws_what_egl_draws() -> None:
    code = DRAW + "import sys\nsys.stdout.buffer.write(obs['pixels'].tobytes())"
    clean = {key: value for key, value in os.environ.items() if key != "PYOPENGL_PLATFORM"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=120, env={**clean, "MUJOCO_GL": "osmesa"}
    )
    assert done.returncode == 0, done.stderr
    frame = np.frombuffer(done.stdout, np.uint8).reshape(224, 224, 3)
    assert np.abs(frame.astype(int) - ReacherEnv().reset(seed=0)[0]["pixels"]).mean() < 2.0


def _draw_in_child(pipe: Connection) -> None:
    env = ReacherEnv()
    env._set_state(np.zeros(6))
    env._advance(np.ones(2, np.float32))  # simulating still works
    try:
        env.render_state(np.zeros(6))
    except RuntimeError as error:
        pipe.send(str(error))
    else:
        pipe.send("drawn")


@pytest.mark.gl
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12: forking with threads, here on purpose
def test_a_forked_child_is_told_to_spawn() -> None:
    ReacherEnv().reset(seed=0)  # makes a context
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_draw_in_child, args=(theirs,))
    child.start()
    assert ours.poll(60) and "spawn" in ours.recv()
    child.join(60)
    assert child.exitcode == 0
    assert ReacherEnv().reset(seed=0)[0]["pixels"].std() > 5  # the parent draws on


@pytest.mark.gl
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_workers_draw_where_no_context_exists_yet() -> None:
    code = """
import gymnasium, lewm_gym
envs = gymnasium.make_vec("lewm/Reacher-v0", 2, vectorization_mode="async", vector_kwargs={"context": "fork"})
print(envs.reset(seed=0)[0]["pixels"].std() > 5)
envs.close()
"""
    done = run(code)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.gl
def test_renderers_can_be_closed_and_come_back() -> None:
    env = ReacherEnv()
    before, _ = env.reset(seed=0)
    mujoco_rendering.close_renderers()
    after, _ = env.reset(seed=0)
    assert np.array_equal(before["pixels"], after["pixels"])
