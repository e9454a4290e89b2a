"""Elements that are read or written where an index says: gather, scatter, index_add, index_put.

Only the indexed dimension is looked up.  Along every other one that the index spans whole, position
j of the result is made of positions j alone, whatever the index says: they are one axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.graph.conditions import every
from secateur.graph.typing import Dim, Typed, Typing

from .table import rule

BY_NUMBER = "its positions are looked up by number"
PARTLY = "an index spans a part of it"


@rule("gather", "take_along_dim")
def gather(t: Typing, x: Typed, dim: int, index: Typed, **_: Any) -> Typed:
    """out[i, j] = x[index[i, j], j]."""
    if not len(x) or not len(index):
        t.freeze([*x.dims, *index.dims], BY_NUMBER)
        return t.opaque(t.out[0])
    dim %= len(x)
    t.look_up(x[dim], index)
    _meet(t, dim, x, index)
    dims = [a if a.size == b.size else b for a, b in zip(x.dims, index.dims, strict=True)]
    dims[dim] = t.fresh(t.out[0][dim], "the length of an index")
    return Typed(tuple(Dim(d.axis, d.zero, d.const) for d in dims))


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(
    t: Typing, x: Typed, dim: int, index: Typed, source: Any = None, *_: Any, **more: Any
) -> Typed:
    """out[index[i, j], j] = source[i, j], or that and what was there, taken together."""
    source = more.get("src", more.get("value", source))
    written = [source] if isinstance(source, Typed) and len(source) else []
    if not len(x) or not len(index):
        t.freeze([*x.dims, *index.dims, *(d for y in written for d in y.dims)], BY_NUMBER)
        return Typed(tuple(t.never_zero(d, False) for d in x.dims))
    dim %= len(x)
    t.look_up(x[dim], index)
    t.freeze([y[dim] for y in (index, *written)], "it is as long as an index")
    _meet(t, dim, x, index, *written)
    zero = bool(written) or source == 0
    dims = []
    for place, old in enumerate(x.dims):
        meeting = [old, *(y[place] for y in written)]
        if place == dim or not zero or any(d.size != old.size for d in meeting):
            dims.append(t.never_zero(old, False))
        else:
            made = every(*(d.zero for d in meeting))
            dims.append(Dim(old.axis, made, made))
    return Typed(tuple(dims))


def _meet(t: Typing, dim: int, x: Typed, *others: Typed) -> None:
    """Say that all but one dimension are the same, where an index spans them whole."""
    for place, mine in enumerate(x.dims):
        theirs = [y[place] for y in others]
        if place == dim:
            continue
        if all(d.size == mine.size for d in theirs):
            for d in theirs:
                t.same(mine, d)
        else:
            t.freeze([mine, *theirs], PARTLY)


@rule("index_add", "index_add_", "index_copy", "index_copy_", "index_reduce", "index_reduce_")
def index_add(
    t: Typing, x: Typed, dim: int, index: Typed, source: Typed, *_: Any, **__: Any
) -> Typed:
    """Rows are added where an index says; the other dimensions meet."""
    dim %= len(x)
    t.freeze([x[dim], source[dim]], BY_NUMBER)
    dims = [_added(t, a, b) for a, b in zip(x.dims, source.dims, strict=True)]
    dims[dim] = t.never_zero(x[dim], False)
    return Typed(tuple(dims))


@rule("index_fill", "index_fill_")
def index_fill(t: Typing, x: Typed, dim: int, index: Typed, value: Any, **_: Any) -> Typed:
    t.look_up(x[dim], index)
    kept = not isinstance(value, Typed) and value == 0
    return Typed(tuple(d if kept else t.never_zero(d, False) for d in x.dims)).but(
        dim, t.never_zero(x[dim], False)
    )


@rule("segment_reduce")
def segment_reduce(t: Typing, x: Typed, reduce: str, **options: Any) -> Typed:
    """Runs of rows become one each; the other dimensions pass."""
    axis = options.get("axis", 0) % len(x)
    t.freeze(x[axis], "runs of its positions become one")
    for each in options.values():
        if isinstance(each, Typed):
            t.freeze(each, "it says how long each run is")
    kept = options.get("initial") in (None, 0) or reduce == "mean"
    dims = [Dim(d.axis, d.zero, d.zero) if kept else t.never_zero(d, False) for d in x.dims]
    dims[axis] = t.fresh(t.out[0][axis], "how many runs there are")
    return Typed(tuple(dims))


@rule("select_scatter", "slice_scatter")
def written_piece(t: Typing, x: Typed, source: Typed, dim: int = 0, *_: Any, **__: Any) -> Typed:
    """A piece of one dimension is written anew; the others meet."""
    dim %= len(x)
    t.freeze(x[dim], "a piece of it is written")
    ours = list(x.dims)
    if len(source) < len(x):
        theirs = [*source.dims[:dim], None, *source.dims[dim:]]
    else:
        t.freeze(source[dim], "it is written into a piece")
        theirs = list(source.dims)
    dims = [
        t.never_zero(a, False) if i == dim or b is None else _added(t, a, b)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
    ]
    return Typed(tuple(dims))


@rule("index_put", "index_put_", "_index_put_impl_")
def index_put(
    t: Typing, x: Typed, indices: Sequence[Typed | None], values: Typed, *_: Any
) -> Typed:
    """Elements are written where indices say; the dimensions without an index meet."""
    used = [i for i, at in enumerate(indices) if at is not None]
    t.freeze([x[i] for i in used], BY_NUMBER)
    dims = list(x.dims)
    for i in used:
        dims[i] = t.never_zero(x[i], False)
    for place in range(-1, -len(x) - 1, -1):  # those after the last index are values' last, too
        if len(x) + place in used or -place > len(values):
            break
        if values[place].size == x[place].size:
            dims[place] = _added(t, x[place], values[place])
        else:
            dims[place] = t.never_zero(x[place], False)
    passing = len(x) - (used[-1] + 1 if used else 0)
    t.freeze(values.dims[: max(0, len(values) - passing)], "it is as long as an index")
    if used != list(range(len(used))):
        t.freeze([*x.dims, *values.dims], BY_NUMBER)
    return Typed(tuple(dims))


def _added(t: Typing, x: Dim, y: Dim) -> Dim:
    t.same(x, y)
    return Dim(x.axis, every(x.zero, y.zero), every(x.const, y.const))
