"""From a run folder to a result on disk: loads, evaluates, resumes, films, and writes down what made the number."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agents.random import RandomAgent
from benchmarks import film as films
from benchmarks import runs
from benchmarks.outcome_log import OutcomeLog
from benchmarks.plan import stream_seed
from benchmarks.protocols import SHIPPED, Job, PairSetLike, Request, make_job
from benchmarks.runs import weights_hash
from benchmarks.session import Session, Stage, TimedAgent, as_arguments, counter
from lewm_gym import provenance
from lewm_gym.results import Outcome, Result
from lewm_gym.types import Agent

FILM_STAGE = "film"


def measure(
    run: str | Path,
    *,
    out: str | Path | None = None,
    film: bool = False,
    progress: Stage | None = None,
    agent: Agent | None = None,
    planning: Mapping[str, Any] | None = None,
    **request: Any,
) -> Result:
    """Returns the planning success of a run's agent, and writes it to `out`.

    The random policy and a replay of the recorded actions get the same pairs. Outcomes are kept as they come in
    `<out>.partial`; a call with the same arguments goes on from there.

    Args:
        run: Run folder.
        out: JSON file; default `results/<run>-<distance or protocol>-seed<seed>.json`.
        film: Whether to film six episodes, beside `out` (`.mp4` and `.png`).
        progress: Called with (stage, done, total).
        agent: Use this agent instead of loading the run's.
        planning: Settings of planning in place of the run's (`PlanningConfig.changed`); the result records them.
        request: Fields of `Request`:
            protocol: "audited", "official" or "sampled".
            pairs: A pair set, its file, or the name of a suite that ships ("markov"); default the task's own suite.
            offset_steps: Distance of the shipped pairs, environment steps.
            episodes: How many pairs, from the first; default all.
            budget_steps: Environment steps allowed; default twice the distance.
            seed: Seed of the agent's random streams.
            n_envs: Environments planned for at once; changes the speed only.
            workers: Processes that the environments live in; changes the speed only.
            strict: Whether to judge strict success too, which takes up to twice as many plans (not `official`).
            dataset: Where the training set lies now (`official` only).
            sampled_goals: "uniform" or "walk" (`sampled` only), see `benchmarks.sampled`.

    Raises:
        ValueError: If run, pairs and arguments do not fit one another.
        OSError: If the run is missing or the result cannot be written.
    """
    asked = Request(**request)
    run = Path(run)
    description = runs.load_description(run)
    job = make_job(run, description, asked)
    agent = importlib.import_module("agents").load_agent(run) if agent is None else agent
    if planning:
        agent = replanned(agent, planning)
        description = {**description, "planning": agent.planning.to_json()}  # type: ignore[attr-defined]
    out = Path(out) if out else default_path(run, job, planning)
    weights = weights_hash(run)
    log = OutcomeLog(out.with_name(out.name + ".partial"), _log_header(job, weights, planning))
    session = Session(job, log, TimedAgent(agent), progress)
    floor = session.run("floor", RandomAgent(job.task.action_size))
    ceiling = session.run("ceiling", _replay(job)) if job.has_recorded_actions else ()
    outcomes = session.run("agent", session.agent)
    seconds, timing = session.totals()
    if film:
        _film(job, agent, outcomes, out.with_suffix(".mp4"), progress)
    result = Result(
        **provenance.describe(),
        started=log.started,
        seconds=round(seconds, 2),
        task=job.task.name,
        agent=str(description["agent"]),
        run=runs.describe(run, description, weights),
        seed=job.settings.seed,
        protocol=job.protocol,
        offset_steps=job.offset_steps,
        budget_steps=job.settings.budget_steps,
        pairs=job.source,
        outcomes=outcomes,
        floor=floor,
        ceiling=ceiling,
        timing=timing,
        film=out.with_suffix(".mp4").name if film else None,
    )
    result.save(out)
    log.remove()
    return result


def replanned(agent: Agent, settings: Mapping[str, Any]) -> Agent:
    """Returns the agent with some settings of its planning changed.

    Raises:
        ValueError: If it does not plan, or a setting is unknown or wrong.
    """
    planning = getattr(agent, "planning", None)
    if planning is None:
        raise ValueError("the run's agent does not plan, so there is no planning to set")
    changed: Agent = type(agent)(agent.model, planning.changed(settings), agent.description, agent.device)  # type: ignore
    return changed


def default_path(run: Path, job: Job, planning: Mapping[str, Any] | None = None) -> Path:
    """Returns where a result goes if nobody says: `results/<run>-<distance or protocol>-seed<seed>.json`.

    Before the distance stands the name of a suite other than the task's own, at the end other settings of planning than
    the run's.
    """
    suite = job.source["source"].removeprefix(SHIPPED).removeprefix(", ") + "-" if _is_other_suite(job) else ""
    kind = f"{suite}{job.offset_steps}" if job.protocol == "audited" else job.protocol
    if job.protocol == "sampled":
        kind += f"-{job.source['source']}" + (str(job.offset_steps) if job.offset_steps else "")
    settings = "".join(f"-{name}={value}" for name, value in (planning or {}).items())
    return Path("results", f"{run.resolve().name}-{kind}-seed{job.settings.seed}{settings}.json")


def _is_other_suite(job: Job) -> bool:
    return str(job.source["source"]).startswith(f"{SHIPPED}, ")


def refilm(
    run: str | Path,
    result_path: str | Path,
    *,
    pairs: PairSetLike | None = None,
    n_envs: int = 16,
    progress: Stage | None = None,
    agent: Agent | None = None,
) -> Result:
    """Returns the result in a file after filming its episodes again, beside it; only the name of the film may change.

    Args:
        run: Run folder that was measured.
        result_path: JSON file of the result.
        pairs: The pair set, if the result was measured on one given in Python; otherwise it is found again.
        n_envs: Environments planned for at once; changes the speed only.
        progress: Called with (stage, done, total); the stage is "film".
        agent: Use this agent instead of loading the run's.

    Raises:
        ValueError: If the run's weights or the pairs are not those of the result.
        OSError: If a file is missing or the film cannot be written.
    """
    run, result_path = Path(run), Path(result_path)
    result = Result.load(result_path)
    description = runs.load_description(run)
    if weights_hash(run) != result.run["weights"]:
        raise ValueError(f"{result_path} was measured with other weights than {run} holds: measure it again")
    job = make_job(run, description, _request_of(result, result_path, pairs, n_envs))
    if job.source["hash"] != result.pairs["hash"]:
        raise ValueError(f"{result_path} was measured on other pairs than {result.pairs['source']}: measure it again")
    if agent is None:
        agent = importlib.import_module("agents").load_agent(run)
        settings = result.run["description"].get("planning")
        if settings is not None:  # which need not be the run's own
            agent = replanned(agent, {**settings["search"], **{k: v for k, v in settings.items() if k != "search"}})
    film = result_path.with_suffix(".mp4")
    _film(job, agent, result.outcomes, film, progress)
    if result.film != film.name:
        result = replace(result, film=film.name)
        result.save(result_path)
    return result


def _request_of(result: Result, path: Path, pairs: PairSetLike | None, n_envs: int) -> Request:
    """Returns what a result was asked with."""
    source = result.pairs["source"]
    if pairs is None and source == "given":
        raise ValueError(f"{path} was measured on pairs given in Python: give them again (pairs=)")
    named = str(source).removeprefix(f"{SHIPPED}, ") if result.protocol == "audited" and source != SHIPPED else None
    return Request(
        protocol=result.protocol,
        pairs=pairs if pairs is not None else named,
        offset_steps=result.offset_steps or 25,
        sampled_goals=source if result.protocol == "sampled" else "uniform",
        episodes=len(result.outcomes),
        budget_steps=result.budget_steps,
        seed=result.seed,
        n_envs=n_envs,
    )


def _replay(job: Job) -> Agent:
    """Returns who takes the recorded actions of each pair, then zeros."""
    oracle = importlib.import_module("agents.oracle").OracleAgent
    plans = {stream_seed(job.settings.seed, index): pair.actions for index, pair in enumerate(job.pairs)}
    replay: Agent = oracle(plans, job.task.action_size)
    return replay


def _film(job: Job, agent: Agent, outcomes: Sequence[Outcome], path: Path, progress: Stage | None) -> None:
    chosen = films.choose(outcomes)
    played = len(job.pairs) if job.settings.shared_stream else len(chosen)
    advance = counter(progress, FILM_STAGE, played + 1)  # the last one is the encoding
    episodes = films.record(agent, job.task, job.pairs, chosen, progress=advance, rules=job.rules, **as_arguments(job))
    films.write_film(path, episodes, job.task)
    advance()


def _log_header(job: Job, weights: str, planning: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what outcomes are a function of, and when they were begun."""
    return {
        **({"planning": dict(planning)} if planning else {}),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights": weights,
        **job.identity(),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }
