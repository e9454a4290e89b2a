"""Matrix products and convolutions: two axes meet, are multiplied and summed away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from secateur.graph.axes import Ragged
from secateur.graph.conditions import either, every
from secateur.graph.typing import Dim, Typed, Typing

from .table import rule


def own(dim: Dim) -> Dim:
    """Return an output dimension: it comes from this operand, but is not the operand's any more."""
    return replace(dim, const=dim.zero, source=None)


def with_bias(t: Typing, dim: Dim, bias: Dim | None) -> Dim:
    """Return a dimension after a bias was added: zero only if the bias is masked too."""
    if bias is None:
        return dim
    if bias.size == 1:
        return t.never_zero(dim)
    t.same(dim, bias)
    return replace(dim, zero=every(dim.zero, bias.zero), const=every(dim.const, bias.const))


def across(t: Typing, dims: Sequence[Dim], bias: Any) -> tuple[Dim, ...]:
    """Return the dimensions that a bias is broadcast over: of zeros they become constants."""
    if bias is None:
        return tuple(map(own, dims))
    return tuple(replace(t.never_zero(d), const=d.zero) for d in dims)


@rule("mm")
def mm(t: Typing, x: Typed, y: Typed, *_: Any) -> Typed:
    t.contract(x[1], y[0])
    return Typed((own(x[0]), own(y[1])), x.static and y.static)


@rule("addmm", "addmm_")
def addmm(t: Typing, bias: Typed, x: Typed, y: Typed, **_: Any) -> Typed:
    rows, columns = mm(t, x, y).dims
    if len(bias) == 2 and bias[0].size != 1:
        t.same(rows, bias[0])
        rows = replace(rows, zero=every(rows.zero, bias[0].zero))
    else:
        (rows,) = across(t, [rows], bias)
    return Typed((rows, with_bias(t, columns, bias[-1])))


@rule("linear")
def linear(t: Typing, x: Typed, weight: Typed, bias: Typed | None = None) -> Typed:
    t.contract(x[-1], weight[1])
    out = with_bias(t, own(weight[0]), bias[0] if bias else None)
    return Typed((*across(t, x.dims[:-1], bias), out))


@rule("mv")
def mv(t: Typing, x: Typed, y: Typed) -> Typed:
    t.contract(x[1], y[0])
    return Typed((own(x[0]),))


@rule("addmv", "addmv_")
def addmv(t: Typing, bias: Typed, x: Typed, y: Typed, **_: Any) -> Typed:
    return Typed((with_bias(t, mv(t, x, y)[0], bias[0]),))


@rule("dot", "vdot")
def dot(t: Typing, x: Typed, y: Typed) -> Typed:
    t.contract(x[0], y[0])
    return Typed(())


@rule("bmm")
def bmm(t: Typing, x: Typed, y: Typed, *_: Any) -> Typed:
    t.same(x[0], y[0])
    t.contract(x[2], y[1])
    zero = either(x[0].zero, y[0].zero)
    batch = Dim(x[0].axis, zero, zero)
    return Typed((batch, own(x[1]), own(y[2])), x.static and y.static)


@rule("baddbmm", "baddbmm_")
def baddbmm(t: Typing, bias: Typed, x: Typed, y: Typed, **_: Any) -> Typed:
    from .elementwise import broadcast

    return broadcast(t, bias, bmm(t, x, y), zero="all")


@rule("addbmm", "addbmm_")
def addbmm(t: Typing, bias: Typed, x: Typed, y: Typed, **_: Any) -> Typed:
    """A sum over the batch of products."""
    from .elementwise import broadcast

    t.contract(x[0], y[0])
    t.contract(x[2], y[1])
    return broadcast(t, bias, Typed((own(x[1]), own(y[2]))), zero="all")


@rule("addr")
def addr(t: Typing, bias: Typed, x: Typed, y: Typed, **_: Any) -> Typed:
    from .elementwise import broadcast

    return broadcast(t, bias, Typed((own(x[0]), own(y[0]))), zero="all")


@rule("_trilinear")
def trilinear(
    t: Typing,
    *operands: Any,
    **_: Any,
) -> Typed:
    """The product of three tensors with dimensions of 1 put in, summed over some of them."""
    tensors, expanded, summed = operands[:3], operands[3:6], {*operands[6]}
    rank = len(tensors[0]) + len(expanded[0])
    columns: list[list[Dim]] = [[] for _ in range(rank)]
    for tensor, ones in zip(tensors, expanded, strict=True):
        places = [place for place in range(rank) if place not in ones]
        for place, dim in zip(places, tensor.dims, strict=True):
            columns[place].append(dim)
    dims = []
    for place, column in enumerate(columns):
        size = max(dim.size for dim in column)
        first, *others = [dim for dim in column if dim.size == size]
        if place not in summed:
            for other in others:
                t.same(first, other)
            dims.append(
                Dim(first.axis, zero := either(first.zero, *(d.zero for d in others)), zero)
            )
        elif others:
            for other in others:
                t.contract(first, other)
        else:
            t.reduce(first)
    return Typed(tuple(dims))


@rule("conv_tbc")
def conv_tbc(t: Typing, x: Typed, weight: Typed, bias: Typed, *_: Any) -> Typed:
    """Input (T, N, in) with weight (K, in, out)."""
    t.freeze(weight[0], "a kernel dimension")
    t.contract(x[2], weight[1])
    out = with_bias(t, own(weight[2]), bias[0])
    space = _through(t, x[0], t.out[0][0], False, bias)
    return Typed((space, *across(t, [x[1]], bias), out))


@rule("convolution", "_convolution", "convolution_overrideable", "cudnn_convolution")
def convolution(
    t: Typing,
    x: Typed,
    weight: Typed,
    bias: Typed | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    *_: Any,
) -> Typed:
    """Input (N, in, *) with weight (out, in/groups, *); transposed (in, out/groups, *)."""
    t.freeze(weight.dims[2:], "a kernel dimension")
    ours, theirs = (weight[0], weight[1]) if transposed else (weight[1], weight[0])
    if groups == 1:
        t.contract(x[1], ours)
        out = own(theirs)
    else:
        out = _grouped(t, x[1], weight, groups, transposed)
    out = with_bias(t, out, bias[0] if bias else None)
    per_dim = ([*each] * (len(x) - 2 if len(each) == 1 else 1) for each in (stride, padding))
    steps = zip(weight.shape[2:], *per_dim, strict=True)
    space = [
        _through(t, dim, size, step == (1, 1, 0), bias)
        for dim, size, step in zip(x.dims[2:], t.out[0][2:], steps, strict=True)
    ]
    return Typed((*across(t, x.dims[:1], bias), out, *space))


def _through(t: Typing, dim: Dim, size: int, pointwise: bool, bias: Typed | None) -> Dim:
    """Return a dimension of space after a convolution: itself where each position is alone."""
    if pointwise and dim.size == size:
        return across(t, [dim], bias)[0]
    t.freeze(dim, "a spatial dimension")
    return t.fresh(size, "a spatial dimension")


_CONVOLUTIONS = "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"


def _grouped(t: Typing, x: Dim, weight: Typed, groups: int, transposed: bool) -> Dim:
    """The channels are a grid: groups × channels of one group; only the latter are summed."""
    row = t.fresh(groups)  # the groups themselves
    t.name(row.axis, t.argument_of(_CONVOLUTIONS, "groups", 6, groups))
    per_group = x.size // groups
    wide = weight[0].size // groups
    if t.ragged and not transposed and per_group > 1 and wide > 1:
        return _ragged(t, x, weight, groups)
    if transposed:  # weight (groups · in, out)
        t.same(x, weight[0])
        t.same(x, _grid(t, row, t.fresh(per_group)))
        inner = t.split(x, per_group)
        if inner and per_group > 1:
            t.contract(inner[1], replace(inner[1], zero=weight[0].zero))
        out = _grid(t, row, weight[1])
        # A group of zeros is one that reads zeros, or through rows of zeros; a channel is zero when
        # its columns are.
        zero = every(either(x.zero, weight[0].zero), weight[1].zero)
        return Dim(out.axis, zero, zero)
    if per_group == 1:
        t.same(x, row)
    else:
        t.same(x, _grid(t, row, weight[1]))
        t.contract(Dim(weight[1].axis, x.zero, x.const), weight[1])
    t.same(weight[0], _grid(t, row, t.fresh(wide)))
    zero = weight[0].zero
    if per_group == 1 == wide:  # depthwise: an input channel of zeros is an output channel of zeros
        zero = either(zero, x.zero)
    return Dim(weight[0].axis, zero, weight[0].zero)


def _ragged(t: Typing, x: Dim, weight: Typed, groups: int) -> Dim:
    """Each group keeps channels of its own, equally many; the number of groups stays."""
    sides = []
    for dim in (x, weight[0]):
        pieces = t.pieces(dim, [dim.size // groups] * groups)
        for piece in pieces[1:]:
            t.equal(pieces[0], piece)
        sides.append(pieces)
    inputs = Ragged(tuple(piece.axis for piece in sides[0]))
    t.same(weight[1], Dim(inputs))
    t.contract(Dim(inputs, x.zero, x.const), weight[1])
    return Dim(weight[0].axis, weight[0].zero, weight[0].zero)


def _grid(t: Typing, row: Dim, column: Dim) -> Dim:
    return row if column.size == 1 else t.grid(row, column)
