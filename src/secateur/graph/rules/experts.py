"""Mixtures of experts: many small matrices, of which an index picks those that a row meets."""

from __future__ import annotations

from typing import Any

from secateur.graph.typing import Typed, Typing

from . import rule
from .contraction import own


@rule("_grouped_mm")
def grouped_mm(t: Typing, x: Typed, weight: Typed, offsets: Typed | None = None, *_: Any) -> Typed:
    """Rows (tokens, in), sorted by expert, with (experts, in, out); offsets end each expert's."""
    if offsets is None or len(x) != 2 or len(weight) != 3:
        t.freeze([*x.dims, *weight.dims], "groups of rows meet groups of columns")
        return t.opaque(t.out[0])
    t.same(weight[0], offsets[0])
    t.contract(x[1], weight[1])
    return Typed((own(x[0]), own(weight[2])))


@rule("histc", "bincount")
def counts(t: Typing, x: Typed, *_: Any, **__: Any) -> Typed:
    """How often each number occurs."""
    t.freeze(x, "its numbers are counted")
    return t.opaque(t.out[0], "counts of numbers")
