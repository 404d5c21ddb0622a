"""One training with its evaluation, of many: what is finished is used again, what was stopped goes on.

Several processes may do the trials of one comparison, sweep or search at once (`share`), on one machine or on several
that share a file system with locks. With `--ray`, each trial is a task of a Ray cluster, whose machines need not share
one: then a task trains in a folder of its own machine and returns the files.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from agents import agent_class
from agents.run import is_finished, train_run
from benchmarks.evaluation.run import Plan
from benchmarks.evaluation.runs import weights_hash
from benchmarks.experiments.references import make_reference
from benchmarks.options import OnCluster
from collect.cluster import run_on_ray
from lewm_gym import checkpoint, provenance
from lewm_gym.data.dataset import Dataset
from lewm_gym.files import Locked, atomic_file, exclusive, make_folder
from lewm_gym.pairs import PairSet
from lewm_gym.progress import Bars
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


def share(trials: Sequence[Trial], do: Callable[[Trial], None], bars: Any, cluster: OnCluster | None = None) -> None:
    """Calls `do` with each trial, whichever no other process is at first; then waits for those of the others.

    Each is locked in the meantime. By then it may have been finished by another process; one whose process was killed
    is not locked any more, and is done here. On a cluster, `do` is called with each that was done there.

    Raises:
        ValueError: If there is no room for a trial on the cluster.
        ConnectionError: If there is no cluster.
        ImportError: Without Ray.
    """
    if cluster is not None and cluster.ray is not None:
        _share_on_ray(trials, do, bars, cluster)
        return
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


# On a Ray cluster --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _DoneElsewhere(Trial):
    """A trial that a task has done.

    Attributes:
        get: Returns the task's files, by name, unless it has written them here; raises what it raised.
    """

    get: Callable[[], dict[str, bytes]] = dict

    def result(self, bars: Any) -> Result:
        """Returns the result, after writing the task's files."""
        for name, content in sorted(self.get().items(), reverse=True):  # the run, then its result
            path = self.out if name == "" else self.run / name
            make_folder(path.parent)
            with atomic_file(path) as file:
                file.write(content)
        found = self.known()
        if found is None:
            raise ValueError(f"{self.name} was done on the cluster, but {self.out} is missing: run the command again")
        return found


def _share_on_ray(trials: Sequence[Trial], do: Callable[[Trial], None], bars: Any, cluster: OnCluster) -> None:
    left = []
    for one in trials:
        if one.known() is None:
            left.append(one)
        else:
            do(one)
    if not left:
        return
    threads = cluster.ray_cpus or torch.get_num_threads()
    make_folder(left[0].run.parent)
    marker = left[0].run.parent.resolve() / f".shared-{uuid.uuid4().hex[:12]}"
    here = _Caller(Path.cwd(), marker, provenance.command(), threads, cluster.ray_gpus > 0)
    marker.touch()
    try:
        calls = [(one, here) for one in left]
        assert cluster.ray is not None
        for done, (number, get) in enumerate(run_on_ray(do_elsewhere, calls, cluster.ray, threads, cluster.ray_gpus)):
            do(_DoneElsewhere(**{f.name: getattr(left[number], f.name) for f in fields(Trial)}, get=get))
            bars("on the cluster", done + 1, len(left), "training", left[number].name)
    finally:
        marker.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Caller:
    """What a task is told of the process that asks.

    Attributes:
        folder: Its working directory.
        marker: A file beside the run folders: where it can be seen, the file system is shared.
        command: What made the results.
        threads: To compute with.
        with_gpu: Whether the task has a GPU, whatever the caller has.
    """

    folder: Path
    marker: Path
    command: str
    threads: int
    with_gpu: bool


def do_elsewhere(trial: Trial, caller: _Caller) -> dict[str, bytes]:
    """Does a trial in a task; returns its files where the caller cannot see them, by name; the result's is "".

    Raises:
        FileNotFoundError: If the dataset is on no file system of this machine.
    """
    torch.set_num_threads(caller.threads)
    provenance.scheduled_by = caller.command
    trial = replace(trial, device=None) if caller.with_gpu else trial
    if caller.marker.exists():
        os.chdir(caller.folder)
        with exclusive(trial.claim, wait=True):
            trial.result(Bars(disable=True))
        return {}
    with contextlib.suppress(OSError):
        os.chdir(caller.folder)  # the dataset's folder may be relative to it
    trial = replace(trial, dataset=trial.dataset.again())
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        trial = replace(trial, run=Path("run", trial.run.name), out=Path("out", trial.out.name))
        trial.result(Bars(disable=True))
        made = {path.name: path.read_bytes() for path in trial.run.iterdir() if path.name[0] != "."}
        os.chdir("/")
        return {**made, "": Path(name, trial.out).read_bytes()}


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
