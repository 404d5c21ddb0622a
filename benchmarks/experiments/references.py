"""The references: run folders of agents that learn nothing, to be measured on the same pairs as any other.

    random    uniform actions
    oracle    the recorded actions again, from the exactly restored start: what the pairs and the environment allow
    expert    the collector's policy, which sees states and pursues the goal state

The expert plays in an environment of its own that is restored to the pair's start. Environments restore exactly and
have no chance in them, so its actions lead through the same states in the one that is measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents import agent_class, references
from benchmarks.evaluation.envs import PairLike
from benchmarks.evaluation.sampled import pursue
from collect.episodes import make_env
from collect.policies import make_goal_expert
from lewm_gym import checkpoint
from lewm_gym.files import make_folder, remove_leftovers
from lewm_gym.pairs import stream_seed


def make_reference(
    name: str, folder: str | Path, task: str, pairs: Sequence[PairLike], seed: int, budget_steps: int
) -> Path:
    """Writes the run folder of a reference, that `plan` measures; returns it.

    Pairs and seed are those that it will be measured with; the expert gets `budget_steps` environment steps.

    Raises:
        ValueError: If there is no such reference.
    """
    folder = Path(folder)
    if name not in references():
        raise ValueError(f"unknown reference {name!r}; expected one of: {', '.join(references())}")
    make_folder(folder)
    remove_leftovers(folder)
    if name == "random":
        checkpoint.save_description(folder, {"agent": name, "task": task, "finished": True})
        return folder
    plans = [pair.actions for pair in pairs] if name == "oracle" else expert_actions(task, pairs, seed, budget_steps)
    agent_class(name)({stream_seed(seed, i): plan for i, plan in enumerate(plans)}).save(folder, task)
    return folder


def expert_actions(task: str, pairs: Sequence[PairLike], seed: int, budget_steps: int) -> list[NDArray[np.float32]]:
    """Returns what the collector's policy does to get from each pair's start to its goal, each (steps, action_size)."""
    env: Any = make_env(task)
    env.draw_observations = False  # the policy looks at states
    plans = []
    with contextlib.closing(env):
        for index, pair in enumerate(pairs):
            rng = np.random.default_rng([seed, index])
            plans.append(pursue(make_goal_expert(task), env, pair.start_state, pair.goal_state, rng, budget_steps)[0])
    return plans
