"""What the report shows of each kind of record: a heading, text with tables, and figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import charts
from benchmarks.charts import Line
from benchmarks.knowledge.paper import PROBED, SOURCE, STRAIGHTNESS, SURPRISE
from benchmarks.knowledge.section import Section, beside, plain, table
from lewm_gym.tasks import TASKS

Record = dict[str, Any]
SIGNIFICANT = 0.01  # the p below which the paper calls a surprise significant
VISIBLE = 0.02  # change of a mean cosine that counts as a rise


def probe_section(record: Record, folder: Path) -> Section:
    """Returns probing: a row per quantity and model, the paper's LeWM in italics."""
    known = PROBED.get(record["task"], {})
    names = list(dict.fromkeys(name for model in record["models"] for name in model["quantities"]))
    rows = []
    for name in names:
        label = plain(name.replace("_", " "))
        for model in record["models"]:
            if name in model["quantities"]:
                rows.append([label, plain(model["title"]), *_probe_cells(model["quantities"][name])])
        if name in known:
            figures = known[name]._asdict()
            cells = ["" if value is None else f"*{value:.3f}*" for value in figures.values()]
            rows.append([label, "*LeWM in the paper*", *cells])
    text = (
        f"Read off the latent of one frame by a linear map and by an MLP, fitted on {record['fit_episodes']} episodes "
        f"and judged on {record['test_frames']:,} frames of {record['test_episodes']} others, on which no model was "
        "trained. Errors are on standardised targets, so that always answering the mean has 1; ± is the standard "
        "deviation of the episodes' own errors, and brackets hold the 95 % interval of r from resampling episodes. A "
        f"single frame does not show velocities. The paper: {plain(SOURCE)}."
    )
    header = ["quantity", "model", "linear MSE", "linear r", "MLP MSE", "MLP r"]
    return Section(
        f"Probing: {_task(record)}",
        f"{text}\n\n{table(header, rows, words=2)}",
        _png(record, folder, "Probes of frozen latents."),
    )


def _probe_cells(scores: Record) -> list[str]:
    cells = []
    for probe in ("linear", "mlp"):
        r, low, high = scores[probe]["r"]
        cells += [
            f"{scores[probe]['mse'][0]:.3f} ± {scores[probe]['mse_std']:.3f}",
            f"{r:.3f} \\[{low:.3f}, {high:.3f}\\]",
        ]
    return cells


def surprise_section(record: Record, folder: Path) -> Section:
    """Returns violation of expectation: a test per model and event, surprise over time."""
    rows = [
        [plain(model["title"]), name, f"{test['difference']:.3g}", f"{test['ratio']:.3g}", f"{test['t']:.2f}",
         _probability(test["p"])]
        for model in record["models"]
        for name, test in model["tests"].items()
    ]  # fmt: skip
    at = record["frame_skip"] * record["event_block"]
    text = (
        f"{record['trajectories']} simulated trajectories in three versions: unperturbed; recoloured at step {at}; "
        f"teleported at step {at}. What is changed is the {plain(record['object'])}. Surprise is the squared error of "
        "the predicted latent, averaged over its coordinates (in the latent's own units, squared). The table compares "
        "it at the event with the unperturbed trajectory's by a paired t-test, two-sided: their difference, the same "
        f"units, and their ratio. {SURPRISE}{_colour_surprises(record)}"
    )
    header = ["model", "event", "difference", "ratio", "t", "p"]
    pictures = [
        (f"{model['title']}: mean over trajectories", _surprise_chart(record, model)) for model in record["models"]
    ]
    return Section(f"Surprise: {_task(record)}", f"{text}\n\n{table(header, rows, words=2)}", list(pictures))


def _colour_surprises(record: Record) -> str:
    """Returns a sentence where, unlike in the paper, every model is surprised by a new colour."""
    found = [model["tests"]["colour"] for model in record["models"] if "colour" in model["tests"]]
    surprised = [test["p"] is not None and test["p"] < SIGNIFICANT and test["difference"] > 0 for test in found]
    return " Here a new colour surprises too." if surprised and all(surprised) else ""


def _surprise_chart(record: Record, model: Record) -> str:
    steps = _steps(record, len(model["surprise"]["unperturbed"]["value"]))
    lines = [
        Line(name, steps, values["value"], colour) for colour, (name, values) in enumerate(model["surprise"].items())
    ]
    return charts.curve(f"{model['title']}: surprise", lines, "environment step")


def rollout_section(record: Record, folder: Path) -> Section:
    """Returns open-loop error against the horizon, beside copying the last frame."""
    steps = _steps(record, record["horizon_blocks"])
    shown = sorted({0, record["horizon_blocks"] // 2 - 1, record["horizon_blocks"] - 1} - {-1})
    rows = [
        [plain(model["title"]), label, *(_with_interval(model[name], k) for k in shown)]
        for model in record["models"]
        for name, label in (("prediction", "prediction"), ("copy", "the last frame again"))
    ]
    text = (
        f"Squared error of latents predicted from one frame and the recorded actions, over {record['episodes']} "
        "episodes that no model was trained on, as a share of the mean squared distance of two random frames' latents. "
        "Brackets hold the 95 % interval from resampling episodes. A model is of use where it lies below the copy."
    )
    header = ["model", "", *(f"{steps[k]} steps ahead" for k in shown)]
    pictures: list[tuple[str, str | bytes]] = []
    for model in record["models"]:
        lines = [
            Line("prediction", steps, model["prediction"]["value"], 0),
            Line("the last frame again", steps, model["copy"]["value"], 1),
        ]
        pictures.append((model["title"], charts.curve(f"{model['title']}: open-loop error", lines, "steps ahead")))
    return Section(f"How far ahead: {_task(record)}", f"{text}\n\n{table(header, rows, words=2)}", pictures)


def curves_section(record: Record, folder: Path) -> Section:
    """Returns the losses over training, the runs beside one another."""
    text = "Losses over training, a colour per run; dashed: held-out episodes, with the batch's own statistics."
    return Section(f"Training losses: {_tasks(record)}", text, _training_charts(record))


def straightness_section(record: Record, folder: Path) -> Section:
    """Returns the straightness of latent paths over training."""
    rows = []
    for model in record["models"]:
        values = next(iter(model["curves"].values()))["value"]
        rows.append([plain(model["title"]), f"{values[0]:.3f}", f"{values[-1]:.3f}"])
    text = (
        "Mean cosine between consecutive steps of a path in latent space, on held-out episodes: 1 is a straight line. "
        f"{STRAIGHTNESS}{_why_it_falls(record)}"
    )
    body = f"{text}\n\n{table(['model', 'first measured', 'at the end'], rows)}"
    return Section(f"Straightness: {_tasks(record)}", body, _training_charts(record))


def _why_it_falls(record: Record) -> str:
    """Returns a sentence where, unlike in the paper, no run's straightness rises on data known for its turns."""
    series = [next(iter(model["curves"].values()))["value"] for model in record["models"]]
    if record["tasks"] != ["two_room"] or any(values[-1] > values[0] + VISIBLE for values in series):
        return ""
    return " Here it falls or stays, since the collecting policy turns at every step."


def _training_charts(record: Record) -> list[tuple[str, str | bytes]]:
    columns: dict[str, list[Line]] = {}
    for colour, model in enumerate(record["models"]):
        for name, curve in model["curves"].items():
            column = name.removeprefix("validation_")
            line = Line(model["title"], curve["step"], curve["value"], colour, column != name)
            columns.setdefault(column, []).append(line)
    return [(name.replace("_", " "), charts.curve(name.replace("_", " "), lines)) for name, lines in columns.items()]


def decode_section(record: Record, folder: Path) -> Section:
    """Returns what the model imagines, decoded."""
    decoder = record["decoder"]
    text = (
        f"A decoder was trained on {plain(record['models'][0]['title'])}'s frozen latents ({decoder['steps']} steps), "
        f"to look at them only. On unseen episodes it leaves {100 * decoder['error']:.1f} % of the pixels' variance."
    )
    captions = {
        "rollouts": "Above, what happened; in the middle, its frames encoded and decoded again; below, what the model "
        "imagined from the first frame and the actions alone.",
        "plans": "Above, plans as the model imagines them, with the goal it was given; below, what came of them.",
    }
    pictures: list[tuple[str, str | bytes]] = []
    for name, caption in captions.items():
        picture = beside(folder, record["pictures"].get(name))
        if picture is not None:
            pictures.append((caption, picture))
    return Section(f"Imagination, decoded: {_task(record)}", text, pictures)


def map_section(record: Record, folder: Path) -> Section:
    """Returns the map of the latents."""
    distances = " (t-SNE does not keep distances)" if record["method"] == "t-SNE" else ""
    text = (
        f"{record['points']} frames on a grid of positions, encoded by {plain(record['models'][0]['title'])} and laid "
        f"out in the plane by {plain(record['method'])}. Each place has a colour of its own: where the colours "
        f"of the map run as smoothly as those of the grid, the latent keeps neighbourhoods{distances}."
    )
    return Section(f"Map of the latents: {_task(record)}", text, _png(record, folder, "Left the grid, right its map."))


#: `format` of a record -> what the report shows of it, from the record and the folder that it lies in.
FORMATS: dict[str, Callable[[Record, Path], Section]] = {
    "lewm-gym probe": probe_section,
    "lewm-gym surprise": surprise_section,
    "lewm-gym rollout error": rollout_section,
    "lewm-gym decode": decode_section,
    "lewm-gym latent map": map_section,
    "lewm-gym straightness": straightness_section,
    "lewm-gym curves": curves_section,
}


def _task(record: Record) -> str:
    return TASKS[record["task"]].title if record["task"] in TASKS else str(record["task"])


def _tasks(record: Record) -> str:
    return ", ".join(TASKS[task].title if task in TASKS else task for task in record["tasks"])


def _steps(record: Record, count: int) -> list[int]:
    return [record["frame_skip"] * (k + 1) for k in range(count)]


def _with_interval(line: Record, k: int) -> str:
    return f"{line['value'][k]:.3f} \\[{line['low'][k]:.3f}, {line['high'][k]:.3f}\\]"


def _probability(p: float | None) -> str:
    return "" if p is None else f"{p:.1e}" if p < 0.001 else f"{p:.3f}"


def _png(record: Record, folder: Path, caption: str) -> list[tuple[str, str | bytes]]:
    picture = beside(folder, record["picture"])
    return [] if picture is None else [(caption, picture)]
