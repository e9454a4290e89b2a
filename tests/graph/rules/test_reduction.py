"""Reductions over the axis itself; the product with x makes the result matter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.graph.rules.harness import channels, check, features, over
from tests.graph.rules.laws import Law

CASES = {
    "sum": features(lambda m, x: x * x.sum(1, keepdim=True)),
    "norm": features(lambda m, x: x * x.norm(dim=1, keepdim=True)),
    "norm-infinite": features(lambda m, x: x * x.norm(p=float("inf"), dim=1, keepdim=True)),
    "mean-taken-up": features(lambda m, x: x * x.mean(1, keepdim=True)),
    **{
        name: features(lambda m, x, f=f: x * f(x), exact={}, inexact={"first": why})
        for name, f, why in (
            ("mean", lambda x: x.mean(1, keepdim=True).sigmoid(), "averages"),
            ("mean-by-hand", lambda x: x.sum(1, keepdim=True) / x.shape[1], "computes a number"),
            ("mean-of-all", lambda x: x.sum() / x.numel(), "computes a number"),
            ("count", lambda x: x.sum() * (1 / torch.numel(input=x)), "computes a number"),
            ("var", lambda x: x.var(1, keepdim=True), "variance"),
            ("std", lambda x: x.std(1, keepdim=True), "variance"),
            ("amin", lambda x: x.abs().amin(1, keepdim=True), "extreme"),
            ("max", lambda x: (-x.abs()).max(1, keepdim=True)[0], "extreme"),
            ("min", lambda x: torch.min(x.abs(), 1, keepdim=True).values, "extreme"),
            ("median", lambda x: x.median(1, keepdim=True)[0], "extreme"),
            ("nanmedian", lambda x: x.nanmedian(1, keepdim=True)[0], "extreme"),
            ("kthvalue", lambda x: x.abs().kthvalue(1, 1, keepdim=True)[0], "extreme"),
            ("mode", lambda x: x.mode(1, keepdim=True)[0], "extreme"),
            ("prod", lambda x: x.prod(1, keepdim=True), "extreme"),
            ("norm-negative", lambda x: x.norm(p=-float("inf"), dim=1, keepdim=True), "extreme"),
            ("logsumexp", lambda x: x.logsumexp(1, keepdim=True), "exponentials"),
            ("softmax", lambda x: x.softmax(1), "softmax"),
            ("log_softmax", lambda x: x.log_softmax(1), "softmax"),
        )
    },
    "max-of-space": channels(lambda m, x: x * x.max(2, keepdim=True)[0].max(3, keepdim=True)[0]),
    "gate-of-channels": channels(  # CBAM's, of mean and maximum over the channels
        lambda m, x: x * m.gate(torch.cat([x.mean(1, True), x.max(1, True)[0]], 1)).sigmoid(),
        gate=nn.Conv2d(2, 1, 3, padding=1),
        exact={},
        inexact={"first": "over the axis"},
    ),
    "place-of-maximum": features(  # looked up again: of the positions that are left
        lambda m, x: x * x.gather(1, (-x.abs()).max(1, keepdim=True)[1]),
        exact={},
        inexact={"first": "extreme"},
    ),
    "number-of-maximum": features(
        lambda m, x: x * x.max(1, keepdim=True)[1],
        exact={},
        frozen={"first": "computes with the numbers"},
    ),
    "mean-of-space": channels(lambda m, x: x * x.mean((2, 3), keepdim=True)),
    "softmax-of-space": channels(lambda m, x: x * x.softmax(2)),
    "cumsum": features(lambda m, x: x.cumsum(1)),
    "cumsum-of-constants": features(  # what comes later reads what a removed position still emits
        lambda m, x: x.sigmoid().cumsum(1), exact={}, inexact={"first": "not zero when masked"}
    ),
}


@over(CASES)
def test_reduction_when_half_is_cut_then_the_groups_are_these_and_behave_as_they_say(case):
    check(case)


# The law: cutting the inputs of one call is cutting its outputs.

LAWS = {
    "sort-along": Law(lambda m: (m.x.sort(1)[0], m.x.argsort(0)), x="a b c"),
    "fourier": Law(
        lambda m: (
            torch.fft.fft(torch.complex(m.x, m.x), dim=1).abs(),
            torch.fft.rfft(m.x, dim=1).abs(),
            torch.fft.irfft(torch.complex(m.x, m.x), dim=1),
        ),
        x="a b c",
    ),
    "taken-apart": Law(
        lambda m: (
            torch.linalg.det(m.x),
            torch.linalg.slogdet(m.x)[1],
            torch.linalg.inv(m.x),
            torch.linalg.qr(m.x)[1],
            torch.linalg.svd(m.x)[1],
            torch.linalg.eigh(m.x @ m.x.mT)[0],
            torch.linalg.cholesky(m.x @ m.x.mT),
            torch.linalg.solve(m.x, m.y),
            torch.linalg.matrix_exp(m.x),
            torch.linalg.pinv(m.x),
            torch.linalg.lstsq(m.x, m.y)[0],
            torch.linalg.eig(m.x)[0].abs(),
            torch.linalg.eigvals(m.x).abs(),
            torch.linalg.lu(m.x)[1],
            torch.linalg.lu_solve(*torch.linalg.lu_factor(m.x), m.y),
            torch.cholesky_solve(m.y, torch.linalg.cholesky(m.x @ m.x.mT)),
            torch.cholesky_inverse(torch.linalg.cholesky(m.x @ m.x.mT)),
            torch.trace(m.x),
            torch.block_diag(m.x, m.y),
            torch.rot90(m.y),
            F.pdist(m.y),
            m.y.diagonal_scatter(torch.zeros(min(m.y.shape)).double()),
        ),
        x="a a",
        y="a b",
        partial=False,
    ),
    "judged": Law(
        lambda m: (
            F.cross_entropy(m.x, m.at),
            F.nll_loss(m.z, m.map),
            F.multi_margin_loss(m.x, m.at),
            F.mse_loss(m.x, m.y),
            F.smooth_l1_loss(m.x, m.y),
            F.huber_loss(m.x, m.y, reduction="none"),
            F.binary_cross_entropy(m.x.sigmoid(), m.y.sigmoid()),
            F.binary_cross_entropy_with_logits(m.x, m.y.sigmoid(), reduction="sum"),
            F.kl_div(m.x, m.y.sigmoid(), reduction="batchmean"),
            F.ctc_loss(m.long, m.map[:, 0] + 1, m.at + 3, m.at + 1),
        ),
        x="2 c",
        y="2 c",
        z="2 c 3 3",
        long="4 2 3",
        integers=lambda sizes: {
            "at": torch.tensor([0, 1]),
            "map": torch.zeros(2, 3, 3, dtype=torch.int64),
        },
    ),
    "apart": Law(
        lambda m: (torch.cdist(m.x, m.y), torch.cdist(m.x, m.y, p=1.0), torch.dist(m.x, m.x + 1)),
        x="n p m",
        y="n r m",
    ),
    "apart-broadcast": Law(lambda m: torch.cdist(m.x, m.y), x="n p m", y="r m"),
    "apart-many": Law(lambda m: torch.cdist(m.x, m.y), x="30 m", y="r m"),
    "renorm": Law(lambda m: m.x.renorm(2, 1, 0.5), x="a b c"),
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
            m.x.clone().exponential_(),
            m.x.clone().log_normal_(),
            m.x.clone().cauchy_(),
            m.x.clone().geometric_(0.5),
            m.x.clone().random_(),
            torch.poisson(m.x.abs()),
            torch.randint_like(m.x, 3),
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
            "mean": lambda m: (  # which the sigmoid keeps from being taken up
                *(m.x.mean(1).sigmoid(), m.x.mean((0, 2), True).sigmoid(), m.x.mean().sigmoid()),
            ),
            "norm": lambda m: (m.x.norm(dim=1), m.x.norm(p=1, dim=(0, 1)), m.x.norm()),
            "vector_norm": lambda m: torch.linalg.vector_norm(m.x, 3, 1),
            "logsumexp": lambda m: m.x.logsumexp(1),
            "extreme": lambda m: (m.x.amax(1), m.x.amin(1), m.x.max(), m.x.min(), m.x.prod(1)),
            "any": lambda m: ((m.x > 0).any(1), (m.x > 0).all(1)),
            "extreme-with-index": lambda m: (
                *(m.x.max(1), m.x.min(1), m.x.median(1), m.x.mode(1)),
                *(m.x.nanmedian(1), m.x.median(), m.x.nanmedian(), m.x.kthvalue(1, 1)),
            ),
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
