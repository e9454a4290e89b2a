"""Operations that only rearrange: views, permutations, joining and cutting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from secateur.graph.axes import concat
from secateur.graph.conditions import every
from secateur.graph.origins import Origin
from secateur.graph.typing import Dim, Typed, Typing

from . import rule


@rule("view.default", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten")
def view(t: Typing, x: Typed, size: Sequence[int], *_: Any) -> Typed:
    """Match runs of dimensions that hold equally many elements: merge the old, split into new."""
    shape = t.out[0]
    if 0 in shape:
        return t.opaque(shape)
    origins: list[Origin | None] = [None] * len(shape)
    if len(size) == len(shape):
        origins = t.origins_of(size)
    old = [d for d in x.dims if d.size != 1]
    made: list[Dim] = []
    new: list[int] = []
    for want in shape:
        if want == 1 and not new:
            made.append(t.fresh(1))
            continue
        new.append(want)
        run = _run(old, new)
        if run:
            if len(new) > 1 and not any(origins):  # unflatten passes the sizes of one dimension
                origins[len(made) : len(made) + len(new)] = t.origins_of(new)
            made += _reshape(t, old[:run], new)
            old, new = old[run:], []
    made += [t.fresh(1) for _ in new]
    for dim, origin in zip(made, origins, strict=True):
        if dim.size != 1:
            t.name(dim.axis, origin)
    return Typed(tuple(made), x.static)


def _run(old: Sequence[Dim], new: Sequence[int]) -> int:
    """Return how many old dimensions hold as many elements as the new ones, or 0."""
    want, have = prod(new), 1
    for count, dim in enumerate(old, start=1):
        have *= dim.size
        if have >= want:
            return count if have == want else 0
    return 0


def _reshape(t: Typing, dims: Sequence[Dim], shape: Sequence[int]) -> list[Dim]:
    real = [size for size in shape if size != 1]
    if len(dims) == 1 == len(real):
        split = [dims[0]]
    else:
        split, rest = [], t.grid(*dims)
        for inner in reversed(real[1:]):
            halves = t.split(rest, inner)
            if halves is None:
                split = [t.fresh(s, "a grid that cannot be split") for s in real]
                break
            rest = halves[0]
            split.insert(0, halves[1])
        else:
            split.insert(0, rest)
    found = iter(split)
    return [t.fresh(1) if size == 1 else next(found) for size in shape]


@rule("t")
def transpose_matrix(t: Typing, x: Typed) -> Typed:
    return Typed(x.dims[::-1], x.static)


@rule("transpose", "swapaxes", "transpose_", "swapdims")
def transpose(t: Typing, x: Typed, a: int, b: int) -> Typed:
    dims = list(x.dims)
    if dims:
        dims[a], dims[b] = dims[b], dims[a]
    return Typed(tuple(dims), x.static)


@rule("permute")
def permute(t: Typing, x: Typed, order: Sequence[int]) -> Typed:
    return Typed(tuple(x[i] for i in order), x.static)


@rule("unsqueeze", "unsqueeze_")
def unsqueeze(t: Typing, x: Typed, dim: int) -> Typed:
    dim %= len(x) + 1
    return Typed((*x.dims[:dim], t.fresh(1), *x.dims[dim:]), x.static)


@rule("squeeze", "squeeze_")
def squeeze(t: Typing, x: Typed, dim: Any = None) -> Typed:
    places = range(len(x)) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {p % max(len(x), 1) for p in places}
    kept = tuple(d for i, d in enumerate(x.dims) if i not in gone or d.size != 1)
    return Typed(kept, x.static)


@rule("expand")
def expand(t: Typing, x: Typed, size: Sequence[int], **_: Any) -> Typed:
    """A repeated dimension is an axis of its own: copies, of which none is masked by itself."""
    origins = t.origins_of(size)
    dims = []
    for place, (want, origin) in enumerate(zip(t.out[0], origins, strict=True)):
        old = place - len(t.out[0]) + len(x)
        dim = x[old] if old >= 0 else None
        if dim is None or dim.size != want:
            dim = t.fresh(want, zero=False)
            if not any(origins):  # repeat_interleave passes the number of copies alone
                origin = t.origin_of(want)
        if want != 1:
            t.name(dim.axis, origin)
        dims.append(dim)
    return Typed(tuple(dims), x.static)


@rule("repeat")
def repeat(t: Typing, x: Typed, repeats: Sequence[int]) -> Typed:
    """(n) repeated r times is the grid (r n)."""
    dims = []
    for place, (times, origin) in enumerate(zip(repeats, t.origins_of(repeats), strict=True)):
        old = place - len(repeats) + len(x)
        dim = x[old] if old >= 0 else t.fresh(1)
        if times != 1:
            copies = t.fresh(times, zero=False)
            t.name(copies.axis, origin)
            dim = copies if dim.size == 1 else t.grid(copies, dim)
        dims.append(replace(dim, source=None))
    return Typed(tuple(dims), x.static)


@rule("repeat_interleave.self_int")
def repeat_interleave(t: Typing, x: Typed, times: int, dim: int = 0, **_: Any) -> Typed:
    """(n) with each position r times is the grid (n r)."""
    copies = t.fresh(times, zero=False)
    t.name(copies.axis, t.origin_of(times))
    return x.but(dim, copies if x[dim].size == 1 else t.grid(x[dim], copies))


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
    return joined.but(dim, t.fresh(len(tensors), "the number of tensors that were stacked"))


@rule("split.Tensor")
def split(t: Typing, x: Typed, size: int, dim: int = 0) -> list[Typed]:
    """Pieces of one size: from ``chunk`` they stay equal, from ``split`` as long as is named."""
    sizes = [shape[dim] for shape in t.out]
    pieces = t.pieces(x[dim], sizes)
    origin = None if "chunk" in t.called else t.origin_of(size)  # it is given their number
    for piece in pieces:
        if piece.size == size:
            t.name(piece.axis, origin)
    if origin is None:
        for piece in pieces[1:]:
            t.equal(pieces[0], piece)
    return [x.but(dim, piece) for piece in pieces]


@rule("chunk")
def chunk(t: Typing, x: Typed, count: int, dim: int = 0) -> list[Typed]:
    pieces = t.pieces(x[dim], [shape[dim] for shape in t.out])
    for piece in pieces[1:]:
        t.equal(pieces[0], piece)
    return [x.but(dim, piece) for piece in pieces]


@rule("split_with_sizes")
def split_with_sizes(t: Typing, x: Typed, sizes: Sequence[int], dim: int = 0) -> list[Typed]:
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
        return x
    if low == high == n > 1 and step == 1:  # what is left after the last position
        _bounded(t, old, old, t.origin_of(start or 0))
        return x.but(dim, t.fresh(0, "an empty piece"))
    if high == low or n == 1:
        t.freeze(old, "an empty piece is read")
        return x.but(dim, t.fresh(high - low, "an empty piece"))
    if step > 1 and low < step and high == n and n % step == 0:
        halves = t.split(old, step)  # one column of a grid
        if halves:
            t.freeze(halves[1], "every n-th position is read")
            return x.but(dim, t.alone(halves[0]))
    before, piece, after = t.pieces(old, [low, high - low, n - high])
    if low:
        head = before if start is None or start > 0 else t.join(piece, after)
        _bounded(t, old, head, t.origin_of(start or 0))
    if end is not None and high < n:
        head = after if end < 0 else t.join(before, piece)
        origin, length = t.origin_of(end), t.origin_of(high - low)
        if origin is None and length is not None:  # narrow passes the length
            head, origin = piece, length
        _bounded(t, old, head, origin)
    if step == 1:
        return x.but(dim, piece)
    return x.but(dim, _every(t, piece, step, t.out[0][dim]))


def _bounded(t: Typing, whole: Dim, piece: Dim, origin: Origin | None) -> None:
    if origin is None:  # tensor_split cuts where the length of the whole says
        t.freeze(whole, "it is cut where an operation computes")
    t.name(piece.axis, origin)


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


@rule("flip", "roll", "fft_fftshift")
def shuffle(t: Typing, x: Typed, *args: Any) -> Typed:
    """Positions change places."""
    if t.reason.op.startswith("aten.roll"):
        args = args[1:]  # how far
    dims = args[-1] if args and isinstance(args[-1], (list, tuple)) else range(len(x))
    out = x
    for d in dims or range(len(x)):
        t.freeze(x[d], "its positions change places")
        out = out.but(d, t.fresh(x[d].size, "positions that changed places"))
    return out


@rule("tril", "triu", "tril_", "triu_")
def triangle(t: Typing, x: Typed, *_: Any) -> Typed:
    t.freeze(x.dims[-2:], "it is read as a triangle")
    return x


@rule("diagonal", "diagonal_copy", "diag_embed")
def diagonal(t: Typing, x: Typed, *_: Any, **__: Any) -> Typed:
    t.freeze(x.dims, "its diagonal is read")
    return t.opaque(t.out[0])


@rule("unfold", "as_strided", "as_strided_")
def windows(t: Typing, x: Typed, *args: Any, **_: Any) -> Typed:
    if t.reason.op.startswith("aten.unfold"):
        dim = args[0] % len(x)
        t.freeze(x[dim], "windows slide over it")
        out = x.but(dim, t.fresh(t.out[0][dim], "windows"))
        return Typed((*out.dims, t.fresh(t.out[0][-1], "a window")), x.static)
    if x.shape == t.out[0] and _is_contiguous(x.shape, args[1]):
        return x
    t.freeze(x.dims, "it is read through strides")
    return t.opaque(t.out[0])


def _is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    steps = [prod(shape[i + 1 :]) for i in range(len(shape))]
    return all(s == step or n == 1 for n, s, step in zip(shape, strides, steps, strict=True))
