"""Functions of one element, and of several with broadcasting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from secateur.graph.conditions import ALWAYS, Never, Shared, either, every
from secateur.graph.typing import Dim, Site, Typed, Typing

from .table import rule


def broadcast(t: Typing, *operands: Any, zero: str) -> Typed:
    """Return the type of an element-wise function of tensors and numbers.

    ``zero`` says when a result is zero: if ``"all"`` operands are, ``"any"`` one is, the
    ``"first"`` is, or ``"never"`` for sure.
    """
    tensors = [o for o in operands if isinstance(o, Typed)]
    for operand in operands:
        t.number(operand)
    if not tensors:
        return t.opaque(t.out[0])
    rank = max(map(len, tensors))
    dims = []
    for place in range(-rank, 0):
        meeting = [(x, x[place]) for x in tensors if len(x) >= -place]
        size = next((d.size for _, d in meeting if d.size != 1), 1)
        full = [(x, d) for x, d in meeting if d.size == size]
        if size == 1:
            dims.append(replace(full[0][1], source=None))
            continue
        for _, d in full[1:]:
            t.same(full[0][1], d)
        dims.append(_meet(operands, tensors, full, zero))
    if len(tensors) == 1 and zero != "never" and len(operands) == 1:
        return tensors[0]
    return Typed(tuple(dims), all(x.static for x in tensors))


def _meet(
    operands: tuple[Any, ...], tensors: list[Typed], full: list[tuple[Typed, Dim]], zero: str
) -> Dim:
    axis = full[0][1].axis
    never = Never(axis)
    absent = [x for x in tensors if not any(x is y for y, _ in full)]
    steady = all(x.static for x in absent)
    const = every(*(d.const for _, d in full), *(() if steady else (Shared(axis),)))
    numbers = [o for o in operands if isinstance(o, (int, float, complex))]
    if zero == "all":
        nothing_added = not absent and all(n == 0 for n in numbers)
        result = every(*(d.zero for _, d in full)) if nothing_added else never
    elif zero == "any":
        result = either(*(d.zero for _, d in full))
    elif zero == "first":
        result = full[0][1].zero if full[0][0] is operands[0] else never
    else:
        result = never
    return Dim(axis, result, either(const, result))


@rule(
    """relu relu_ relu6 relu6_ gelu gelu_ silu silu_ mish mish_ tanh tanh_ hardswish hardswish_
    leaky_relu leaky_relu_ elu elu_ celu celu_ selu selu_ abs abs_ neg neg_ sign sgn sqrt sqrt_
    sin sin_ tan asin atan sinh asinh atanh square erf expm1 log1p floor floor_ ceil ceil_ round
    round_ trunc hardshrink softshrink softsign nan_to_num clone alias detach contiguous
    lift_fresh lift_fresh_copy to real positive deg2rad rad2deg dropout native_dropout
    feature_dropout alpha_dropout view_as _conj conj resolve_conj frac _to_dense i1 special_i1
    special_i1e special_entr"""
)
def keeps_zero(t: Typing, x: Typed, *_: Any, **__: Any) -> Typed:
    """f(0) = 0."""
    return Typed(tuple(replace(d, source=None) for d in x.dims), x.static)


@rule("_to_copy")
def cast(t: Typing, x: Typed, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Typed:
    """The tensor itself in another type, as a weight under autocast; not so in whole numbers."""
    real = dtype is None or dtype.is_floating_point
    return x if real else keeps_zero(t, x)


@rule("clone.default", "alias.default", "detach.default", "lift_fresh.default")
def same_tensor(t: Typing, x: Typed, **_: Any) -> Typed:
    """The tensor itself: a view of a parameter's weight still is that weight."""
    return x


@rule(
    """sigmoid sigmoid_ hardsigmoid hardsigmoid_ exp exp_ exp2 cos cos_ cosh acos softplus
    log_sigmoid_forward log log_ log2 log10 rsqrt rsqrt_ reciprocal reciprocal_ erfc logical_not
    bitwise_not isnan isinf isfinite digamma lgamma threshold erfinv logit logical_not_ sinc sinc_
    i0 i0_ special_i0 special_i0e special_erfcx special_log_ndtr special_bessel_j0"""
)
def moves_zero(t: Typing, x: Typed, *_: Any, **__: Any) -> Typed:
    """f(0) ≠ 0, or not for sure."""
    return Typed(tuple(t.never_zero(d) for d in x.dims), x.static)


@rule("hardtanh", "hardtanh_", "clamp", "clamp_", "clip", "clip_")
def clamp(t: Typing, x: Typed, low: Any = None, high: Any = None, **_: Any) -> Typed:
    """Zero stays when the bounds are numbers around it."""
    number = all(isinstance(b, (int, float)) or b is None for b in (low, high))
    if t.reason.op.startswith("aten.hardtanh"):
        low, high = -1 if low is None else low, 1 if high is None else high
    around = number and (low is None or low <= 0) and (high is None or high >= 0)
    if around:
        return keeps_zero(t, x)
    return broadcast(t, x, *(b for b in (low, high) if b is not None), zero="never")


@rule("clamp_min", "clamp_min_")
def clamp_min(t: Typing, x: Typed, low: Any) -> Typed:
    return clamp(t, x, low, None)


@rule("clamp_max", "clamp_max_")
def clamp_max(t: Typing, x: Typed, high: Any) -> Typed:
    return clamp(t, x, None, high)


@rule(
    """add add_ sub sub_ rsub maximum minimum fmax fmin logical_or logical_xor bitwise_or
    bitwise_xor hypot lerp lerp_ heaviside nextafter gcd lcm"""
)
def sums(t: Typing, *operands: Any, **_: Any) -> Typed:
    """Zero when all operands are."""
    return broadcast(t, *operands, zero="all")


@rule("mul", "mul_", "logical_and", "bitwise_and", "special_xlog1py")
def products(t: Typing, *operands: Any) -> Typed:
    """Zero when one operand is."""
    return broadcast(t, *operands, zero="any")


@rule("div", "div_", "true_divide", "floor_divide", "remainder", "fmod", "copysign", "ldexp")
def quotient(t: Typing, x: Any, y: Any, **_: Any) -> Typed:
    """Zero when the numerator is; where both are, the masked model computes 0 ÷ 0."""
    out = broadcast(t, x, y, zero="first")
    if not isinstance(y, Typed):
        return out
    divisors = {place - len(y): d for place, d in enumerate(y.dims)}
    for place in range(-len(out), 0):
        if place in divisors and divisors[place].size != 1 and divisors[place].zero != ALWAYS:
            t.sites.append(_division(t, divisors[place]))
    return out


def _division(t: Typing, divisor: Dim) -> Site:
    # Exact unless the divisor is zero when masked: then 0 ÷ 0 is not a number.
    never = Never(divisor.axis)
    nonzero = ALWAYS if isinstance(divisor.zero, Never) else never
    return Site(divisor.axis, nonzero, nonzero, t.because("divides by masked positions"))


@rule("pow", "pow_", "float_power")
def power(t: Typing, x: Any, exponent: Any) -> Typed:
    """Zero stays zero under a positive power that is a number."""
    positive = isinstance(exponent, (int, float)) and exponent > 0
    return broadcast(t, x, exponent, zero="first" if positive else "never")


@rule("linalg_cross")
def cross(t: Typing, x: Typed, y: Typed, *, dim: int = -1) -> Typed:
    """Products of three coordinates with the two others."""
    t.freeze([x[dim], y[dim]], "its three positions are coordinates")
    return broadcast(t, x, y, zero="any")


@rule("addcmul", "addcmul_")
def add_product(t: Typing, x: Typed, a: Typed, b: Typed, **_: Any) -> Typed:
    return broadcast(t, x, broadcast(t, a, b, zero="any"), zero="all")


@rule("addcdiv", "addcdiv_")
def add_quotient(t: Typing, x: Typed, a: Typed, b: Typed, **_: Any) -> Typed:
    return broadcast(t, x, quotient(t, a, b), zero="all")


@rule("xlogy")
def times_logarithm(t: Typing, x: Any, y: Any) -> Typed:
    """0 · log y is 0, but x · log 0 is not."""
    return broadcast(t, x, y, zero="first")


@rule("where.self")
def where(t: Typing, condition: Typed, x: Typed, y: Typed) -> Typed:
    """Zero when both choices are, whatever is chosen."""
    return broadcast(t, broadcast(t, x, y, zero="all"), condition, zero="first")


@rule("masked_fill", "masked_fill_")
def masked_fill(t: Typing, x: Typed, mask: Typed, value: Any) -> Typed:
    """Filling with zero keeps zeros; with anything else it does not."""
    return broadcast(t, x, mask, zero="first" if value == 0 else "never")


@rule("copy_", "copy")
def copy(t: Typing, x: Typed, source: Typed, *_: Any, **__: Any) -> Typed:
    """The values are the source's, so are the conditions."""
    out = broadcast(t, source, x, zero="first")
    return Typed(out.dims, source.static)


@rule("_prelu_kernel", "prelu")
def prelu(t: Typing, x: Typed, slope: Typed) -> Typed:
    return broadcast(t, x, slope, zero="first")


@rule("eq ne lt le gt ge isclose eq_ ne_ lt_ le_ gt_ ge_ atan2 logaddexp logaddexp2")
def compares(t: Typing, *operands: Any, **_: Any) -> Typed:
    return broadcast(t, *operands, zero="never")


@rule("polygamma")
def polygamma(t: Typing, n: int, x: Typed) -> Typed:
    return moves_zero(t, x)


@rule("frexp")
def mantissa_and_exponent(t: Typing, x: Typed) -> tuple[Typed, Typed]:
    """Both are 0 for 0."""
    return keeps_zero(t, x), keeps_zero(t, x)


@rule("bitwise_left_shift", "bitwise_right_shift", "rrelu_with_noise", "rrelu_with_noise_")
def led_by_first(t: Typing, x: Any, y: Any, *_: Any, **__: Any) -> Typed:
    """Zero where the first operand is."""
    return broadcast(t, x, y, zero="first")


@rule(
    """silu_backward gelu_backward sigmoid_backward tanh_backward threshold_backward elu_backward
    hardswish_backward hardsigmoid_backward hardtanh_backward leaky_relu_backward mish_backward
    softplus_backward softshrink_backward hardshrink_backward log_sigmoid_backward
    logit_backward"""
)
def gradient(t: Typing, incoming: Typed, *operands: Any, **_: Any) -> Typed:
    """A derivative inside a forward (a force is one of an energy): zero where what comes in is."""
    meeting = [o for o in operands if isinstance(o, Typed) and o.shape != (0,)]
    return broadcast(t, incoming, *meeting, zero="first")


@rule("fake_quantize_per_tensor_affine_cachemask")
def rounded(t: Typing, x: Typed, *_: Any) -> tuple[Typed, Typed]:
    """Zero is one of the steps; which elements were within their range is told, too."""
    return keeps_zero(t, x), moves_zero(t, x)


@rule("fake_quantize_per_channel_affine_cachemask")
def rounded_by_channel(
    t: Typing, x: Typed, scale: Typed, zero: Typed, axis: int, *_: Any
) -> tuple[Typed, Typed]:
    for each in (scale, zero):
        t.same(x[axis], each[0])
    return rounded(t, x)


@rule("glu")
def glu(t: Typing, x: Typed, dim: int = -1) -> Typed:
    """The first half times the sigmoid of the second: the halves are one axis."""
    half, gate = t.pieces(x[dim], [x[dim].size // 2] * 2)
    t.same(half, gate)
    return x.but(dim, half)
