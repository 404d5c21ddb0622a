"""The report as Markdown: the same numbers as the page, with links to pictures and films."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks import facts, page, record_sections
from benchmarks.charts import Bar
from benchmarks.groups import Group
from benchmarks.record_sections import Shown

_HEADER = ("| | success % | Wilson 95 % | strict % | how |", "|---|---|---|---|---|")


def render(content: page.Content, folder: Path) -> str:
    """Returns the report; links to films and pictures are relative to `folder`."""
    lines = [f"# {plain(content.title)}", "", " ".join(page.ABOUT), ""]
    if content.intro:
        lines += [plain(content.intro), ""]
    if content.overview:
        lines += [content.overview, "", page.OVERVIEW.format(offset=page.OFFSET_STEPS), ""]
    for group in content.groups:
        lines += _success(group)
    for part, mine in record_sections.by_part(list(content.records)):
        lines += [f"## {plain(part)}", ""]
        for shown in mine:
            lines += [f"### {plain(shown.section.title)}", "", shown.section.markdown, "", *_pictures(shown, folder)]
        if part in record_sections.PUBLISHED:
            lines += [record_sections.PUBLISHED[part](), ""]
    return "\n".join([*lines, *_made_by(content, folder)])


def _pictures(shown: Shown, folder: Path) -> list[str]:
    """Returns the pictures that lie beside a record and that it names."""
    named = shown.record.get("pictures") or {"": shown.record.get("picture")}
    paths = [shown.path.parent / Path(str(name)).name for name in named.values() if name]
    alt = plain(shown.section.title)
    return [line for path in paths if path.is_file() for line in (f"![{alt}]({_link(path, folder)})", "")]


def _link(path: Path, folder: Path) -> str:
    return os.path.relpath(path, folder).replace(" ", "%20")


def _success(group: Group) -> list[str]:
    lines = [f"## {plain(group.title)}", "", *_HEADER, *map(_row, group.measured())]
    for block in group.published():
        common = [plain(text) for text in (block.source, block.protocol) if text]
        lines += ["", "; ".join([f"{block.heading} (published, not measured here)", *common]) + ":", ""]
        lines += [*_HEADER, *map(_row, block.bars)]
    return [*lines, ""]


def _row(bar: Bar) -> str:
    interval = f"{100 * bar.interval[0]:.1f} to {100 * bar.interval[1]:.1f}" if bar.interval else ""
    strict = "" if bar.strict is None else f"{100 * bar.strict:.1f}"
    name = f"*{plain(bar.label)}* (published)" if bar.kind == "theirs" else f"**{plain(bar.label)}**"
    return f"| {name} | {100 * bar.rate:.1f} | {interval} | {strict} | {plain(bar.note)} |"


def _made_by(content: page.Content, folder: Path) -> list[str]:
    lines = ["## What made each number", ""]
    for entry in content.entries:
        lines += [f"### {plain(entry.title)}: {plain(entry.path.name)}", ""]
        lines += _facts(facts.of_result(entry))
        if entry.film is not None:
            lines.append(f"- film: [{plain(entry.film.name)}]({_link(entry.film, folder)})")
        lines.append("")
    for shown in content.records:
        lines += [f"### {plain(shown.section.title)}: {plain(shown.path.name)}", "", *_of_record(shown), ""]
    return lines


def _of_record(shown: Shown) -> list[str]:
    return _facts(facts.of_record(shown.record, shown.path))


def _facts(values: Sequence[tuple[str, str]]) -> list[str]:
    return [f"- {name}: {plain(value)}" for name, value in values]


def plain(text: str) -> str:
    """Returns text that Markdown shows as it is, on one line."""
    escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for character in "\\`*_[]|":
        escaped = escaped.replace(character, "\\" + character)
    return escaped
