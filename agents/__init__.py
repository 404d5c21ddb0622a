"""The agents: LeWM and the baselines it is compared with. One file and one line in `AGENTS` each."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NamedTuple

__part_of__ = "lewm_gym"


class Known(NamedTuple):
    """An agent.

    Attributes:
        path: `module:class`; imported only when asked for.
        title: Name in tables and plots.
        learns: Whether it is trained; the others are references.
    """

    path: str
    title: str
    learns: bool = True


#: name on command lines -> what there is to know without importing it
AGENTS: dict[str, Known] = {
    "lewm": Known("agents.lewm:LeWMAgent", "LeWM"),
    "pldm": Known("agents.pldm:PLDMAgent", "PLDM"),
    "dino_wm": Known("agents.dino_wm:DinoWMAgent", "DINO-WM"),
    "random_vit": Known("agents.dino_wm:RandomViTAgent", "random ViT"),
    "gcbc": Known("agents.gcbc:GCBCAgent", "GCBC"),
    "gcivl": Known("agents.gcivl:GCIVLAgent", "GCIVL"),
    "gciql": Known("agents.gciql:GCIQLAgent", "GCIQL"),
    "tdmpc2": Known("agents.tdmpc2:TDMPC2Agent", "TD-MPC2 (needs rewards)"),
    "dreamer": Known("agents.dreamer:DreamerAgent", "Dreamer (needs rewards)"),
    "oracle": Known("agents.oracle:OracleAgent", "action replay: the recorded actions again", learns=False),
    "expert": Known("agents.oracle:ExpertAgent", "expert: the collector's policy, on states", learns=False),
    "random": Known("agents.random:RandomAgent", "random baseline", learns=False),
}


def learning() -> tuple[str, ...]:
    """Returns the names of the agents that are trained."""
    return tuple(name for name, known in AGENTS.items() if known.learns)


def references() -> tuple[str, ...]:
    """Returns the names of the references, which are not trained."""
    return tuple(name for name, known in AGENTS.items() if not known.learns)


def agent_title(name: str) -> str:
    """Returns an agent's name in tables; its own name if it is not in AGENTS."""
    return AGENTS[name].title if name in AGENTS else name


def agent_class(name: str) -> Any:
    """Returns the class of the agent called `name`.

    Raises:
        ValueError: If there is no such agent; the message lists those that exist.
    """
    if name not in AGENTS:
        raise ValueError(f"unknown agent {name!r}; expected one of: {', '.join(AGENTS)}")
    module, _, class_name = AGENTS[name].path.partition(":")
    return getattr(importlib.import_module(module), class_name)


def load_agent(folder: str | Path, **options: Any) -> Any:
    """Returns the trained agent of a run folder, of any class.

    Args:
        folder: A run folder.
        options: Passed to the class's `load`: `device`, `seed`, and how to plan (`PlanningAgent.load`).

    Raises:
        FileNotFoundError: If there is no finished run in the folder.
        ValueError: If it is damaged.
    """
    from lewm_gym import checkpoint

    return agent_class(checkpoint.load_description(folder)["agent"]).load(folder, **options)
