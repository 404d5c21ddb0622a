"""Planning success: an agent is put at the start of each pair, shown its goal, and given a budget of steps.

The outcome of a pair is a function of (agent, pair, seed, index of the pair). Each pair has a random stream of its
own, so that neither the number of environments evaluated at once nor the other pairs change it; with the reference's
one shared stream, the batch size flips a quarter of the outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lewm_gym.results import Outcome
from lewm_gym.tasks import Task, get_task
from lewm_gym.types import Agent, Obs


class PairLike(Protocol):
    """A start and a goal; `lewm_gym.pairs.Pair` is one."""

    @property
    def start_state(self) -> NDArray[np.float64]:
        """(state_size,)."""

    @property
    def goal_state(self) -> NDArray[np.float64]:
        """(state_size,)."""

    @property
    def actions(self) -> NDArray[np.float32]:
        """(D, action_size), the recorded actions that lead from start to goal."""


#: Called with every frame that the agent sees: pair index, step, observation, whether the goal is met.
Watch = Callable[[int, int, Obs, bool], None]
#: Called with each outcome as soon as it is known.
Progress = Callable[[Outcome], None]


class View(NamedTuple):
    """What an environment shows after a reset or a step."""

    obs: Obs
    success: bool


class Environments:
    """A row of environments of one task in this process; all that `evaluate` needs of them is these methods."""

    def __init__(self, task: Task, count: int, render_quality: str | None = None) -> None:
        self.action_size = task.action_size
        self._envs = [self._make(task, render_quality) for _ in range(count)]

    @staticmethod
    def _make(task: Task, render_quality: str | None) -> gymnasium.Env[Any, Any]:
        quality = {} if render_quality is None else {"render_quality": render_quality}
        # The budget ends an episode here, not Gymnasium's time limit; the checker only slows every first step.
        return gymnasium.make(f"lewm_gym:{task.env_id}", max_episode_steps=-1, disable_env_checker=True, **quality)

    def reset(self, pairs: Sequence[PairLike], seeds: Sequence[int]) -> list[View]:
        """Puts environment i at the start of pair i, with its goal."""
        views = []
        for env, pair, seed in zip(self._envs, pairs, seeds, strict=False):
            options = {"state": pair.start_state, "goal_state": pair.goal_state}
            obs, info = env.reset(seed=seed, options=options)
            views.append(View(obs, bool(info["is_success"])))
        return views

    def step(self, rows: Sequence[int], actions: NDArray[np.float32]) -> list[View]:
        """Applies one action to each environment in `rows`."""
        views = []
        for row, action in zip(rows, actions, strict=True):
            obs, _, _, _, info = self._envs[row].step(action)
            views.append(View(obs, bool(info["is_success"])))
        return views

    def close(self) -> None:
        """Closes them."""
        for env in self._envs:
            env.close()


def evaluate(
    agent: Agent,
    task: Task | str,
    pairs: Sequence[PairLike],
    *,
    budget_steps: int | None = None,
    seed: int = 0,
    n_envs: int = 16,
    indices: Sequence[int] | None = None,
    progress: Progress | None = None,
    watch: Watch | None = None,
    render_quality: str | None = None,
) -> tuple[Outcome, ...]:
    """Returns the outcome of each pair, in the order of `indices`.

    Success is the task's own test, met at any step within the budget; the episode stops there. An agent with a
    method `keep(rows)` is told to go on with the unfinished environments of a batch only; any other is fed the
    last observation of the finished ones until the batch is over, and its actions for them are ignored.

    Args:
        agent: Its actions for an environment may depend on what it saw there since `reset(seeds)` and on that
            environment's seed, on nothing else.
        task: The task, or its name.
        pairs: Starts and goals; an index is a position in this sequence.
        budget_steps: Environment steps allowed; default twice the number of recorded actions.
        seed: With the pair's index it determines the pair's random stream.
        n_envs: Environments evaluated at once, at most.
        indices: Which pairs; default all.
        progress: Called with each outcome as soon as it is known.
        watch: Called with every frame.
        render_quality: How carefully the environment draws: as the frames that the agent was trained on.

    Raises:
        ValueError: If a pair is solved at its start, cannot be restored, or an argument is out of range; if the
            agent returns actions of another shape or outside the action space.
    """
    task = get_task(task) if isinstance(task, str) else task
    indices = [int(index) for index in (range(len(pairs)) if indices is None else indices)]
    if not indices:
        return ()
    budget_steps = 2 * len(pairs[indices[0]].actions) if budget_steps is None else budget_steps
    if budget_steps < 1 or n_envs < 1:
        raise ValueError(f"budget_steps and n_envs must be at least 1, got {budget_steps} and {n_envs}")
    outcomes: dict[int, Outcome] = {}
    envs = Environments(task, min(n_envs, len(indices)), render_quality)
    try:
        _check_unsolved(envs, pairs, indices)
        for first in range(0, len(indices), n_envs):
            batch = indices[first : first + n_envs]
            for outcome in _run_batch(agent, envs, pairs, batch, budget_steps, seed, watch):
                outcomes[outcome.pair] = outcome
                if progress is not None:
                    progress(outcome)
    finally:
        envs.close()
    return tuple(outcomes[index] for index in indices)


def stream_seed(seed: int, index: int) -> int:
    """Returns the seed of the random stream of pair `index`, 63 bits: torch's generators take no more."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _check_unsolved(envs: Environments, pairs: Sequence[PairLike], indices: Sequence[int]) -> None:
    """Looks at every start before the first plan: a bad pair should not cost an evaluation."""
    solved = [index for index in indices if envs.reset([pairs[index]], [0])[0].success]
    if solved:
        raise ValueError(
            f"{len(solved)} of {len(indices)} pairs are solved at the start (the first is pair {solved[0]}); "
            "the audited protocol counts none of those: sample the pairs again without them"
        )


def _run_batch(
    agent: Agent,
    envs: Environments,
    pairs: Sequence[PairLike],
    batch: Sequence[int],
    budget_steps: int,
    seed: int,
    watch: Watch | None,
) -> Iterator[Outcome]:
    """Yields the outcome of each pair of `batch` as soon as it is known."""
    seeds = [stream_seed(seed, index) for index in batch]
    agent.reset(seeds)
    views = envs.reset([pairs[index] for index in batch], seeds)
    fed = list(range(len(batch)))  # rows whose observations the agent gets; `running` among them still count
    running = list(fed)
    for step in range(budget_steps + 1):
        if watch is not None:
            for row in running:
                watch(batch[row], step, views[row].obs, views[row].success)
        for row in running:
            if views[row].success:
                yield Outcome(batch[row], True, step)
        unfinished = [row for row in running if not views[row].success]
        if not unfinished or step == budget_steps:
            running = unfinished
            break
        if len(unfinished) < len(running):
            running = unfinished
            fed = _drop_finished(agent, fed, running)
        actions = _act(agent, [views[row].obs for row in fed], envs.action_size)
        chosen = actions[[fed.index(row) for row in running]]
        for row, view in zip(running, envs.step(running, chosen), strict=True):
            views[row] = view
    for row in running:
        yield Outcome(batch[row], False)


def _drop_finished(agent: Agent, fed: list[int], running: list[int]) -> list[int]:
    """Tells the agent which of its environments go on, if it can be told; returns the rows to feed it."""
    keep = getattr(agent, "keep", None)
    if keep is None:
        return fed
    keep([fed.index(row) for row in running])
    return list(running)


def _act(agent: Agent, observations: list[Obs], action_size: int) -> NDArray[np.float32]:
    stacked = {key: np.stack([obs[key] for obs in observations]) for key in ("pixels", "goal")}
    actions = np.asarray(agent.act(stacked))
    expected = (len(observations), action_size)
    if actions.shape != expected:
        raise ValueError(f"the agent must return actions of shape {expected}, got {actions.shape}")
    return actions
