"""``secateur report``: draw the report of a saved run again, or what can go from a model."""

from __future__ import annotations

from os.path import isdir, isfile  # which take any text
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from secateur.report import open_page, read, to_markdown, write_page
from secateur.report.facts import Report
from secateur.report.files import FACTS

from .models import load
from .options import NOTHING, Given
from .show import AsJson, show
from .unpruned import report_on


def report(
    model: str,
    /,
    *,
    markdown: Annotated[bool, Parameter(negative=())] = False,
    out: Path | None = None,
    given: Given = NOTHING,
    as_json: AsJson = False,
) -> None:
    """Write report.html of a folder that secateur wrote, or of any other MODEL.

    It is one file that opens offline. Where there is a screen, it is opened.

    Parameters
    ----------
    model
        A saved folder: its report.json is what the page shows; where it has none, what is left of
        the model is analysed. Of any other MODEL the page shows what can be removed.
    markdown
        Print the report as Markdown instead.
    out
        Where report.html goes; by default into MODEL's folder, or the current one.
    """
    found = _facts(model, given)
    if as_json or markdown:
        show(to_markdown(found), found.model_dump(mode="json", by_alias=True), as_json=as_json)
        return
    path = write_page(out or (Path(model) if isdir(model) else Path()), found)
    print(path)
    open_page(path)


def _facts(model: str, given: Given) -> Report:
    folder = Path(model)
    if isfile(folder / FACTS):
        return read(folder)
    return report_on(load(model, given), folder)
