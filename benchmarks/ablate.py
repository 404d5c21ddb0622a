"""The paper's ablations: one setting of LeWM at a time, trained and measured alike, in one table."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.charts import Bar, bars
from benchmarks.knowledge.records import Json, Record
from benchmarks.knowledge.section import Section, plain, table
from lewm_gym.tasks import TASKS


@dataclass(frozen=True)
class Variant:
    """A setting other than the preset's.

    Attributes:
        name: In words, unique within its study.
        settings: In place of the preset's.
        paper: Success in the paper on Push-T, %, where it is given.
    """

    name: str
    settings: Mapping[str, Any]
    paper: float | None = None


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
BASELINE = "as the preset"


def ablate(
    dataset: Path,
    out: Path,
    *,
    runs: Path,
    studies: Sequence[str],
    preset: str = "laptop",
    settings: dict[str, Any] | None = None,
    seeds: Sequence[int] = (0,),
    n_pairs: int | None = None,
    offset_steps: int = 25,
    device: str | None = None,
    bars: Any,
) -> Json:
    """Returns the record of the ablations, written to `out` after each training; what is finished is used again.

    Args:
        dataset: Folder.
        out: JSON file; results of the trainings lie in a folder beside it.
        runs: Folder of the run folders.
        studies: Of STUDIES.
        preset: Of LeWM.
        settings: In place of the preset's, for every training.
        seeds: Of training, for every variant.
        n_pairs: How many of the shipped pairs, from the first; None for all.
        offset_steps: Their distance.
        device: Where to compute.
        bars: A `Bars`, for progress.

    Raises:
        ValueError: For an unknown study, or settings out of range.
        FileNotFoundError: If there is no dataset.
    """
    unknown = [study for study in studies if study not in STUDIES]
    if unknown or not studies:
        raise ValueError(f"unknown studies {unknown}; expected all, or some of: {', '.join(STUDIES)}")
    trials = importlib.import_module("benchmarks.trials")
    record = Record("ablation")
    pairs = trials.shipped_pairs(dataset, offset_steps)
    bench = trials.Bench(
        dataset,
        runs,
        out.with_suffix(""),
        pairs,
        preset=preset,
        settings=settings or {},
        n_pairs=n_pairs,
        device=device,
    )
    head = {
        "task": pairs.task,
        "preset": preset,
        "settings": dict(settings or {}),
        "offset_steps": offset_steps,
        "pairs": {"hash": pairs.content_hash, "count": n_pairs or len(pairs.pairs), "seed": pairs.seed},
    }
    rows: list[Json] = []
    saved: Json = {}
    for study, variant in [("", Variant(BASELINE, {})), *((s, v) for s in studies for v in STUDIES[s])]:
        results = [
            bench.trial(_name(pairs.task, variant, seed), {**variant.settings, "seed": seed}, bars) for seed in seeds
        ]
        row = {"study": study, "name": variant.name, "settings": dict(variant.settings), "paper": variant.paper}
        rows.append({**row, "seeds": trials.describe(results)})
        saved = record.save(out, {**head, "rows": rows})
    return saved


def _name(task: str, variant: Variant, seed: int) -> str:
    words = "-".join(f"{name}{value}" for name, value in variant.settings.items()) or "preset"
    return f"{task}-{words}-seed{seed}"


def section(record: Json, folder: Path) -> Section:
    """Returns the report's section of a record."""
    title = TASKS[record["task"]].title
    rows, drawn = [], []
    for row in record["rows"]:
        rates = [seed["rate"] for seed in row["seeds"]]
        mean, interval = statistics.fmean(rates), (row["seeds"][0]["low"], row["seeds"][0]["high"])
        spread = f" ± {100 * statistics.stdev(rates):.1f}" if len(rates) > 1 else ""
        minutes = statistics.fmean(seed["training_seconds"] for seed in row["seeds"]) / 60
        paper = "" if row["paper"] is None else f"*{row['paper']:g}*"
        each = "; ".join(
            f"{100 * s['rate']:.1f} \\[{100 * s['low']:.1f}, {100 * s['high']:.1f}\\]" for s in row["seeds"]
        )
        rows.append([plain(row["name"]), f"**{100 * mean:.1f}**{spread}", each, f"{minutes:.1f} min", paper])
        drawn.append(
            Bar(row["name"], mean, interval if len(rates) == 1 else None, "floor" if not row["study"] else "ours")
        )
    text = (
        f"LeWM with preset {plain(record['preset'])}, one setting at a time otherwise, each trained and measured alike "
        f"on {record['pairs']['count']} pairs {record['offset_steps']} steps apart. In italics the paper's numbers, on "
        "Push-T at its own scale and under its own protocol: published, not measured here."
    )
    header = ["setting", "success %", "each seed, Wilson 95 %", "training", "*paper*"]
    return Section(f"{title}: ablations", f"{text}\n\n{table(header, rows)}", [(f"{title}: success", bars(drawn))])


FORMATS = {"lewm-gym ablation": section}
