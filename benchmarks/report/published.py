"""Published numbers, from `published.toml`; each names its source and protocol, and none was measured here."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PAPER = "The paper"  # the first of the blocks


@dataclass(frozen=True)
class Published:
    """A success rate that others report.

    Attributes:
        task: Name of the task.
        agent: Name of the agent, as in `agents.AGENTS`; empty for a method that is not here.
        label: Name of the method as its authors write it.
        block: Heading under which it stands.
        success: Success, % of episodes.
        spread: Standard deviation over seeds, % points, where it is given.
        source: Who reports it, and where.
        protocol: How it was measured.
    """

    task: str
    agent: str
    label: str
    block: str
    success: float
    spread: float | None
    source: str
    protocol: str


@cache
def data() -> dict[str, Any]:
    """Returns the file."""
    return tomllib.loads(Path(__file__).with_name("published.toml").read_text(encoding="utf-8"))


def offset_steps() -> int:
    """Returns the distance between start and goal of every published rate, environment steps."""
    return int(data()["offset_steps"])


@cache
def published(task: str) -> tuple[Published, ...]:
    """Returns what others report on a task, the paper's own numbers first; nothing for one that nobody reports."""
    found = []
    for part in data()["success"]:
        if task not in part["tasks"]:
            continue
        place = part["tasks"].index(task)
        for row in part["rows"]:
            success = row["success"][place]
            spread = row["spread"][place] if "spread" in row else math.nan
            if not math.isnan(success):
                source = row.get("source", part.get("source", ""))
                found.append(Published(task, row.get("agent", ""), row["label"], part["block"], success,
                                       None if math.isnan(spread) else spread, source, part["protocol"]))  # fmt: skip
    return tuple(found)


def of_paper(task: str, agent: str) -> float | None:
    """Returns the paper's own success rate of an agent, %, None where it has none."""
    return next((row.success for row in published(task) if (row.agent, row.block) == (agent, PAPER)), None)


def probes(task: str) -> dict[str, tuple[float | None, ...]]:
    """Returns quantity -> LeWM's (linear MSE, linear r, MLP MSE, MLP r) in the paper; None where it has none."""
    found = data()["probes"].get(task, {})
    return {name: tuple(None if math.isnan(v) else v for v in values) for name, values in found.items()}


def sentence(name: str) -> str:
    """Returns what the paper says of a kind of knowledge."""
    return str(data()["knowledge"][name])
