"""Look-ups by index, and tensors made from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from secateur.graph.typing import Typed, Typing

from .table import rule


@rule("embedding")
def embedding(t: Typing, weight: Typed, index: Typed, *_: Any, **__: Any) -> Typed:
    """Rows are looked up; the width passes."""
    t.freeze(weight[0], "a vocabulary: its rows are looked up by number")
    return Typed((*index.dims, replace(weight[1], source=None)))


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(
    t: Typing, weight: Typed, index: Typed, offsets: Typed, *rest: Any
) -> tuple[Typed, ...]:
    """Rows are looked up and added up, bag by bag; the width passes."""
    t.freeze(weight[0], "a vocabulary: its rows are looked up by number")
    for each in (index, offsets, *(x for x in rest if isinstance(x, Typed))):
        t.freeze(each, "rows are put into bags by it")
    bags = t.fresh(t.out[0][0], "how many bags there are")
    return Typed((bags, replace(weight[1], source=None))), *map(t.opaque, t.out[1:])


@rule("embedding_renorm_")
def embedding_renorm(t: Typing, weight: Typed, *_: Any) -> Typed:
    """Rows that are longer than a number are scaled to it; zeros add nothing to their length."""
    t.freeze(weight[0], "a vocabulary: its rows are looked up by number")
    t.reduce(weight[1])
    return weight


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


@rule("rand_like", "randn_like", "randint_like")
def drawn(t: Typing, x: Typed, *_: Any, **__: Any) -> Typed:
    """As many random numbers as there are positions: with fewer, all others change too."""
    for dim in x.dims:
        if dim.size > 1:
            t.reduce(dim, "random numbers are drawn for each of its positions")
    return like(t, x)


@rule("zeros ones empty full new_zeros new_ones new_empty new_full")
def filled(t: Typing, *given: Any, **__: Any) -> Typed:
    """One number everywhere: any size will do, so that an axis is as long as the code says."""
    like_it = given[0] if given and isinstance(given[0], Typed) else None
    if "dropout" in t.called and like_it and len(like_it) == len(t.out[0]):  # of whole channels
        return _noise(t, like_it)
    zero = "ones" not in t.reason.op and "full" not in t.reason.op
    dims = []
    for size, origin in zip(t.out[0], t.origins_of(t.out[0]), strict=True):
        dim = t.fresh(size, None if origin else "made with a size that is computed", zero)
        if size != 1:
            t.name(dim.axis, origin)
        dims.append(dim)
    return Typed(tuple(dims), static=True)


def _noise(t: Typing, x: Typed) -> Typed:
    """Return the type of a tensor that is as large as another, or has single positions."""
    pairs = zip(x.dims, t.out[0], strict=True)
    dims = (t.fresh(1) if size == 1 else replace(d, source=None) for d, size in pairs)
    return Typed(tuple(map(t.never_zero, dims)), static=True)


@rule(
    """arange linspace scalar_tensor rand randn randint randperm eye empty_strided
    new_empty_strided tril_indices triu_indices"""
)
def factory(t: Typing, *_: Any, **__: Any) -> Typed:
    """A tensor whose numbers depend on its size, which then stays as it is."""
    made = t.opaque(t.out[0], "made with a size that the code computes")
    for dim, origin in zip(made.dims, t.origins_of(made.shape), strict=True):
        t.name(dim.axis, origin)
    return Typed(made.dims, static=True)


@rule("_local_scalar_dense", "is_nonzero", "item", "equal")
def read(t: Typing, x: Typed, *_: Any) -> tuple[()]:
    """A value is read into Python."""
    t.freeze(x.dims, "its values are read in Python")
    return ()


@rule("searchsorted", "bucketize")
def between(t: Typing, x: Any, y: Any, **_: Any) -> Typed:
    """Between which borders each number lies: the numbers are searched, the borders stay."""
    borders, numbers = (x, y) if t.reason.op.startswith("aten.searchsorted") else (y, x)
    t.freeze(borders, "numbers are searched in it")
    if not isinstance(numbers, Typed):
        return t.opaque(t.out[0])
    for one, other in zip(borders.dims[:-1], numbers.dims[:-1], strict=False):
        t.same(one, other)
    return Typed(tuple(t.never_zero(d) for d in numbers.dims))


@rule("nonzero", "nonzero_static", "argwhere", "masked_select", "unique_consecutive", "_unique2")
def found(t: Typing, x: Typed, *more: Any, **_: Any) -> Any:
    """How many come out depends on the values."""
    if len(x) == 1 and t.reason.op.startswith("aten.nonzero."):
        return replace(t.opaque(t.out[0], "positions that were found by value"), counts=x[0].axis)
    for each in (x, *(y for y in more if isinstance(y, Typed))):
        t.freeze(each, "its positions are found by value")
    outs = tuple(t.opaque(shape, "positions that were found by value") for shape in t.out)
    return outs if len(outs) > 1 else outs[0]
