"""Records on disk: one JSON file per measurement, with everything that made it; success rates and their intervals.

Every record has the same head (kind, schema, command, commit, versions, hardware, start, seconds) and a body of its
kind. It is written atomically. A `Result` is the record of one evaluation by planning success; it is read
strictly: one whose rates do not follow from its outcomes is rejected rather than shown.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from lewm_gym import provenance
from lewm_gym.files import atomic_file, make_folder, parse_json, read_json, remove_stale
from lewm_gym.tasks import get_task

FORMAT = "lewm-gym record"
SCHEMA = 3  # raise it when a field changes its meaning; optional ones may come and go
HEAD = ("command", "commit", "versions", "hardware", "started", "seconds")
_CUT_OFF = "it may be cut off"
Json = dict[str, Any]
#: How start/goal pairs are chosen and judged: held out, unsolved and a random stream each; as published; or drawn by
#: the environment itself.
PROTOCOLS = ("heldout", "official", "sampled")


class Clock:
    """Notes when a measurement began."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._began

    def head(self) -> Json:
        """Returns the head of a record that is finished now."""
        return {**provenance.describe(), "started": self.started, "seconds": round(self.seconds, 2)}


@dataclass(frozen=True)
class Record:
    """What was measured, and what made it.

    Attributes:
        kind: The command that makes such records, e.g. "probe".
        body: What was measured, ready for JSON; `record[name]` reads it.
        head: What made it, the entries of HEAD.
        path: The file it was read from or written to.
    """

    kind: str
    body: Json
    head: Json
    path: Path | None = None

    @classmethod
    def made(cls, kind: str, body: Json, clock: Clock) -> Record:
        """Returns the record of a measurement that began when the clock was made; floats are rounded."""
        return cls(kind, rounded(body), clock.head())

    def __getitem__(self, name: str) -> Any:
        return self.body[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Returns an entry of the body that need not be there."""
        return self.body.get(name, default)

    @property
    def folder(self) -> Path:
        """Where its images lie."""
        return Path() if self.path is None else self.path.parent

    def save(self, path: str | Path) -> Record:
        """Writes the record, atomically, and returns it with its path.

        Raises:
            OSError: If it cannot be written.
        """
        head = {"format": FORMAT, "kind": self.kind, "schema": SCHEMA, **self.head}
        write_json(Path(path), head | self.body)
        return Record(self.kind, self.body, self.head, Path(path))

    @classmethod
    def load(cls, path: str | Path, kind: str | None = None) -> Record:
        """Reads a record, of any kind or of that given.

        Raises:
            ValueError: If the file is no such record, or of another schema.
            OSError: If it cannot be read.
        """
        path = Path(path)
        data = read_json(path, _CUT_OFF)
        found = data.pop("kind", None)
        if data.pop("format", None) != FORMAT or not isinstance(found, str):
            raise ValueError(f"{path} is not a LeWM-Gym record; expected a file written by `python -m benchmarks`")
        schema = data.pop("schema", None)
        if schema != SCHEMA:
            age = "a newer" if isinstance(schema, int) and schema > SCHEMA else "an older"
            advice = "update LeWM-Gym" if age == "a newer" else "run the benchmark again"
            raise ValueError(f"{path} has {age} schema ({schema}; this version reads {SCHEMA}): {advice}")
        if kind is not None and found != kind:
            raise ValueError(f"{path} holds a record of {found!r}, not of {kind!r}")
        return cls(found, data, {name: data.pop(name, None) for name in HEAD}, path)


def is_record(path: Path) -> bool:
    """Returns whether `path` holds a record of any schema; other JSON files (manifests, configurations) do not.

    Raises:
        ValueError: If it is not JSON: a damaged result should not silently be missing from a table.
    """
    data = parse_json(path, _CUT_OFF)
    return isinstance(data, dict) and data.get("format") == FORMAT


def partial_of(path: Path) -> Path:
    """Returns where outcomes are kept, as they come, until the record `path` is written."""
    return path.with_name(path.name + ".partial")


def rounded(value: Any, digits: int = 6) -> Any:
    """Returns JSON values with floats cut to so many significant digits, and null for what is no number."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value


def write_json(path: Path, data: Json) -> None:
    """Writes `data` to `path`, a line per key, atomically, making the folder; removes what a killed writer left."""
    lines = [f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in data.items()]
    make_folder(path.parent)
    remove_stale(path)
    with atomic_file(path) as file:
        file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())


# Success -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of one start/goal pair.

    Attributes:
        pair: Index in the pair set.
        success: Whether the goal was met within the budget.
        steps: Environment steps until success, None for a failure.
        strict: Whether the goal was met strictly and held (`benchmarks.evaluation.evaluate`), None if not judged.
    """

    pair: int
    success: bool
    steps: int | None = None
    strict: bool | None = None

    def __post_init__(self) -> None:
        if self.success != (self.steps is not None):
            raise ValueError(f"outcome of pair {self.pair}: success={self.success} does not go with steps={self.steps}")
        if self.strict and not self.success:
            raise ValueError(f"outcome of pair {self.pair}: strict success without success")


@dataclass(frozen=True)
class Rate:
    """A success rate with its interval.

    Attributes:
        successes: Count.
        episodes: Count of all.
        rate: successes / episodes, in 0..1.
        low: Lower end of the Wilson 95 % interval.
        high: Upper end.
    """

    successes: int
    episodes: int
    rate: float
    low: float
    high: float

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Rate:
        """Returns the rate of success of `outcomes`, at least one."""
        return cls.count([outcome.success for outcome in outcomes])

    @classmethod
    def count(cls, successes: Sequence[bool]) -> Rate:
        """Returns the share of true ones, of at least one."""
        low, high = wilson_interval(sum(successes), len(successes))
        return cls(sum(successes), len(successes), sum(successes) / len(successes), low, high)

    def __str__(self) -> str:
        return f"{100 * self.rate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class Metric(NamedTuple):
    """A share of pairs. To add one, add a row to METRICS: results, summaries, tables and the page follow.

    Attributes:
        title: Heading of its column.
        note: What it asks for, in words.
        judge: Whether an outcome counts; None where that is not known, and then there is no rate.
    """

    title: str
    note: str
    judge: Callable[[Outcome], bool | None]


METRICS: dict[str, Metric] = {
    "success": Metric("success", "the goal is met within the budget", lambda outcome: outcome.success),
    "strict": Metric("strict", "held for 5 steps", lambda outcome: outcome.strict),
}


def rates_of(outcomes: Sequence[Outcome]) -> dict[str, Rate]:
    """Returns the rate of every metric that is known of all outcomes."""
    judged = {name: [metric.judge(outcome) for outcome in outcomes] for name, metric in METRICS.items()}
    return {name: Rate.count(values) for name, values in judged.items() if values and None not in values}  # type: ignore[arg-type]


class _Training(TypedDict, total=False):
    seed: int | None
    steps: int
    batch_size: int


class _Dataset(TypedDict, total=False):
    folder: str
    hash: str
    episodes: int
    frames: int


class _Description(TypedDict, total=False):
    command: str
    preset: str | None
    commit: Json | None
    training: _Training
    training_seconds: float
    dataset: _Dataset


class _Run(TypedDict, total=False):
    folder: str
    weights: str
    steps: int | None
    seconds: float | None
    description: _Description
    curves: dict[str, dict[Literal["step", "value"], list[float]]]


class _Pairs(TypedDict, total=False):
    hash: str
    source: str
    count: int
    seed: int | None
    phases: list[str]


class _Timing(TypedDict, total=False):
    act_seconds: float
    plans: int | None
    seconds_per_plan: float | None


class _Parts(TypedDict):
    """What readers of results rely on, of the parts that may hold more."""

    run: _Run
    pairs: _Pairs
    timing: _Timing


#: Who was evaluated on the same pairs: field of a `Result` -> what the rates of its outcomes are of.
WHO = {"outcomes": "agent", "random": "random", "replay": "replay"}


@dataclass(frozen=True)
class Result:
    """One evaluation of one agent by planning success: a record of kind "plan".

    Attributes:
        command: What was typed.
        commit: `{"hash", "dirty"}` of the source, None outside git.
        versions: Package name -> version.
        hardware: The machine, see `lewm_gym.provenance.hardware`.
        started: UTC time, ISO 8601.
        seconds: Wall-clock seconds of the evaluation; of all its parts if it was resumed.
        task: Name of the task.
        agent: Name of the agent.
        run: Description of the run folder: its path, preset, training steps and seconds, dataset, loss curves.
        seed: Seed of the agent's random streams.
        protocol: One of `PROTOCOLS`.
        offset_steps: Environment steps between start and goal in the recorded episode; 0 where nothing was recorded.
        budget_steps: Environment steps allowed.
        pairs: `{"hash", "source", "count", "seed"}` of the pair set; where its pairs have phases also `"phases"`, of
            the evaluated ones in the order of the outcomes.
        outcomes: One per evaluated pair.
        random: The random policy's on the same pairs; empty if it was not measured.
        replay: Those of the recorded actions, replayed; likewise.
        timing: `act_seconds` (all calls of the agent), `plans` and `seconds_per_plan` (None if the agent does not say).
        film: Name of the film beside the JSON file, or None.
        metrics: Whatever else was measured, by name.
    """

    command: str
    commit: Json | None
    versions: dict[str, str]
    hardware: Json
    started: str
    seconds: float
    task: str
    agent: str
    run: Json
    seed: int
    protocol: str
    offset_steps: int
    budget_steps: int
    pairs: Json
    outcomes: tuple[Outcome, ...]
    random: tuple[Outcome, ...]
    replay: tuple[Outcome, ...]
    timing: Json
    film: str | None = None
    metrics: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.outcomes:
            raise ValueError("a result needs at least one outcome")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"unknown protocol {self.protocol!r}; expected one of: {', '.join(PROTOCOLS)}")
        phases = self.pairs.get("phases")
        if phases is not None and len(phases) != len(self.outcomes):
            raise ValueError(f"{len(phases)} phases do not fit {len(self.outcomes)} outcomes")
        for name, others in (("random baseline", self.random), ("action replay", self.replay)):
            if [o.pair for o in others] not in ([], [o.pair for o in self.outcomes]):
                raise ValueError(f"the {name} must be measured on the same pairs as the agent")

    @property
    def success(self) -> Rate:
        """The agent's success rate."""
        return Rate.of(self.outcomes)

    def rates(self) -> dict[str, dict[str, Rate]]:
        """Returns who ("agent", "random", "replay") -> metric -> rate; what was not measured is left out."""
        return {who: found for name, who in WHO.items() if (found := rates_of(getattr(self, name)))}

    def by_phase(self) -> dict[str, dict[str, dict[str, Rate]]]:
        """Returns the same for the pairs of each phase, the easiest first; empty where the pairs have none."""
        phases = self.pairs.get("phases") or ()
        found = {}
        for phase in get_task(self.task).phases if phases else ():
            here = [i for i, name in enumerate(phases) if name == phase]
            if here:
                parts: Json = {name: tuple(getattr(self, name)[i] for i in here) for name in WHO if getattr(self, name)}
                found[phase] = replace(self, **parts, pairs={}).rates()
        return found

    def to_record(self) -> Record:
        """Returns the record; its rates repeat what follows from the outcomes, for readers."""
        phases = {phase: _as_json(rates) for phase, rates in self.by_phase().items()}
        values = asdict(self)
        head = {name: values.pop(name) for name in HEAD}
        by_phase = {"rates_by_phase": phases} if phases else {}
        return Record("plan", {"rates": _as_json(self.rates()), **by_phase, **values}, head)

    def save(self, path: str | Path) -> None:
        """Writes the result, creating the folder; a reader never sees half a file."""
        self.to_record().save(path)

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Reads a result.

        Raises:
            ValueError: If the file is not a result, is of another schema, or contradicts itself.
            OSError: If it cannot be read.
        """
        return cls.of(Record.load(path, "plan"))

    @classmethod
    def of(cls, record: Record) -> Result:
        """Returns the result that a record holds.

        Raises:
            ValueError: If it is damaged or contradicts itself.
        """
        data = {**record.head, **record.body}
        stored, by_phase = data.pop("rates", None), data.pop("rates_by_phase", None) or {}
        names = {field.name for field in fields(cls)}
        if missing := sorted(names - {"film", "metrics"} - set(data)):
            raise ValueError(f"{record.path} lacks {', '.join(missing)}; run the benchmark again")
        if unknown := sorted(set(data) - names):
            raise ValueError(f"{record.path} has unknown fields {', '.join(unknown)}")
        import msgspec  # 35 ms, which `--help` need not wait for

        try:
            result: Result = msgspec.convert(data, cls)
            for curve in msgspec.convert(data, _Parts)["run"].get("curves", {}).values():
                if len(curve["step"]) != len(curve["value"]):
                    raise ValueError("a training curve has more steps than values, or fewer")
            expected = [(stored, result.rates())]
            expected += [(by_phase[phase], rates) for phase, rates in result.by_phase().items() if phase in by_phase]
            agree = all(
                isinstance(found, dict) and all(_agrees(found.get(who), rates.get(who, {})) for who in WHO.values())
                for found, rates in expected
            )
        except (msgspec.ValidationError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{record.path} is damaged: {error}") from None
        if not agree:
            raise ValueError(f"{record.path} contradicts itself: its success rates do not follow from its outcomes")
        return result


def part_of(description: Mapping[str, Any], name: str) -> Json:
    """Returns what a `run.json` says of, for example, its "dataset" or its "training"; empty if nothing."""
    found = description.get(name)
    return dict(found) if isinstance(found, dict) else {}


def _as_json(rates: dict[str, dict[str, Rate]]) -> Json:
    return {who: {name: asdict(rate) for name, rate in found.items()} for who, found in rates.items()}


def _agrees(stored: Any, rates: dict[str, Rate]) -> bool:
    """Returns whether stored rates are those given, those of metrics that are not stored or not known now aside."""
    stored = {} if stored is None else stored
    if not isinstance(stored, dict):
        return False
    for name in set(stored) & set(rates):
        expected, found = asdict(rates[name]), stored[name]  # to 1e-9: another platform may differ in the last digit
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return False
        numbers = all(type(value) in (int, float) for value in found.values())
        if not numbers or any(abs(found[key] - expected[key]) > 1e-9 for key in expected):
            return False
    return bool(stored) == bool(rates)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the Wilson score interval (low, high) of a rate, within 0..1.

    Unlike the normal approximation it is sound near 0 and 1 and for few episodes: 50 of 50 gives (0.93, 1).

    Args:
        successes: Successes among `n`.
        n: Trials, at least 1.
        confidence: Two-sided coverage, between 0 and 1.

    Raises:
        ValueError: For counts or a confidence out of range.
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= successes <= n or not 0 < confidence < 1:
        raise ValueError(f"expected 0 <= successes <= n with n >= 1, got {successes} of {n} at confidence {confidence}")
    found = binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)
