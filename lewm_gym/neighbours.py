"""Checks that `envs`, `agents`, `collect` and `benchmarks` are ours, not other packages or folders of these names."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

NAMES = ("envs", "agents", "collect", "benchmarks")
#: Stands in the `__init__.py` of each of the four; a package of that name installed over ours overwrites it.
MARK = b'__part_of__ = "lewm_gym"'


def intruder(name: str) -> str | None:
    """Returns a one-line warning if Python finds another package for `name`; imports nothing.

    Args:
        name: One of `NAMES`.
    """
    home = Path(__file__).resolve().parent.parent
    found = _location(name)
    if found is None:
        return (
            f"LeWM-Gym's package '{name}' is missing beside {home / 'lewm_gym'}: "
            f"pip install --force-reinstall --no-deps lewm-gym"
        )
    if found.resolve() == home / name / "__init__.py":
        if MARK in found.read_bytes():
            return None
        return (
            f"another package '{name}' was installed over LeWM-Gym's in {found.parent}: pip uninstall {name}, then "
            f"pip install --force-reinstall --no-deps lewm-gym"
        )
    return (
        f"Python finds {found} for '{name}', not LeWM-Gym's in {home}: rename or uninstall it, or start from another "
        f"folder (the commands lewm-gym, lewm-collect, lewm-agents and lewm-benchmarks do not look into yours)"
    )


def _location(name: str) -> Path | None:
    """Returns the file that `import name` has run or would run; a folder for one without `__init__.py`."""
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
        return Path(file) if file else None
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    if spec.origin:
        return Path(spec.origin)
    return Path(next(iter(spec.submodule_search_locations or [name])))
