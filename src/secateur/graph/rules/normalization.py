"""Batch, layer, group and RMS normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from secateur.graph.conditions import Shared, either, every
from secateur.graph.typing import Dim, Typed, Typing

from .table import rule


def _affine(t: Typing, x: Dim, weight: Dim | None, bias: Dim | None) -> Dim:
    """Return ``normalised(x) · weight + bias``: zero when both are masked, whatever x is."""
    for parameter in (weight, bias):
        if parameter is not None:
            t.same(x, parameter)
    if weight is None:
        return t.never_zero(x)
    zero = every(weight.zero, bias.zero) if bias else weight.zero
    return Dim(x.axis, zero, either(x.const, weight.zero))


def _shifted(t: Typing, dim: Dim, always: Any = True) -> Dim:
    """Return a dimension across which a mean or a bias is added: of zeros it becomes constants."""
    return t.never_zero(dim) if always is not None else replace(dim, source=None)


def _at(parameter: Typed | None, dim: int = 0) -> Dim | None:
    return parameter[dim] if parameter is not None and len(parameter) else None


@rule(
    """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
    _native_batch_norm_legit_functional cudnn_batch_norm miopen_batch_norm batch_norm
    _batch_norm_no_update _batch_norm_with_update"""
)
def batch_norm(
    t: Typing, x: Typed, weight: Any, bias: Any, *rest: Any, **_: Any
) -> tuple[Any, ...]:
    """Each channel on its own; running statistics, where there are any, belong to it."""
    for statistic in rest[:2]:
        if isinstance(statistic, Typed) and len(statistic):
            t.same(x[1], statistic[0])
    training = rest[2] if len(rest) > 2 and isinstance(rest[2], bool) else rest[0]
    if training is True:
        for dim in (x[0], *x.dims[2:]):
            t.reduce(dim, "takes mean and variance over the axis, as in training")
    others = [_shifted(t, d) for d in x.dims]  # the running mean is subtracted at least
    out = Typed(tuple(others)).but(1, _affine(t, x[1], _at(weight), _at(bias)))
    return _with_statistics(t, out, x[1])


def _with_statistics(t: Typing, out: Typed, channel: Dim) -> tuple[Any, ...]:
    """The saved mean and deviation are per channel, or empty in eval mode."""
    rest = [
        Typed((t.never_zero(channel),)) if shape == (channel.size,) else t.opaque(shape)
        for shape in t.out[1:]
    ]
    return (out, *rest)


@rule("native_layer_norm", "layer_norm")
def layer_norm(
    t: Typing,
    x: Typed,
    normalized_shape: Sequence[int],
    weight: Typed | None = None,
    bias: Any = None,
    *_: Any,
) -> tuple[Any, ...]:
    """Mean and variance over the trailing dimensions: their number of positions matters."""
    bias = bias if isinstance(bias, Typed) else None
    first = len(x) - len(normalized_shape)
    dims = list(x.dims)
    for i, origin in enumerate(t.origins_of(normalized_shape)):
        dim = x[first + i]
        t.reduce(dim, "normalises over the axis: its mean and variance change with the width")
        t.name(dim.axis, origin)
        dims[first + i] = _affine(t, dim, _at(weight, i), _at(bias, i))
    dims[:first] = [_shifted(t, d, bias) for d in x.dims[:first]]
    out = Typed(tuple(dims))
    kept = tuple(t.never_zero(d) for d in x.dims[:first])
    ones = tuple(t.fresh(1) for _ in normalized_shape)
    return (out, *(Typed(kept + ones) for _ in t.out[1:]))


@rule("_fused_rms_norm", "rms_norm")
def rms_norm(
    t: Typing, x: Typed, normalized_shape: Sequence[int], weight: Typed | None = None, *_: Any
) -> tuple[Any, ...]:
    """The root of the mean of squares over the trailing dimensions: zeros stay zero."""
    first = len(x) - len(normalized_shape)
    dims = [replace(d, source=None) for d in x.dims]
    for i, origin in enumerate(t.origins_of(normalized_shape)):
        dim, scale = x[first + i], _at(weight, i)
        t.reduce(dim, "averages squares over the axis", average=True)
        t.name(dim.axis, origin)
        if scale is not None:
            t.same(dim, scale)
        zero = dim.zero if scale is None else either(dim.zero, scale.zero)
        steady = every(dim.const, Shared(dim.axis))  # the root is of all positions
        dims[first + i] = Dim(dim.axis, zero, either(steady, zero))
    root = tuple(t.never_zero(d) for d in x.dims[:first])
    ones = tuple(t.fresh(1) for _ in normalized_shape)
    return (Typed(tuple(dims)), *(Typed(root + ones) for _ in t.out[1:]))


@rule("native_group_norm", "group_norm")
def group_norm(
    t: Typing, x: Typed, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int, eps: float
) -> tuple[Any, ...]:
    """Mean and variance over the channels of a group: whole groups can go exactly."""
    halves = t.split(x[1], x[1].size // groups)
    if halves:
        t.name(halves[0].axis, t.argument_of("group_norm", "num_groups", 1, groups))
        if halves[1].size > 1:
            t.reduce(halves[1], "normalises over the channels of a group")
    for dim in x.dims[2:]:
        t.reduce(dim, "normalises over space")
    others = [_shifted(t, d, bias) for d in x.dims]
    out = Typed(tuple(others)).but(1, _affine(t, x[1], _at(weight), _at(bias)))
    statistics = [t.opaque(shape) for shape in t.out[1:]]
    return (out, *statistics)


@rule("_weight_norm_interface")
def weight_norm(t: Typing, v: Typed, g: Typed, dim: int = 0) -> tuple[Any, ...]:
    """w = g · v / ‖v‖, the norm over all dimensions but one.

    To mask a position of that one, g suffices; with v masked too it would be 0 ÷ 0.
    """
    t.same(v[dim], g[dim])
    for i, d in enumerate(v.dims):
        if i != dim:
            t.reduce(d)
    source = v[dim].source
    if source and g[dim].source:
        t.spared.add(source)
    else:
        t.reduce(v[dim], "divides by its own norm, which is 0 when masked")
    kept = replace(v[dim], zero=g[dim].zero, source=None)
    return v.but(dim, kept), Typed(tuple(t.never_zero(d) for d in g.dims))
