"""How the documentation is built: ``make docs``; every warning is an error."""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

import generated  # noqa: E402  (beside this file)
import notebooks  # noqa: E402

generated.write_all(HERE / "_generated")
notebooks.write_all(HERE / "recipes", HERE / "_generated" / "recipes")

project = "secateur"
author = copyright = "secateur contributors"
about = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
version = release = about["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "formulas"]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "secateur"
html_math_renderer = "mathml"
html_show_sourcelink = False
versions = json.loads(os.environ.get("SECATEUR_DOCS_VERSIONS", "[]"))  # from versions.py
html_context = {"versions": versions, "version_name": os.environ.get("SECATEUR_DOCS_VERSION")}
templates_path = ["templates"]
SIDEBAR = ["brand", "search", "scroll-start", "navigation", "scroll-end", "variant-selector"]
if versions:
    html_sidebars = {"**": [*(f"sidebar/{each}.html" for each in SIDEBAR), "versions.html"]}
    html_sidebars["**"].insert(4, html_sidebars["**"].pop())  # below the pages
html_static_path = ["static"]
html_css_files = ["drawings.css"]
exclude_patterns = ["_build", "_generated", "drawings"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
nitpicky = False


def show_bare_types(app: Any, tree: nodes.document) -> None:
    """Show ``Annotated[float, …]`` as ``float``: the limits are pydantic's to tell."""
    for annotation in tree.findall(addnodes.desc_annotation):
        text = annotation.astext()
        bare = re.sub(r"Annotated\[(\w+), .*\]", r"\1", text)
        if bare != text:
            annotation.children = [nodes.Text(bare)]


def offer_notebook(app: Any, name: str, source: list[str]) -> None:
    """Let a page that was made a notebook link to it."""
    if (HERE / "_generated" / f"{name}.ipynb").is_file():
        source[0] = notebooks.offered(source[0], f"/_generated/{name}.ipynb")


TYPE = ":type: "


def keep_sentences(app: Any, what: str, name: str, it: Any, options: Any, lines: list[str]) -> None:
    """Put a sentence of a field together again: napoleon takes what is before a colon for a type.

    Types stand in the code here.
    """
    if what in ("attribute", "property") and lines and lines[-1].startswith(TYPE):
        lines[0] = f"{lines.pop().removeprefix(TYPE)}: {lines[0]}"


def setup(app: Any) -> None:
    """Called by sphinx."""
    app.connect("source-read", offer_notebook)
    app.connect("autodoc-process-docstring", keep_sentences, priority=800)
    app.connect("doctree-read", show_bare_types)
