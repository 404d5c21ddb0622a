"""The site's settings: Sphinx with Furo, Markdown by MyST, notebooks executed by myst-nb. `make docs` builds it."""

from __future__ import annotations

import os
import re
import shutil
import sys
import urllib.parse
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import pages  # noqa: E402  needs the path
from sphinx.application import Sphinx  # noqa: E402
from sphinx.util import logging  # noqa: E402

import lewm_gym  # noqa: E402

_CONFIG = ConfigParser()
_CONFIG.read(DOCS.parent / "setup.cfg")
REPOSITORY = _CONFIG["metadata"]["url"]

project = "LeWM-Gym"
author = "The LeWM-Gym authors"
copyright = "2026, the LeWM-Gym authors"
version = release = lewm_gym.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # the site fetches nothing from elsewhere
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "tutorials/data", "tutorials/runs", "generated/*.part.md"]
default_role = "literal"  # our docstrings write code as Markdown does
nitpicky = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
# LEWM_DOCS_NOTEBOOKS=off builds without executing the tutorials; those that have not changed are taken from the cache.
nb_execution_mode = os.environ.get("LEWM_DOCS_NOTEBOOKS", "cache")
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of dataclasses are documented once

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_title = "LeWM-Gym"
html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main", "source_directory": "docs/"}
copybutton_exclude = ".linenos, .gp, .go"


def _link_to_the_repository(_: Sphinx, name: str, source: list[str]) -> None:
    """Lets links to files outside of the site lead to the repository; pictures are copied."""
    up = "../" * (name.count("/") + 1)
    link = rf"(?<!\!)(\[[^\]\[]*\])\({re.escape(up)}(?!\.\.)([^)\s]*)\)"
    source[0] = re.sub(link, rf"\1({REPOSITORY}/blob/main/\2)", source[0])


class _Links(HTMLParser):
    """Gathers the addresses and the anchors of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, _: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.addresses.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def _check_links(app: Sphinx, failure: Exception | None) -> None:
    """Warns of every link and picture of the built site that leads to no file or anchor of it."""
    if failure or app.builder.name != "html":
        return
    pages_of = {
        path.resolve(): _Links(path) for path in Path(app.outdir).rglob("*.html") if "_static" not in path.parts
    }
    for page, links in pages_of.items():
        for address in dict.fromkeys(links.addresses):
            parts = urllib.parse.urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else page
            anchor, there = urllib.parse.unquote(parts.fragment), pages_of.get(target)
            if not target.exists() or (anchor and there and anchor not in there.anchors):
                logging.getLogger(__name__).warning("%s: a link to %s, which is not there", page.name, address)


def setup(app: Sphinx) -> None:
    """Writes the pages that are made from the code and the stored results, before the sources are read."""
    for left in ("data", "runs"):  # of the tutorials: what other code made is not gone on with
        shutil.rmtree(DOCS / "tutorials" / left, ignore_errors=True)
    pages.write(DOCS / "generated", DOCS.parent / "results")
    app.connect("source-read", _link_to_the_repository)
    app.connect("build-finished", _check_links)
