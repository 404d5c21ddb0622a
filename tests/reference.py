"""stable-worldmodel's modules, each by itself: the package's own import wants torchvision, simulators and more."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "stable_worldmodel"


def reference(name: str, *needs: str) -> Any:
    """Returns a module of stable-worldmodel, such as "data.formats.lance", its packages' `__init__` left out.

    Args:
        name: Of the module.
        needs: Packages that it imports; without one the test skips.
    """
    spec = sys.modules[PACKAGE].__spec__ if PACKAGE in sys.modules else importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("stable-worldmodel is not installed: pip install --no-deps stable-worldmodel")
    for need in needs:
        pytest.importorskip(need, reason=f"{need}, which stable-worldmodel needs, is not installed")
    root, parts = Path(spec.submodule_search_locations[0]), name.split(".")
    for depth in range(len(parts)):
        package = types.ModuleType(".".join([PACKAGE, *parts[:depth]]))
        package.__path__, package.__spec__ = [str(root.joinpath(*parts[:depth]))], spec
        sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"{PACKAGE}.{name}")
