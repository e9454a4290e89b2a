"""Reductions, scans and softmax over a dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from secateur.graph.typing import Dim, Typed, Typing

from .table import rule

Dims = int | Sequence[int] | None
AVERAGES = "averages over the axis"


def _reduce(
    t: Typing, x: Typed, dims: Dims, keepdim: bool, harm: str | None, *, average: bool = False
) -> Typed:
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        dims = tuple(range(len(x)))
    gone = {d % max(len(x), 1) for d in ([dims] if isinstance(dims, int) else dims)}
    kept: list[Dim] = []
    for i, dim in enumerate(x.dims):
        if i not in gone:
            kept.append(replace(dim, source=None))
            continue
        if dim.size > 1:
            t.reduce(dim, harm, average=average)
        if keepdim:
            kept.append(t.fresh(1))
    return Typed(tuple(kept), x.static)


@rule("sum", "nansum", "count_nonzero")
def add_up(t: Typing, x: Typed, dim: Dims = None, keepdim: bool = False, **_: Any) -> Typed:
    """A sum does not notice zeros."""
    return _reduce(t, x, dim, keepdim, None)


@rule("linalg_vector_norm", "norm")
def norm(
    t: Typing, x: Typed, p: Any = 2, dim: Dims = None, keepdim: bool = False, **_: Any
) -> Typed:
    """Neither does a p-norm, but for a negative p, which is led by the smallest."""
    smallest = isinstance(p, (int, float)) and p < 0
    harm = "takes an extreme value over the axis, zeros included" if smallest else None
    out = _reduce(t, x, dim, keepdim, harm)
    return Typed(tuple(map(t.never_zero, out.dims)), out.static) if smallest else out


@rule("mean")
def mean(t: Typing, x: Typed, dim: Dims = None, keepdim: bool = False, **_: Any) -> Typed:
    if t.called == "rms_norm" and isinstance(dim, (list, tuple)):  # torch composes it from a mean
        shape = [x[d].size for d in dim]
        for d, origin in zip(dim, t.origins_of(shape), strict=True):
            t.name(x[d].axis, origin)
    return _reduce(t, x, dim, keepdim, AVERAGES, average=True)


@rule("nanmean")
def nanmean(t: Typing, x: Typed, dim: Dims = None, keepdim: bool = False, **_: Any) -> Typed:
    return _reduce(t, x, dim, keepdim, AVERAGES)


@rule("logsumexp")
def logsumexp(t: Typing, x: Typed, dim: Dims, keepdim: bool = False) -> Typed:
    """A zero adds 1 to the sum of exponentials."""
    out = _reduce(t, x, dim, keepdim, "sums exponentials over the axis, zeros included")
    return Typed(tuple(map(t.never_zero, out.dims)), out.static)


@rule("var", "std")
def variance(
    t: Typing, x: Typed, dim: Any = None, _: Any = None, keepdim: bool = False, **__: Any
) -> Typed:
    """By place or by keyword: without a recorded gradient torch runs another overload."""
    dims = None if isinstance(dim, bool) else dim
    return _reduce(t, x, dims, keepdim, "takes the variance over the axis")


@rule("var_mean", "std_mean")
def variance_and_mean(t: Typing, x: Typed, *how: Any, **options: Any) -> Any:
    out = variance(t, x, *how, **options)
    return out, out


@rule("amax", "amin", "any", "all", "prod", "max.default", "min.default")
@rule("median.default", "nanmedian.default")
def extreme(t: Typing, x: Typed, dim: Dims = None, keepdim: bool = False, **_: Any) -> Typed:
    out = _reduce(t, x, dim, keepdim, "takes an extreme value over the axis, zeros included")
    return Typed(tuple(t.never_zero(d) for d in out.dims), out.static)


@rule("max.dim", "min.dim", "median.dim", "nanmedian.dim", "mode")
def extreme_with_index(t: Typing, x: Typed, dim: int = -1, keepdim: bool = False) -> Any:
    """A value of the axis, and where it was, which is a number of its positions."""
    out = extreme(t, x, dim, keepdim)
    places = Typed(tuple(t.never_zero(d, False) for d in out.dims))
    return out, replace(places, counts=x[dim].axis) if len(x) and x[dim].size > 1 else places


@rule("kthvalue")
def kth(t: Typing, x: Typed, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    if len(x):
        t.limit(x[dim], least=k)
    return extreme_with_index(t, x, dim, keepdim)


@rule("argmax", "argmin")
def argument(t: Typing, x: Typed, dim: int | None = None, keepdim: bool = False) -> Typed:
    t.freeze(x.dims if dim is None else x[dim], "positions are selected by value")
    return extreme(t, x, dim, keepdim)


@rule("aminmax")
def both_extremes(t: Typing, x: Typed, *, dim: Any = None, keepdim: bool = False) -> Any:
    out = extreme(t, x, dim, keepdim)
    return out, out


@rule("max.other", "min.other")
def pairwise(t: Typing, x: Typed, y: Typed) -> Typed:
    from .elementwise import broadcast

    return broadcast(t, x, y, zero="all")


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")
def softmax(t: Typing, x: Typed, dim: int, *_: Any, **__: Any) -> Typed:
    """A masked logit of 0 still takes its share."""
    if x[dim].size > 1:
        t.reduce(x[dim], "takes a softmax over the axis")
    return Typed(tuple(t.never_zero(d) for d in x.dims), x.static)


@rule("_fft_c2c", "_fft_r2c", "_fft_c2r")
def fourier(t: Typing, x: Typed, dim: Sequence[int], *_: Any, **__: Any) -> Typed:
    """Every frequency is made of all positions, and as many as there are."""
    out = x
    for d in dim:
        t.freeze(x[d], "a Fourier transform mixes its positions")
        out = out.but(d, t.fresh(t.out[0][d], "frequencies"))
    return Typed(tuple(replace(d, source=None) for d in out.dims), x.static)


@rule("renorm", "renorm_")
def renorm(t: Typing, x: Typed, p: Any, dim: int, *_: Any) -> Typed:
    """Each slice that is longer than a number is scaled to it; zeros add nothing to its length."""
    for place, each in enumerate(x.dims):
        if place != dim % len(x):
            t.reduce(each)
    return Typed(tuple(replace(d, source=None) for d in x.dims))


@rule("cumsum", "cumsum_")
def running_sum(t: Typing, x: Typed, dim: int, **_: Any) -> Typed:
    """A zero adds nothing to the running sum, though the sum itself is not zero there."""
    if x[dim].size > 1:
        t.reduce(x[dim])
    return x.but(dim, t.never_zero(x[dim], keep_const=False))


@rule("sort", "argsort")
def order(t: Typing, x: Typed, dim: int = -1, *_: Any, **options: Any) -> Any:
    """The values in their order, and where they were; along other dimensions each on its own."""
    dim = options.get("dim", dim)
    if not len(x) or isinstance(dim, bool):
        return ordered(t, x)
    t.freeze(x[dim], "positions are ordered by value")
    out = Typed(tuple(replace(d, source=None) for d in x.dims))
    places = Typed(tuple(t.never_zero(d, False) for d in x.dims), counts=x[dim].axis)
    return (out, places) if len(t.out) > 1 else places


@rule("cumprod", "logcumsumexp", "cummax", "cummin")
def ordered(t: Typing, x: Typed, *args: Any, **options: Any) -> Any:
    """What comes out depends on every position's rank or place."""
    t.freeze(x.dims, "positions are ordered by value")
    outs = tuple(t.opaque(shape) for shape in t.out)
    return outs if len(outs) > 1 else outs[0]
