"""Recipes as notebooks, made of their pages: the documentation offers each for download.

They run wherever pip can install, as on Colab; each starts by installing what any recipe needs.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

CODE = re.compile(r"^( *)```python\n(.*?)^\1```\n", re.MULTILINE | re.DOTALL)
UNSHOWN = re.compile(r"<!--.*?-->\n|^```\{.*?^```\n", re.MULTILINE | re.DOTALL)
"""Comments, and what only the build of the documentation understands."""
LINK = re.compile(r"\[([^]]+)\]\((?!https?:)[^)]*\)")
"""A link to another page, which a notebook has not beside it."""
INSTALL = '%pip install --quiet "secateur[all]"'
OFFER = "\n{{download}}`As a notebook <{path}>`, for Colab or Jupyter.\n"


def notebook(page: str) -> dict[str, Any]:
    """Return a page of Markdown as a notebook: nbformat 4.5, without outputs."""
    head, *rest = CODE.split(UNSHOWN.sub("", page))
    title, _, intro = head.strip().partition("\n")
    parts = [("markdown", title), ("code", INSTALL), ("markdown", intro)]
    for code, text in zip(rest[1::3], rest[2::3], strict=True):  # between them are the indents
        parts += [("code", textwrap.dedent(code)), ("markdown", text)]
    shown = [(kind, LINK.sub(r"\1", s) if kind == "markdown" else s) for kind, s in parts]
    cells = [(kind, source.strip("\n")) for kind, source in shown if source.strip()]
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": python, "language_info": {"name": "python"}},
        "cells": [_cell(i, kind, source) for i, (kind, source) in enumerate(cells)],
    }


def _cell(number: int, kind: str, source: str) -> dict[str, Any]:
    cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source}
    return {**cell, "execution_count": None, "outputs": []} if kind == "code" else cell


def write_all(pages: Path, folder: Path) -> None:
    """Write a notebook for each page of a folder that has Python in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for page in pages.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        if CODE.search(text):
            path = folder / f"{page.stem}.ipynb"
            path.write_text(json.dumps(notebook(text), indent=1) + "\n", encoding="utf-8")


def offered(text: str, path: str) -> str:
    """Return a page with a link to its notebook below its heading."""
    return re.sub(r"^# .*\n", lambda m: m[0] + OFFER.format(path=path), text, count=1, flags=re.M)
