"""Operations that lay tensors end to end, and those that cut pieces out of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.graph.axes import concat
from secateur.graph.conditions import every
from secateur.graph.origins import Origin
from secateur.graph.typing import Dim, Typed, Typing

from .shape import unsqueeze
from .table import rule

TO_THE_END = 2**62  # torch passes such a bound where the code gave none


@rule("cat", "concat", "concatenate")
def cat(t: Typing, tensors: Sequence[Typed], dim: int = 0) -> Typed:
    parts = [x for x in tensors if x.shape != (0,)]
    dim %= len(parts[0])
    dims = []
    for place, first in enumerate(parts[0].dims):
        column = [x[place] for x in parts]
        if place == dim:
            axis = concat(*(d.axis for d in map(t.alone, column)))
        else:
            axis = first.axis
            for other in column[1:]:
                t.same(first, other)
        dims.append(Dim(axis, every(*(d.zero for d in column)), every(*(d.const for d in column))))
    return Typed(tuple(dims), all(x.static for x in parts))


@rule("stack")
def stack(t: Typing, tensors: Sequence[Typed], dim: int = 0) -> Typed:
    dim %= len(tensors[0]) + 1
    joined = cat(t, [unsqueeze(t, x, dim) for x in tensors], dim)
    number = t.fresh(len(tensors))
    t.freeze(number, "the number of tensors that were stacked")
    return joined.but(dim, number)


@rule("split.Tensor", "unsafe_split.Tensor")
def split(t: Typing, x: Typed, size: int, dim: int = 0) -> list[Typed]:
    """Pieces of one size: from ``chunk`` they stay equal, from ``split`` as long as is named."""
    sizes = [shape[dim] for shape in t.out]
    by_count = "chunk" in t.called  # it is given their number
    count = t.argument_of("chunk", "chunks", 1, len(sizes))
    with t.cut_at(x, x[dim], count if by_count else size):
        pieces = t.pieces(x[dim], sizes)
    origin = None if by_count else t.origin_of(size)
    for piece in pieces:
        if piece.size == size:
            t.name(piece.axis, origin)
    if origin is None:
        for piece in pieces[1:]:
            t.equal(pieces[0], piece)
    return [x.but(dim, piece) for piece in pieces]


@rule("chunk", "unsafe_chunk")
def chunk(t: Typing, x: Typed, count: int, dim: int = 0) -> list[Typed]:
    with t.cut_at(x, x[dim], count):
        pieces = t.pieces(x[dim], [shape[dim] for shape in t.out])
    for piece in pieces[1:]:
        t.equal(pieces[0], piece)
    return [x.but(dim, piece) for piece in pieces]


@rule("split_with_sizes", "unsafe_split_with_sizes")
def split_with_sizes(t: Typing, x: Typed, sizes: Sequence[int], dim: int = 0) -> list[Typed]:
    with t.cut_at(x, x[dim], *sizes):
        pieces = t.pieces(x[dim], sizes)
    for piece, origin in zip(pieces, t.origins_of(sizes), strict=True):
        t.name(piece.axis, origin)
    return [x.but(dim, piece) for piece in pieces]


@rule("slice.Tensor")
def slice_(
    t: Typing,
    x: Typed,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Typed:
    """Cut at both ends; a step is a grid of which one column is read."""
    old, n = x[dim], x[dim].size
    low = min(n, max(0, (start or 0) + (n if (start or 0) < 0 else 0)))
    high = n if end is None else min(n, max(low, end + (n if end < 0 else 0)))
    if low == 0 and high == n and step == 1:
        t.table(x, old, (origin for origin in t.origins_like(start or 0) if origin.factors))
        for bound in (start, end):
            if bound and abs(bound) < TO_THE_END:
                t.read_whole(x, old, bound, t.origins_like(bound))
        _narrowed(t, old)
        return x
    with t.cut_at(x, old, start or None, end, high - low, step if step > 1 else None):
        return x.but(dim, _sliced(t, old, (start or 0, low), (end, high), (step, t.out[0][dim])))


def _sliced(
    t: Typing, old: Dim, start: tuple[int, int], end: tuple[int | None, int], step: tuple[int, int]
) -> Dim:
    """Return what is left between two bounds, each as it was given and as a position."""
    low, high, n = start[1], end[1], old.size
    if low == high == n > 1 and step[0] == 1:  # what is left after the last position
        _bounded(t, old, old, t.origin_of(start[0]))
        return t.fresh(0, "an empty piece")
    if high == low or n == 1:
        t.freeze(old, "an empty piece is read")
        return t.fresh(high - low, "an empty piece")
    if step[0] > 1 and low < step[0] and high == n and n % step[0] == 0:
        halves = t.split(old, step[0])  # one column of a grid
        if halves:
            t.freeze(halves[1], "every n-th position is read")
            return t.alone(halves[0])
    before, piece, after = t.pieces(old, [low, high - low, n - high])
    if low:
        head = before if start[0] > 0 else t.join(piece, after)
        _bounded(t, old, head, t.origin_of(start[0]))
    if end[0] is not None and high < n:
        head = after if end[0] < 0 else t.join(before, piece)
        origin, length = t.origin_of(end[0]), t.origin_of(high - low)
        if origin is None and length is not None:  # narrow passes the length
            head, origin = piece, length
        _bounded(t, old, head, origin)
    _narrowed(t, piece)
    return piece if step[0] == 1 else _every(t, piece, *step)


def _narrowed(t: Typing, piece: Dim) -> None:
    """Say that a piece is as long as was asked: ``narrow`` fails where a slice would be shorter."""
    if t.called == "narrow" and piece.size > 1:
        t.name(piece.axis, t.argument_of("narrow", "length", 3, piece.size))


def _bounded(t: Typing, whole: Dim, piece: Dim, origin: Origin | None) -> None:
    if origin is None or _by_count(t):
        t.freeze(whole, "it is cut where an operation computes")
    else:
        t.name(piece.axis, origin)


def _by_count(t: Typing) -> bool:
    """Tell whether a function was given the number of pieces: it is no bound, if equal to one."""
    names = ("indices_or_sections", "sections")
    return t.called == "tensor_split" and any(
        t.argument_of("tensor_split", name, 1, 0) is not None for name in names
    )


def _every(t: Typing, dim: Dim, step: int, size: int) -> Dim:
    t.freeze(dim, "every n-th position is read")
    return t.fresh(size, "every n-th position of an axis")


@rule("select.int")
def select(t: Typing, x: Typed, dim: int, index: int) -> Typed:
    t.freeze(x[dim], "one position is read")
    return x.but(dim, None)


@rule("unbind")
def unbind(t: Typing, x: Typed, dim: int = 0) -> list[Typed]:
    t.freeze(x[dim], "its positions are read one by one")
    return [x.but(dim, None) for _ in range(x[dim].size)]


@rule("select_backward", "slice_backward")
def piece_put_back(t: Typing, x: Typed, sizes: Sequence[int], dim: int, *_: Any) -> Typed:
    """Zeros, but for a piece of one dimension; the others pass."""
    dim %= len(sizes)
    whole = t.fresh(sizes[dim], "a piece of it is written")
    if len(x) < len(sizes):
        return Typed((*x.dims[:dim], whole, *x.dims[dim:]))
    t.freeze(x[dim], "it is written into a piece")
    return x.but(dim, whole)
