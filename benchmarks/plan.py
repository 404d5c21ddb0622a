"""Planning success: an agent is put at the start of each pair, shown its goal, and given a budget of steps.

The outcome of a pair is a function of (agent, pair, seed, index of the pair). Each pair has a random stream of its
own, so that neither the number of environments evaluated at once, nor the processes they live in, nor the other pairs
change it; with the reference's one shared stream, the batch size flips a quarter of the outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.environments import Environments, Frame, PairLike, Rules, View, open_environments
from lewm_gym.results import Outcome
from lewm_gym.tasks import IMAGE_SIZE, Task, get_task
from lewm_gym.types import Agent, Obs

#: Strict success: the strict goal condition holds after so many steps in a row, within the budget.
HOLD_STEPS = 5
#: Called with every frame that the agent sees: pair index, step, observation, whether the goal is met.
Watch = Callable[[int, int, Obs, bool], None]
#: Called with each outcome as soon as it is known.
Progress = Callable[[Outcome], None]

_NOT_DRAWN = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)  # in place of a frame that nobody looks at


@dataclass(frozen=True)
class Settings:
    """How pairs are evaluated, besides the environments' `Rules`.

    Attributes:
        budget_steps: Environment steps allowed.
        seed: With the pair's index it determines the pair's random stream.
        n_envs: Environments evaluated at once, at most.
        workers: Processes they live in; 1 for this one.
        strict: Whether an episode goes on after its success until it is known whether the goal is held.
        shared_stream: Whether all environments at once draw from one random stream, as the reference's do; outcomes
            then depend on one another.
        solved_starts: Whether starts that satisfy their goal are evaluated like others, as the reference does, instead
            of refused. What holds before the first step counts for nothing.
    """

    budget_steps: int
    seed: int = 0
    n_envs: int = 16
    workers: int = 1
    strict: bool = True
    shared_stream: bool = False
    solved_starts: bool = False

    def __post_init__(self) -> None:
        for name in ("budget_steps", "n_envs", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def evaluate(
    agent: Agent,
    task: Task | str,
    pairs: Sequence[PairLike],
    *,
    budget_steps: int | None = None,
    indices: Sequence[int] | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
    rules: Rules | None = None,
    **settings: Any,
) -> tuple[Outcome, ...]:
    """Returns the outcome of each pair, in the order of `indices`.

    Success is the task's own test, met in any step within the budget. Strict success asks more: that the strict
    condition (`GoalEnv.is_strict_goal`) holds after each of `HOLD_STEPS` consecutive steps within the budget; the agent
    goes on acting after its first success. Judging it changes no pair's own success.

    An agent with a method `keep(rows)` is told to go on with the unfinished environments of a batch only; any other is
    fed the last observation of the finished ones until the batch is over, and its actions for them are ignored. An
    agent with a method `looks()` says which of its environments' next frames it will look at; the others are black. One
    that does not look at the first frame sees no goal either. An agent whose `proprioception` is true gets environments
    made with it.

    Args:
        agent: Its actions for an environment may depend on what it saw there since `reset(seeds)` and on that
            environment's seed, on nothing else.
        task: The task, or its name.
        pairs: Starts and goals; an index is a position in this sequence.
        budget_steps: Environment steps allowed; default twice the number of recorded actions.
        indices: Which pairs; default all.
        progress: Called with each outcome as soon as it is known.
        watch: Called with every frame; all of them are drawn then.
        rules: How the environments are made.
        settings: The rest of `Settings`.

    Raises:
        ValueError: If a pair is solved at its start, cannot be restored, or an argument is out of range; if the
            agent returns actions of another shape or outside the action space.
        ChildProcessError: If a worker process dies.
    """
    task = get_task(task) if isinstance(task, str) else task
    indices = [int(index) for index in (range(len(pairs)) if indices is None else indices)]
    if not indices:
        return ()
    budget_steps = 2 * len(pairs[indices[0]].actions) if budget_steps is None else budget_steps
    how = Settings(budget_steps, **settings)
    rules = replace(rules or Rules(), proprioception=getattr(agent, "proprioception", False))
    outcomes: dict[int, Outcome] = {}
    with open_environments(task, min(how.n_envs, len(indices)), rules, how.workers) as envs:
        if not how.solved_starts:
            _check_unsolved(envs, pairs, indices, how.n_envs)
        for first in range(0, len(indices), how.n_envs):
            batch = _Batch(agent, envs, pairs, indices[first : first + how.n_envs], how, task.action_size, watch)
            for outcome in batch.play():
                outcomes[outcome.pair] = outcome
                if progress is not None:
                    progress(outcome)
    return tuple(outcomes[index] for index in indices)


def stream_seed(seed: int, index: int) -> int:
    """Returns the seed of the random stream of pair `index`, 63 bits: torch's generators take no more."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


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
            "the audited protocol counts none of those: sample the pairs again without them"
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


@dataclass
class _Batch:
    """Environments that are evaluated together."""

    agent: Agent
    envs: Environments
    pairs: Sequence[PairLike]
    indices: Sequence[int]
    how: Settings
    action_size: int
    watch: Watch | None
    fed: list[int] = field(default_factory=list)  # rows whose observations the agent gets

    def play(self) -> Iterator[Outcome]:
        """Yields the outcome of each pair as soon as it is known."""
        attempts = self._begin()
        running = list(self.fed)
        for step in range(1, self.how.budget_steps + 1):
            actions = self._act([attempts[row] for row in self.fed])
            chosen = actions[[self.fed.index(row) for row in running]]
            look = dict(zip(self.fed, self._looks(), strict=True))
            last = step == self.how.budget_steps and self.watch is None  # after which nobody acts
            views = self.envs.step(running, chosen, [look[row] and not last for row in running])
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
                self._drop_finished(running)

    def _begin(self) -> list[_Attempt]:
        seeds = [stream_seed(self.how.seed, index) for index in self.indices]
        self.agent.reset(seeds)
        if self.how.shared_stream and hasattr(self.agent, "share_stream"):
            self.agent.share_stream()
        self.fed = list(range(len(self.indices)))
        views = self.envs.reset([self.pairs[index] for index in self.indices], seeds, self._looks())
        attempts = []
        for index, view in zip(self.indices, views, strict=True):
            attempts.append(_Attempt(index, view, _NOT_DRAWN if view.goal is None else view.goal))
            self._show(attempts[-1], 0)
        return attempts

    def _looks(self) -> list[bool]:
        """Returns for each environment that the agent is fed whether it will look at the next frame."""
        looks = getattr(self.agent, "looks", None)
        return [True] * len(self.fed) if looks is None or self.watch is not None else list(looks())

    def _show(self, attempt: _Attempt, step: int) -> None:
        if self.watch is not None:
            self.watch(attempt.pair, step, _observation(attempt), attempt.view.success)

    def _drop_finished(self, running: list[int]) -> None:
        """Tells the agent which of its environments go on, if it can be told."""
        keep = getattr(self.agent, "keep", None)
        if keep is not None:
            keep([self.fed.index(row) for row in running])
            self.fed = list(running)

    def _act(self, attempts: Sequence[_Attempt]) -> NDArray[np.float32]:
        observations = [_observation(attempt) for attempt in attempts]
        actions = np.asarray(
            self.agent.act({key: np.stack([obs[key] for obs in observations]) for key in observations[0]})
        )
        expected = (len(observations), self.action_size)
        if actions.shape != expected:
            raise ValueError(f"the agent must return actions of shape {expected}, got {actions.shape}")
        return actions


def _observation(attempt: _Attempt) -> Obs:
    pixels = attempt.view.pixels
    return {"pixels": _NOT_DRAWN if pixels is None else pixels, "goal": attempt.goal, **attempt.view.sensed}
