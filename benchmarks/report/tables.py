"""Tables and sections, each printed as text, Markdown and HTML from one description."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from agents import agent_title
from lewm_gym.plots import Figure
from lewm_gym.results import part_of
from lewm_gym.tasks import TASKS

#: style -> its signs in Markdown, and its tags in HTML
STYLES = {
    "plain": ("", "{text}"),
    "strong": ("**", "<b>{text}</b>"),
    "theirs": ("*", "<i>{text}</i>"),
    "code": ("`", "<code>{text}</code>"),
    "link": ("", '<a href="#{to}">{text}</a>'),
}


class Mark(NamedTuple):
    """A piece of text in another face: "strong", "theirs" (published by others), "code", or "link" to an anchor."""

    text: str
    style: str
    to: str = ""


Cell = str | Mark | tuple[str | Mark, ...]


def strong(text: str) -> Mark:
    """Returns text in bold."""
    return Mark(text, "strong")


def theirs(value: float | None, form: str = "g") -> Cell:
    """Returns a number that others published, nothing for None."""
    return "" if value is None else Mark(format(value, form), "theirs")


def _pieces(cell: Cell) -> list[Mark]:
    pieces = (cell,) if isinstance(cell, str | Mark) else cell
    return [piece if isinstance(piece, Mark) else Mark(piece, "plain") for piece in pieces]


def to_text(cell: Cell) -> str:
    """Returns a cell without its marks."""
    return "".join(piece.text for piece in _pieces(cell))


def to_markdown(cell: Cell) -> str:
    """Returns a cell on one line; what means something in Markdown or HTML is shown as it is."""
    words = []
    for text, style, _ in _pieces(cell):
        plain, sign = re.sub(r"\s+", " ", text), STYLES[style][0]
        if style == "code":  # where all but a backtick stands for itself
            plain = plain.replace("`", "'").replace("|", "\\|")
        else:
            plain = re.sub(r"([\\`*_\[\]|])", r"\\\1", plain)
            plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        words.append(f"{sign}{plain}{sign}")
    return "".join(words)


def to_html(cell: Cell) -> str:
    """Returns a cell as HTML."""
    return "".join(STYLES[style][1].format(text=escape(text), to=escape(to)) for text, style, to in _pieces(cell))


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header: `words` columns of text, then numbers."""

    header: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    words: int = 1

    def text(self) -> str:
        """Returns aligned columns for a terminal."""
        lines = [[to_text(cell) for cell in row] for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        sides = [str.ljust if column < self.words else str.rjust for column in range(len(widths))]
        aligned = [[side(t, w) for side, t, w in zip(sides, line, widths, strict=True)] for line in lines]
        return "\n".join("  ".join(row).rstrip() for row in (aligned[0], ["-" * w for w in widths], *aligned[1:]))

    def markdown(self) -> str:
        """Returns a Markdown table."""
        signs = ["---"] * self.words + ["---:"] * (len(self.header) - self.words)
        rows = [[to_markdown(cell) for cell in row] for row in (self.header, *self.rows)]
        return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], signs, *rows[1:]))

    def html(self) -> str:
        """Returns an HTML table."""
        head = "".join(f"<th>{to_html(cell)}</th>" for cell in self.header)
        body = "".join("<tr>" + "".join(f"<td>{to_html(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        kind = f"numbers words{self.words}"
        return (
            f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )


class Picture(NamedTuple):
    """A file to show, PNG or mp4; one that is not there is left out."""

    path: Path
    caption: str


Block = str | Mark | tuple[str | Mark, ...] | Table | Figure | Picture


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it: paragraphs, tables, drawings and pictures."""

    title: str
    blocks: Sequence[Block]

    @property
    def figures(self) -> list[Figure]:
        """The drawings."""
        return [block for block in self.blocks if isinstance(block, Figure)]

    def text(self) -> str:
        """Returns heading, paragraphs and tables for a terminal."""
        kept = [block for block in self.blocks if not isinstance(block, Figure | Picture)]
        return "\n\n".join([self.title, *(b.text() if isinstance(b, Table) else to_text(b) for b in kept)])

    def markdown(self, folder: Path, drawn: Path | None = None) -> str:
        """Returns what stands under the heading; links are relative to `folder`.

        Args:
            folder: Where the Markdown lies.
            drawn: The PNG of the first drawing, linked if it is there.
        """
        parts = []
        for block in self.blocks:
            if isinstance(block, Table):
                parts.append(block.markdown())
            elif isinstance(block, Figure | Picture):
                path, drawn = (block.path, drawn) if isinstance(block, Picture) else (drawn, None)
                if path is not None and path.is_file():
                    parts.append(f"![{to_markdown(self.title)}]({link(path, folder)})")
            else:
                parts.append(to_markdown(block))
        return "\n\n".join(parts)

    def html(self) -> str:
        """Returns what stands under the heading, drawings and pictures within it."""
        return "".join(map(_html, self.blocks))


def _html(block: Block) -> str:
    if isinstance(block, Table):
        return block.html()
    if isinstance(block, Figure):
        return f'<figure class="drawing">{block.svg()}<figcaption>{escape(block.caption)}</figcaption></figure>'
    if not isinstance(block, Picture):
        return f"<p>{to_html(block)}</p>"
    if not block.path.is_file():
        return ""
    caption, uri = escape(block.caption), data_uri(block.path, "image/png")
    return f'<figure class="drawing"><img src="{uri}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def data_uri(path: Path, kind: str) -> str:
    """Returns a file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def link(path: Path, folder: Path) -> str:
    """Returns the address of a file as seen from a folder."""
    return os.path.relpath(path, folder).replace(" ", "%20")


# Words -------------------------------------------------------------------------------------------------------


def percent(rate: Mapping[str, Any] | None) -> str:
    """Returns a stored rate in percent with its interval, e.g. `85.5 [80.0, 89.7]`; nothing for None."""
    return "" if rate is None else f"{100 * rate['rate']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def percents(rates: Iterable[Mapping[str, Any]]) -> str:
    """Returns several of them, those of seeds."""
    return "; ".join(map(percent, rates))


def duration(seconds: float) -> str:
    """Returns seconds as s, min or h."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def run_title(agent: str, description: Mapping[str, Any], with_seed: bool = True) -> str:
    """Returns agent, preset and training seed of a `run.json`, e.g. `LeWM, laptop, seed 0`."""
    seed = part_of(description, "training").get("seed") if with_seed else None
    parts = (agent_title(agent), description.get("preset"), None if seed is None else f"seed {seed}")
    return ", ".join(str(part) for part in parts if part)


def task_title(task: str) -> str:
    """Returns a task's name in tables; of one that is not in TASKS its name."""
    return TASKS[task].title if task in TASKS else task
