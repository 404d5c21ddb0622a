"""Planning success: an agent is put at the start of each pair, shown its goal, and given a budget of steps.

The outcome of a pair is a function of (agent, pair, seed, index of the pair). Each pair has a random stream of its
own, so that neither the number of environments evaluated at once, nor the processes they live in, nor the other pairs
change it; with the reference's one shared stream, the batch size flips a quarter of the outcomes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.envs import Environments, Frame, PairLike, Rules, Settings, View
from benchmarks.evaluation.film import Episode
from lewm_gym.pairs import stream_seed
from lewm_gym.results import Outcome
from lewm_gym.tasks import IMAGE_SIZE, Task, get_task
from lewm_gym.types import Agent, BatchAgent, Obs

#: Strict success: the strict goal condition holds after so many steps in a row, within the budget.
HOLD_STEPS = 5
#: Called with every frame that the agent sees: pair index, step, observation, whether the goal is met.
Watch = Callable[[int, int, Obs, bool], None]
#: Called with each outcome as soon as it is known.
Progress = Callable[[Outcome], None]

_NOT_DRAWN = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)  # in place of a frame that nobody looks at


class ActClock:
    """Sums the seconds that an agent takes to act."""

    seconds = 0.0


def evaluate(
    agent: Agent,
    task: Task | str,
    pairs: Sequence[PairLike],
    how: Settings | None = None,
    *,
    indices: Sequence[int] | None = None,
    rules: Rules | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
    clock: ActClock | None = None,
    **settings: Any,
) -> tuple[Outcome, ...]:
    """Returns the outcome of each pair, in the order of `indices`.

    Success is the task's own test, met in any step within the budget. Strict success asks more: that the strict
    condition (`GoalEnv.is_strict_goal`) holds after each of `HOLD_STEPS` consecutive steps within the budget; the agent
    goes on acting after its first success. Judging it changes no pair's own success.

    A `BatchAgent` is told which environments of a batch are unfinished; any other is fed the last observation of the
    finished ones until the batch is over, and its actions for them are ignored. Frames that a `BatchAgent` does not
    need are black; one that does not need the first sees no goal either.

    Args:
        agent: Its actions for an environment may depend on what it saw there since `reset(seeds)` and on that
            environment's seed, on nothing else.
        task: The task, or its name.
        pairs: Starts and goals; an index is a position in this sequence.
        how: Budget, seed and more; by default twice as many steps as there are recorded actions.
        indices: Which pairs; default all.
        rules: How the environments are made.
        progress: Called with each outcome as soon as it is known.
        watch: Called with every frame; all of them are drawn then.
        clock: Gets the seconds that the agent takes.
        settings: Fields of `Settings`, in place of `how`.

    Raises:
        ValueError: If a pair is solved at its start, cannot be restored, or an argument is out of range; if the
            agent returns actions of another shape or outside the action space.
        ChildProcessError: If a worker process dies.
    """
    task = get_task(task) if isinstance(task, str) else task
    indices = [int(index) for index in (range(len(pairs)) if indices is None else indices)]
    if not indices:
        return ()
    how = how or Settings(**{"budget_steps": 2 * len(pairs[indices[0]].actions), **settings})
    batched = agent if isinstance(agent, BatchAgent) else None
    rules = replace(rules or Rules(), proprioception=batched is not None and batched.proprioception)
    outcomes: dict[int, Outcome] = {}
    with Environments(task, min(how.n_envs, len(indices)), rules, how.workers) as envs:
        if not how.solved_starts:
            _check_unsolved(envs, pairs, indices, how.n_envs)
        for first in range(0, len(indices), how.n_envs):
            chosen = indices[first : first + how.n_envs]
            batch = _Batch(agent, batched, envs, pairs, chosen, how, task.action_size, watch, clock or ActClock())
            for outcome in batch.play():
                outcomes[outcome.pair] = outcome
                if progress is not None:
                    progress(outcome)
    return tuple(outcomes[index] for index in indices)


def record(
    agent: Agent,
    task: Task | str,
    pairs: Sequence[PairLike],
    indices: Sequence[int],
    how: Settings,
    *,
    rules: Rules | None = None,
    progress: Callable[[Outcome], None] | None = None,
) -> list[Episode]:
    """Returns the episodes of `indices`, played again as `evaluate` plays them: the same seed, the same outcomes.

    An episode is shown up to its first success. Where all draw from one random stream, all are played. Arguments and
    errors are those of `evaluate`.
    """
    episodes = {index: Episode(index, np.empty(0, np.uint8)) for index in indices}

    def watch(index: int, step: int, obs: Obs, success: bool) -> None:
        if index in episodes:
            if not step:
                episodes[index].goal = np.array(obs["goal"])
            episodes[index].frames.append(np.array(obs["pixels"]))

    played, how = range(len(pairs)) if how.shared_rng else indices, replace(how, strict=False)
    for outcome in evaluate(agent, task, pairs, how, indices=played, rules=rules, progress=progress, watch=watch):
        if outcome.pair in episodes:
            episodes[outcome.pair].outcome = outcome
    return list(episodes.values())


def _check_unsolved(envs: Environments, pairs: Sequence[PairLike], indices: Sequence[int], n_envs: int) -> None:
    """Looks at every start before the first plan: a bad pair should not cost an evaluation."""
    solved = []
    for first in range(0, len(indices), n_envs):
        batch = indices[first : first + n_envs]
        views = envs.reset([pairs[index] for index in batch], [0] * len(batch), [False] * len(batch))
        solved += [index for index, view in zip(batch, views, strict=True) if view.success]
    if solved:
        raise ValueError(
            f"{len(solved)} of {len(indices)} pairs are solved at the start (the first is pair {solved[0]}); "
            "the held-out protocol counts none of those: sample the pairs again without them"
        )


@dataclass
class _Attempt:
    """One environment's episode under way."""

    pair: int
    view: View
    goal: Frame
    success_step: int | None = None
    held: int = 0
    strict: bool = False

    def note(self, view: View, step: int) -> None:
        self.view = view
        if view.success and self.success_step is None:
            self.success_step = step
        self.held = self.held + 1 if view.strict else 0
        self.strict = self.strict or self.held >= HOLD_STEPS

    def is_over(self, step: int, how: Settings) -> bool:
        steps_left = how.budget_steps - step
        if not how.strict:
            return self.success_step is not None or not steps_left
        can_hold = self.held + steps_left >= HOLD_STEPS
        return self.strict or not (steps_left and (can_hold or self.success_step is None))

    def outcome(self, how: Settings) -> Outcome:
        strict = self.strict if how.strict else None
        return Outcome(self.pair, self.success_step is not None, self.success_step, strict)

    def observation(self) -> Obs:
        pixels = self.view.pixels
        return {"pixels": _NOT_DRAWN if pixels is None else pixels, "goal": self.goal, **self.view.sensed}


@dataclass
class _Batch:
    """Environments that are evaluated together."""

    agent: Agent
    batched: BatchAgent | None
    envs: Environments
    pairs: Sequence[PairLike]
    indices: Sequence[int]
    how: Settings
    action_size: int
    watch: Watch | None
    clock: ActClock
    fed: list[int] = field(default_factory=list)  # rows whose observations the agent gets

    def play(self) -> Iterator[Outcome]:
        """Yields the outcome of each pair as soon as it is known."""
        attempts = self._begin()
        running = list(self.fed)
        for step in range(1, self.how.budget_steps + 1):
            actions = self._act([attempts[row] for row in self.fed], step - 1)
            chosen = actions[[self.fed.index(row) for row in running]]
            needed = dict(zip(self.fed, self._needed(), strict=True))
            last = step == self.how.budget_steps and self.watch is None  # after which nobody acts
            views = self.envs.step(running, chosen, [needed[row] and not last for row in running])
            for row, view in zip(running, views, strict=True):
                attempts[row].note(view, step)
                self._show(attempts[row], step)
                if attempts[row].is_over(step, self.how):
                    yield attempts[row].outcome(self.how)
            unfinished = [row for row in running if not attempts[row].is_over(step, self.how)]
            if not unfinished:
                return
            if len(unfinished) < len(running):
                running = unfinished
                if self.batched is not None:
                    self.batched.select_envs([self.fed.index(row) for row in running])
                    self.fed = list(running)

    def _begin(self) -> list[_Attempt]:
        seeds = [stream_seed(self.how.seed, index) for index in self.indices]
        self.agent.reset(seeds)
        if self.how.shared_rng and self.batched is not None:
            self.batched.share_rng()
        self.fed = list(range(len(self.indices)))
        views = self.envs.reset([self.pairs[index] for index in self.indices], seeds, self._needed())
        attempts = []
        for index, view in zip(self.indices, views, strict=True):
            attempts.append(_Attempt(index, view, _NOT_DRAWN if view.goal is None else view.goal))
            self._show(attempts[-1], 0)
        return attempts

    def _needed(self) -> list[bool]:
        """Returns for each environment that the agent is fed whether its next frame is drawn."""
        needed = None if self.batched is None or self.watch is not None else self.batched.needs_frame()
        return [True] * len(self.fed) if needed is None else needed

    def _show(self, attempt: _Attempt, step: int) -> None:
        if self.watch is not None:
            self.watch(attempt.pair, step, attempt.observation(), attempt.view.success)

    def _act(self, attempts: Sequence[_Attempt], taken: int) -> NDArray[np.float32]:
        observations = [attempt.observation() for attempt in attempts]
        stacked: Any = {key: np.stack([obs[key] for obs in observations]) for key in observations[0]}
        told = {} if self.how.steps_left is None else {"steps_left": max(1, self.how.steps_left - taken)}
        began = time.perf_counter()
        act: Any = self.agent.act
        actions = np.asarray(act(stacked, **told))
        self.clock.seconds += time.perf_counter() - began
        expected = (len(observations), self.action_size)
        if actions.shape != expected:
            raise ValueError(f"the agent must return actions of shape {expected}, got {actions.shape}")
        return actions
