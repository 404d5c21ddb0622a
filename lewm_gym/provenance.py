"""What made a number: the command, the source, the packages and the machine. Run folders and results both carry it.

Nothing here imports torch: versions come from the installed metadata, and a GPU is named only if torch is
already loaded.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

#: Distributions whose versions change what a run computes; those that are not installed are left out.
PACKAGES = (
    "lewm-gym",
    "numpy",
    "torch",
    "gymnasium",
    "pillow",
    "safetensors",
    "pymunk",
    "mujoco",
    "dm_control",
    "ogbench",
    "imageio-ffmpeg",
    "scipy",
    "scikit-learn",
    "stable-worldmodel",
)
#: What of the source tree decides a result; a changed document or result file does not make it dirty.
SOURCES = ("lewm_gym", "envs", "agents", "collect", "benchmarks", "setup.cfg", "pyproject.toml")


#: In a task of a cluster: the command that asked for it.
scheduled_by: str | None = None


def describe() -> dict[str, Any]:
    """Returns `command`, `commit`, `versions` and `hardware` together, ready for JSON."""
    return {"command": command(), "commit": commit(), "versions": versions(), "hardware": hardware()}


def command() -> str:
    """Returns the running command as a user would type it, e.g. `python -m benchmarks plan runs/x --seed 1`."""
    if scheduled_by is not None:
        return scheduled_by
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    arguments = shlex.join(sys.argv[1:])
    if spec is not None:
        program = f"python -m {spec.name.removesuffix('.__main__')}"
    elif sys.argv[0] in ("", "-c"):
        program = "python"
    else:
        program = f"python {shlex.quote(sys.argv[0])}"
    return f"{program} {arguments}".strip()


@lru_cache(maxsize=1)
def commit() -> dict[str, Any] | None:
    """Returns `{"hash": 40 hex digits, "dirty": bool}` of the source tree, or None outside a git checkout.

    `dirty` says that a tracked source file (`SOURCES`) differs from the commit. Looked up once per process: what
    runs is what was imported, even if someone commits meanwhile.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # an installed package inside someone else's repository is not that repository
        return None
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *SOURCES)
    return {"hash": head, "dirty": bool(changed)}


def _git(root: Path, *arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # never make a user's own git command wait for ours
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Returns the versions of Python and of `PACKAGES`, read from installed metadata without importing anything."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def usable_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def hardware() -> dict[str, Any]:
    """Returns the machine: `cpu`, `cores` (usable by this process), `memory_gib`, `system` and `gpu`.

    `gpu` is the name of the current CUDA device (or "Apple GPU"), None if there is none or torch was not imported.
    """
    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": _gpu_name(),
    }


@lru_cache(maxsize=1)
def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")) and ":" in line:
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    if sys.platform == "darwin":
        try:
            query = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    return platform.processor() or platform.machine() or "unknown"


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _gpu_name() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return "Apple GPU" if torch.backends.mps.is_available() else None
