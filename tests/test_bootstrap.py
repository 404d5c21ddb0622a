"""The set-up script on simulated machines: its own shell code, with stubs for Python, uv and apt-get."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = (
    "awk cat chmod cksum cp date df dirname flock grep head ls make mkdir mktemp rm sed sh sleep tail tee tr".split()
)

# A Python that makes "environments" of itself and "installs" by writing down what it was asked for.
STUB_PYTHON = """#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
echo "$0 $*" >>"$LOG"
case "$*" in
*"import ensurepip"*) [ -z "${STUB_UNUSABLE:-}" ] ;;
-V) echo "Python $STUB_VERSION" ;;
*'v("torch")'*) [ -e "$here/torch" ] ;;
"-m venv "*)
    for target; do :; done
    rm -rf "$target" && mkdir -p "$target/bin" && echo "version = $STUB_VERSION" >"$target/pyvenv.cfg"
    cat "$0" >"$target/bin/python" && chmod +x "$target/bin/python" ;;
*"install -qq uv") [ -n "${STUB_UV:-}" ] && cp "$STUB_UV" "$here/uv" ;;
*"--no-index"*) [ -n "${STUB_LOCAL_TORCH:-}" ] && : >"$here/torch" ;;
*" torch"*) : >"$here/torch" ;;
*"install -qq -e "*) sleep "${STUB_SLOW:-0}"; [ -z "${STUB_FAILS:-}" ] || { echo "ERROR: no network" >&2; exit 1; } ;;
esac
"""
# A uv that makes environments of the stub above, and installs likewise.
STUB_UV = """#!/bin/sh
echo "uv $*" >>"$LOG"
case "$*" in
"venv "*) for target; do :; done; exec python3 -m venv "$target" ;;
*--torch-backend*) [ -n "${STUB_INDEX:-}" ] ;;
esac
"""


class Machine:
    """A copy of the checkout, and a PATH with nothing on it but what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.checkout = folder / "checkout"
        self.log = folder / "log"
        self.bin.mkdir()
        self.checkout.mkdir()
        self.log.touch()
        for name in ("bootstrap.sh", "setup.cfg", "pyproject.toml", "Makefile"):
            shutil.copy(ROOT / name, self.checkout)
        for tool in TOOLS:
            if path := shutil.which(tool):
                (self.bin / tool).symlink_to(path)
        self.environment = {
            "PATH": str(self.bin),
            "LOG": str(self.log),
            "STUB_VERSION": "3.11.7",
        }
        self.has("id", "echo 1000")
        self.has("apt-cache", "exit 0")
        self.has("uname", "echo Linux")
        self.has("ldconfig", "echo libEGL.so.1 libEGL_mesa.so.0 libGL.so.1 libOSMesa.so")

    def has(self, name: str, script: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def start(self, level: str = "core", **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["/bin/sh", "bootstrap.sh", level],
            cwd=self.checkout,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def setup(self, level: str = "core", **environment: str) -> tuple[int, str, str]:
        self.log.write_text("")
        process = self.start(level, **environment)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.strip(), err

    @property
    def installs(self) -> list[str]:
        """What was installed, in order: the arguments of pip, or of `uv pip` with `uv` before them."""
        found = []
        for line in self.log.read_text().splitlines():
            program, _, arguments = line.partition(" pip install ")
            if arguments:
                words = arguments.replace(f"--python {self.python} ", "").split(maxsplit=1)[1]
                found.append(f"uv {words}" if program == "uv" else words)
        return found

    @property
    def python(self) -> str:
        return str(self.checkout / ".venv/bin/python")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.has("python3", STUB_PYTHON)
    return machine


def test_fresh_checkout_gets_an_environment_and_the_second_call_installs_nothing(machine: Machine) -> None:
    machine.has("uv", STUB_UV)
    status, python, err = machine.setup(STUB_INDEX="1")
    assert status == 0, err
    assert python == machine.python
    assert machine.installs[-2:] == ["uv --torch-backend=auto torch>=2.6,<3", "uv -e ."]

    start = time.perf_counter()
    assert machine.setup() == (0, python, "")
    assert time.perf_counter() - start < 5  # 0.02 s on a machine that has nothing else to do
    assert machine.installs == []


def test_everything_for_the_tests_is_more_than_the_demo_needs(machine: Machine) -> None:
    assert machine.setup("core")[0] == 0
    assert machine.setup("all")[0] == 0
    assert machine.installs[-1] == "-e .[all]"
    assert machine.setup("core")[0] == 0
    assert machine.installs == []


def test_pip_fetches_uv_where_there_is_none_and_stands_in_for_it(machine: Machine, tmp_path: Path) -> None:
    stub = tmp_path / "uv"
    stub.write_text(STUB_UV)
    stub.chmod(0o755)
    assert machine.setup(STUB_UV=str(stub), STUB_INDEX="1")[0] == 0
    assert machine.installs[0] == "uv" and machine.installs[-1] == "uv -e ."

    shutil.rmtree(machine.checkout / ".venv")
    status, _, err = machine.setup()
    assert status == 0
    assert "pip does the work" in err
    assert machine.installs[-2:] == ["--index-url https://download.pytorch.org/whl/cpu torch>=2.6,<3", "-e ."]


@pytest.mark.parametrize(("version", "apart"), [("3.12.1", False), ("3.13.0", True)])
def test_dm_control_comes_without_labmaze_where_that_has_no_wheel(machine: Machine, version: str, apart: bool) -> None:
    machine.setup("all", STUB_VERSION=version)
    assert ("--no-deps dm_control==1.0.50 ogbench==1.2.2" in machine.installs) == apart


@pytest.mark.parametrize("file", ["setup.cfg", ".venv/pyvenv.cfg"])
def test_changed_requirements_or_python_install_again(machine: Machine, file: str) -> None:
    machine.setup()
    with (machine.checkout / file).open("a") as changed:
        changed.write("# changed\n")
    assert machine.setup()[0] == 0
    assert machine.installs[-1] == "-e ."


def test_interrupted_set_up_is_done_again_from_an_empty_environment(machine: Machine) -> None:
    process = machine.start(STUB_SLOW="30")
    while "-e ." not in machine.installs:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    half_copied = machine.checkout / ".venv/half-copied"
    half_copied.touch()

    status, _, err = machine.setup()
    assert status == 0
    assert "interrupted" in err
    assert not half_copied.exists()


def test_failing_installation_is_shown_and_is_not_taken_for_done(machine: Machine) -> None:
    status, out, err = machine.setup(STUB_FAILS="1")
    assert (status, out) == (2, "")
    assert "ERROR: no network" in err and "The same command goes on" in err
    assert machine.setup()[0] == 0
    assert not any("torch" in words for words in machine.installs), "what was installed before the failure stays"


def test_environment_made_by_hand_is_completed_not_replaced(machine: Machine) -> None:
    environment = machine.checkout / ".venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "mine").touch()
    shutil.copy(machine.bin / "python3", environment / "bin/python")
    (environment / "bin/torch").touch()

    status, _, err = machine.setup()
    assert status == 0, err
    assert (environment / "mine").exists()
    assert not any("torch" in words for words in machine.installs)


def test_folder_that_is_no_environment_is_left_alone(machine: Machine) -> None:
    (machine.checkout / "precious").mkdir()
    (machine.checkout / "precious/file").touch()
    status, _, err = machine.setup(VENV="precious")
    assert status == 2
    assert "no Python environment" in err
    assert (machine.checkout / "precious/file").exists()


def test_torch_comes_from_disk_before_any_index(machine: Machine) -> None:
    machine.has("uv", STUB_UV)
    machine.setup(STUB_LOCAL_TORCH="1")
    assert [words for words in machine.installs if "torch" in words] == ["--no-index --no-deps torch>=2.6,<3"]


def test_torchs_index_out_of_reach_takes_the_standard_build_and_says_so(machine: Machine) -> None:
    machine.has("uv", STUB_UV)
    status, _, err = machine.setup()
    assert status == 0
    assert "3 GB of CUDA" in err
    assert machine.installs[-2:] == ["uv torch>=2.6,<3", "uv -e ."]


def test_named_torch_is_taken(machine: Machine) -> None:
    machine.setup(TORCH="torch==2.7.0")
    assert [words for words in machine.installs if "torch" in words] == ["torch==2.7.0"]


def test_machine_without_python_and_uv_is_told_what_to_install(machine: Machine) -> None:
    status, out, err = machine.setup(STUB_UNUSABLE="1")
    assert (status, out) == (2, "")
    assert err.startswith("error: expected a Python of 3.11 or later") and "python3-venv" in err
    assert err.count("\n") == 1
    assert "expected old of 3.11" in machine.setup(PYTHON="old")[2]


def test_no_gl_is_no_obstacle_to_the_demo_and_a_hint_to_the_tests(machine: Machine) -> None:
    machine.has("apt-get", "exit 1")
    machine.has("ldconfig", "true")
    assert "libegl1" not in machine.setup("core")[2]
    status, _, err = machine.setup("all")
    assert status == 0
    assert "sudo apt-get install -y libegl1 libegl-mesa0 libgl1 libosmesa6" in err
    status, _, err = machine.setup("gl")
    assert status == 2
    assert err.count("\n") == 1


def test_root_installs_the_missing_libraries(machine: Machine) -> None:
    machine.has("id", "echo 0")
    machine.has("ldconfig", "echo libGL.so.1 libOSMesa.so")
    machine.has("apt-get", 'echo "apt-get $*" >>"$LOG"')
    assert machine.setup("gl")[0] == 0
    assert machine.log.read_text().strip().endswith("libegl1 libegl-mesa0")


def test_every_target_of_the_makefile_is_explained(machine: Machine) -> None:
    shown = subprocess.run(
        [machine.bin / "make", "help"], cwd=machine.checkout, env=machine.environment, capture_output=True, text=True
    )
    targets = (ROOT / "Makefile").read_text().split(".PHONY:")[1].splitlines()[0].split()
    assert shown.returncode == 0, shown.stderr
    assert [line.split()[1] for line in shown.stdout.splitlines()] == targets
