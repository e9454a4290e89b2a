"""The report of a folder without one, or of any model: what went, and what can go."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import isfile  # which takes any text
from pathlib import Path

from torch import nn

from secateur.report import Report, report_of
from secateur.shrinking import Plan, Result
from secateur.shrinking.document import PLAN
from secateur.shrinking.files import load_plans
from secateur.shrinking.record import RECORD
from secateur.shrinking.stock import CONFIG, holds_stock
from secateur.streaming.checkpoint import on_meta
from secateur.structure import analyze

from .models import Loaded, rebuild, recalled


def report_on(loaded: Loaded, folder: Path) -> Report:
    """Return a report on a model, in which nothing goes, or what went from it before.

    Args:
        loaded: the model.
        folder: where it was read from, if it was saved.
    """
    if isfile(folder / PLAN):
        return _of_saved(loaded, folder)
    structure = analyze(loaded.model, loaded.example)
    notes = ["this is what can be removed: nothing was pruned for this page", *structure.notes]
    told = report_of(Result(loaded.model, Plan({}), {}, structure, None, notes), loaded.model)
    return told.model_copy(update={"loads_with": "whatever loaded it here: nothing was cut"})


def _of_saved(loaded: Loaded, folder: Path) -> Report:
    """Return what a folder's plan.json says went, beside the dense model where that is known."""
    plans, smaller = load_plans(folder), analyze(loaded.model, loaded.example)
    dense = _dense(loaded, folder)
    notes = [f"drawn from {PLAN}: nothing was pruned or compared for this page"]
    if dense is None:
        sizes = ", ".join(f"{name!r} keeps {n}" for p in plans for name, n in p.counts.items())
        notes.append(
            f"the dense model is not known here (say it with --dense), and all figures are of what "
            f"is left; what went: {sizes or 'nothing'}"
        )
    structure = smaller if dense is None else analyze(dense, loaded.example)
    plan = plans[0] if dense is not None and len(plans) == 1 else Plan({})
    result = Result(loaded.model, plan, {}, structure, None, notes)
    result.after = smaller.cost()
    told = report_of(result, loaded.model if dense is None else dense)
    return told.model_copy(update={"loads_with": _loader(loaded, folder, plans)})


def _dense(loaded: Loaded, folder: Path) -> nn.Module | None:
    """Return the dense model of a saved one, without weights where it is transformers'."""
    if not holds_stock(folder):
        return rebuild(loaded.source).model
    source = Path(recalled(folder).model) if isfile(folder / RECORD) else Path()
    return on_meta(source)[0] if isfile(source / CONFIG) and not isfile(source / PLAN) else None


def _loader(loaded: Loaded, folder: Path, plans: Sequence[Plan]) -> str:
    """Return what loads a saved folder."""
    if not any(plan.keep or plan.drop for plan in plans):
        return f"whatever loads the dense {loaded.name}: every shape is as it was"
    if not holds_stock(folder):
        return f"secateur.load_pruned, onto a freshly built {loaded.name}"
    of = loaded.name if isfile(folder / CONFIG) else "secateur"
    return f"{of}.from_pretrained"
