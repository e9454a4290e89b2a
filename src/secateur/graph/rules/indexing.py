"""Look-ups by index, and tensors made from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from secateur.graph.typing import Typed, Typing

from . import rule


@rule("embedding")
def embedding(t: Typing, weight: Typed, index: Typed, *_: Any, **__: Any) -> Typed:
    """Rows are looked up; the width passes."""
    t.freeze(weight[0], "a vocabulary: its rows are looked up by number")
    return Typed((*index.dims, replace(weight[1], source=None)))


@rule("index.Tensor", "_unsafe_index.Tensor")
def index(t: Typing, x: Typed, indices: Sequence[Typed | None]) -> Typed:
    """Indexed dimensions freeze; the others pass, after (or around) the index's own."""
    used = [i for i, at in enumerate(indices) if at is not None]
    for i in used:
        t.freeze(x[i], "its positions are looked up by number")
    passing = [d for i, d in enumerate(x.dims) if i not in used]
    first = used[0] if used and used == list(range(used[0], used[-1] + 1)) else 0
    new = len(t.out[0]) - len(passing)
    dims = (
        *passing[:first],
        *(t.fresh(s, "the shape of an index") for s in t.out[0][first : first + new]),
        *passing[first:],
    )
    if tuple(d.size for d in dims) != t.out[0]:  # boolean masks take several dimensions
        t.freeze(x.dims, "it is indexed by a mask")
        return t.opaque(t.out[0])
    return Typed(tuple(replace(d, source=None) for d in dims))


@rule("index_select", "gather", "take_along_dim")
def gather(t: Typing, x: Typed, dim: int, index: Typed, **_: Any) -> Typed:
    t.freeze(x[dim], "its positions are looked up by number")
    if len(index) == 1 or t.reason.op.startswith("aten.index_select"):
        return x.but(dim, t.fresh(t.out[0][dim], "the length of an index"))
    t.freeze([*x.dims, *index.dims], "its elements are looked up by number")
    return t.opaque(t.out[0])


@rule(
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
    "fill_",
    "zero_",
)
def like(t: Typing, x: Typed, *_: Any, **__: Any) -> Typed:
    """The same axes, other values."""
    zero = "zero" in t.reason.op
    return Typed(
        tuple(
            replace(d if zero else t.never_zero(d), const=d.zero if zero else d.const, source=None)
            for d in x.dims
        ),
        static=True,
    )


@rule(
    """zeros ones empty full arange linspace scalar_tensor rand randn randint randperm eye
    new_zeros new_ones new_empty new_full empty_strided new_empty_strided tril_indices
    triu_indices"""
)
def factory(t: Typing, *_: Any, **__: Any) -> Typed:
    """A tensor made from sizes that the code computes."""
    return Typed(t.opaque(t.out[0], "made with a size that the code computes").dims, static=True)


@rule("_local_scalar_dense", "is_nonzero", "item", "equal")
def read(t: Typing, x: Typed, *_: Any) -> tuple[()]:
    """A value is read into Python."""
    t.freeze(x.dims, "its values are read in Python")
    return ()
