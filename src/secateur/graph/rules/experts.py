"""Mixtures of experts: many small matrices, of which an index picks those that a row meets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from secateur.graph.typing import Typed, Typing

from .contraction import own
from .table import rule

STEP = 8
"""Rows start at multiples of 16 bytes, also in bfloat16, in which a float32 model may be run."""


@rule("_grouped_mm")
def grouped_mm(t: Typing, x: Typed, weight: Typed, offsets: Typed | None = None, *_: Any) -> Typed:
    """Rows (tokens, in), sorted by expert, with (experts, in, out); offsets end each expert's."""
    if offsets is None or len(x) != 2 or len(weight) != 3:
        t.freeze([*x.dims, *weight.dims], "groups of rows meet groups of columns")
        return t.opaque(t.out[0])
    t.same(weight[0], offsets[0])
    for dim in (x[1], weight[1], weight[2]):
        t.limit(dim, step=STEP)
    t.freeze(x[0], "offsets say which expert a row meets")
    t.contract(x[1], weight[1])
    return Typed((own(x[0]), own(weight[2])))


@rule("histc", "bincount")
def counts(t: Typing, x: Typed, *_: Any, **__: Any) -> Typed:
    """How often each number occurs."""
    t.freeze(x, "its numbers are counted")
    bins = t.fresh(t.out[0][0], zero=False)
    t.name(bins.axis, t.origin_of(bins.size))
    t.look_up(bins, x)
    return Typed((bins,))


@rule("topk")
def topk(t: Typing, x: Typed, k: int, dim: int = -1, *_: Any) -> tuple[Typed, Typed]:
    """The k largest, and their positions."""
    t.reduce(x[dim], "chooses the largest, masked ones among them")
    t.limit(x[dim], least=k)
    chosen = t.fresh(k, "how many are chosen")
    out = x.but(dim, chosen)
    values = Typed(tuple(t.never_zero(d, False) for d in out.dims))
    return values, replace(values, counts=x[dim].axis)
