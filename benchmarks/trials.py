"""Trainings that differ in their settings, each measured on the same pairs: what tuning and ablations are made of."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents import agent_class
from benchmarks.measure import measure
from benchmarks.protocols import PairSetLike
from benchmarks.runs import weights_hash
from lewm_gym import checkpoint
from lewm_gym.pairs import load_shipped
from lewm_gym.results import Result


@dataclass(frozen=True)
class Bench:
    """Where and how trials are made.

    Attributes:
        dataset: Folder.
        runs: Folder of the run folders.
        results: Folder of the results.
        agent: Name.
        preset: Of the agent.
        settings: In place of the preset's, for every trial.
        pairs: The pairs that each is measured on.
        n_pairs: How many of them, from the first; None for all.
        device: Where to compute.
    """

    dataset: Path
    runs: Path
    results: Path
    pairs: PairSetLike
    agent: str = "lewm"
    preset: str = "laptop"
    settings: Mapping[str, Any] = field(default_factory=dict)
    n_pairs: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        presets = getattr(agent_class(self.agent), "presets", {})
        if self.preset not in presets:
            raise ValueError(
                f"agent {self.agent!r} has no preset {self.preset!r}; expected one of: {', '.join(presets)}"
            )
        count = len(self.pairs.pairs)
        if self.n_pairs is not None and not 1 <= self.n_pairs <= count:
            raise ValueError(f"--n-pairs must be within 1 and {count}, got {self.n_pairs}")

    def trial(self, name: str, settings: Mapping[str, Any], bars: Any) -> Result:
        """Returns the result of a training with these settings, training and measuring only what is missing."""
        run, path = self.runs / name, self.results / f"{name}.json"
        kind = agent_class(self.agent)
        train_run = importlib.import_module("agents.run").train_run
        overrides = {**self.settings, **settings}
        agent = train_run(kind, self.dataset, run, self.preset, overrides, self.device, bars.on_log, bars.on_load)
        known = self.known(path, run)
        if known is not None:
            return known
        progress = bars.on_episodes
        chosen: dict[str, Any] = {"pairs": self.pairs, "episodes": self.n_pairs, "strict": False}
        return measure(run, out=path, agent=agent, progress=progress, **chosen)

    def known(self, path: Path, run: Path) -> Result | None:
        """Returns the stored result of a run on these pairs, None if there is none."""
        if not path.is_file() or not (run / checkpoint.WEIGHTS).is_file():
            return None
        result = Result.load(path)
        wanted = (weights_hash(run), self.pairs.content_hash, self.n_pairs or len(self.pairs.pairs))
        return result if (result.run["weights"], result.pairs["hash"], len(result.outcomes)) == wanted else None


def shipped_pairs(dataset: Path, offset_steps: int) -> PairSetLike:
    """Returns the shipped pairs of a dataset's task.

    Raises:
        FileNotFoundError: If there is no dataset.
        ValueError: If there are no pairs.
    """
    opened = importlib.import_module("lewm_gym.data.dataset").Dataset.open(dataset)
    pairs: PairSetLike = load_shipped(opened.task, offset_steps)
    return pairs


def describe(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Returns, ready for JSON, what a record says of the results of one variant, a training seed each."""
    return [
        {
            "seed": result.run["description"]["training"]["seed"],
            "successes": result.success.successes,
            "episodes": result.success.episodes,
            "rate": result.success.rate,
            "low": result.success.low,
            "high": result.success.high,
            "steps": result.run["steps"],
            "training_seconds": result.run["seconds"],
            "weights": result.run["weights"][:16],
        }
        for result in results
    ]
