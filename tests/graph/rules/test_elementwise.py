"""Functions of one element and of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.rules.harness import (
    Case,
    Net,
    check,
    cut_half,
    features,
    layer,
    numbers,
    over,
    structure_of,
    two,
)
from tests.graph.rules.laws import Law

CASES = {
    "add": two(lambda a, b: a + b, exact={"a": 8}),
    "mul": two(lambda a, b: a * torch.sigmoid(b), exact={"a": 8}),
    "where": two(lambda a, b: torch.where(a > 0, b, a), exact={"a": 8}),
    "maximum": two(torch.maximum, exact={"a": 8}),
    "div-by-positive": two(lambda a, b: a / (1 + b.abs()), exact={"a": 8}),
    **{
        name: Case(  # beside what is not a number goes something that is
            Net(
                lambda m, x, f=f: (m.c(f(m.a(x), m.b(x))), x),
                a=nn.Linear(3, 8),
                b=nn.Linear(3, 8),
                c=nn.Linear(8, 2),
            ),
            numbers(4, 3),
            exact={},
            inexact={"a": "divides by masked positions"},
        )
        for name, f in {
            "div-by-zero": lambda a, b: a / b,
            "addcdiv-by-zero": lambda a, b: torch.addcdiv(a, a, b),
        }.items()
    },
    "scale-parameter": features(lambda m, x: x * m.s, s=nn.Parameter(torch.ones(8))),
    "prelu": layer(nn.PReLU(8)),
    "in-place": features(lambda m, x: x.add_(1).relu_()),
}


@over(CASES)
def test_elementwise_when_half_is_cut_then_the_groups_are_these_and_behave_as_they_say(case):
    check(case)


def functions(module: Any, names: str) -> dict[str, Callable[[Tensor], Tensor]]:
    return {name: getattr(module, name) for name in names.split()}


# Element-wise functions: exact where f(0) = 0, or where a weight that is masked too reads it.

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **functions(
        F,
        """relu relu6 gelu silu mish tanh hardswish leaky_relu elu celu selu tanhshrink softsign
        hardshrink softshrink hardtanh logsigmoid softplus sigmoid hardsigmoid""",
    ),
    **functions(
        torch,
        """abs neg sign sgn sin tan atan sinh asinh square erf expm1 floor ceil round trunc
        nan_to_num frac cos cosh exp exp2 erfc deg2rad""",
    ),
    "sqrt": lambda x: x.abs().sqrt(),
    "log": lambda x: (x.abs() + 2).log(),
    "rsqrt": lambda x: (x * x + 1).rsqrt(),
    "clamp-around-zero": lambda x: x.clamp(-1, 1),
    "clamp-above-zero": lambda x: x.clamp(0.5, 1),
    "clamp_min-zero": lambda x: x.clamp(min=0),
    "clamp_min-above-zero": lambda x: torch.clamp_min(x, 0.5),
    "hardtanh-above-zero": lambda x: F.hardtanh(x, 0.5, 1),
    "threshold": lambda x: F.threshold(x, 0.1, 5),
    "add-number": lambda x: x + 1,
    "add-zero": lambda x: x + 0,
    "add-itself": lambda x: x + x,
    "subtract-from": lambda x: 1 - x,
    "mul-number": lambda x: 3 * x,
    "div-number": lambda x: x / 3,
    "remainder-number": lambda x: x % 2,
    "power-2": lambda x: x**2,
    "power-0": lambda x: x**0,
    "power-negative": lambda x: (x * x + 1) ** -1,
    "base-2": lambda x: 2**x,
    "where-scaled": lambda x: torch.where(x > 0, x, 2 * x),
    "where-moved": lambda x: torch.where(x > 0, x, x + 1),
    "masked_fill-zero": lambda x: x.masked_fill(x > 1, 0.0),
    "masked_fill-one": lambda x: x.masked_fill(x < 1, 1.0),
    "equals": lambda x: (x == 0).to(x),
    "zeros_like": torch.zeros_like,
    "ones_like": torch.ones_like,
    "full_like": lambda x: torch.full_like(x, 2),
    "copy": lambda x: torch.empty_like(x).copy_(x + 1),
    "fill": lambda x: x.clone().fill_(2),
    "add-in-place": lambda x: x.clone().add_(1),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_function_when_its_values_are_summed_then_it_is_exact_if_it_maps_zero_to_zero(function):
    case = features(lambda m, x: x * function(x).sum(1, keepdim=True))
    structure = structure_of(case)
    maps_zero = bool(function(torch.zeros(1, dtype=torch.float64)) == 0)
    assert structure["first"].exact == maps_zero
    difference = cut_half(case, structure, [structure["first"]]).verification.difference
    assert (difference < 1e-10) == maps_zero


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_function_when_a_weight_reads_its_values_then_it_is_exact(function):
    case = features(lambda m, x: function(x))
    structure = structure_of(case)
    result = cut_half(case, structure, structure.exact)
    assert [g.name for g in structure.exact] == ["first"]
    assert result.verification.difference < 1e-10


# The law: cutting the inputs of one call is cutting its outputs.


def derivatives(x: Tensor) -> list[Tensor]:
    """Derivatives taken inside of a forward, as forces are."""
    functions = (
        *(F.silu, F.gelu, F.sigmoid, F.tanh, F.relu, F.elu, F.hardswish, F.hardsigmoid, F.hardtanh),
        *(F.leaky_relu, F.mish, F.softplus, F.softshrink, F.hardshrink, F.logsigmoid),
    )
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        pieces = (
            at[0],
            at[:, 1:],
            at.unfold(1, 2, 1),
            at.sigmoid().logit(),
            *(f(at) for f in functions),
        )
        return [torch.autograd.grad((piece**2).sum(), at, retain_graph=True)[0] for piece in pieces]


LAWS = {
    "complex": Law(
        lambda m: torch.view_as_real(torch.view_as_complex(m.x) * torch.polar(m.y, m.y)),
        x="a b 2",
        y="b",
    ),
    "complex-parts": Law(
        lambda m: (torch.complex(m.x, m.x).angle(), torch.complex(m.x, m.x).conj().real), x="a b"
    ),
    "xlog1py": Law(lambda m: torch.special.xlog1py(m.x, m.y.square()), x="a b", y="b"),
    "bounds": Law(
        lambda m: (torch.clamp_max(m.x, 0.5), m.x.clone().clamp_max_(-1), m.x.reciprocal()), x="a b"
    ),
    "aliases": Law(
        lambda m: (torch.ops.aten.alias(m.x), torch.ops.aten._reshape_alias(m.x, [4], [1])), x="2 2"
    ),
    **{name: Law(lambda m, f=f: f(m.x), x="a b") for name, f in FUNCTIONS.items()},
    **{
        name: Law(lambda m, f=f: (f(m.x, m.y), f(m.x, m.z)), x="a b", y="b", z="a 1")
        for name, f in {
            **functions(
                torch,
                """add sub rsub mul maximum minimum fmax fmin hypot div atan2 copysign eq ne lt le
                gt ge remainder fmod floor_divide xlogy logical_and logical_or
                logical_xor""",
            ),
            "lerp": lambda x, y: torch.lerp(x, y, 0.3),
            "pow": lambda x, y: x.abs().pow(y),
            "where": lambda x, y: torch.where(x > 0, x, y),
            "addcmul": lambda x, y: torch.addcmul(x, x, y),
            "addcdiv": lambda x, y: torch.addcdiv(x, x, y),
            "clamp-tensor": lambda x, y: torch.clamp(x, min=y),
            "masked_fill": lambda x, y: x.masked_fill(y > 0, 1.0),
            "copy": lambda x, y: x.clone().copy_(y),
            "ldexp": lambda x, y: torch.ldexp(x, y),
            "in-place": lambda x, y: x.clone().add_(y).mul_(y).sub_(y).div_(y).pow_(2),
        }.items()
    },
    **{
        name: Law(f, x="a b", y="a b")
        for name, f in {
            "quantized": lambda m: (
                torch.fake_quantize_per_tensor_affine(m.x.float(), 0.1, 3, -128, 127),
                torch.fake_quantize_per_channel_affine(
                    m.x.float(), m.y[:, 0].float().abs() + 1, m.y[:, 0].int() * 0, 0, -128, 127
                ),
            ),
            "special": lambda m: (
                *(torch.special.i1(m.x), torch.special.i1e(m.x), torch.special.entr(m.x.abs())),
                *(torch.sinc(m.x), torch.i0(m.x), torch.special.i0e(m.x), m.x.frexp()[0]),
                *(torch.special.erfcx(m.x), torch.special.log_ndtr(m.x)),
                *(torch.special.bessel_j0(m.x), torch.polygamma(1, m.x.abs() + 1)),
            ),
            "two-of-them": lambda m: (
                *(torch.heaviside(m.x, m.y), m.x.nextafter(m.y), torch.logaddexp(m.x, m.y)),
                *(F.rrelu(m.x), torch.logaddexp2(m.x, m.y)),
                *(torch.gcd(m.x.int(), m.y.int()), torch.lcm(m.x.int(), m.y.int())),
                *(m.x.int().bitwise_left_shift(1), m.x.int().bitwise_right_shift(1)),
            ),
        }.items()
    },
    "derivatives": Law(lambda m: derivatives(m.x), x="a b"),
    "cross": Law(lambda m: torch.linalg.cross(m.x, m.y, dim=1), x="a 3 b", y="a 3 b"),
    "bitwise": Law(
        lambda m: ((m.x > 0) & (m.y > 0), (m.x > 0) | (m.y > 0), (m.x > 0) ^ (m.y > 0), ~(m.x > 0)),
        x="a b",
        y="b",
    ),
    "is": Law(lambda m: (m.x.isnan(), m.x.isinf(), m.x.isfinite(), m.x.logical_not()), x="a b"),
    "inverse": Law(
        lambda m: (m.x.tanh().asin(), m.x.tanh().acos(), m.x.tanh().atanh(), m.x.tanh().erfinv()),
        x="a b",
    ),
    "logarithms": Law(
        lambda m: (m.x.abs().log2(), m.x.abs().log10(), m.x.abs().log1p(), m.x.sigmoid().logit()),
        x="a b",
    ),
    "gamma": Law(
        lambda m: (m.x.abs().lgamma(), m.x.abs().digamma(), m.x.cosh(), m.x.rad2deg()), x="a b"
    ),
    "cast": Law(
        lambda m: (m.x.float(), m.x.half().double(), m.x.contiguous(), m.x.detach()), x="a b"
    ),
    "glu": Law(lambda m: F.glu(m.x, 1), x="n (2 c)"),
    "prelu": Law(lambda m: F.prelu(m.x, m.w), x="n c 3", w="c"),
}


@over(LAWS)
def test_elementwise_when_inputs_are_cut_then_outputs_are_cut_alike(case):
    case.check()
