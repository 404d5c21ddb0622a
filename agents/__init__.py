"""The agents: LeWM and the baselines it is compared with. One file and one line in `AGENTS` each."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__part_of__ = "lewm_gym"

#: name on command lines -> module:class; imported only when asked for
AGENTS: dict[str, str] = {
    "lewm": "agents.lewm:LeWMAgent",
    "pldm": "agents.pldm:PLDMAgent",
    "dino_wm": "agents.dino_wm:DinoWMAgent",
    "random_vit": "agents.dino_wm:RandomViTAgent",
    "gcbc": "agents.gcbc:GCBCAgent",
    "gcivl": "agents.gcivl:GCIVLAgent",
    "gciql": "agents.gciql:GCIQLAgent",
    "oracle": "agents.oracle:OracleAgent",
    "expert": "agents.oracle:ExpertAgent",
    "random": "agents.random:RandomAgent",
}


def agent_class(name: str) -> Any:
    """Returns the class of the agent called `name`.

    Raises:
        ValueError: If there is no such agent; the message lists those that exist.
    """
    if name not in AGENTS:
        raise ValueError(f"unknown agent {name!r}; expected one of: {', '.join(AGENTS)}")
    module, _, class_name = AGENTS[name].partition(":")
    return getattr(importlib.import_module(module), class_name)


def load_agent(folder: str | Path, **options: Any) -> Any:
    """Returns the trained agent of a run folder, whichever it is.

    Args:
        folder: A run folder.
        options: Passed to the class's `load`: `device`, `seed`.

    Raises:
        FileNotFoundError: If there is no finished run in the folder.
        ValueError: If it is damaged.
    """
    from lewm_gym import checkpoint

    return agent_class(checkpoint.load_description(folder)["agent"]).load(folder, **options)
