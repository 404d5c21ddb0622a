"""One call's share of an evaluation that may have begun in an earlier one: resumes, times, and reports progress."""

from __future__ import annotations

import dataclasses
import itertools
import time
import uuid
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from benchmarks.outcome_log import OutcomeLog
from benchmarks.plan import evaluate
from benchmarks.protocols import Job
from lewm_gym.results import Outcome
from lewm_gym.types import Agent, Obs

#: Who is evaluated, in order, and the name under which its progress is reported.
STAGES = {"floor": "random floor", "ceiling": "replay", "agent": "planning"}
#: Called with (stage, done, total).
Stage = Callable[[str, int, int], None]


class TimedAgent:
    """An agent that notes how long its actions take; otherwise the agent inside, whatever else that can do."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.seconds = 0.0
        for name in ("keep", "looks", "share_stream", "proprioception"):
            if hasattr(agent, name):
                setattr(self, name, getattr(agent, name))

    @property
    def plans(self) -> int | None:
        """How many plans the agent has made, if it counts them."""
        return getattr(self._agent, "plans", None)

    def reset(self, seeds: list[int] | None = None) -> None:
        """Resets the agent."""
        self._agent.reset(seeds)

    def act(self, obs: Obs) -> NDArray[Any]:
        """Returns the agent's actions."""
        start = time.perf_counter()
        actions = self._agent.act(obs)
        self.seconds += time.perf_counter() - start
        return actions

    def predict(self, *args: Any, **kwargs: Any) -> tuple[NDArray[Any], Any]:
        """Returns the agent's (action, state)."""
        return self._agent.predict(*args, **kwargs)


class Session:
    """Evaluates on the pairs of a job whoever is asked for, going on where a log of earlier calls ends."""

    def __init__(self, job: Job, log: OutcomeLog, agent: TimedAgent, progress: Stage | None) -> None:
        self.agent = agent
        self._job = job
        self._log = log
        self._progress = progress
        self._call = uuid.uuid4().hex[:8]
        self._start = time.perf_counter()
        self._plans_before = agent.plans or 0

    def run(self, who: str, agent: Agent) -> tuple[Outcome, ...]:
        """Returns the outcomes of all pairs, evaluating those that the log does not know for `who`."""
        job, settings = self._job, self._job.settings
        count = len(job.pairs)
        known = self._log.known(who)
        if settings.shared_stream and len(known) < count:
            known = {}  # outcomes depend on one another: a part of them cannot be gone on from
        missing = [index for index in range(count) if index not in known]
        advance = counter(self._progress, STAGES[who], count, done=count - len(missing))

        def note(outcome: Outcome) -> None:
            self._log.append(who, outcome, self._call, time.perf_counter() - self._start, self._timing())
            advance()

        arguments = as_arguments(job)
        if who != "agent":  # who looks at no picture: starting processes would take longer than the steps
            arguments["workers"] = 1
        fresh = evaluate(agent, job.task, job.pairs, indices=missing, progress=note, rules=job.rules, **arguments)
        known.update({outcome.pair: outcome for outcome in fresh})
        return tuple(known[index] for index in range(count))

    def totals(self) -> tuple[float, dict[str, Any]]:
        """Returns the seconds and the timing of all calls together."""
        mine = self._timing()
        act_seconds = self._log.timing.get("act_seconds", 0.0) + mine["act_seconds"]
        plans = int(self._log.timing.get("plans", 0) + mine["plans"])
        timing = {
            "act_seconds": round(act_seconds, 3),
            "plans": plans or None,
            "seconds_per_plan": round(act_seconds / plans, 4) if plans else None,
        }
        return self._log.seconds + time.perf_counter() - self._start, timing

    def _timing(self) -> dict[str, float]:
        return {"act_seconds": self.agent.seconds, "plans": (self.agent.plans or 0) - self._plans_before}


def as_arguments(job: Job) -> dict[str, Any]:
    """Returns a job's settings as keyword arguments of `evaluate`."""
    return {field.name: getattr(job.settings, field.name) for field in dataclasses.fields(job.settings)}


def counter(progress: Stage | None, stage: str, total: int, done: int = 0) -> Callable[..., None]:
    """Reports `done` of `total`, and returns what reports one more at each call, whatever it is called with."""
    steps = itertools.count(done)

    def advance(*_: object) -> None:
        current = next(steps)
        if progress is not None:
            progress(stage, current, total)

    advance()
    return advance
