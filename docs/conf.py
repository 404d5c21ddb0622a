"""The site's settings: Sphinx with Furo, Markdown by MyST, notebooks executed by myst-nb. `make docs` builds it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import pages  # noqa: E402  needs the path
from sphinx.application import Sphinx  # noqa: E402

import lewm_gym  # noqa: E402

_CONFIG = ConfigParser()
_CONFIG.read(DOCS.parent / "setup.cfg")
REPOSITORY = _CONFIG["metadata"]["url"]

project = "LeWM-Gym"
author = "The LeWM-Gym authors"
copyright = "2026, the LeWM-Gym authors"
version = release = lewm_gym.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "tutorials/data", "tutorials/runs", "generated/*.part.md"]
default_role = "literal"  # our docstrings write code as Markdown does
nitpicky = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
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
html_title = "LeWM-Gym"
html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main", "source_directory": "docs/"}
copybutton_exclude = ".linenos, .gp, .go"


def _link_to_the_repository(_: Sphinx, name: str, source: list[str]) -> None:
    """Lets links to files outside of the site lead to the repository; pictures are copied."""
    up = "../" * (name.count("/") + 1)
    link = rf"(?<!\!)(\[[^\]\[]*\])\({re.escape(up)}(?!\.\.)([^)\s]*)\)"
    source[0] = re.sub(link, rf"\1({REPOSITORY}/blob/main/\2)", source[0])


def setup(app: Sphinx) -> None:
    """Writes the pages that are made from the code and the stored results, before the sources are read."""
    for left in ("data", "runs"):  # of the tutorials: what other code made is not gone on with
        shutil.rmtree(DOCS / "tutorials" / left, ignore_errors=True)
    pages.write(DOCS / "generated", DOCS.parent / "results")
    app.connect("source-read", _link_to_the_repository)
