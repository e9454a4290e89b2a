"""``secateur report``: draw the report of a saved run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from secateur.report import open_page, read, to_markdown, write_page

from .show import AsJson, show


def report(
    folder: Path,
    /,
    *,
    markdown: Annotated[bool, Parameter(negative=())] = False,
    as_json: AsJson = False,
) -> None:
    """Write report.html of a folder that secateur prune or secateur demo wrote.

    It is one file that opens offline. Where there is a screen, it is opened.

    Parameters
    ----------
    folder
        The folder; its report.json is what the page shows.
    markdown
        Print the report as Markdown instead.
    """
    found = read(folder)
    if as_json or markdown:
        show(to_markdown(found), found.model_dump(mode="json", by_alias=True), as_json=as_json)
        return
    path = write_page(folder, found)
    print(path)
    open_page(path)
