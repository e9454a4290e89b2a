"""How the documentation is built: ``make docs``; every warning is an error."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as version_of
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
version = release = version_of("secateur")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "formulas"]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "secateur"
html_math_renderer = "mathml"
html_show_sourcelink = False
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


def setup(app: Any) -> None:
    """Called by sphinx."""
    app.connect("source-read", offer_notebook)
    app.connect("doctree-read", show_bare_types)
