"""`plan RUN`: from a run folder to a result on disk. Loads, evaluates, resumes, films, says what made the number."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agents import agent_title, load_agent
from agents.oracle import OracleAgent
from agents.random import RandomAgent
from benchmarks.evaluation import film as films
from benchmarks.evaluation.envs import Rules
from benchmarks.evaluation.evaluate import ActClock, evaluate, record
from benchmarks.evaluation.protocols import SHIPPED, Asked, Job, is_suite, make_job
from benchmarks.evaluation.runs import describe_run, load_description, planner_of, weights_hash
from lewm_gym import provenance
from lewm_gym.commands import Settings, argument, option
from lewm_gym.files import atomic_file, exclusive, is_whole, make_folder, remove_stale
from lewm_gym.pairs import stream_seed
from lewm_gym.progress import Bars
from lewm_gym.results import METRICS, Clock, Json, Outcome, Result, partial_of
from lewm_gym.tasks import get_task
from lewm_gym.types import Agent

#: Who is evaluated, in order, and the name under which its progress is reported.
STAGES = {"random": "random baseline", "replay": "action replay", "agent": "planning"}
#: Called with (stage, done, total).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Plan(Asked):
    """Evaluates the agent of a run: its success rate on start/goal pairs within a budget of steps, with the random
    baseline and the action replay on the same pairs. Run the same command again to resume.
    """  # noqa: D205

    run: Path = argument("run folder, e.g. runs/two_room-lewm-0")
    planning: Settings = option(
        {}, "settings of the planner that replace the run's, e.g. --planning cost=sum execute_blocks=1"
    )
    out: Path | None = option(None, "result file, JSON (default: results/<run>-<offset>-seed<seed>.json)")
    film: bool = option(False, "record a film of six episodes beside the result (.mp4 and .png)")
    overwrite: bool = option(False, "measure again, even if --out exists")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.offset) > 1 and self.out is not None:
            raise ValueError("--out names one result; with several --offset each gets its own name in results/")
        if len(self.offset) > 1 and self.pairs is not None and not is_suite(self.pairs):
            raise ValueError("--pairs names a file of pairs of one distance; leave out --offset")

    def __call__(self) -> int:
        """Measures at each offset, with progress bars, and prints the rates."""
        for offset in self.offset:
            with Bars() as bars:
                result = replace(self, offset=(offset,)).measure(bars.on_episodes)
            print(summary(result))
        return 0

    def measure(self, progress: Progress | None = None, agent: Agent | None = None) -> Result:
        """Returns the planning success of the run's agent, and writes it to `out`.

        Outcomes are kept as they come in `<out>.partial`; the same command resumes there, and returns a result
        that is there already.

        Args:
            progress: Called with (stage, done, total).
            agent: Use this agent instead of loading the run's.

        Raises:
            ValueError: If run, pairs and arguments do not fit one another, `out` holds another result, or another
                process writes it.
            OSError: If the run is missing or the result cannot be written.
        """
        description = load_description(self.run)
        job = make_job(self.run, description, self)
        weights = weights_hash(self.run)
        question = {"planning": self.planning, "weights": weights, **job.identity()}
        question |= {"pairs": {**job.source, "chosen": len(job.pairs)}}
        out = self.out or self.default_path(job)
        if (found := self._found(out, question)) is not None:
            return found
        agent = load_agent(self.run) if agent is None else agent
        if self.planning:
            planner = planner_of(agent, self.run).with_planning(self.planning)
            agent, description = planner, {**description, "planning": planner.planning.to_json()}
        if self.steps_left is not None and not getattr(agent, "uses_steps_left", False):
            raise ValueError(f"--steps-left is for agents with an actor; that of {self.run} plans without one")
        make_folder(out.parent)
        with exclusive(out):
            if (found := self._found(out, question)) is not None:  # another process has measured it meanwhile
                return found
            for path in (partial_of(out), out.with_suffix(".mp4"), out.with_suffix(".png")):
                remove_stale(path)
            result = None if self.overwrite else known_result(out, question)
            if result is None:
                result = self._measured(job, out, weights, description, agent, _digest(question), progress)
            return self._filmed(result, out, job, agent, progress) if self.film else result

    def _found(self, out: Path, question: Json) -> Result | None:
        """Returns the stored result if nothing of what is asked is missing."""
        known = None if self.overwrite else known_result(out, question)
        films_of = (out.with_suffix(".mp4"), out.with_suffix(".png"))
        return None if self.film and not all(map(is_whole, films_of)) else known

    def _measured(
        self, job: Job, out: Path, weights: str, description: Json, agent: Agent, question: str,
        progress: Progress | None,
    ) -> Result:  # fmt: skip
        """Returns the result of evaluating the agent and the references, and writes it."""
        session = Session(job, out, weights, progress, agent, {"planning": self.planning} if self.planning else {})
        blind: Json = {"workers": 1, "steps_left": None}  # references look at no frame, and are told nothing
        random = session.outcomes("random", RandomAgent(job.task.action_size), **blind)
        replay = session.outcomes("replay", _replay(job), **blind) if len(job.pairs[0].actions) else ()
        outcomes = session.outcomes("agent", agent)
        seconds, timing = session.totals()
        head = {**Clock().head(), "started": session.started, "seconds": round(seconds, 2)}
        result = Result(
            **head,
            task=job.task.name,
            agent=str(description["agent"]),
            run=describe_run(self.run, description, weights),
            seed=self.seed,
            protocol=job.protocol,
            offset_steps=job.offset_steps,
            budget_steps=job.settings.budget_steps,
            pairs=job.source,
            outcomes=outcomes,
            random=random,
            replay=replay,
            timing=timing,
            metrics={"question": question} | ({"steps_left": self.steps_left} if self.steps_left else {}),
        )
        result.save(out)
        session.remove()
        return result

    def default_path(self, job: Job) -> Path:
        """Returns the default path of a result: its name has every setting that differs from the default evaluation."""
        source, distance = str(job.source["source"]), [str(job.offset_steps)] if job.offset_steps else []
        kinds = {"heldout": [Path(source.removeprefix(f"{SHIPPED}, ")).stem] if source != SHIPPED else []}
        kinds |= {"official": ["official"], "sampled": ["sampled", source]}
        words = [self.run.resolve().name, *kinds[job.protocol], *(distance if job.protocol != "official" else [])]
        words += [] if self.budget is None else [f"budget{self.budget}"]
        words += [] if self.n_pairs is None else [f"{self.n_pairs}pairs"]
        words += [] if self.steps_left is None else [f"told{self.steps_left}"]
        words += [] if self.strict else ["not-strict"]
        words += [f"seed{self.seed}", *(f"{name}={value}" for name, value in self.planning.items())]
        return Path("results", "-".join(words) + ".json")

    def _filmed(self, result: Result, out: Path, job: Job, agent: Agent, progress: Progress | None) -> Result:
        """Returns the result after filming some of its episodes beside it."""
        path, chosen = out.with_suffix(".mp4"), films.choose(result.outcomes)
        played = len(job.pairs) if job.settings.shared_rng else len(chosen)
        advance = counter(progress, "film", played + 1)  # the last one is the encoding
        episodes = record(agent, job.task, job.pairs, chosen, job.settings, rules=job.rules, progress=advance)
        films.write_film(path, episodes, job.task)
        advance()
        filmed = replace(result, film=path.name)
        if filmed != result:
            filmed.save(out)
        return filmed


def summary(result: Result) -> str:
    """Returns the result in a few lines for a terminal."""
    where = f"goals {result.offset_steps} steps away" if result.offset_steps else "goals sampled uniformly"
    if result.protocol == "sampled" and result.offset_steps:
        where = f"goals {result.offset_steps} steps of a random walk away"
    told = "steps_left" in result.metrics
    pairs = "held-out pairs" if result.protocol == "heldout" else "pairs"
    lines = [
        f"{get_task(result.task).title}, {agent_title(result.agent)}: {where}, budget {result.budget_steps} steps, "
        f"protocol {result.protocol}" + (f", told {result.metrics['steps_left']} steps left" if told else "")
    ]
    rates = result.rates()
    for name, rate in rates["agent"].items():
        note = f"of {rate.episodes} {pairs} (Wilson 95 %)" if name == "success" else METRICS[name].note
        lines.append(f"  {METRICS[name].title:<8} {rate}  {rate.successes} {note}")
    for who, note in (("random", "the same pairs"), ("replay", "the recorded actions")):
        if who in rates:
            lines.append(f"  {who:<8} {rates[who]['success']}  {rates[who]['success'].successes} {note}")
    lines += _phase_lines(result)
    per_plan = result.timing.get("seconds_per_plan")
    return "\n".join(
        [*lines, f"  time     {result.seconds:.0f} s" + (f", {per_plan:.2f} s per plan" if per_plan else "")]
    )


def _phase_lines(result: Result) -> list[str]:
    """Returns a line for each phase of the pairs; where they have none, and could, one that says how to add them."""
    phases, lines = result.by_phase(), []
    if not phases and result.protocol == "heldout":
        return ["  phases   unknown: the pairs are of an older version (python -m collect phases FILE adds them)"]
    for phase, rates in phases.items():
        rate, random = rates["agent"]["success"], rates.get("random", {}).get("success")
        parts = [f"{one.successes} {name}" for name, one in rates["agent"].items() if name != "success"]
        parts += [f"{random.successes} random"] if random else []
        lines.append(f"    {phase:<18} {rate}  {rate.successes} of {rate.episodes} ({', '.join(parts)})")
    return lines


def known_result(path: Path, question: Json) -> Result | None:
    """Returns the result that is stored for a question, None if there is no file.

    Raises:
        ValueError: If the file holds the result of another question.
    """
    if not path.is_file():
        return None
    result = Result.load(path)
    if result.metrics.get("question") != _digest(question):
        raise ValueError(f"{path} holds the result of another question: choose another --out, or give --overwrite")
    return result


def _digest(question: Json) -> str:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:16]


def _replay(job: Job) -> OracleAgent:
    """Returns who takes the recorded actions of each pair, then zeros."""
    plans = {stream_seed(job.settings.seed, index): pair.actions for index, pair in enumerate(job.pairs)}
    return OracleAgent(plans, job.task.action_size)


# What a killed evaluation goes on from -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """A line of the file that a killed evaluation goes on from.

    Attributes:
        who: Of whom the outcome is.
        pair: As the rest that an `Outcome` has.
        success: Likewise.
        steps: Likewise.
        strict: Likewise.
        call: Identifies the call of the program.
        seconds: Of the call until then.
        act_seconds: Likewise, in which the agent acted.
        plans: Likewise, the agent's plans.
    """

    who: str
    pair: int
    success: bool
    steps: int | None
    strict: bool | None
    call: str
    seconds: float
    act_seconds: float
    plans: int

    @property
    def outcome(self) -> Outcome:
        """The outcome."""
        return Outcome(self.pair, self.success, self.steps, self.strict)


class Session:
    """Evaluates on the pairs of a job whoever is asked for, going on where the calls before this one ended.

    Outcomes are appended to `<out>.partial` as they come, a line each. Its first line is what they are a function of:
    a file of another question is begun again; a last line that was cut off by a kill is dropped.

    Args:
        job: What is evaluated.
        out: Where the result will be.
        weights: Hash of what acts.
        progress: Called with (stage, done, total).
        agent: Whose plans are counted.
        more: What else outcomes are a function of, ready for JSON.

    Raises:
        OSError: If the file cannot be written.
    """

    def __init__(
        self, job: Job, out: Path, weights: str, progress: Progress | None, agent: Any = None, more: Json | None = None
    ) -> None:
        self.job, self._progress, self._agent = job, progress, agent
        self._path = partial_of(out)
        self._call, self._clock, self._acting = uuid.uuid4().hex[:8], Clock(), ActClock()
        self._plans_before = getattr(agent, "plans", 0)
        self._known: dict[str, dict[int, Outcome]] = {}
        made = {"commit": provenance.commit(), "versions": provenance.versions()}
        head = {**(more or {}), "started": self._clock.started, "weights": weights, **job.identity(), **made}
        found, lines = _read_lines(self._path)
        if {**found, "started": ""} != json.loads(json.dumps({**head, "started": ""})):
            found, lines = head, []
        self.started = str(found.get("started", head["started"]))
        for line in lines:
            self._known.setdefault(line.who, {})[line.pair] = line.outcome
        calls = {line.call: line for line in lines}.values()  # the last line of a call has its total times
        self._earlier = {name: sum(getattr(line, name) for line in calls) for name in self._times()}
        make_folder(out.parent)
        with atomic_file(self._path) as file:  # anew, without a cut-off last line, before anything is appended to it
            kept = [found, *map(asdict, lines)]
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())

    def outcomes(
        self, who: str, agent: Agent, rules: Rules | None = None, indices: Sequence[int] | None = None, **changes: Any
    ) -> tuple[Outcome, ...]:
        """Returns the outcomes of some pairs (default: all), evaluating those that are not known for `who`.

        Rules (default: the job's) and `changes` of the job's settings are of this evaluation alone.
        """
        job, known = self.job, dict(self._known.get(who, {}))
        chosen = range(len(job.pairs)) if indices is None else indices
        if job.settings.shared_rng and len(known) < len(chosen):
            known = {}  # outcomes depend on one another: a part of them cannot be gone on from
        missing = [index for index in chosen if index not in known]
        advance = counter(self._progress, STAGES.get(who, who), len(chosen), done=len(chosen) - len(missing))
        acting = ActClock() if who in ("random", "replay") else self._acting

        def note(outcome: Outcome) -> None:
            line = _Line(who=who, **asdict(outcome), call=self._call, **self._times())
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(line)) + "\n")
            advance()

        how = replace(job.settings, **changes)
        fresh = evaluate(agent, job.task, job.pairs, how, indices=missing, rules=rules or job.rules,
                         progress=note, clock=acting)  # fmt: skip
        known.update({outcome.pair: outcome for outcome in fresh})
        self._known[who] = known
        return tuple(known[index] for index in chosen)

    def totals(self) -> tuple[float, Json]:
        """Returns the seconds and the timing of all calls together."""
        times = {name: value + self._earlier[name] for name, value in self._times().items()}
        acting, plans = times["act_seconds"], int(times["plans"])
        per_plan = round(acting / plans, 4) if plans else None
        return times["seconds"], {"act_seconds": round(acting, 3), "plans": plans or None, "seconds_per_plan": per_plan}

    def _times(self) -> dict[str, Any]:
        """Returns the times of this call."""
        plans = getattr(self._agent, "plans", 0) - self._plans_before
        return {"seconds": round(self._clock.seconds, 3), "act_seconds": round(self._acting.seconds, 6), "plans": plans}

    def remove(self) -> None:
        """Deletes the file, once the result is saved."""
        self._path.unlink(missing_ok=True)


def _read_lines(path: Path) -> tuple[Json, list[_Line]]:
    """Returns what outcomes are a function of, and the lines before the first that is damaged or cut off."""
    import msgspec  # 35 ms, which `--help` need not wait for

    head: Json = {}
    lines: list[_Line] = []
    with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
        for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else ()):
            if number:
                known = msgspec.json.decode(line, type=_Line)
                _ = known.outcome  # raises where it contradicts itself
                lines.append(known)
            else:
                head = msgspec.json.decode(line, type=dict[str, Any])
    return head, lines


def counter(progress: Progress | None, stage: str, total: int, done: int = 0) -> Callable[..., None]:
    """Reports `done` of `total`, and returns what reports one more at each call, whatever it is called with."""
    steps = itertools.count(done)

    def advance(*_: object) -> None:
        current = next(steps)
        if progress is not None:
            progress(stage, current, total)

    advance()
    return advance
