"""The report of a model without one: what can be removed, and of a saved folder what went."""

from __future__ import annotations

from os.path import isfile  # which takes any text
from pathlib import Path

from secateur.report import Report, report_of
from secateur.shrinking import Plan, Result
from secateur.shrinking.document import PLAN
from secateur.structure import analyze

from .models import Loaded


def report_on(loaded: Loaded, folder: Path) -> Report:
    """Return a report on a model, in which nothing goes.

    Args:
        loaded: the model.
        folder: where it was read from, if it was saved.
    """
    structure = analyze(loaded.model, loaded.example)
    what = "what is left" if isfile(folder / PLAN) else "what can be removed"
    notes = [f"this is {what}: nothing was pruned for this page", *structure.notes]
    result = Result(loaded.model, Plan({}), {}, structure, None, notes=notes)
    told = report_of(result, loaded.model)
    if result.unchanged:
        return told.model_copy(update={"loads_with": "whatever loaded it here: nothing was cut"})
    return told
