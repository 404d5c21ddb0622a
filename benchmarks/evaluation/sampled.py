"""Goals off the paths of any dataset: drawn anew, each with actions that certify that it can be reached.

- `uniform`: start and goal as the environment's own `reset` draws them, uniformly over the task's states (any free
  place of Two-Room, any pose of the arm, of T and disc, of the cube). The task's noise-free policy plays from there (in
  Reacher plain control of the joints, since its policy knows where the finger is to be, not the joints); a goal that is
  not reached within the budget is drawn again, so that what is kept has a certificate: those actions. What is left out
  may be reachable too; how many were drawn is part of the result.
- `walk`: starts of the shipped pairs, and for the goal the state where a smooth random walk of actions
  (`GoalEnv.sample_walk`) leads from there, nothing recorded. The walk is the certificate. Goals that are reached at the
  start already are drawn again; a start from which 5 walks change nothing (Cube's with an empty hand) is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collect.episodes import make_env
from collect.policies import make_pursuer
from lewm_gym.pairs import FoundPair, load_shipped, stream_seed
from lewm_gym.tasks import Task

KINDS = ("uniform", "walk")
WALK_STARTS = 25  # the distance of the shipped pairs whose starts walks begin at
_WALKS = 5  # from a start, before it is left out
_DRAWS = 50  # of a start and goal, before the budget is given up as too short


@dataclass(frozen=True)
class Sampled:
    """Pairs and how many were drawn for them; those beyond the pairs had no certificate."""

    pairs: tuple[FoundPair, ...]
    drawn: int


def sample_pairs(
    task: Task, kind: str, count: int, seed: int, steps: int, progress: Callable[[int, int], None] | None = None
) -> Sampled:
    """Returns starts and goals of a kind; pair i is a function of (task, kind, seed, steps, i).

    Args:
        task: The task.
        kind: One of KINDS.
        count: How many.
        seed: Of the draws.
        steps: The budget within which uniform goals must be reached, or the length of walks.
        progress: Called with (pairs found, count).

    Raises:
        ValueError: For an unknown kind, or if hardly any goal can be reached within the budget.
    """
    if kind not in KINDS:
        raise ValueError(f"--sampled-goals must be one of {', '.join(KINDS)}, got {kind!r}")
    env: Any = make_env(task.name)
    env.draw_observations = False
    try:
        return (_uniform if kind == "uniform" else _walks)(env, task, count, seed, steps, progress)
    finally:
        env.close()


def _uniform(
    env: Any, task: Task, count: int, seed: int, budget: int, progress: Callable[[int, int], None] | None
) -> Sampled:
    pairs: list[FoundPair] = []
    drawn = 0
    for index in range(count):
        for attempt in range(_DRAWS):
            stream = stream_seed(seed, index)
            drawn += 1
            _, info = env.reset(seed=(stream if attempt == 0 else stream_seed(stream, attempt)) % 2**32)
            start, goal = info["state"], info["goal_state"]
            if env.steer(start, goal) is None:
                rng = np.random.default_rng([seed, index, attempt])
                actions, reached = pursue(make_pursuer(task.name), env, start, goal, rng, budget)
            else:
                actions, reached = _steered(env, start, goal, budget)
            if reached:
                pairs.append(FoundPair(start, goal, actions, phase=env.phase(np.stack([start, goal]))))
                break
        else:
            raise ValueError(
                f"{task.title}: its policy reaches none of {_DRAWS} goals within {budget} steps: raise --budget"
            )
        if progress is not None:
            progress(len(pairs), count)
    return Sampled(tuple(pairs), drawn)


def _steered(
    env: Any, start: NDArray[np.float64], goal: NDArray[np.float64], budget: int
) -> tuple[NDArray[np.float32], bool]:
    """Returns what the task's own control does from a start, (steps, action_size), and whether it reaches the goal."""
    _, info = env.reset(options={"state": start, "goal_state": goal})
    actions: list[NDArray[np.float32]] = []
    while len(actions) < budget and not info["is_success"]:
        actions.append(env.steer(info["state"], goal))
        info = env.step(actions[-1])[-1]
    return np.stack(actions), bool(info["is_success"])


def pursue(
    policy: Any, env: Any, start: NDArray[np.float64], goal: NDArray[np.float64], rng: np.random.Generator, budget: int
) -> tuple[NDArray[np.float32], bool]:
    """Returns what the collector's policy does from a start, (steps, action_size), and whether it reaches the goal."""
    _, info = policy.pursue(env, rng, start, goal)
    actions: list[NDArray[np.float32]] = []
    while len(actions) < budget and not info["is_success"]:
        actions.append(policy.act(info))
        _, _, _, _, info = env.step(actions[-1])
    return np.stack(actions), bool(info["is_success"])


def _walks(
    env: Any, task: Task, count: int, seed: int, steps: int, progress: Callable[[int, int], None] | None
) -> Sampled:
    starts = dict(enumerate(pair.start_state for pair in load_shipped(task.name, WALK_STARTS).pairs))
    pairs: list[FoundPair] = []
    drawn = rounds = 0
    while len(pairs) < count:
        for number, start in list(starts.items()):
            if len(pairs) == count:
                break
            rng = np.random.default_rng([seed, number, rounds, steps])
            for _ in range(_WALKS):
                drawn += 1
                actions = env.sample_walk(rng, steps)
                states = _play(env, start, actions)
                if not env.is_goal(start, states[-1]):
                    pairs.append(FoundPair(start, states[-1], actions, phase=env.phase(states)))
                    break
            else:
                del starts[number]
            if progress is not None:
                progress(len(pairs), count)
        if not starts:
            raise ValueError(f"{task.title}: no walk of {steps} steps leads to a goal that is not reached at the start")
        rounds += 1
    return Sampled(tuple(pairs), drawn)


def _play(env: Any, start: NDArray[np.float64], actions: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the states from a start on, (steps + 1, state_size)."""
    _, info = env.reset(options={"state": start, "goal_state": start})
    return np.stack([info["state"], *(env.step(action)[-1]["state"] for action in actions)])
