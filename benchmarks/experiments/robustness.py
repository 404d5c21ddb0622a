"""Success under distribution shift: colours, sizes, light and the door's position, one at a time (`GoalEnv.shifts`).

The agent is evaluated on the same pairs, once as it was trained and once for each change. Pairs whose states are
impossible in the changed environment (a larger block overlaps the disc), or that are solved at the start there, are
left out for that change, and from the unchanged rate beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agents import load_agent
from agents.random import RandomAgent
from benchmarks.evaluation.envs import Environments, PairLike, Rules
from benchmarks.evaluation.protocols import Asked, make_job
from benchmarks.evaluation.run import Session
from benchmarks.evaluation.runs import describe_agent, load_description, weights_hash
from benchmarks.options import Evaluating
from benchmarks.report.plots import Bar, bars
from benchmarks.report.records import Measurement
from benchmarks.report.tables import Cell, Section, Table, percent, task_title
from lewm_gym.commands import argument
from lewm_gym.results import Json, Rate, Record
from lewm_gym.tasks import Task
from lewm_gym.types import Agent


@dataclass(frozen=True, kw_only=True)
class Shift(Evaluating, Measurement):
    """Measures success under changed colours, sizes, light and door position, one at a time, on the pairs of `plan`.
    Run the same command again to resume.
    """  # noqa: D205

    kind = "shift"

    run: Path = argument("run folder")

    def measure(self, bars: Any, agent: Agent | None = None) -> Json:
        """Returns success under each change of the run's task; outcomes are kept as they come in `<out>.partial`."""
        description, weights = load_description(self.run), weights_hash(self.run)
        job = make_job(self.run, description, Asked(strict=False, **self.evaluating()))
        shifts = job.task.env_class().shifts
        agent = load_agent(self.run) if agent is None else agent
        session = Session(job, self.path, weights, bars.on_episodes, more={"changes": shifts})
        before = session.outcomes("unchanged", agent)
        changes = []
        for name, variations in shifts.items():
            rules = replace(job.rules, variations=variations)
            kept = possible_pairs(job.task, job.pairs, rules)
            if not kept:
                raise ValueError(f"no pair of {job.task.name} is possible with {name}")
            random = session.outcomes(f"random, {name}", RandomAgent(job.task.action_size), rules, kept)
            changed = {
                "success": session.outcomes(name, agent, rules, kept),
                "unchanged": [before[index] for index in kept],
                "random": random,
            }
            rates = {who: asdict(Rate.of(outcomes)) for who, outcomes in changed.items()}
            changes.append({"name": name, "variations": variations, **rates})
        unchanged = {"unchanged": asdict(Rate.of(before)), "changes": changes}
        return {**job.describe(), **describe_agent(self.run, description), **unchanged}

    @staticmethod
    def show(record: Record) -> Section:
        """Returns a row and a bar for each change."""
        rows: list[list[Cell]] = []
        drawn = [Bar.of("unchanged, all pairs", record["unchanged"], "random")]
        for change in record["changes"]:
            rates = [percent(change[name]) for name in ("success", "unchanged", "random")]
            rows.append([change["name"], *rates, str(change["success"]["episodes"])])
            drawn.append(Bar.of(change["name"], change["success"]))
        text = (
            "One property of the environment at a time differs from training; the pairs are the same, "
            f"{record['offset_steps']} steps apart. Pairs whose states are impossible in the changed environment are "
            "left out, also from the unchanged rate beside it. "
            f"Brackets hold Wilson 95 % intervals. The run: {record['run']['folder']}."
        )
        header = ["change", "success %", "unchanged %, same pairs", "random baseline %", "pairs"]
        title = f"{task_title(record['task'])}: success under distribution shift"
        return Section(title, [text, Table(header, rows), bars(f"{title}.", drawn)])


def possible_pairs(task: Task, pairs: Sequence[PairLike], rules: Rules) -> list[int]:
    """Returns the positions of the pairs that an environment of these rules can be in, unsolved at the start."""
    kept = []
    with Environments(task, 1, rules) as envs:
        for index, pair in enumerate(pairs):
            try:
                view = envs.reset([pair], [0], [False])[0]
            except ValueError:  # the state is impossible under the changed sizes
                continue
            if not view.success:
                kept.append(index)
    return kept
