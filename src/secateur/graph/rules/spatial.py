"""Pooling, interpolation and padding: channels pass, space changes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from secateur.graph.axes import Atom, concat
from secateur.graph.conditions import every
from secateur.graph.origins import Origin
from secateur.graph.typing import Dim, Typed, Typing

from .table import rule


def _resample(t: Typing, x: Typed, space: int) -> Any:
    kept = x.dims[: len(x) - space]
    t.freeze(x.dims[len(x) - space :], "a spatial dimension")
    indices = tuple(t.never_zero(d, False) for d in kept)  # where a maximum was
    outs = [
        Typed(first + tuple(t.fresh(s, "a spatial dimension") for s in shape[len(kept) :]))
        for first, shape in zip((kept, *[indices] * len(t.out)), t.out, strict=False)
    ]
    return tuple(outs) if len(outs) > 1 else outs[0]


@rule(
    "avg_pool1d",
    "adaptive_avg_pool1d",
    "max_pool1d",
    "upsample_nearest1d",
    "upsample_linear1d",
    "_upsample_nearest_exact1d",
)
def line(t: Typing, x: Typed, *_: Any, **__: Any) -> Any:
    return _resample(t, x, 1)


@rule(
    """avg_pool2d max_pool2d max_pool2d_with_indices adaptive_avg_pool2d _adaptive_avg_pool2d
    adaptive_max_pool2d upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d
    upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad2d
    replication_pad2d mkldnn_max_pool2d"""
)
def plane(t: Typing, x: Typed, *_: Any, **__: Any) -> Any:
    return _resample(t, x, 2)


@rule("reflection_pad1d", "replication_pad1d")
def line_padding(t: Typing, x: Typed, *_: Any) -> Any:
    return _resample(t, x, 1)


@rule(
    """avg_pool3d max_pool3d_with_indices _adaptive_avg_pool3d adaptive_avg_pool3d
    adaptive_max_pool3d upsample_nearest3d _upsample_nearest_exact3d upsample_trilinear3d
    reflection_pad3d replication_pad3d"""
)
def volume(t: Typing, x: Typed, *_: Any, **__: Any) -> Any:
    return _resample(t, x, 3)


@rule("max_unpool2d", "max_unpool3d")
def unpool(t: Typing, x: Typed, places: Typed, size: Sequence[int], *_: Any) -> Any:
    """Each channel is put back where its maxima were; zeros everywhere else."""
    for one, other in zip(x.dims, places.dims, strict=True):
        t.same(one, other)
    return _resample(t, x, len(size))


@rule("constant_pad_nd")
def pad(t: Typing, x: Typed, amounts: Sequence[int], value: float = 0) -> Typed:
    """Each padded dimension is [before + old + after]; ``amounts`` starts at the last dimension."""
    origins = t.origins_of(amounts)
    out = x
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i], amounts[2 * i + 1]
        dim = len(x) - 1 - i
        if before or after:
            pair = (origins[2 * i], origins[2 * i + 1])
            if x.static:
                t.table(x, x[dim], filter(None, pair))
            out = out.but(dim, _padded(t, x[dim], before, after, pair))
    if value == 0:
        return out
    return Typed(tuple(map(t.never_zero, out.dims)), out.static)  # the edges of space are not zero


def _padded(t: Typing, dim: Dim, before: int, after: int, origins: Sequence[Origin | None]) -> Dim:
    if before < 0 or after < 0:
        t.freeze(dim, "padding cuts it")
        return t.fresh(dim.size + before + after, "padding cuts it")
    if dim.size == 1:
        t.freeze(dim, "a single position is padded")
    edges = [Atom(before), Atom(after)]
    for edge, origin in zip(edges, origins, strict=True):
        if edge.size:
            t.name(edge, origin)
    axis = concat(edges[0], dim.axis, edges[1])
    return Dim(axis, every(dim.zero), every(dim.const))


@rule("pixel_shuffle")
def pixel_shuffle(t: Typing, x: Typed, factor: int) -> Typed:
    """Channels (c · r · r) become c, and the rest goes into space."""
    t.freeze(x.dims[-2:], "a spatial dimension")
    halves = t.split(x[-3], factor * factor)
    if halves:
        t.freeze(halves[1], "it becomes space")
    channel = halves[0] if halves else t.fresh(t.out[0][-3], "a grid that cannot be split")
    return Typed((*x.dims[:-3], channel, *(t.fresh(s, "space") for s in t.out[0][-2:])))


@rule("pixel_unshuffle")
def pixel_unshuffle(t: Typing, x: Typed, factor: int) -> Typed:
    t.freeze(x.dims[-2:], "it becomes channels")
    channel = t.grid(x[-3], t.fresh(factor * factor, "it comes from space"))
    return Typed((*x.dims[:-3], channel, *(t.fresh(s, "space") for s in t.out[0][-2:])))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(t: Typing, x: Typed, groups: int) -> Typed:
    """(groups · c) becomes (c · groups)."""
    halves = t.split(x[1], x[1].size // groups)
    if not halves:
        return x.but(1, t.fresh(x[1].size, "a grid that cannot be shuffled"))
    t.name(halves[0].axis, t.origin_of(groups))
    return x.but(1, t.grid(halves[1], halves[0]))


@rule("im2col")
def windows_to_channels(t: Typing, x: Typed, kernel: Sequence[int], *_: Any) -> Typed:
    """Channels c become (c · kernel positions); space becomes one dimension of windows."""
    t.freeze(x.dims[-2:], "a spatial dimension")
    window = t.fresh(prod(kernel), "the positions of a kernel")
    channel = x[-3] if window.size == 1 else t.grid(x[-3], window)
    return Typed((*x.dims[:-3], channel, t.fresh(t.out[0][-1], "a spatial dimension")), x.static)


@rule("col2im")
def channels_to_windows(
    t: Typing, x: Typed, size: Sequence[int], kernel: Sequence[int], *_: Any
) -> Typed:
    """The reverse: what windows have in common is added up."""
    t.freeze(x[-1], "a spatial dimension")
    halves = t.split(x[-2], prod(kernel))
    if halves:
        t.freeze(halves[1], "the positions of a kernel")
    channel = halves[0] if halves else t.fresh(t.out[0][-3], "a grid that cannot be split")
    return Typed((*x.dims[:-2], channel, *(t.fresh(s, "a spatial dimension") for s in size)))


@rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def sample(t: Typing, x: Typed, grid: Typed, *_: Any) -> Typed:
    """Every channel is read at the same places."""
    t.same(x[0], grid[0])
    t.freeze([*x.dims[2:], *grid.dims[1:]], "a spatial dimension")
    return Typed((*x.dims[:2], *(t.fresh(s, "a spatial dimension") for s in t.out[0][2:])))
