"""Available memory."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Returns the bytes that can be allocated without swapping, within a container's limit.

    On Linux this is the kernel's `MemAvailable` (free memory and caches); elsewhere half of all memory.
    """
    found = [_machine()]
    limit = _number(_CGROUP / "memory.max") or _number(_CGROUP / "memory/memory.limit_in_bytes")
    if limit is not None:
        used = _number(_CGROUP / "memory.current") or _number(_CGROUP / "memory/memory.usage_in_bytes") or 0
        found.append(max(limit - used + _cached(), 0))
    return min(found)


def _machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # not Linux
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30


def _cached() -> int:
    """Returns the bytes of a container's usage that are file caches."""
    for path in (_CGROUP / "memory.stat", _CGROUP / "memory/memory.stat"):
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        return sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
    return 0


def _number(path: Path) -> int | None:
    """Returns the number in a file; None if there is none or no limit ("max")."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
