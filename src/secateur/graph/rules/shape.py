"""Operations that only rearrange: views, permutations, copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from secateur.graph.origins import Origin
from secateur.graph.typing import Dim, Typed, Typing

from .table import rule


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
            if not any(origins):
                start, named = _of_one_dimension(t, shape, len(made), len(made) + len(new))
                origins[start : start + len(named)] = named
            given = origins[len(made) : len(made) + len(new)]
            with t.cut_at(x, t.grid(*old[:run]), *given):
                made += _reshape(t, old[:run], new)
            old, new = old[run:], []
    made += [t.fresh(1) for _ in new]
    for dim, origin in zip(made, origins, strict=True):
        if dim.size != 1:
            t.name(dim.axis, origin)
    return Typed(tuple(made), x.static)


def _of_one_dimension(
    t: Typing, shape: Sequence[int], start: int, stop: int
) -> tuple[int, list[Origin | None]]:
    """Return what unflatten was given for ``shape[start:stop]``, and the place of the first.

    It passes the sizes of one dimension, in which may be ones that the run of others leaves out.
    """
    first, last = start, stop
    if t.called == "unflatten":
        while first and shape[first - 1] == 1:
            first -= 1
        while last < len(shape) and shape[last] == 1:
            last += 1
    places = [(a, b) for a in range(first, start + 1) for b in range(stop, last + 1) if b - a > 1]
    for a, b in sorted(places, key=lambda place: place[1] - place[0]):
        found = t.origins_of(shape[a:b])
        if any(found):
            return a, found
    return start, []


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
