"""The set-up script on simulated machines: its own shell code, with stubs for Python, apt-get and nvidia-smi."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = (
    "awk cat chmod cksum cp date df dirname flock grep head ls make mkdir mktemp rm sed sh sleep tail tee tr".split()
)

# A Python that makes "virtual environments" of itself and "installs" by writing down what it was asked for.
STUB_PYTHON = """#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
echo "$0 $*" >>"$LOG"
case "$*" in
*version_info*) echo "$STUB_VERSION" ;;
*"import ensurepip, venv"*) [ -z "${STUB_NO_VENV:-}" ] ;;
*"sys.version)"*) echo "$STUB_VERSION stub" ;;
*'version("torch"); print(v)'*) [ -e "$here/torch" ] && cat "$here/torch" ;;
*'"torch==" +'*) echo "torch==$(cat "$here/torch")" ;;
"-m venv "*)
    for target; do :; done
    rm -rf "$target" && mkdir -p "$target/bin" && : >"$target/pyvenv.cfg" && cat "$0" >"$target/bin/python"
    chmod +x "$target/bin/python" ;;
"-m pip index versions torch"*) echo "torch ($STUB_TORCH)"; echo "Available versions: $STUB_TORCH, 2.0" ;;
*" torch"*) [ "$3 $4" != "install --quiet" ] && echo 2.13.0 >"$here/torch" ;;
"-m pip install -c "*) sleep "${STUB_SLOW:-0}"; [ -z "${STUB_PIP_FAILS:-}" ] || { echo "ERROR: no network"; exit 1; } ;;
"-P - "*) exit 1 ;;
*) exit 0 ;;
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
            "STUB_VERSION": "3.11",
            "STUB_TORCH": "2.13.0+cpu",
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
    def pip_calls(self) -> list[str]:
        return [line.split(" -m pip ")[1] for line in self.log.read_text().splitlines() if " -m pip install" in line]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.has("python3", STUB_PYTHON)
    return machine


def test_fresh_checkout_gets_an_environment_and_the_second_call_installs_nothing(machine: Machine) -> None:
    status, python, err = machine.setup()
    assert status == 0, err
    assert python == str(machine.checkout / ".venv/bin/python")
    assert machine.pip_calls[-1].endswith("-e .")

    start = time.perf_counter()
    assert machine.setup() == (0, python, "")
    assert time.perf_counter() - start < 1.0
    assert machine.pip_calls == []


def test_everything_for_the_tests_is_more_than_the_demo_needs(machine: Machine) -> None:
    assert machine.setup("core")[0] == 0
    assert machine.setup("all")[0] == 0
    assert machine.pip_calls[-1].endswith("-e .[all]")
    assert machine.setup("core")[0] == 0
    assert machine.pip_calls == []


@pytest.mark.parametrize(("version", "apart"), [("3.11", False), ("3.12", False), ("3.13", True), ("3.14", True)])
def test_dm_control_comes_without_labmaze_where_that_has_no_wheel(machine: Machine, version: str, apart: bool) -> None:
    machine.environment["STUB_VERSION"] = version
    machine.setup("core")
    assert not any("dm_control==" in call for call in machine.pip_calls)
    machine.setup("all")
    assert ("install --no-deps dm_control==1.0.50 ogbench==1.2.2" in machine.pip_calls) == apart


@pytest.mark.parametrize("change", ["setup.cfg", "python"])
def test_changed_requirements_or_python_install_again(machine: Machine, change: str) -> None:
    machine.setup()
    if change == "setup.cfg":
        with (machine.checkout / "setup.cfg").open("a") as file:
            file.write("# one more requirement\n")
    else:
        machine.environment["STUB_VERSION"] = "3.12"
    assert machine.setup()[0] == 0
    assert machine.pip_calls[-1].endswith("-e .")


def test_interrupted_set_up_is_done_again_from_an_empty_environment(machine: Machine) -> None:
    process = machine.start(STUB_SLOW="30")
    while not any("-c" in call for call in machine.pip_calls):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    half_copied = machine.checkout / ".venv/half-copied"
    half_copied.touch()

    status, _, err = machine.setup()
    assert status == 0
    assert "interrupted" in err
    assert not half_copied.exists()


def test_failing_pip_is_shown_and_is_not_taken_for_done(machine: Machine) -> None:
    status, out, err = machine.setup(STUB_PIP_FAILS="1")
    assert (status, out) == (1, "")
    assert "ERROR: no network" in err
    status, _, err = machine.setup()
    assert status == 0
    assert "already there" in err, "what was installed before the failure stays"


def test_environment_made_by_hand_is_completed_not_replaced(machine: Machine) -> None:
    environment = machine.checkout / ".venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "pyvenv.cfg").touch()
    (environment / "mine").touch()
    shutil.copy(machine.bin / "python3", environment / "bin/python")
    (environment / "bin/torch").write_text("2.9.1")

    status, _, err = machine.setup()
    assert status == 0, err
    assert (environment / "mine").exists()
    assert "torch 2.9.1 is already there" in err
    assert not any("torch==" in call for call in machine.pip_calls)


def test_folder_that_is_no_environment_is_left_alone(machine: Machine) -> None:
    (machine.checkout / "precious").mkdir()
    (machine.checkout / "precious/file").touch()
    status, _, err = machine.setup(VENV="precious")
    assert status == 2
    assert "no virtual environment" in err
    assert (machine.checkout / "precious/file").exists()


def test_no_gpu_takes_the_cpu_build(machine: Machine) -> None:
    machine.setup()
    (torch,) = (call for call in machine.pip_calls if "torch==" in call and "--quiet" not in call)
    assert torch == "install --no-deps --index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu"


def test_no_gpu_and_no_cpu_build_says_that_cuda_comes(machine: Machine) -> None:
    machine.has("df", "echo header; echo / 1 1 99999999 1 /")
    status, _, err = machine.setup(STUB_TORCH="2.15.0")
    assert status == 0
    assert "cannot be reached" in err and "3 GB" in err

    shutil.rmtree(machine.checkout / ".venv")
    machine.has("df", "echo header; echo / 1 1 2000000 1 /")
    status, _, err = machine.setup(STUB_TORCH="2.15.0")
    assert status == 2
    assert "1 GB of disk are free" in err


def test_nvidia_gpu_takes_the_standard_build(machine: Machine) -> None:
    machine.has("nvidia-smi", "exit 0")
    machine.setup()
    assert "install torch>=2.6,<3" in machine.pip_calls


def test_named_torch_is_taken(machine: Machine) -> None:
    machine.setup(TORCH="torch==2.7.0")
    assert "install torch==2.7.0" in machine.pip_calls


def test_missing_system_packages_are_named_in_one_exact_line(machine: Machine) -> None:
    machine.has("apt-get", "exit 1")
    machine.has("apt-cache", "echo '  Depends: python3.11'")
    (machine.bin / "python3").unlink()
    status, out, err = machine.setup("core")
    assert (status, out) == (2, "")
    assert err == "error: this machine lacks system packages; type: sudo apt-get install -y python3 python3-venv\n"

    machine.has("ldconfig", "echo libGL.so.1")
    status, _, err = machine.setup("all")
    assert err.endswith("sudo apt-get install -y python3 python3-venv libegl1 libegl-mesa0 libosmesa6\n")


def test_old_default_python_leads_to_a_newer_package(machine: Machine) -> None:
    machine.has("apt-get", "exit 1")
    machine.has("apt-cache", "case $1-$2 in depends-*) echo '  Depends: python3.10' ;; *3.13*|*3.12*) exit 100 ;; esac")
    status, _, err = machine.setup(STUB_VERSION="3.10")
    assert status == 2
    assert err.endswith("sudo apt-get install -y python3.11-venv\n")


def test_root_installs_what_is_missing(machine: Machine) -> None:
    machine.has("id", "echo 0")
    (machine.bin / "python3").rename(machine.bin / "python3.hidden")
    machine.has("apt-get", f'echo "apt $*" >>"$LOG"; cp "{machine.bin}/python3.hidden" "{machine.bin}/python3"')
    status, python, err = machine.setup()
    assert status == 0, err
    assert python.endswith(".venv/bin/python")
    assert "python3 python3-venv" in next(line for line in machine.log.read_text().splitlines() if "apt " in line)


def test_unusable_interpreter_is_refused(machine: Machine) -> None:
    machine.has("old", STUB_PYTHON.replace("$STUB_VERSION", "3.9"))
    status, _, err = machine.setup(PYTHON="old")
    assert status == 2
    assert "PYTHON=old" in err and "3.9" in err


def test_interpreter_that_has_everything_is_used_as_it_is(tmp_path: Path) -> None:
    # Were it refused, pip would fail at once at this TORCH instead of installing.
    environment = os.environ | {"PYTHON": sys.executable, "VENV": str(tmp_path / "venv"), "TORCH": "./nothing.whl"}
    done = subprocess.run(["sh", "bootstrap.sh", "core"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (sys.executable, "")
    assert not (tmp_path / "venv").exists()


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


def test_every_target_of_the_makefile_is_explained(machine: Machine) -> None:
    shown = subprocess.run(
        [machine.bin / "make", "help"], cwd=machine.checkout, env=machine.environment, capture_output=True, text=True
    )
    targets = (ROOT / "Makefile").read_text().split(".PHONY:")[1].splitlines()[0].split()
    assert shown.returncode == 0, shown.stderr
    assert [line.split()[1] for line in shown.stdout.splitlines()] == targets
