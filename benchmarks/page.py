"""How the report looks: HTML with everything in it, no script and nothing fetched from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import charts
from benchmarks.charts import Line

if TYPE_CHECKING:
    from benchmarks.report import Block, Entry, Group, Kind

#: What LeWM is, for somebody who has never heard of it.
ABOUT = (
    "LeWorldModel (LeWM, arXiv 2603.19312) learns how a world behaves from nothing but pictures and actions: one "
    "network turns each picture into a short vector, another predicts the vector that follows an action, and both "
    "are trained together by a loss of two terms.",
    "To act, it is shown a picture of the goal, imagines hundreds of action sequences inside its model, searches on "
    "around those that end closest to the goal, and carries out the average of the best.",
)
FILM_CAPTION = (
    "Left, what the agent sees, ten steps a second; right, the picture it was asked to bring about. The frame turns "
    "green when the goal is met and red when the budget of {budget} steps is spent without it. Shown are the first "
    "episodes by number, with up to a third of the places for the first failures; none was picked by hand."
)
READING = (
    "Bars are success rates; the thin line is the Wilson 95 % interval, where the true rate plausibly lies given so "
    "few episodes. Every pair is held out from training, its start does not yet satisfy its goal, and the random "
    "policy gets the same pairs, so that its bar shows what luck alone achieves."
)
THEIRS = "Published by others, not measured here, and under another protocol: a guide, not a like-for-like comparison."


CURVES = (
    "Both terms of the loss over training: prediction is the squared error of the predicted vectors; sigreg measures "
    "how far the vectors are from a standard normal distribution, about 1.05 when they follow it and far more when "
    "they collapse to a point. Neighbouring steps are averaged; success is measured by acting, never read off a loss."
)


def render(
    title: str,
    intro: str | None,
    groups: Sequence[Group],
    curves: Sequence[tuple[str, list[tuple[str, list[Line]]]]],
) -> str:
    """Returns the page."""
    entries = [entry for group in groups for entry in group.entries]
    body = [
        f"<header><h1>{escape(title)}</h1>",
        *(f'<p class="lead">{escape(text)}</p>' for text in (" ".join(ABOUT), intro) if text),
        "</header>",
        '<section class="cards">',
        *(_card(kind, group.title) for group in groups for kind in group.kinds()),
        "</section>",
        *(_film(entry) for entry in entries if entry.film is not None),
        '<section><h2>Success</h2><p class="note">' + escape(READING) + "</p>",
        *(_success(group) for group in groups),
        "</section>",
        _training(curves),
        "<section><h2>What made each number</h2>",
        *(_provenance(entry) for entry in entries),
        "</section>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _card(kind: Kind, heading: str) -> str:
    results = [entry.result for entry in kind.entries]
    success, floor = results[0].success, results[0].floor_success
    if kind.std is None:
        met = (
            f"met {success.successes} of {success.episodes} held-out goals; "
            f"95 % interval {100 * success.low:.1f} to {100 * success.high:.1f} %."
        )
    else:
        each = ", ".join(f"{100 * result.success.rate:.1f}" for result in results)
        met = (
            f"met on average {100 * kind.mean:.1f} % of {success.episodes} held-out goals "
            f"over {len(results)} training seeds ({each})."
        )
    floor_text = ""
    if floor is not None:
        floor_text = (
            f"<p>The random policy met {floor.successes} of the same {floor.episodes}: <b>{100 * floor.rate:.1f} %</b> "
            f"({100 * floor.low:.1f} to {100 * floor.high:.1f}).</p>"
        )
    plural = "these numbers" if len(results) > 1 else "this number"
    return (
        f'<article class="card"><h3>{escape(heading)}</h3><div class="big">{100 * kind.mean:.1f}<small> %</small>'
        f"</div><p><b>{escape(kind.title)}</b> {met}</p>{floor_text}"
        f'<p class="note"><a href="#{kind.entries[0].anchor}">what made {plural}</a></p></article>'
    )


def _film(entry: Entry) -> str:
    assert entry.film is not None
    video = _data_uri(entry.film, "video/mp4")
    sheet = entry.film.with_suffix(".png")
    stills = ""
    if sheet.is_file():
        picture = _data_uri(sheet, "image/png")
        alt = "Start, middle and end of each episode of the film beside its goal."
        stills = f'<details><summary>The same as stills</summary><img src="{picture}" alt="{alt}"></details>'
    caption = escape(FILM_CAPTION.format(budget=entry.result.budget_steps))
    return (
        f'<section><h2>Film: {escape(entry.title)}</h2><figure class="film">'
        f'<video controls autoplay muted loop playsinline src="{video}"></video>'
        f"<figcaption>{caption}</figcaption></figure>{stills}</section>"
    )


def _success(group: Group) -> str:
    parts = [f"<h3>{escape(group.title)}</h3>", charts.bars(group.measured())]
    published = group.published()
    if published:
        parts.append(f'<div class="theirs-block"><p class="note"><b>Published numbers.</b> {escape(THEIRS)}</p>')
        parts += [_block(block, folded=number > 0) for number, block in enumerate(published)]
        parts.append("</div>")
    return "".join(parts)


def _block(block: Block, folded: bool) -> str:
    heading = f"{escape(block.heading)} <small>{escape(block.source)}</small>"
    protocol = f'<p class="note">Protocol: {escape(block.protocol)}.</p>' if block.protocol else ""
    inside = charts.bars(block.bars) + protocol
    if folded:
        return f"<details><summary>{heading}</summary>{inside}</details>"
    return f"<h4>{heading}</h4>{inside}"


def _training(curves: Sequence[tuple[str, list[tuple[str, list[Line]]]]]) -> str:
    if not curves:
        return ""
    named = {name for _, columns in curves for name, _ in columns}
    note = f'<p class="note">{escape(CURVES)}</p>' if {"prediction", "sigreg"} <= named else ""
    parts = [f"<section><h2>Training</h2>{note}"]
    for heading, columns in curves:
        drawn = "".join(charts.curve(name.replace("_", " "), lines) for name, lines in columns)
        parts.append(f'<h3>{escape(heading)}</h3><div class="curves">{drawn}</div>')
    return "".join(parts) + "</section>"


def _provenance(entry: Entry) -> str:
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{f'<code>{escape(value)}</code>' if name in CODE else escape(value)}</dd>"
        for name, value in facts(entry)
    )
    return (
        f'<article class="facts" id="{entry.anchor}"><h3>{escape(entry.title)}: {entry.result.success}</h3>'
        f"<dl>{rows}</dl></article>"
    )


#: Facts that are set in a fixed-width face.
CODE = ("command", "training command", "commit", "training commit", "pairs", "dataset", "weights")


def facts(entry: Entry) -> list[tuple[str, str]]:
    """Returns what made a result as (name, text), what is unknown left out."""
    result = entry.result
    run = result.run
    description = _dictionary(run.get("description"))
    training = _dictionary(description.get("training"))
    dataset = _dictionary(description.get("dataset"))
    plan_seconds = result.timing.get("seconds_per_plan")
    per_plan = f", {plan_seconds:.3g} s per plan" if plan_seconds else ""
    steps = run.get("steps") or training.get("steps")
    seconds = description.get("training_seconds") or run.get("seconds")
    packages = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    values = [
        ("command", result.command),
        ("commit", _commit(result.commit)),
        ("seed", f"{result.seed} (evaluation)"),
        ("protocol", f"{result.protocol}, {result.offset_steps} steps apart, budget {result.budget_steps} steps"),
        ("pairs", f"{result.pairs.get('source')}, first {result.success.episodes} of {result.pairs.get('count')}, "
                  f"hash {str(result.pairs.get('hash'))[:16]}"),
        ("hardware", _hardware(result.hardware)),
        ("time", f"{_duration(result.seconds)}{per_plan}, begun {result.started}"),
        ("versions", packages),
        ("training", _training_text(description, training, steps, seconds)),
        ("training command", description.get("command")),
        ("training commit", _commit(description["commit"]) if "commit" in description else None),
        ("training hardware", _hardware(description["hardware"]) if description.get("hardware") else None),
        ("dataset", _dataset_text(dataset)),
        ("weights", str(run["weights"])[:16] if run.get("weights") else None),
        ("result file", entry.path.name),
    ]  # fmt: skip
    return [(name, str(text)) for name, text in values if text]


def _dictionary(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _training_text(description: dict[str, Any], training: dict[str, Any], steps: Any, seconds: Any) -> str:
    parts = [
        f"preset {description['preset']}" if description.get("preset") else "",
        f"seed {training['seed']}" if "seed" in training else "",
        f"{steps} steps" if steps else "",
        f"of {training['batch_size']} clips" if training.get("batch_size") else "",
        _duration(seconds) if isinstance(seconds, int | float) else "",
    ]
    return ", ".join(part for part in parts if part).replace(" steps, of ", " steps of ")


def _dataset_text(dataset: dict[str, Any]) -> str:
    names = (("folder", "{}"), ("episodes", "{} episodes"), ("frames", "{} frames"))
    parts = [form.format(dataset[name]) for name, form in names if dataset.get(name) is not None]
    if dataset.get("hash"):
        parts.append(f"hash {str(dataset['hash'])[:16]}")
    return ", ".join(parts)


def _commit(commit: Any) -> str:
    if not isinstance(commit, dict) or not commit.get("hash"):
        return "not in a git checkout"
    return str(commit["hash"])[:12] + (" with uncommitted changes" if commit.get("dirty") else "")


def _hardware(machine: dict[str, Any]) -> str:
    memory = f", {machine['memory_gib']} GiB" if machine.get("memory_gib") else ""
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ", no GPU"
    return f"{machine.get('cores')} cores of {machine.get('cpu')}{memory}{gpu}, {machine.get('system')}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


STYLE = """
:root{--paper:#fafaf9;--card:#fff;--ink:#1c1917;--quiet:#6b645f;--line:#e7e5e4;--ours:#0f766e;--whisker:#0c0a09;
--floor:#a8a29e;--theirs:#c2790b;--track:#f0efed;--c0:#0f766e;--c1:#c2410c;--c2:#4f46e5;--c3:#a21caf}
@media (prefers-color-scheme:dark){:root{--paper:#161412;--card:#1f1c1a;--ink:#f5f5f4;--quiet:#a8a29e;--line:#35302c;
--ours:#2dd4bf;--whisker:#f0fdfa;--floor:#78716c;--theirs:#f0a93b;--track:#2a2623;--c0:#2dd4bf;--c1:#fb923c;
--c2:#a5b4fc;--c3:#f0abfc}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);line-height:1.55;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:2rem;line-height:1.2;letter-spacing:-.02em;margin:0 0 1rem}
h2{font-size:1.35rem;letter-spacing:-.01em;margin:3rem 0 .75rem}
h3{font-size:1rem;margin:1.5rem 0 .5rem}
h4{font-size:.875rem;margin:0 0 .25rem}
a{color:inherit;text-decoration-color:var(--floor);text-underline-offset:.2em}
.lead{font-size:1.06rem;max-width:46rem}
.note,figcaption{color:var(--quiet);font-size:.875rem;max-width:46rem}
small{color:var(--quiet);font-weight:400}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr));gap:1rem;margin-top:2rem}
.card,.facts{background:var(--card);border:1px solid var(--line);border-radius:.75rem;padding:1.1rem 1.25rem}
.card h3{margin:0;color:var(--quiet);font-weight:500}
.card p{margin:.35rem 0}
.big{font-size:3.2rem;font-weight:650;letter-spacing:-.04em;line-height:1.15;color:var(--ours)}
.big small{font-size:1.5rem;color:inherit}
figure{margin:0}
.film video{display:block;width:100%;max-width:43rem;border-radius:.75rem;border:1px solid var(--line)}
.film figcaption{margin-top:.6rem}
details{margin-top:.75rem}
summary{cursor:pointer;color:var(--quiet);font-size:.875rem}
details img{display:block;width:100%;max-width:43rem;margin-top:.75rem;border-radius:.75rem}
.row{display:grid;grid-template-columns:minmax(9rem,17rem) 1fr 8.5rem;gap:.9rem;align-items:center;padding:.3rem 0}
.label{line-height:1.3}.label small{display:block;font-size:.78rem}
.value{font-variant-numeric:tabular-nums;font-weight:600;white-space:nowrap}
.track{position:relative;height:.95rem;background:var(--track);border-radius:.25rem}
.track b{position:absolute;inset:0 auto 0 0;border-radius:.25rem;background:var(--ours)}
.track i{position:absolute;top:50%;height:2px;margin-top:-1px;background:var(--whisker)}
.track i::before,.track i::after{content:"";position:absolute;top:-4px;width:2px;height:10px;background:var(--whisker)}
.track i::before{left:0}.track i::after{right:0}
.floor .track b{background:var(--floor)}
.floor .track i,.floor .track i::before,.floor .track i::after{background:var(--ink)}
.theirs .track{height:.55rem}
.theirs .track b{background:transparent;border:1.5px solid var(--theirs)}
.theirs .value{font-weight:400}
.theirs-block{margin-top:1.25rem;padding:.75rem 0 0;border-top:1px dashed var(--line)}
.theirs-block .row{padding:.12rem 0}.theirs-block .label{font-size:.875rem}
.scale{color:var(--quiet);font-size:.75rem;padding-top:0}.ticks{display:flex;justify-content:space-between}
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(21rem,100%),1fr));gap:1rem}
.curve{background:var(--card);border:1px solid var(--line);border-radius:.75rem;padding:.9rem 1rem}
.curve svg{display:block;width:100%;height:auto}
.curve text{font-size:11px;fill:var(--quiet)}
.grid{stroke:var(--line)}
polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}
polyline.c0{stroke:var(--c0)}polyline.c1{stroke:var(--c1)}polyline.c2{stroke:var(--c2)}polyline.c3{stroke:var(--c3)}
circle.c0{fill:var(--c0)}circle.c1{fill:var(--c1)}circle.c2{fill:var(--c2)}circle.c3{fill:var(--c3)}
polyline.dashed{stroke-dasharray:5 4}
.curve figcaption{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.8rem}
.curve span::before{content:"";display:inline-block;width:1.3rem;margin-right:.4rem;vertical-align:middle;
border-top:2px solid var(--c0)}
.curve span.c1::before{border-color:var(--c1)}.curve span.c2::before{border-color:var(--c2)}
.curve span.c3::before{border-color:var(--c3)}.curve span.dashed::before{border-top-style:dashed}
.facts{margin-top:1rem}.facts h3{margin-top:0}
dl{display:grid;grid-template-columns:9rem 1fr;gap:.3rem 1rem;margin:0;font-size:.875rem}
dt{color:var(--quiet)}dd{margin:0;overflow-wrap:anywhere}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.82rem}
@media (max-width:40rem){.row{grid-template-columns:1fr auto;gap:.1rem .75rem}.row .track,.row .ticks{grid-row:2;
grid-column:1/-1}.scale>div:empty{display:none}dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}.big{font-size:2.6rem}}
"""
