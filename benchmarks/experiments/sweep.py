"""Trainings of LeWM that differ in one setting, each measured alike: the paper's ablations, and its search for lambda.

The paper (section 3) notes that with a single setting, the weight of SIGReg, a bisection finds it in logarithmically
many trainings. Here the interval is halved around its best point, on a logarithmic scale: ends and middle first, then
in each round the middles of the two halves, after which the best point and its neighbours are the interval. Latent
losses cannot score it, since they fall when latents collapse; success can. It is measured on pairs of `TUNING_SEED`,
not on those that results count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from agents import agent_class
from benchmarks.experiments.trial import Trial, check_count, describe, mean_of, minutes_of, share
from benchmarks.options import OnCluster, OnDevice
from benchmarks.report.plots import Bar, bars
from benchmarks.report.published import sentence
from benchmarks.report.records import Measurement
from benchmarks.report.tables import Cell, Section, Table, percents, strong, task_title, theirs
from collect.collector import TUNING_SEED
from collect.pairs import make_pairs
from lewm_gym.commands import Settings, argument, option
from lewm_gym.data.dataset import Dataset
from lewm_gym.files import make_folder
from lewm_gym.pairs import PairSet, load_shipped
from lewm_gym.plots import Panel, Series, figure_of
from lewm_gym.progress import Bars
from lewm_gym.results import Clock, Json, Record, Result


@dataclass(frozen=True, kw_only=True)
class Sweep(Measurement, OnDevice, OnCluster):
    """Options of commands that train LeWM several times; their results are in a folder beside the record."""

    kind: ClassVar[str]
    is_shared = True

    dataset: Path = argument("folder that `python -m collect` wrote")
    preset: str = option("laptop", "preset of LeWM")
    seeds: tuple[int, ...] = option((0,), "training seeds", least=0)
    steps: int | None = option(None, "optimiser steps (default: the preset's)", least=1)
    settings: Settings = option({}, "other settings for all trainings", flag="--set")
    offset: int = option(25, "distance from start to goal (environment steps)", metavar="STEPS")
    n_pairs: int | None = option(None, "number of pairs, from the first (default: all)", least=1, most=100_000)
    runs: Path | None = option(None, "run folders (default: runs/<command>)", metavar="FOLDER")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seeds must be different, got {list(self.seeds)}")
        known = agent_class("lewm").presets
        if self.preset not in known:
            raise ValueError(f"agent 'lewm' has no preset {self.preset!r}; expected one of: {', '.join(known)}")

    @property
    def inputs(self) -> Sequence[Path]:
        """What is measured: names the record."""
        return [self.dataset]

    @property
    def shared(self) -> Settings:
        """The settings of all trainings."""
        return self.settings | ({} if self.steps is None else {"steps": self.steps})

    def head(self, pairs: PairSet) -> Json:
        """Returns what all trainings of the record share."""
        found = {"hash": pairs.content_hash, "count": self.n_pairs or len(pairs.pairs), "seed": pairs.seed}
        shared = {"settings": self.shared, "offset_steps": self.offset, "pairs": found}
        return {"task": pairs.task, "preset": self.preset, **shared}

    def trials(self, name: str, settings: Mapping[str, Any], pairs: PairSet) -> list[Trial]:
        """Returns the trainings with some settings, one for each seed."""
        dataset, trials = Dataset.open(self.dataset), []
        asked = {"n_pairs": self.n_pairs, "strict": False}
        for seed in self.seeds:
            file = f"{pairs.task}-{name}-seed{seed}"
            run, out = (self.runs or Path("runs", self.kind)) / file, self.path.with_suffix("") / f"{file}.json"
            changed = {**self.shared, **settings, "seed": seed}
            trials.append(Trial("lewm", dataset, self.preset, changed, run, out, pairs, asked, self.device))
        return trials


# Ablations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """Settings other than the preset's.

    Attributes:
        name: In words, unique within its study.
        settings: In place of the preset's.
        paper: Success in the paper on Push-T, %, where it is given.
    """

    name: str
    settings: Mapping[str, Any]
    paper: float | None = None

    @property
    def file(self) -> str:
        """What names its files."""
        return "-".join(f"{name}{value}" for name, value in self.settings.items()) or "preset"


def _width(width: int, heads: int) -> dict[str, Any]:
    return {"predictor_width": width, "predictor_heads": heads, "predictor_mlp_width": 4 * width}


#: Study -> its variants; the preset itself stands beside all of them.
STUDIES: dict[str, tuple[Variant, ...]] = {
    "predictor": (
        Variant("predictor tiny, width 192", _width(192, 3), 80.67),
        Variant("predictor small, width 384", _width(384, 6), 96.0),
        Variant("predictor base, width 768", _width(768, 12), 86.7),
    ),
    "dropout": tuple(
        Variant(f"dropout {p:g}", {"dropout": p}, paper)
        for p, paper in ((0.0, 78.0), (0.1, 96.0), (0.2, 85.33), (0.5, 66.67))
    ),
    "latent": tuple(Variant(f"latent width {z}", {"latent_size": z}) for z in (8, 16, 32, 64, 128, 184, 256)),
    "projections": tuple(Variant(f"{n} projections", {"sigreg_directions": n}) for n in (64, 256, 1024, 4096)),
    "knots": tuple(Variant(f"{n} knots", {"sigreg_knots": n}) for n in (5, 9, 17, 33)),
    "lambda": tuple(Variant(f"lambda {w:g}", {"sigreg_weight": w}) for w in (0.0, 0.01, 0.05, 0.09, 0.2, 0.5)),
    "encoder": (
        Variant("encoder ViT", {"encoder": "vit", "encoder_width": 192}, 96.0),
        Variant("encoder ResNet-18", {"encoder": "resnet18"}, 94.0),
        Variant("encoder convolutional", {"encoder": "conv"}),
    ),
    "decoder": (Variant("decoder loss added", {"decoder_weight": 1.0}, 86.0),),
}
BASELINE = Variant("as the preset", {})


@dataclass(frozen=True, kw_only=True)
class Ablate(Sweep):
    """Trains LeWM with one setting changed at a time and evaluates each in the same way: predictor, dropout, latent,
    projections, knots, lambda, encoder, decoder. Run the same command again to resume, or several times at once to
    divide the trainings.
    """  # noqa: D205

    kind = "ablate"

    studies: tuple[str, ...] = option(("all",), "all, or names of the studies above")

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [study for study in self.studies if study not in STUDIES and self.studies != ("all",)]
        if unknown or not self.studies:
            raise ValueError(f"unknown studies {unknown}; expected all, or some of: {', '.join(STUDIES)}")

    def measure(self, bars: Any) -> Json:
        """Returns a row for each variant; the record is written after each training."""
        pairs = load_shipped(Dataset.open(self.dataset).task, self.offset)
        check_count(self.n_pairs, pairs)
        studies, clock = tuple(STUDIES) if self.studies == ("all",) else self.studies, Clock()
        variants = [("", BASELINE), *((name, v) for name in studies for v in STUDIES[name])]
        cells = [(study, variant, self.trials(variant.file, variant.settings, pairs)) for study, variant in variants]
        found: dict[str, Result] = {}

        def body() -> Json:
            rows = []
            for study, variant, trials in cells:
                row = {"study": study, "name": variant.name, "settings": dict(variant.settings), "paper": variant.paper}
                if all(one.name in found for one in trials):
                    rows.append({**row, "seeds": describe([found[one.name] for one in trials])})
            return {**self.head(pairs), "rows": rows}

        def do(one: Trial) -> None:
            found[one.name] = one.result(bars)
            self.save(body(), clock)

        share([one for _, _, trials in cells for one in trials], do, bars, self)
        return body()

    @staticmethod
    def show(record: Record) -> Section:
        """Returns a row and a bar for each variant, the paper's number in italics."""
        rows: list[list[Cell]] = []
        drawn = []
        for row in record["rows"]:
            (mean, std), seeds = mean_of(row["seeds"]), row["seeds"]
            spread = "" if std is None else f" ± {100 * std:.1f}"
            success = (strong(f"{100 * mean:.1f}"), spread)
            rows.append([row["name"], success, percents(seeds), minutes_of(seeds), theirs(row["paper"])])
            interval = (seeds[0]["low"], seeds[0]["high"]) if len(seeds) == 1 else None
            drawn.append(Bar(row["name"], mean, interval, "ours" if row["study"] else "random"))
        text = (
            f"LeWM with preset {record['preset']}, one setting at a time otherwise, each trained and measured alike on "
            f"{record['pairs']['count']} pairs {record['offset_steps']} steps apart. In italics the paper's numbers, "
            "on Push-T at its own scale and under its own protocol: published, not measured here."
        )
        header: list[Cell] = ["setting", "success %", "each seed, Wilson 95 %", "training", "paper"]
        title = f"{task_title(record['task'])}: ablations"
        return Section(title, [text, Table(header, rows), bars(f"{title}: success.", drawn)])


# Lambda ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TuneLambda(Sweep):
    """Finds the weight of SIGReg by the paper's bisection: trains LeWM at each weight and scores it by success on
    tuning pairs with their own seed. Run the same command again to resume, or several times at once to divide the
    trainings.
    """  # noqa: D205

    kind = "tune-lambda"

    low: float = option(0.001, "lower bound of the weight")
    high: float = option(1.0, "upper bound of the weight")
    rounds: int = option(2, "rounds of bisection", least=0)
    n_pairs: int = option(50, "tuning pairs", least=1, most=100_000)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"expected 0 < --low < --high, got {self.low} and {self.high}")

    def measure(self, bars: Any) -> Json:
        """Returns the success of each weight that the bisection tried."""
        task = Dataset.open(self.dataset).task
        pairs = tuning_pairs(task, self.offset, self.n_pairs, self.path.parent, bars)
        rows: dict[float, list[Json]] = {}

        def score(weights: Sequence[float]) -> dict[float, float]:
            cells = {weight: self.trials(f"lambda{weight:g}", {"sigreg_weight": weight}, pairs) for weight in weights}
            found: dict[str, Result] = {}
            share([one for trials in cells.values() for one in trials],
                  lambda one: found.update({one.name: one.result(bars)}), bars, self)  # fmt: skip
            for weight, trials in cells.items():
                rows[weight] = describe([found[one.name] for one in trials])
            return {weight: mean_of(rows[weight])[0] for weight in weights}

        scores = bisect(score, self.low, self.high, self.rounds)
        trials = [{"weight": weight, "success": scores[weight], "seeds": rows[weight]} for weight in sorted(scores)]
        return {**self.head(pairs), "best": best_of(scores), "trials": trials}

    @staticmethod
    def show(record: Record) -> Section:
        """Returns success against the weight, the best in bold."""
        trials = record["trials"]
        rows: list[list[Cell]] = []
        for trial in trials:
            weight = f"{trial['weight']:g}"
            label = strong(weight) if trial["weight"] == record["best"] else weight
            rows.append([label, f"{100 * trial['success']:.1f}", percents(trial["seeds"])])
        text = (
            f"Success on {record['pairs']['count']} tuning pairs, {record['offset_steps']} steps apart and of a seed "
            "of their own, for each weight of SIGReg that the bisection tried; preset "
            f"{record['preset']}. The best in bold. {sentence('lambda')}"
        )
        line = Series("success", [t["weight"] for t in trials], [100 * t["success"] for t in trials], style="o-")
        panel = Panel("success", [line], "lambda", "success %", log_x=True, log_y=False)
        title = f"{task_title(record['task'])}: lambda by bisection"
        table = Table(["lambda", "success %", "each seed, Wilson 95 %"], rows)
        return Section(title, [text, table, figure_of("Success against lambda.", [panel])])


def bisect(
    score: Callable[[Sequence[float]], Mapping[float, float]], low: float, high: float, rounds: int
) -> dict[float, float]:
    """Returns value -> score of all values tried, 3 + 2 per round at most; the score is assumed to have one peak.

    `score` gets the values of a round together.
    """
    scores: dict[float, float] = {}

    def between(one: float, other: float) -> float:
        return float(f"{math.sqrt(one * other):.3g}")

    def look(values: Sequence[float]) -> None:
        scores.update(score([value for value in values if value not in scores]))

    points = [low, between(low, high), high]
    look(points)
    for _ in range(rounds):
        points = [points[0], between(*points[:2]), points[1], between(*points[1:]), points[2]]
        look(points)
        place = points.index(best_of({point: scores[point] for point in points}))
        first = min(max(place - 1, 0), 2)  # an end that is best keeps two neighbours on its one side
        points = points[first : first + 3]
    return scores


def best_of(scores: Mapping[float, float]) -> float:
    """Returns the value of the best score; of several the middle one, since neighbours of a plateau's end may fall."""
    peak = max(scores.values())
    equal = sorted(value for value, score in scores.items() if score == peak)
    return equal[len(equal) // 2]


def tuning_pairs(task: str, offset_steps: int, count: int, folder: Path, bars: Any = None) -> PairSet:
    """Returns the tuning pairs of a task, made once and kept in `folder`."""
    path, shown = folder / f"tuning-pairs-{task}-{offset_steps}-{count}.json", bars or Bars(disable=True)
    if not path.is_file():
        make_folder(folder)
        progress = lambda n, of: shown("pairs", n, of, "pair")  # noqa: E731
        make_pairs(task, offset_steps, count, seed=TUNING_SEED, progress=progress).save(path)
    return PairSet.load(path)
