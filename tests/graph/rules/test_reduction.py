"""Reductions over the axis itself; the product with x makes the result matter."""

from __future__ import annotations

import torch

from tests.graph.rules.harness import channels, check, features, over
from tests.graph.rules.laws import Law

CASES = {
    "sum": features(lambda m, x: x * x.sum(1, keepdim=True)),
    "norm": features(lambda m, x: x * x.norm(dim=1, keepdim=True)),
    "norm-infinite": features(lambda m, x: x * x.norm(p=float("inf"), dim=1, keepdim=True)),
    **{
        name: features(lambda m, x, f=f: x * f(x), exact={}, inexact={"first": why})
        for name, f, why in (
            ("mean", lambda x: x.mean(1, keepdim=True), "averages"),
            ("mean-by-hand", lambda x: x.sum(1, keepdim=True) / x.shape[1], "computes a number"),
            ("mean-of-all", lambda x: x.sum() / x.numel(), "computes a number"),
            ("count", lambda x: x.sum() * (1 / torch.numel(input=x)), "computes a number"),
            ("var", lambda x: x.var(1, keepdim=True), "variance"),
            ("std", lambda x: x.std(1, keepdim=True), "variance"),
            ("amin", lambda x: x.abs().amin(1, keepdim=True), "extreme"),
            ("prod", lambda x: x.prod(1, keepdim=True), "extreme"),
            ("norm-negative", lambda x: x.norm(p=-float("inf"), dim=1, keepdim=True), "extreme"),
            ("logsumexp", lambda x: x.logsumexp(1, keepdim=True), "exponentials"),
            ("softmax", lambda x: x.softmax(1), "softmax"),
            ("log_softmax", lambda x: x.log_softmax(1), "softmax"),
        )
    },
    "mean-of-space": channels(lambda m, x: x * x.mean((2, 3), keepdim=True)),
    "softmax-of-space": channels(lambda m, x: x * x.softmax(2)),
    "cumsum": features(lambda m, x: x.cumsum(1)),
}


@over(CASES)
def test_reduction_when_half_is_cut_then_the_groups_are_these_and_behave_as_they_say(case):
    check(case)


# The law: cutting the inputs of one call is cutting its outputs.

LAWS = {
    "fourier": Law(
        lambda m: (
            torch.fft.fft(torch.complex(m.x, m.x), dim=1).abs(),
            torch.fft.rfft(m.x, dim=1).abs(),
            torch.fft.irfft(torch.complex(m.x, m.x), dim=1),
        ),
        x="a b c",
    ),
    "mixing": Law(
        lambda m: (
            torch.linalg.solve_triangular(m.x, m.y, upper=True),
            (m.x.abs() + 1).multinomial(1),
        ),
        x="a a",
        y="a b",
    ),
    "random": Law(
        lambda m: (
            m.x.sigmoid().bernoulli(),
            m.x.clone().bernoulli_(),
            m.x.clone().normal_(),
            m.x.clone().uniform_(),
        ),
        x="a b",
    ),
    "norm-of-all": Law(lambda m: torch.ops.aten.norm(m.x, 2), x="a b"),
    **{
        name: Law(f, x="a b c")
        for name, f in {
            "sum": lambda m: (m.x.sum(1), m.x.sum((0, 2), keepdim=True), m.x.sum()),
            "nansum": lambda m: m.x.nansum(1),
            "count_nonzero": lambda m: m.x.count_nonzero(1),
            "mean": lambda m: (m.x.mean(1), m.x.mean((0, 2), True), m.x.mean()),
            "norm": lambda m: (m.x.norm(dim=1), m.x.norm(p=1, dim=(0, 1)), m.x.norm()),
            "vector_norm": lambda m: torch.linalg.vector_norm(m.x, 3, 1),
            "logsumexp": lambda m: m.x.logsumexp(1),
            "extreme": lambda m: (m.x.amax(1), m.x.amin(1), m.x.max(), m.x.min(), m.x.prod(1)),
            "any": lambda m: ((m.x > 0).any(1), (m.x > 0).all(1)),
            "extreme-with-index": lambda m: (m.x.max(1), m.x.min(1), m.x.median(1), m.x.mode(1)),
            "aminmax": lambda m: torch.aminmax(m.x, dim=1),
            "softmax": lambda m: (m.x.softmax(1), m.x.log_softmax(2)),
        }.items()
    },
    "var": Law(
        lambda m: (m.x.var(1), m.x.std(1), m.x.var((0, 2), keepdim=True)),
        least={"b": 3},
        keep=2,
        x="3 b 3",
    ),
    "var_mean": Law(
        lambda m: (torch.var_mean(m.x, 1), torch.std_mean(m.x, 1)),
        least={"b": 3},
        keep=2,
        x="3 b 3",
    ),
}


@over(LAWS)
def test_reduction_when_inputs_are_cut_then_outputs_are_cut_alike(case):
    case.check()
