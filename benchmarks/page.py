"""How the report looks: HTML with everything in it, no script and nothing fetched from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from benchmarks import charts, facts, record_sections
from benchmarks.charts import Line
from benchmarks.groups import REFERENCES, Block, Entry, Group, Kind
from benchmarks.knowledge.section import to_html
from benchmarks.page_style import STYLE
from benchmarks.paper import OFFSET_STEPS
from benchmarks.plots import WINDOW, Curves
from benchmarks.record_sections import Shown

#: What LeWM is, for somebody who has never heard of it.
ABOUT = (
    "LeWorldModel (LeWM, arXiv 2603.19312) learns how a world behaves from nothing but pictures and actions: one "
    "network turns each picture into a short vector, another predicts the vector that follows an action, and both "
    "are trained together by a loss of two terms.",
    "To act, it is shown a picture of the goal, imagines hundreds of action sequences inside its model, searches on "
    "around those that end closest to the goal, and carries out the average of the best.",
)
OVERVIEW = (
    "Success in percent on held-out pairs, goals {offset} steps away, none of them met at the start; the mean, ± the "
    "sample standard deviation, where an agent was trained with several seeds. Where it was trained in several ways: "
    "that of most seeds, then most pairs, then the latest, never the best. Minutes are of training. Agents differ in "
    "them, and in pairs and data: those trained and measured alike stand under Comparison. In italics the paper's "
    "number, published and not measured here: another protocol (50 episodes from the training data) and far more data "
    "and training than a laptop's."
)
FILM_CAPTION = (
    "Left, what the agent sees, ten steps a second; right, the picture it was asked to bring about. The frame turns "
    "green when the goal is met and red when the budget of {budget} steps is spent without it. Shown are the first "
    "episodes by number, with up to a third of the places for the first failures; none was picked by hand, but so few, "
    "chosen so, are not a sample of the success rate."
)
#: Task -> what its picture shows that could be taken for something else.
FILM_MARKS = {"pusht": " The green T is a fixed mark of the environment, not the goal."}
READING = (
    "Bars are success rates; the thin line is the Wilson 95 % interval, where the true rate plausibly lies given so "
    "few episodes. Audited pairs are held out from training and their start does not yet satisfy their goal; official "
    "ones are drawn from the training data, as published. Strict success, the small diamond, asks that the goal is "
    "held for 5 steps in a row (and in Cube that the cube is turned like the goal's, within 15 degrees). The random "
    "policy shows what luck alone achieves, the replay of the recorded actions that each goal can be reached."
)
THEIRS = "Published by others, not measured here, and under another protocol: a guide, not a like-for-like comparison."
CURVES = (
    "Both terms of the loss over training: prediction is the squared error of the predicted vectors; sigreg measures "
    "how far the vectors are from a standard normal distribution, about 1.05 when they follow it and far more when "
    "they collapse to a point. Success is measured by acting, never read off a loss."
)
SMOOTHING = (
    f"A training curve is the running mean over {WINDOW} neighbouring logged points (over a fifth of them where there "
    f"are fewer than {5 * WINDOW}), which smears a steep first fall; curves of held-out episodes are as measured."
)


@dataclass(frozen=True)
class Content:
    """All that a report shows.

    Attributes:
        title: Heading.
        intro: A paragraph of plain text, e.g. what was run, or None.
        groups: Success by task and distance.
        overview: Markdown table of agents by tasks, empty if there is nothing to compare.
        distances: (task, lines) of success against distance.
        curves: Training curves.
        records: Every other measurement.
    """

    title: str
    intro: str | None
    groups: Sequence[Group]
    overview: str
    distances: Sequence[tuple[str, list[Line]]]
    curves: Curves
    records: Sequence[Shown]

    @property
    def entries(self) -> list[Entry]:
        """Returns the results in the order of the page."""
        return [entry for group in self.groups for entry in group.entries]


def render(content: Content) -> str:
    """Returns the page."""
    filmed = [(group, entry) for group in content.groups for entry in group.entries if entry.film is not None]
    films = "".join(_film(f"{group.title}: {entry.title}", entry) for group, entry in filmed)
    chapters = [
        ("Overview", _overview(content)),
        ("Films", films),
        ("Success", _chapter_success(content)),
        *((part, _chapter_records(part, mine)) for part, mine in record_sections.by_part(list(content.records))),
        ("Training", _training(content.curves)),
        ("What made each number", "".join([*map(_of_result, content.entries), *map(_of_record, content.records)])),
    ]
    shown = [(name, f"part-{number}", body) for number, (name, body) in enumerate(chapters, 1) if body]
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for name, anchor, _ in shown)
    parts = [f'<section id="{anchor}"><h2>{escape(name)}</h2>{body}</section>' for name, anchor, body in shown]
    lead = [f'<p class="lead">{escape(text)}</p>' for text in (" ".join(ABOUT), content.intro) if text]
    title = escape(content.title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{title}</title><style>{STYLE}</style></head>\n'
        f"<body><main><header><h1>{title}</h1>{''.join(lead)}<nav>{links}</nav></header>{''.join(parts)}</main></body></html>\n"
    )


def _overview(content: Content) -> str:
    """Returns a card for each task's main result, and the table of all agents."""
    cards = "".join(_card(kind, group.title) for group in content.groups for kind in main_kinds(group))
    cards = f'<div class="cards">{cards}</div>' if cards else ""
    if not content.overview:
        return cards
    note = f'<p class="note">{escape(OVERVIEW.format(offset=OFFSET_STEPS))}</p>'
    return f'{cards}<div class="wide">{to_html(content.overview)}</div>{note}'


def main_kinds(group: Group) -> list[Kind]:
    """Returns the kind that stands for a group on a card, if the group is at the paper's distance or the only one.

    LeWM's of the most seeds and pairs; without LeWM, any other agent's. The rule does not look at success.
    """
    kinds = [kind for kind in group.kinds() if kind.agent not in REFERENCES] or group.kinds()
    kinds = [kind for kind in kinds if kind.agent == "lewm"] or kinds
    if group.offset_steps != OFFSET_STEPS:
        return []
    return [max(kinds, key=lambda kind: (kind.entries[0].result.protocol == "audited", *weight(kind)))]


def weight(kind: Kind) -> tuple[int, int, str]:
    """Returns by how much was measured, and when last: which of two kinds to show where there is place for one."""
    results = [entry.result for entry in kind.entries]
    return len(results), results[0].success.episodes, max(result.started for result in results)


def _card(kind: Kind, heading: str) -> str:
    results = [entry.result for entry in kind.entries]
    success, floor = results[0].success, results[0].floor_success
    pairs = "held-out goals" if results[0].protocol == "audited" else "goals"
    if kind.std is None:
        met = (
            f"met {success.successes} of {success.episodes} {pairs}; "
            f"95 % interval {100 * success.low:.1f} to {100 * success.high:.1f} %."
        )
    else:
        each = ", ".join(f"{100 * result.success.rate:.1f}" for result in results)
        met = (
            f"met on average {100 * kind.mean:.1f} % of {success.episodes} {pairs} "
            f"over {len(results)} training seeds ({each})."
        )
    if kind.strict is not None:
        met += f" It held {100 * kind.strict:.1f} % for 5 steps."
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
        f'<p class="note">{escape(kind.entries[0].note)}. '
        f'<a href="#{kind.entries[0].anchor}">What made {plural}</a></p></article>'
    )


def _film(title: str, entry: Entry) -> str:
    assert entry.film is not None
    video = _data_uri(entry.film, "video/mp4")
    sheet = entry.film.with_suffix(".png")
    stills = ""
    if sheet.is_file():
        picture = _data_uri(sheet, "image/png")
        alt = "Start, middle and end of each episode of the film beside its goal."
        stills = f'<details><summary>The same as stills</summary><img src="{picture}" alt="{alt}"></details>'
    text = FILM_CAPTION.format(budget=entry.result.budget_steps) + FILM_MARKS.get(entry.result.task, "")
    caption = escape(text)
    return (
        f'<h3>{escape(title)}</h3><figure class="film">'
        f'<video controls autoplay muted loop playsinline src="{video}"></video>'
        f"<figcaption>{caption}</figcaption></figure>{stills}"
    )


def _chapter_success(content: Content) -> str:
    if not content.groups:
        return ""
    drawn = "".join(charts.curve(f"{task}: success %", lines, "steps to the goal") for task, lines in content.distances)
    further = f'<h3>Success against distance</h3><div class="curves">{drawn}</div>' if drawn else ""
    return f'<p class="note">{escape(READING)}</p>{"".join(map(_success, content.groups))}{further}'


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


def _chapter_records(part: str, records: Sequence[Shown]) -> str:
    published = record_sections.PUBLISHED.get(part)
    theirs = f'<div class="theirs-block wide">{to_html(published())}</div>' if published else ""
    return "".join(map(_record, records)) + theirs


def _record(shown: Shown) -> str:
    small = [picture for _, picture in shown.section.pictures if _is_curve(picture)]  # which say what they show
    curves = f'<div class="curves">{"".join(map(str, small))}</div>' if small else ""
    large = [_picture(caption, picture) for caption, picture in shown.section.pictures if not _is_curve(picture)]
    pictures = curves + "".join(large)
    return (
        f'<article class="record"><h3>{escape(shown.section.title)}</h3><div class="wide">'
        f"{to_html(shown.section.markdown)}</div>{pictures}"
        f'<p class="note"><a href="#{shown.anchor}">what made these numbers</a></p></article>'
    )


def _is_curve(picture: str | bytes) -> bool:
    return isinstance(picture, str) and picture.startswith('<figure class="curve">')


def _picture(caption: str, picture: str | bytes) -> str:
    if isinstance(picture, str):
        return f'<div class="drawing">{picture}<p class="note">{escape(caption)}</p></div>'
    uri = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    alt = escape(caption, quote=True)
    return f'<figure class="drawing"><img src="{uri}" alt="{alt}"><figcaption>{escape(caption)}</figcaption></figure>'


def _training(curves: Curves) -> str:
    if not curves:
        return ""
    named = {name for _, columns in curves for name, _ in columns}
    text = f"{CURVES} {SMOOTHING}" if {"prediction", "sigreg"} <= named else SMOOTHING
    parts = [f'<p class="note">{escape(text)}</p>']
    for heading, columns in curves:
        drawn = "".join(charts.curve(name.replace("_", " "), lines) for name, lines in columns)
        parts.append(f'<h3>{escape(heading)}</h3><div class="curves">{drawn}</div>')
    return "".join(parts)


def _of_result(entry: Entry) -> str:
    return _facts(entry.anchor, f"{entry.title}: {entry.result.success}", facts.of_result(entry))


def _of_record(shown: Shown) -> str:
    return _facts(shown.anchor, shown.section.title, facts.of_record(shown.record, shown.path))


def _facts(anchor: str, title: str, pairs: Sequence[tuple[str, str]]) -> str:
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{f'<code>{escape(value)}</code>' if name in facts.CODE else escape(value)}</dd>"
        for name, value in pairs
    )
    return f'<details class="facts"><summary>{escape(title)}</summary><dl id="{anchor}">{rows}</dl></details>'


def _data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
