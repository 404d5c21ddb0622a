"""Behaviour policies, by task and name.

A module `collect.policies.<task>` has `POLICIES: dict[str, factory]`; a factory takes the noise level (None for its
default) and returns a `lewm_gym.types.BehaviourPolicy`; the first entry is the task's default. Every task also has
"random", its own or the shared one. Further options of a factory follow the name, so that a dataset records them:
"markov:p_random_action=0.1".
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from lewm_gym.tasks import get_task
from lewm_gym.types import BehaviourPolicy

Factory = Callable[..., BehaviourPolicy]


def policies_of(task: str) -> dict[str, Factory]:
    """Returns the task's policies by name, the default first.

    Raises:
        ValueError: If there is no such task.
    """
    get_task(task)
    own: dict[str, Any] = importlib.import_module(f"collect.policies.{task}").POLICIES
    if "random" in own:
        return dict(own)
    shared = importlib.import_module("collect.policies.random").make_random
    return {**own, "random": lambda noise: shared(task, noise)}


def make_policy(task: str, name: str | None = None, noise: float | None = None) -> BehaviourPolicy:
    """Returns a behaviour policy of a task.

    Args:
        task: Name of the task.
        name: Name of the policy, with its options after a colon; None: the task's default.
        noise: Its noise level, in its own unit; None: its default.

    Raises:
        ValueError: If there is no such task or policy, or for noise or options that the policy does not take.
    """
    policies = policies_of(task)
    name, _, written = (name or next(iter(policies))).partition(":")
    if name not in policies:
        raise ValueError(f"{task} has no policy {name!r}; expected one of: {', '.join(policies)}")
    options = _options(name, policies[name], written) if written else {}
    return policies[name](noise, **options)


def _options(name: str, factory: Factory, written: str) -> dict[str, float]:
    """Returns the options in "p_random_action=0.1,...", all of them numbers."""
    parameters = inspect.signature(factory).parameters.values()
    known = [p.name for p in parameters if isinstance(p.default, float)]
    options = {}
    for part in written.split(","):
        option, _, value = part.partition("=")
        if option not in known:
            there = f"it takes: {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"policy {name!r} has no option {option!r}; {there}")
        try:
            options[option] = float(value)
        except ValueError:
            raise ValueError(f"policy {name!r}: {option} must be a number, got {value!r}") from None
    return options


def make_goal_expert(task: str) -> Any:
    """Returns the task's policy without its noise, with `pursue(env, rng, start, goal)` in place of `begin`."""
    get_task(task)
    return importlib.import_module(f"collect.policies.{task}").goal_expert()
