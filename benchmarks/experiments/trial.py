"""One training with its evaluation, of many: what is finished is used again, what was stopped goes on.

Several processes may do the trials of one comparison, sweep or search at once (`share`), on one machine or on several
that share a file system with locks.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from agents import agent_class
from agents.run import is_finished, train_run
from benchmarks.evaluation.run import Plan
from benchmarks.evaluation.runs import weights_hash
from benchmarks.experiments.references import make_reference
from lewm_gym import checkpoint
from lewm_gym.data.dataset import Dataset
from lewm_gym.files import Locked, exclusive, make_folder
from lewm_gym.pairs import PairSet
from lewm_gym.results import Json, Result


@dataclass(frozen=True)
class Trial:
    """An agent that is trained on a dataset and measured on pairs; of a reference, which does not learn, the measure.

    Attributes:
        agent: Name.
        dataset: What it learns from.
        preset: Of the agent.
        settings: In place of the preset's, `seed` and `steps` among them; none of a reference.
        run: Run folder.
        out: File of the result.
        pairs: What it is measured on.
        asked: How it is measured; run, file and the rest are filled in.
        device: Where to compute.
    """

    agent: str
    dataset: Dataset
    preset: str
    settings: Mapping[str, Any]
    run: Path
    out: Path
    pairs: PairSet
    asked: Json = field(default_factory=dict)
    device: str | None = None

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.run.name

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return hasattr(agent_class(self.agent), "presets")

    @property
    def claim(self) -> Path:
        """What a process locks while it trains and measures; calls that share run folders share it."""
        return self.run.with_name(f"{self.run.name}.trial")

    @property
    def steps(self) -> int | None:
        """Optimiser steps, where the settings say them."""
        return self.settings.get("steps")

    @property
    def n_pairs(self) -> int:
        """How many of the pairs it is measured on."""
        return self.asked.get("n_pairs") or len(self.pairs.pairs)

    @property
    def plan(self) -> Plan:
        """The command that measures it."""
        return Plan(**{"run": self.run, "out": self.out, "pairs": self.pairs, **self.asked})

    def is_trained(self) -> bool:
        """Returns whether the run folder holds the training, finished.

        Raises:
            ValueError: If a setting does not fit, or the folder holds another training.
        """
        kind, settings = agent_class(self.agent), dict(self.settings)
        return is_finished(kind, self.dataset, self.run, self.preset, settings, self.device)

    def known(self) -> Result | None:
        """Returns the stored result, None if it is missing or not what would be measured now.

        Raises:
            ValueError: If the run folder holds another training.
        """
        if self.learns and not self.is_trained():
            return None
        if not self.out.is_file() or not (self.run / checkpoint.DESCRIPTION).is_file():
            return None
        result = Result.load(self.out)
        wanted = (weights_hash(self.run), self.pairs.content_hash, self.n_pairs, self.plan.seed)
        stored = (result.run["weights"], result.pairs["hash"], result.success.episodes, result.seed)
        return result if stored == wanted else None

    def result(self, bars: Any) -> Result:
        """Returns the result after training and measuring what is missing."""
        known = self.known()
        if known is not None:
            return known
        agent, plan = None, replace(self.plan, overwrite=True)
        if self.learns:
            kind, folder, settings = agent_class(self.agent), self.dataset.folder, dict(self.settings)
            agent = train_run(kind, folder, self.run, self.preset, settings, self.device, bars.on_log, bars.on_load)
        else:
            pairs, budget = self.pairs.pairs[: self.n_pairs], plan.budget or 2 * self.pairs.offset_steps
            make_reference(self.agent, self.run, self.dataset.task, pairs, plan.seed, budget)
        return plan.measure(bars.on_episodes, agent)


def share(trials: Sequence[Trial], do: Callable[[Trial], None], bars: Any) -> None:
    """Calls `do` with each trial, whichever no other process is at first; then waits for those of the others.

    Each is locked in the meantime. By then it may have been finished by another process; one whose process was killed
    is not locked any more, and is done here.
    """
    left = list(trials)
    while left:
        held = []
        for one in left:
            make_folder(one.run.parent)
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(exclusive(one.claim))
                except Locked:
                    held.append(one)
                    continue
                do(one)
        if len(held) == len(left):
            bars("wait for another process", 0, len(held), "training", held[0].name)
            with exclusive(held[0].claim, wait=True):
                do(held.pop(0))
        left = held


def check_count(n_pairs: int | None, pairs: PairSet) -> None:
    """Refuses more pairs than there are."""
    if n_pairs is not None and n_pairs > len(pairs.pairs):
        raise ValueError(f"--n-pairs must be within 1 and {len(pairs.pairs)}, got {n_pairs}")


def describe(results: Sequence[Result]) -> list[Json]:
    """Returns, ready for JSON, what a record says of the results of one variant, a training seed each."""
    return [
        {
            "seed": result.run["description"].get("training", {}).get("seed"),
            **asdict(result.success),
            "steps": result.run["steps"],
            "training_seconds": result.run["seconds"],
            "act_seconds_per_pair": result.timing["act_seconds"] / result.success.episodes,
            "weights": result.run["weights"][:16],
        }
        for result in results
    ]


def mean_of(seeds: Sequence[Json]) -> tuple[float, float | None]:
    """Returns the mean success rate over seeds and its sample standard deviation, None for a single one."""
    rates = [seed["rate"] for seed in seeds]
    return statistics.fmean(rates), statistics.stdev(rates) if len(rates) > 1 else None


def minutes_of(seeds: Sequence[Json]) -> str:
    """Returns the mean time of training, nothing where there was none."""
    times = [seed["training_seconds"] for seed in seeds if seed.get("training_seconds")]
    return f"{statistics.fmean(times) / 60:.1f} min" if times else ""
