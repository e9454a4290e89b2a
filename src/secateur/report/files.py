"""``report.json`` and ``report.html`` of a folder."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

from secateur.runtime.io import read_text, write_text

from .facts import Report

FACTS, PAGE = "report.json", "report.html"


def write(folder: str | os.PathLike[str], report: Report) -> Path:
    """Write ``report.json`` and ``report.html``; return the path of the page.

    Raises:
        MissingExtraError: jinja2 is not installed; ``report.json`` is written all the same.
    """
    write_text(Path(folder) / FACTS, report.to_text())
    return write_page(folder, report)


def write_page(folder: str | os.PathLike[str], report: Report) -> Path:
    """Write ``report.html`` and return its path."""
    from .page import to_html

    path = Path(folder) / PAGE
    write_text(path, to_html(report))
    return path


def read(folder: str | os.PathLike[str]) -> Report:
    """Return the report that a folder holds.

    Raises:
        FileError: there is none, or it is damaged or of a newer version.
    """
    path = Path(folder) / FACTS
    return Report.from_text(read_text(path), str(path))


def open_page(path: Path) -> bool:
    """Open a page in a browser where there is a screen and somebody at a terminal."""
    screen = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    return screen and sys.stdout.isatty() and webbrowser.open(path.resolve().as_uri())
