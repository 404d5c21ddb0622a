"""The environments that an evaluation steps: in this process, or shared out over worker processes.

Both kinds do the same to each environment, so that an outcome does not depend on their number. A frame is drawn only
where the agent is going to look at it, since drawing is most of the time of Cube and Reacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Self

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lewm_gym.pairs import FoundPair, Pair
from lewm_gym.processes import ProcessDied, Worker
from lewm_gym.tasks import Task

Frame = NDArray[np.uint8]
PairLike = Pair | FoundPair  # a start and a goal
Call = tuple[int, str, Any]  # number of an environment, method of `EvaluationEnv`, its arguments


class View(NamedTuple):
    """What an environment shows after a reset or a step.

    Attributes:
        pixels: (h, w, 3) uint8, None where nobody looks.
        goal: (h, w, 3) uint8, of a reset only.
        success: Whether the task's own test held, during the step or at its end.
        strict: Whether the stricter test holds now.
        sensed: What else the observation holds (proprioception).
    """

    pixels: Frame | None
    goal: Frame | None
    success: bool
    strict: bool
    sensed: Mapping[str, NDArray[np.float32]] = {}


@dataclass(frozen=True)
class Rules:
    """How the environments of an evaluation are made.

    Attributes:
        render_quality: How carefully to draw: as the frames that the agent was trained on; None for the default.
        reference_rules: Whether the reference implementation's rules hold, its inexact restore among them.
        variations: What is changed in the environment, see `GoalEnv.variation_ranges`.
        proprioception: Whether observations hold proprioception; `evaluate` sets it where the agent needs it.
    """

    render_quality: str | None = None
    reference_rules: bool = False
    variations: dict[str, Any] = field(default_factory=dict)
    proprioception: bool = False


@dataclass(frozen=True)
class Settings:
    """How pairs are evaluated, besides the environments' `Rules`.

    Attributes:
        budget_steps: Environment steps allowed.
        seed: With the pair's index it determines the pair's random stream.
        n_envs: Environments evaluated at once, at most.
        workers: Processes they live in; 1 for this one.
        strict: Whether an episode goes on after its success until it is known whether the goal is held.
        shared_rng: Whether all environments at once draw from one random stream, as the reference's do; outcomes
            then depend on one another.
        solved_starts: Whether starts that satisfy their goal are evaluated like others, as the reference does, instead
            of refused. What holds before the first step counts for nothing.
        steps_left: Within how many steps the agent is told to reach each goal, counted down from the start; None: it
            is told nothing.
    """

    budget_steps: int
    seed: int = 0
    n_envs: int = 16
    workers: int = 1
    strict: bool = True
    shared_rng: bool = False
    solved_starts: bool = False
    steps_left: int | None = None

    def __post_init__(self) -> None:
        for name in ("budget_steps", "n_envs", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class EvaluationEnv:
    """One environment, put at the start of one pair after the other.

    Raises:
        ValueError: If the task's environment cannot be made so.
        ImportError: If its simulator is missing.
    """

    def __init__(self, task: Task, rules: Rules) -> None:
        # The evaluation ends an episode, not Gymnasium's time limit or success; the checker slows every first step.
        options: dict[str, Any] = {"max_episode_steps": -1, "disable_env_checker": True, "terminate_on_success": False}
        for name in ("render_quality", "reference_rules", "proprioception"):  # which other environments may not know
            if getattr(rules, name):
                options[name] = getattr(rules, name)
        self._env = gymnasium.make(f"lewm_gym:{task.env_id}", **options)
        self._task_env: Any = self._env.unwrapped
        self._variations = {"variations": rules.variations} if rules.variations else {}

    def reset(self, pair: PairLike, seed: int, look: bool) -> View:
        """Puts the environment at the start of a pair, with its goal."""
        self._task_env.draw_observations = look
        options = {"state": pair.start_state, "goal_state": pair.goal_state, **self._variations}
        obs, info = self._env.reset(seed=seed, options=options)
        goal = getattr(pair, "goal_image", None)
        return self._view(obs, info, look, obs["goal"] if goal is None else goal)

    def step(self, action: NDArray[np.float32], look: bool) -> View:
        """Applies one action."""
        self._task_env.draw_observations = look
        obs, _, _, _, info = self._env.step(action)
        return self._view(obs, info, look, None)

    def _view(self, obs: Any, info: dict[str, Any], look: bool, goal: Frame | None) -> View:
        strict = self._task_env.is_strict_goal(info["state"], info["goal_state"])
        sensed = {name: value for name, value in obs.items() if name not in ("pixels", "goal")}
        pixels, goal = (obs["pixels"], goal) if look else (None, None)
        return View(pixels, goal, bool(info["is_success"]), bool(strict), sensed)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


class Environments:
    """A row of environments of one task, each made when it is first asked for.

    For one worker they live in this process; otherwise environment i in process i modulo `workers`.

    Raises:
        ChildProcessError: If a worker dies.
        ValueError: What an environment raised, likewise ImportError.
    """

    def __init__(self, task: Task, count: int, rules: Rules | None = None, workers: int = 1) -> None:
        self._task, self._rules = task, rules or Rules()
        self._envs: dict[int, EvaluationEnv] = {}
        workers = min(workers, count)
        make = partial(_caller, task, self._rules)
        self._workers = [Worker(make) for _ in range(workers)] if workers > 1 else []

    def reset(self, pairs: Sequence[PairLike], seeds: Sequence[int], look: Sequence[bool]) -> list[View]:
        """Puts environment i at the start of pair i; draws where `look` says so."""
        return self.call([(row, "reset", call) for row, call in enumerate(zip(pairs, seeds, look, strict=True))])

    def step(self, rows: Sequence[int], actions: NDArray[np.float32], look: Sequence[bool]) -> list[View]:
        """Applies one action to each environment in `rows`."""
        return self.call([(row, "step", call) for row, *call in zip(rows, actions, look, strict=True)])

    def call(self, calls: Sequence[Call]) -> list[View]:
        """Returns what each call gives."""
        if not self._workers:
            for row, _, _ in calls:
                if row not in self._envs:
                    self._envs[row] = EvaluationEnv(self._task, self._rules)
            return [getattr(self._envs[row], method)(*arguments) for row, method, arguments in calls]
        shares: dict[int, list[Call]] = {}
        for call in calls:
            shares.setdefault(call[0] % len(self._workers), []).append(call)
        for worker, share in shares.items():
            self._workers[worker].send(share)
        try:
            answers = {worker: iter(self._workers[worker].receive()) for worker in shares}
        except ProcessDied as error:
            raise ChildProcessError(
                f"an environment's {error}: is memory short? Try fewer --workers; finished outcomes are kept"
            ) from None
        return [next(answers[row % len(self._workers)]) for row, _, _ in calls]

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the environments and ends the processes."""
        for env in self._envs.values():
            env.close()
        for worker in self._workers:
            worker.stop()


def _caller(task: Task, rules: Rules) -> Callable[[Sequence[Call]], list[View]]:
    return Environments(task, 1, rules).call
