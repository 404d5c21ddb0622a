"""Success under a changed world: colours, sizes, light and the door's position, one at a time.

The agent meets the same pairs, once as it was trained and once for each change. A pair that the changed environment
cannot be in (a larger block overlaps the disc) or that is solved at its start there is left out of that change, and of
the unchanged rate beside it.
"""

from __future__ import annotations

import dataclasses
import importlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agents.random import RandomAgent
from benchmarks import runs
from benchmarks.charts import Bar, bars
from benchmarks.environments import PairLike, Rules, open_environments
from benchmarks.knowledge.records import Json, Record
from benchmarks.knowledge.section import Section, plain, table
from benchmarks.outcome_log import OutcomeLog
from benchmarks.plan import evaluate
from benchmarks.protocols import Job, Request, make_job
from benchmarks.session import Stage, as_arguments, counter
from lewm_gym import provenance
from lewm_gym.results import Outcome, Rate
from lewm_gym.tasks import TASKS, Task
from lewm_gym.types import Agent


@dataclass(frozen=True)
class Change:
    """One thing that is otherwise than in training.

    Attributes:
        name: What, in words.
        variations: For `reset(options={"variations": ...})`.
    """

    name: str
    variations: dict[str, Any]


CHANGES: dict[str, tuple[Change, ...]] = {
    "two_room": (
        Change("agent blue", {"agent_color": [0.0, 0.0, 255.0]}),
        Change("floor yellow", {"background_color": [255.0, 245.0, 180.0]}),
        Change("walls grey", {"border_color": [128.0, 128.0, 128.0]}),
        Change("agent 1.5 times as large", {"agent_radius": 10.5}),
        Change("light at 70 %", {"light_intensity": 0.7}),
        Change("door 91 px further down", {"door_position": [140.0, 49.0, 49.0]}),
        Change("door 0.7 times as wide", {"door_size": [10.0, 14.0, 14.0]}),
    ),
    "pusht": (
        Change("agent orange", {"agent_color": [225.0, 125.0, 65.0]}),
        Change("block red", {"block_color": [205.0, 92.0, 72.0]}),
        Change("background yellow", {"background_color": [255.0, 245.0, 180.0]}),
        Change("anchor hidden", {"goal_visible": False}),
        Change("agent 1.25 times as large", {"agent_scale": 50.0}),
        Change("block 1.2 times as large", {"block_scale": 36.0}),
        Change("block 0.8 times as large", {"block_scale": 24.0}),
    ),
    "cube": (
        Change("cube blue", {"cube_color": [0.13, 0.55, 0.95]}),
        Change("gripper green", {"agent_color": [0.28, 0.82, 0.4]}),
        Change("floor brown", {"floor_colors": [[0.2, 0.14, 0.08], [0.3, 0.22, 0.15]]}),
        Change("cube 0.8 times as large", {"cube_size": 0.016}),
        Change("light at 0.4 instead of 0.7", {"light_intensity": 0.4}),
        Change("camera turned by 5 degrees", {"camera_angles": [5.0, 0.0]}),
    ),
    "reacher": (
        Change("arm blue", {"agent_color": [0.3, 0.5, 0.8]}),
        Change("floor brown", {"floor_colors": [[0.3, 0.2, 0.1], [0.4, 0.3, 0.2]]}),
        Change("light at 0.4 instead of 0.7", {"light_intensity": 0.4}),
        Change("arm 1.3 times as heavy", {"arm_density": 1300.0}),
    ),
}
UNCHANGED = "unchanged"


def measure_shift(
    run: str | Path,
    out: str | Path,
    *,
    episodes: int | None = None,
    seed: int = 0,
    n_envs: int = 16,
    workers: int = 1,
    progress: Stage | None = None,
    agent: Agent | None = None,
) -> Json:
    """Returns success under each change of a run's task, and writes the record to `out`.

    Outcomes are kept as they come in `<out>.partial`; a call with the same arguments goes on from there.

    Args:
        run: Run folder.
        out: JSON file.
        episodes: How many of the shipped pairs, from the first; default all.
        seed: Seed of the agents' random streams.
        n_envs: Environments planned for at once; changes the speed only.
        workers: Processes that they live in; likewise.
        progress: Called with (stage, done, total).
        agent: Use this agent instead of loading the run's.

    Raises:
        ValueError: If run and arguments do not fit one another.
        OSError: If the run is missing or the record cannot be written.
    """
    run, out = Path(run), Path(out)
    description = runs.load_description(run)
    request = Request(episodes=episodes, seed=seed, n_envs=n_envs, workers=workers, strict=False)
    job = make_job(run, description, request)
    agent = importlib.import_module("agents").load_agent(run) if agent is None else agent
    record = Record("shift")
    weights = runs.weights_hash(run)
    log = OutcomeLog(out.with_name(out.name + ".partial"), _log_header(job, weights))
    trial = _Trial(job, log, progress)
    before = trial.outcomes(UNCHANGED, agent, job.rules, range(len(job.pairs)))
    changes = [_measure(trial, agent, change, before) for change in CHANGES[job.task.name]]
    body = {
        "task": job.task.name,
        "agent": description["agent"],
        "preset": description.get("preset"),
        "run": {"folder": str(run), "weights": weights},
        "seed": seed,
        "offset_steps": job.offset_steps,
        "budget_steps": job.settings.budget_steps,
        "pairs": job.source,
        "unchanged": dataclasses.asdict(Rate.of(tuple(before.values()))),
        "changes": changes,
    }
    saved = record.save(out, body)
    log.remove()
    return saved


def _measure(trial: _Trial, agent: Agent, change: Change, before: dict[int, Outcome]) -> Json:
    rules = dataclasses.replace(trial.job.rules, variations=change.variations)
    kept = possible_pairs(trial.job.task, trial.job.pairs, rules)
    if not kept:
        raise ValueError(f"no pair of {trial.job.task.name} is possible with {change.name}")
    after = trial.outcomes(change.name, agent, rules, kept)
    chance = trial.outcomes(f"random, {change.name}", RandomAgent(trial.job.task.action_size), rules, kept)
    return {
        "name": change.name,
        "variations": change.variations,
        "success": dataclasses.asdict(Rate.of(tuple(after.values()))),
        "unchanged": dataclasses.asdict(Rate.of(tuple(before[index] for index in kept))),
        "random": dataclasses.asdict(Rate.of(tuple(chance.values()))),
    }


def possible_pairs(task: Task, pairs: Sequence[PairLike], rules: Rules) -> list[int]:
    """Returns the positions of the pairs that an environment of these rules can be in, unsolved at the start."""
    kept = []
    with open_environments(task, 1, rules) as envs:
        for index, pair in enumerate(pairs):
            try:
                view = envs.reset([pair], [0], [False])[0]
            except ValueError:  # the state is impossible under the changed sizes
                continue
            if not view.success:
                kept.append(index)
    return kept


class _Trial:
    """Evaluates on some of a job's pairs under other rules, going on where the log ends."""

    def __init__(self, job: Job, log: OutcomeLog, progress: Stage | None) -> None:
        self.job = job
        self._log, self._progress = log, progress
        self._call = uuid.uuid4().hex[:8]
        self._start = time.perf_counter()

    def outcomes(self, who: str, agent: Agent, rules: Rules, indices: Sequence[int]) -> dict[int, Outcome]:
        """Returns the outcome of each pair in `indices`; those in the log are not measured again."""
        known = self._log.known(who)
        missing = [index for index in indices if index not in known]
        advance = counter(self._progress, who, len(indices), done=len(indices) - len(missing))

        def note(outcome: Outcome) -> None:
            self._log.append(who, outcome, self._call, time.perf_counter() - self._start, {})
            advance()

        arguments = as_arguments(self.job)
        fresh = evaluate(agent, self.job.task, self.job.pairs, indices=missing, progress=note, rules=rules, **arguments)
        known.update({outcome.pair: outcome for outcome in fresh})
        return {index: known[index] for index in indices}


def _log_header(job: Job, weights: str) -> Json:
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights": weights,
        **job.identity(),
        "changes": [dataclasses.asdict(change) for change in CHANGES[job.task.name]],
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }


# How it looks ------------------------------------------------------------------------------------------------


def section(record: Json, folder: Path) -> Section:
    """Returns the report's section of a record."""
    title = TASKS[record["task"]].title
    rows, drawn = [], [_bar("unchanged, all pairs", record["unchanged"], "floor")]
    for change in record["changes"]:
        cells = [_text(change[name]) for name in ("success", "unchanged", "random")]
        rows.append([plain(change["name"]), *cells, str(change["success"]["episodes"])])
        drawn.append(_bar(change["name"], change["success"], "ours"))
    text = (
        f"One thing at a time is otherwise than in training; the pairs are the same, {record['offset_steps']} steps "
        "apart. Pairs that the changed environment cannot be in are left out, also of the unchanged rate beside it. "
        f"Brackets hold Wilson 95 % intervals. The run: {plain(record['run']['folder'])}."
    )
    header = ["change", "success %", "unchanged %, same pairs", "random %", "pairs"]
    return Section(
        f"{title}: a changed world", f"{text}\n\n{table(header, rows)}", [(f"{title}: success", bars(drawn))]
    )


def _bar(name: str, rate: Json, kind: str) -> Bar:
    return Bar(name, rate["rate"], (rate["low"], rate["high"]), kind)


def _text(rate: Json) -> str:
    return f"{100 * rate['rate']:.1f} \\[{100 * rate['low']:.1f}, {100 * rate['high']:.1f}\\]"


FORMATS = {"lewm-gym shift": section}
