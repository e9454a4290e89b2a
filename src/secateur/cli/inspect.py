"""``secateur inspect``: what can be removed from a model, and why the rest cannot."""

from __future__ import annotations

from secateur.structure import analyze

from .models import load
from .options import NOTHING, Given, Model
from .show import AsJson, show


def inspect(
    model: Model,
    /,
    *,
    given: Given = NOTHING,
    as_json: AsJson = False,
) -> None:
    """Show the groups of a model, what they cost, what is frozen or inexact, and why."""
    from secateur.report import structure_facts

    loaded = load(model, given)
    structure = analyze(loaded.model, loaded.example)
    facts = structure_facts(structure).model_dump() if as_json else {}
    show(structure, facts, as_json=as_json)
