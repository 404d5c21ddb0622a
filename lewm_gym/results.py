"""Results on disk: one JSON file per measurement, with everything that made it, and the interval of a success rate.

A result is written whole or not at all, and read strictly: a file of another schema, or one whose summary does
not follow from its outcomes, is refused rather than shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

from lewm_gym.files import atomic_file, make_folder, parse_json, read_json
from lewm_gym.tasks import get_task

FORMAT = "lewm-gym result"
SCHEMA = 2  # raise it when a field changes its meaning, appears or goes
_CUT_OFF = "it may be cut off"
#: Names of the rates that a file repeats from its outcomes.
RATES = (
    "success",
    "strict_success",
    "floor_success",
    "floor_strict_success",
    "ceiling_success",
    "ceiling_strict_success",
)
_OUTCOMES = ("outcomes", "floor", "ceiling")
_BY_PHASE = "rates_by_phase"
#: How start/goal pairs are chosen and judged: held out, unsolved and a random stream each; as published; or drawn by
#: the environment itself.
PROTOCOLS = ("audited", "official", "sampled")


@dataclass(frozen=True)
class Outcome:
    """What became of one start/goal pair.

    Attributes:
        pair: Index in the pair set.
        success: Whether the goal was met within the budget.
        steps: Environment steps until success, None for a failure.
        strict: Whether the goal was met strictly and held (`benchmarks.plan.evaluate`), None if that was not judged.
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
    def of(cls, outcomes: tuple[Outcome, ...]) -> Rate:
        """Returns the rate of success of `outcomes`, at least one."""
        return cls.count([outcome.success for outcome in outcomes])

    @classmethod
    def strictly(cls, outcomes: tuple[Outcome, ...]) -> Rate | None:
        """Returns the rate of strict success of `outcomes`, None if there are none or it was not judged."""
        judged = [outcome.strict for outcome in outcomes if outcome.strict is not None]
        return cls.count(judged) if judged and len(judged) == len(outcomes) else None

    @classmethod
    def count(cls, successes: Sequence[bool]) -> Rate:
        """Returns the share of true ones, of at least one."""
        low, high = wilson_interval(sum(successes), len(successes))
        return cls(sum(successes), len(successes), sum(successes) / len(successes), low, high)

    def __str__(self) -> str:
        return f"{100 * self.rate:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Result:
    """One evaluation of one agent by planning success, as `results/*.json` holds it.

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
        floor: The random policy on the same pairs; empty if it was not measured.
        ceiling: The recorded actions, replayed, on the same pairs; likewise.
        timing: `act_seconds` (all calls of the agent), `plans` and `seconds_per_plan` (None if the agent does not say).
        film: Name of the film beside the JSON file, or None.
        kind: What was measured.
    """

    command: str
    commit: dict[str, Any] | None
    versions: dict[str, str]
    hardware: dict[str, Any]
    started: str
    seconds: float
    task: str
    agent: str
    run: dict[str, Any]
    seed: int
    protocol: str
    offset_steps: int
    budget_steps: int
    pairs: dict[str, Any]
    outcomes: tuple[Outcome, ...]
    floor: tuple[Outcome, ...]
    ceiling: tuple[Outcome, ...]
    timing: dict[str, Any]
    film: str | None = None
    kind: str = "plan"

    def __post_init__(self) -> None:
        if self.kind != "plan":
            raise ValueError(f"unknown kind of result {self.kind!r}; expected 'plan'")
        if not self.outcomes:
            raise ValueError("a result needs at least one outcome")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"unknown protocol {self.protocol!r}; expected one of: {', '.join(PROTOCOLS)}")
        phases = self.pairs.get("phases")
        if phases is not None and len(phases) != len(self.outcomes):
            raise ValueError(f"{len(phases)} phases do not fit {len(self.outcomes)} outcomes")
        for name, others in (("random floor", self.floor), ("ceiling", self.ceiling)):
            if [o.pair for o in others] not in ([], [o.pair for o in self.outcomes]):
                raise ValueError(f"the {name} must be measured on the same pairs as the agent")

    @property
    def success(self) -> Rate:
        """The agent's success rate."""
        return Rate.of(self.outcomes)

    @property
    def floor_success(self) -> Rate | None:
        """The random policy's success rate on the same pairs, None if it was not measured."""
        return Rate.of(self.floor) if self.floor else None

    @property
    def ceiling_success(self) -> Rate | None:
        """The success rate of replaying the recorded actions, None if it was not measured."""
        return Rate.of(self.ceiling) if self.ceiling else None

    def rates(self) -> dict[str, Rate | None]:
        """Returns every rate that follows from the outcomes, by name; None for those that were not measured."""
        return {
            "success": self.success,
            "strict_success": Rate.strictly(self.outcomes),
            "floor_success": self.floor_success,
            "floor_strict_success": Rate.strictly(self.floor),
            "ceiling_success": self.ceiling_success,
            "ceiling_strict_success": Rate.strictly(self.ceiling),
        }

    def by_phase(self) -> dict[str, dict[str, Rate | None]]:
        """Returns every rate by the pairs' phase, the easiest first; empty where the pairs have none."""
        phases = self.pairs.get("phases") or ()
        found = {}
        for phase in get_task(self.task).phases:
            here = [i for i, name in enumerate(phases) if name == phase]
            if here:
                parts: dict[str, Any] = {
                    name: tuple(getattr(self, name)[i] for i in here) for name in _OUTCOMES if getattr(self, name)
                }
                found[phase] = replace(self, **parts, pairs={}).rates()
        return found

    def to_json(self) -> dict[str, Any]:
        """Returns the file's content; the success rates repeat what follows from the outcomes, for readers."""
        head = {"format": FORMAT, "schema": SCHEMA, "kind": self.kind}
        phases = {name: _as_json(rates) for name, rates in self.by_phase().items()}
        return {**head, **_as_json(self.rates()), **({_BY_PHASE: phases} if phases else {}), **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Writes the result, creating the folder; a reader never sees half a file."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Reads a result.

        Raises:
            ValueError: If the file is not a result, is of another schema, or contradicts itself.
            OSError: If it cannot be read.
        """
        path = Path(path)
        data = read_json(path, _CUT_OFF)
        if data.get("format") != FORMAT:
            raise ValueError(f"{path} is not a LeWM-Gym result; expected a file written by `python -m benchmarks`")
        schema = data.get("schema")
        if schema != SCHEMA:
            age = "a newer" if isinstance(schema, int) and schema > SCHEMA else "an older"
            advice = "update LeWM-Gym" if age == "a newer" else "run the benchmark again"
            raise ValueError(f"{path} has {age} result schema ({schema}; this version reads {SCHEMA}): {advice}")
        derived = {key: data.pop(key, None) for key in ("format", "schema", *RATES, _BY_PHASE)}
        names = {field.name for field in fields(cls)}
        if missing := sorted(names - set(data)):
            raise ValueError(f"{path} lacks {', '.join(missing)}; run the benchmark again")
        if unknown := sorted(set(data) - names):
            raise ValueError(f"{path} has unknown fields {', '.join(unknown)}")
        try:
            for key in _OUTCOMES:
                data[key] = tuple(Outcome(**row) for row in data[key])
            result = cls(**data)
            by_phase = {name: (derived[_BY_PHASE] or {}).get(name, {}) for name in result.by_phase()}
            phases = result.by_phase().items()
            stored = [(derived, result.rates()), *((by_phase[name], rates) for name, rates in phases)]
            agree = all(_agrees(found.get(key), rate) for found, rates in stored for key, rate in rates.items())
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        if not agree:
            raise ValueError(f"{path} contradicts itself: its success rates do not follow from its outcomes")
        return result


def is_result(path: Path) -> bool:
    """Returns whether `path` holds a result of any schema; other JSON files (manifests, configurations) do not.

    Raises:
        ValueError: If it is not JSON: a damaged result should not silently be missing from a table.
    """
    data = parse_json(path, _CUT_OFF)
    return isinstance(data, dict) and data.get("format") == FORMAT


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
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n with n >= 1, got {successes} of {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    centre = rate + z * z / (2 * n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the exact value is 0 or 1; rounding may miss it by 1e-17.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes `data` to `path`, a line per key, whole or not at all, making the folder."""
    lines = [f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in data.items()]
    make_folder(path.parent)
    with atomic_file(path) as file:
        file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _as_json(rates: dict[str, Rate | None]) -> dict[str, Any]:
    return {name: asdict(rate) if rate else None for name, rate in rates.items()}


def _agrees(stored: Any, rate: Rate | None) -> bool:
    if rate is None or not isinstance(stored, dict):
        return stored is None and rate is None
    expected = asdict(rate)  # to 1e-9: another platform's square root may differ in the last digit
    return stored.keys() == expected.keys() and all(
        type(stored[key]) in (int, float) and abs(stored[key] - expected[key]) < 1e-9 for key in expected
    )
