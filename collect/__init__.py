"""Collecting datasets: behaviour policies and the parallel writer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collect.collector import collect

__all__ = ["collect"]
__part_of__ = "lewm_gym"


def __getattr__(name: str) -> Any:
    # Lazily, and without touching sys.modules beyond what is asked for: no simulator comes with it.
    if name == "collect":
        return importlib.import_module("collect.collector").collect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
