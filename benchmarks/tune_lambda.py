"""The paper's bisection for lambda, the one setting of LeWM's loss: by success, on pairs of their own.

The paper (section 3) notes that with a single setting a bisection finds it in logarithmically many trainings. Here the
interval is halved around its best point, on a logarithmic scale: ends and middle first, then in each round the middles
of the two halves, after which the best point and its neighbours are the interval. Latent losses cannot score it, since
they fall when latents collapse; success can. It is measured on pairs of `TUNING_SEED`, not on those that results count.
"""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.charts import Line, curve
from benchmarks.knowledge.records import Json, Record
from benchmarks.knowledge.section import Section, plain, table
from benchmarks.protocols import PairSetLike
from lewm_gym.pairs import PairSet
from lewm_gym.tasks import TASKS

N_PAIRS = 50


def bisect(score: Callable[[float], float], low: float, high: float, rounds: int) -> dict[float, float]:
    """Returns value -> score of all values tried: 3 + 2 per round, at most.

    Args:
        score: What to maximise; assumed to have one peak.
        low: Lower end of the interval, positive.
        high: Upper end.
        rounds: How often the interval is halved.

    Raises:
        ValueError: For an empty interval, or a negative number of rounds.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"expected 0 < --low < --high, got {low} and {high}")
    if rounds < 0:
        raise ValueError(f"--rounds must not be negative, got {rounds}")
    scores: dict[float, float] = {}

    def between(one: float, other: float) -> float:
        return float(f"{math.sqrt(one * other):.3g}")

    def look(values: Sequence[float]) -> None:
        scores.update({value: score(value) for value in values if value not in scores})

    points = [low, between(low, high), high]
    look(points)
    for _ in range(rounds):
        points = [points[0], between(*points[:2]), points[1], between(*points[1:]), points[2]]
        look(points)
        place = points.index(_best({point: scores[point] for point in points}))
        first = min(max(place - 1, 0), 2)  # an end that is best keeps two neighbours on its one side
        points = points[first : first + 3]
    return scores


def _best(scores: dict[float, float]) -> float:
    """Returns the value of the best score; of several the middle one, since neighbours of a plateau's end may fall."""
    peak = max(scores.values())
    equal = sorted(value for value, score in scores.items() if score == peak)
    return equal[len(equal) // 2]


def tuning_pairs(task: str, offset_steps: int, count: int, folder: Path, progress: Any = None) -> PairSetLike:
    """Returns the tuning pairs of a task, made once and kept in `folder`."""
    from collect.collector import TUNING_SEED
    from collect.pairs import make_pairs

    path = folder / f"tuning-pairs-{task}-{offset_steps}-{count}.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        make_pairs(task, offset_steps, count, seed=TUNING_SEED, progress=progress).save(path)
    return PairSet.load(path)


def tune(
    dataset: Path,
    out: Path,
    *,
    runs: Path,
    preset: str = "laptop",
    settings: dict[str, Any] | None = None,
    seeds: Sequence[int] = (0,),
    low: float = 0.001,
    high: float = 1.0,
    rounds: int = 2,
    n_pairs: int = N_PAIRS,
    offset_steps: int = 25,
    device: str | None = None,
    bars: Any,
) -> Json:
    """Returns the record of a bisection, written to `out`; finished trainings and evaluations are used again.

    Args:
        dataset: Folder.
        out: JSON file; results of the trainings lie in a folder beside it.
        runs: Folder of the run folders.
        preset: Of LeWM.
        settings: In place of the preset's.
        seeds: Of training; the score is the mean success over them.
        low: Lower end of the interval.
        high: Upper end.
        rounds: Halvings.
        n_pairs: Tuning pairs.
        offset_steps: Their distance.
        device: Where to compute.
        bars: A `Bars`, for progress.

    Raises:
        ValueError: For settings out of range.
        FileNotFoundError: If there is no dataset.
    """
    trials = importlib.import_module("benchmarks.trials")
    task = importlib.import_module("lewm_gym.data.dataset").Dataset.open(dataset).task
    record = Record("lambda")
    if n_pairs < 1:
        raise ValueError(f"--n-pairs must be at least 1, got {n_pairs}")
    pairs = tuning_pairs(task, offset_steps, n_pairs, out.parent, lambda n, of: bars("pairs", n, of, "pair"))
    folder = out.with_suffix("")
    bench = trials.Bench(dataset, runs, folder, pairs, preset=preset, settings=settings or {}, device=device)
    rows: dict[float, list[dict[str, Any]]] = {}

    def score(weight: float) -> float:
        name = f"{task}-lambda{weight:g}"
        varied = ({"sigreg_weight": weight, "seed": seed} for seed in seeds)
        results = [bench.trial(f"{name}-seed{one['seed']}", one, bars) for one in varied]
        rows[weight] = trials.describe(results)
        return statistics.fmean(result.success.rate for result in results)

    scores = bisect(score, low, high, rounds)
    body = {
        "task": task,
        "preset": preset,
        "settings": dict(settings or {}),
        "offset_steps": offset_steps,
        "pairs": {"hash": pairs.content_hash, "count": n_pairs, "seed": pairs.seed},
        "best": _best(scores),
        "trials": [{"weight": weight, "success": scores[weight], "seeds": rows[weight]} for weight in sorted(scores)],
    }
    return record.save(out, body)


def section(record: Json, folder: Path) -> Section:
    """Returns the report's section of a record."""
    title = TASKS[record["task"]].title
    rows = [
        [
            f"**{trial['weight']:g}**" if trial["weight"] == record["best"] else f"{trial['weight']:g}",
            f"{100 * trial['success']:.1f}",
            "; ".join(
                f"{100 * s['rate']:.1f} \\[{100 * s['low']:.1f}, {100 * s['high']:.1f}\\]" for s in trial["seeds"]
            ),
        ]
        for trial in record["trials"]
    ]
    text = (
        f"Success on {record['pairs']['count']} tuning pairs, {record['offset_steps']} steps apart and of a seed of "
        f"their own, for each weight of SIGReg that the bisection tried; preset {plain(record['preset'])}. The best in "
        "bold. The paper: above 80 % on Push-T from 0.01 to 0.2, best near 0.09, and no control at 0.5 (published, not "
        "measured here)."
    )
    weights = [math.log10(trial["weight"]) for trial in record["trials"]]
    line = Line("success %", weights, [100 * trial["success"] for trial in record["trials"]])
    drawing = curve("success %", [line], "lambda, power of ten")
    body = f"{text}\n\n{table(['lambda', 'success %', 'each seed, Wilson 95 %'], rows)}"
    return Section(f"{title}: lambda by bisection", body, [(f"{title}: success against lambda", drawing)])


FORMATS = {"lewm-gym lambda": section}
