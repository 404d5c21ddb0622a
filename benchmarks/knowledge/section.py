"""A part of the report in a form that both the page and the Markdown file can show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

#: Characters that mean something in Markdown.
_SPECIAL = re.compile(r"([\\`*_\[\]|<>])")


class Section(NamedTuple):
    """What is shown of a record.

    Attributes:
        title: Heading, plain text.
        markdown: Paragraphs and tables; `to_html` renders all that occurs in it.
        pictures: (caption, picture): an HTML figure with inline SVG as text, or a PNG as bytes.
    """

    title: str
    markdown: str
    pictures: list[tuple[str, str | bytes]]


def plain(text: Any) -> str:
    """Returns text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Returns a Markdown table of cells that are Markdown already: `words` columns of text, then numbers."""
    lines = [header, ["---"] * words + ["---:"] * (len(header) - words), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def beside(folder: Path, name: Any) -> bytes | None:
    """Returns the PNG of that name in `folder`, None if there is none; a name never leads out of the folder."""
    path = folder / Path(str(name)).name
    return path.read_bytes() if name and path.is_file() else None


def to_html(markdown: str) -> str:
    """Returns the paragraphs and tables of a `Section` as HTML; **bold**, *italic* and `code` within them."""
    blocks = (block.strip() for block in re.split(r"\n\s*\n", markdown))
    return "".join(_table(block) if block.startswith("|") else f"<p>{_inline(block)}</p>" for block in blocks if block)


def _table(block: str) -> str:
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]] for line in block.splitlines()]
    head = "".join(f"<th>{_inline(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>" for row in rows[2:])
    return f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _inline(text: str) -> str:
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(match[1])
        return f"\0{len(kept) - 1}\0"

    html = escape(re.sub(r"\\([\\`*_\[\]|<>])", keep, " ".join(text.split())))
    for mark, tag in ((r"\*\*", "b"), (r"\*", "i"), ("`", "code")):
        html = re.sub(f"{mark}(.+?){mark}", rf"<{tag}>\1</{tag}>", html)
    return re.sub("\0(\\d+)\0", lambda match: escape(kept[int(match[1])]), html)
