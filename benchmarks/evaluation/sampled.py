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

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collect.episodes import make_env
from collect.policies import make_goal_expert
from lewm_gym.pairs import FoundPair, load_shipped, stream_seed
from lewm_gym.tasks import Task

KINDS = ("uniform", "walk")
WALK_STARTS = 25  # the distance of the shipped pairs whose starts walks begin at
_WALKS = 5  # from a start, before it is left out
_DRAWS = 50  # of a start and goal, before the budget is given up as too short


Progress = Callable[[int, int], None] | None
State = NDArray[np.float64]


@dataclass
class Sampled:
    """Pairs and how many were drawn for them; those beyond the pairs had no certificate."""

    pairs: list[FoundPair]
    drawn: int = 0


def sample_pairs(task: Task, kind: str, count: int, seed: int, steps: int, progress: Progress = None) -> Sampled:
    """Returns starts and goals of a kind; pair i is a function of (task, kind, seed, steps, i).

    Steps are the budget within which uniform goals must be reached, or the length of walks; `progress` is called with
    (pairs found, count).

    Raises:
        ValueError: For an unknown kind, or if hardly any goal can be reached within the budget.
    """
    if kind not in KINDS:
        raise ValueError(f"--sampled-goals must be one of {', '.join(KINDS)}, got {kind!r}")
    env: Any = make_env(task.name)
    env.draw_observations = False
    found = Sampled([])
    try:
        for pair in (_uniform if kind == "uniform" else _walks)(env, task, seed, steps, found):
            found.pairs.append(pair)
            if progress is not None:
                progress(len(found.pairs), count)
            if len(found.pairs) == count:
                break
    finally:
        env.close()
    return found


def _uniform(env: Any, task: Task, seed: int, budget: int, found: Sampled) -> Iterator[FoundPair]:
    for index in itertools.count():
        for attempt in range(_DRAWS):
            stream = stream_seed(seed, index)
            found.drawn += 1
            _, info = env.reset(seed=(stream if attempt == 0 else stream_seed(stream, attempt)) % 2**32)
            start, goal = info["state"], info["goal_state"]
            rng = np.random.default_rng([seed, index, attempt])
            actions, reached = pursue(make_goal_expert(task.name), env, start, goal, rng, budget, steer=True)
            if reached:
                yield FoundPair(start, goal, actions, phase=env.phase(np.stack([start, goal])))
                break
        else:
            raise ValueError(
                f"{task.title}: its policy reaches none of {_DRAWS} goals within {budget} steps: raise --budget"
            )


def pursue(
    policy: Any, env: Any, start: State, goal: State, rng: np.random.Generator, budget: int, steer: bool = False
) -> tuple[NDArray[np.float32], bool]:
    """Returns what the collector's policy does from a start, (steps, action_size), and whether it reaches the goal.

    With `steer`, the task's own control acts in its place, where the task has one (Reacher).
    """
    if steer and env.steer(start, goal) is not None:
        _, info = env.reset(options={"state": start, "goal_state": goal})
        act = lambda info: env.steer(info["state"], goal)  # noqa: E731
    else:
        _, info = policy.pursue(env, rng, start, goal)
        act = policy.act
    actions: list[NDArray[np.float32]] = []
    while len(actions) < budget and not info["is_success"]:
        actions.append(act(info))
        info = env.step(actions[-1])[-1]
    return np.stack(actions), bool(info["is_success"])


def _walks(env: Any, task: Task, seed: int, steps: int, found: Sampled) -> Iterator[FoundPair]:
    starts = dict(enumerate(pair.start_state for pair in load_shipped(task.name, WALK_STARTS).pairs))
    for rounds in itertools.count():
        for number, start in list(starts.items()):
            rng = np.random.default_rng([seed, number, rounds, steps])
            for _ in range(_WALKS):
                found.drawn += 1
                actions = env.sample_walk(rng, steps)
                _, info = env.reset(options={"state": start, "goal_state": start})
                states = np.stack([info["state"], *(env.step(action)[-1]["state"] for action in actions)])
                if not env.is_goal(start, states[-1]):
                    yield FoundPair(start, states[-1], actions, phase=env.phase(states))
                    break
            else:
                del starts[number]
        if not starts:
            raise ValueError(f"{task.title}: no walk of {steps} steps leads to a goal that is not reached at the start")
