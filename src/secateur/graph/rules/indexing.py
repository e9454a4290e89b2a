"""Look-ups by index, and tensors made from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from secateur.graph.conditions import every
from secateur.graph.typing import Dim, Typed, Typing

from .table import rule


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
        t.look_up(x[i], indices[i])
    passing = [d for i, d in enumerate(x.dims) if i not in used]
    first = used[0] if used and used == list(range(used[0], used[-1] + 1)) else 0
    new = len(t.out[0]) - len(passing)
    if new != max(len(i) for i in indices if i is not None):  # a mask takes several dimensions
        t.freeze(x.dims, "it is indexed by a mask")
        return t.opaque(t.out[0])
    dims = (
        *passing[:first],
        *(t.fresh(s, "the shape of an index") for s in t.out[0][first : first + new]),
        *passing[first:],
    )
    return Typed(tuple(replace(d, source=None) for d in dims))


@rule("index_select")
def index_select(t: Typing, x: Typed, dim: int, index: Typed) -> Typed:
    t.look_up(x[dim], index)
    return x.but(dim, t.fresh(t.out[0][dim], "the length of an index"))


@rule("gather", "take_along_dim")
def gather(t: Typing, x: Typed, dim: int, index: Typed, **_: Any) -> Typed:
    dim %= max(len(x), 1)
    t.look_up(x[dim], index)
    if len(index) == 1:
        return x.but(dim, t.fresh(t.out[0][dim], "the length of an index"))
    others = [d for y in (x, index) for i, d in enumerate(y.dims) if i != dim]
    t.freeze([*others, index[dim]], "its elements are looked up by number")
    return t.opaque(t.out[0])


@rule("_pack_padded_sequence")
def pack(t: Typing, x: Typed, *_: Any) -> tuple[Typed, Typed]:
    """The rows that lie within their sequences, laid end to end."""
    t.freeze(x.dims[:2], "sequences are packed")
    rows = t.fresh(t.out[0][0], "packed sequences")
    return Typed((rows, *x.dims[2:])), t.opaque(t.out[1])


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


@rule("zeros ones empty full new_zeros new_ones new_empty new_full")
def filled(t: Typing, *_: Any, **__: Any) -> Typed:
    """One number everywhere: any size will do, so that an axis is as long as the code says."""
    zero = "ones" not in t.reason.op and "full" not in t.reason.op
    dims = []
    for size, origin in zip(t.out[0], t.origins_of(t.out[0]), strict=True):
        dim = t.fresh(size, None if origin else "made with a size that is computed", zero)
        if size != 1:
            t.name(dim.axis, origin)
        dims.append(dim)
    return Typed(tuple(dims), static=True)


@rule(
    """arange linspace scalar_tensor rand randn randint randperm eye empty_strided
    new_empty_strided tril_indices triu_indices"""
)
def factory(t: Typing, *_: Any, **__: Any) -> Typed:
    """A tensor whose numbers depend on its size."""
    return Typed(t.opaque(t.out[0], "made with a size that the code computes").dims, static=True)


@rule("_local_scalar_dense", "is_nonzero", "item", "equal")
def read(t: Typing, x: Typed, *_: Any) -> tuple[()]:
    """A value is read into Python."""
    t.freeze(x.dims, "its values are read in Python")
    return ()


@rule("index_add", "index_add_", "index_copy", "index_copy_")
def index_add(t: Typing, x: Typed, dim: int, index: Typed, source: Typed, **_: Any) -> Typed:
    """Rows are added where an index says; the other dimensions meet."""
    dim %= len(x)
    t.freeze([x[dim], source[dim]], "its positions are looked up by number")
    dims = [_added(t, a, b) for a, b in zip(x.dims, source.dims, strict=True)]
    dims[dim] = t.never_zero(x[dim], False)
    return Typed(tuple(dims))


@rule("index_put", "index_put_", "_index_put_impl_")
def index_put(
    t: Typing, x: Typed, indices: Sequence[Typed | None], values: Typed, *_: Any
) -> Typed:
    """Elements are written where indices say; the dimensions without an index meet."""
    used = [i for i, at in enumerate(indices) if at is not None]
    t.freeze([x[i] for i in used], "its positions are looked up by number")
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
        t.freeze([*x.dims, *values.dims], "its positions are looked up by number")
    return Typed(tuple(dims))


def _added(t: Typing, x: Dim, y: Dim) -> Dim:
    t.same(x, y)
    return Dim(x.axis, every(x.zero, y.zero), every(x.const, y.const))


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(t: Typing, x: Typed, dim: int, index: Typed, *more: Any, **_: Any) -> Typed:
    """Elements are written one by one."""
    dim %= max(len(x), 1)
    if len(x):
        t.look_up(x[dim], index)
    others = [d for i, d in enumerate(x.dims) if i != dim]
    tensors = [index, *(y for y in more if isinstance(y, Typed))]
    others += [d for y in tensors for d in y.dims]
    t.freeze(others, "its elements are looked up by number")
    return Typed(tuple(t.never_zero(d, False) for d in x.dims))


@rule("nonzero", "nonzero_static", "argwhere", "masked_select", "unique_consecutive", "_unique2")
def found(t: Typing, x: Typed, *more: Any, **_: Any) -> Any:
    """How many come out depends on the values."""
    if len(x) == 1 and t.reason.op.startswith("aten.nonzero."):
        return replace(t.opaque(t.out[0], "positions that were found by value"), counts=x[0].axis)
    for each in (x, *(y for y in more if isinstance(y, Typed))):
        t.freeze(each, "its positions are found by value")
    outs = tuple(t.opaque(shape, "positions that were found by value") for shape in t.out)
    return outs if len(outs) > 1 else outs[0]
