"""Matrix products and attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.graph.rules.harness import (
    FC,
    LITERAL,
    Case,
    Net,
    attend,
    check,
    features,
    heads,
    merged,
    numbers,
    over,
    two,
)
from tests.graph.rules.laws import Law

CASES = {
    "linear": features(lambda m, x: m.mid(x), after=6, mid=nn.Linear(8, 6, bias=False), exact=FC),
    "linear-3d": Case(
        nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), numbers(2, 5, 3), {"0": 8}
    ),
    "matmul": attend(lambda m, q, k, v: q @ k.mT @ v, exact={"q": 8, "v": 8}),
    "bmm": attend(lambda m, q, k, v: torch.bmm(torch.bmm(q, k.mT), v), exact={"q": 8, "v": 8}),
    "baddbmm": attend(
        lambda m, q, k, v: torch.baddbmm(m.bias, q, k.mT) @ v,
        bias=nn.Parameter(torch.ones(2, 5, 5)),
        exact={"q": 8, "v": 8},
    ),
    "einsum": attend(
        lambda m, q, k, v: torch.einsum("bic,bjc,bjd->bid", q, k, v), exact={"q": 8, "v": 8}
    ),
    "softmax-attention": attend(
        lambda m, q, k, v: (q @ k.mT * 0.5).softmax(-1) @ v, exact={"q": 8, "v": 8}
    ),
    "sdpa-own-scale": attend(
        lambda m, q, k, v: merged(
            F.scaled_dot_product_attention(*(heads(x, m.h, -1) for x in (q, k, v)), scale=0.5)
        ),
        h=2,
        exact={"q": 2, "q[1]": 4, "v": 4},
    ),
    "sdpa-default-scale": attend(
        lambda m, q, k, v: merged(
            F.scaled_dot_product_attention(*(heads(x, m.h, -1) for x in (q, k, v)))
        ),
        h=2,
        exact={"q": 2, "v": 4},
        inexact={"q[1]": "scales by the width of a head"},
    ),
    "sdpa-literal-width": attend(
        lambda m, q, k, v: merged(
            F.scaled_dot_product_attention(*(heads(x, -1, 4) for x in (q, k, v)))
        ),
        exact={"q": 2},
        frozen={"q[1]": LITERAL, "v": LITERAL},
    ),
    "grouped-queries": Case(
        Net(
            lambda m, x: m.out(
                merged(
                    heads(m.q(x), m.h, m.d)
                    @ heads(m.k(x), m.kv, m.d).repeat_interleave(m.h // m.kv, 1).mT
                    @ heads(m.v(x), m.kv, m.d).repeat_interleave(m.h // m.kv, 1)
                )
            ),
            q=nn.Linear(3, 16),
            k=nn.Linear(3, 8),
            v=nn.Linear(3, 8),
            out=nn.Linear(16, 2),
            h=4,
            kv=2,
            d=4,
        ),
        numbers(2, 5, 3),
        {"q": 2, "q[1]": 2, "q[2]": 4, "v": 4},
    ),
    "outer-product": two(
        lambda a, b: (a[:, :, None] * b[:, None, :]).flatten(1), 4, 6, 24, exact={"a": 4, "b": 6}
    ),
    "bilinear": Case(
        Net(
            lambda m, x: m.c(m.mid(m.a(x), m.b(x))),
            a=nn.Linear(3, 8),
            b=nn.Linear(3, 6),
            mid=nn.Bilinear(8, 6, 5),
            c=nn.Linear(5, 2),
        ),
        numbers(4, 3),
        {"a": 8, "b": 6, "mid": 5},
    ),
    "distances": two(lambda a, b: torch.cdist(a, b), after=4, exact={"a": 8}),
    "dot": two(lambda a, b: (a * b).sum(1, keepdim=True), after=1, exact={"a": 8}),
}


@over(CASES)
def test_contraction_when_half_is_cut_then_the_groups_are_these_and_behave_as_they_say(case):
    check(case)


# The law: cutting the inputs of one call is cutting its outputs.

LAWS = {
    "mm": Law(lambda m: torch.mm(m.x, m.y), x="a b", y="b c"),
    "addmm": Law(lambda m: torch.addmm(m.b, m.x, m.y), x="i k", y="k j", b="j"),
    "addmm-full": Law(lambda m: torch.addmm(m.b, m.x, m.y), x="i k", y="k j", b="i j"),
    "addmm-in-place": Law(lambda m: m.b.clone().addmm_(m.x, m.y), x="i k", y="k j", b="i j"),
    "mv": Law(lambda m: torch.mv(m.x, m.y), x="a b", y="b"),
    "addmv": Law(lambda m: torch.addmv(m.b, m.x, m.y), x="i k", y="k", b="i"),
    "dot": Law(lambda m: torch.dot(m.x, m.y), x="a", y="a"),
    "vdot": Law(lambda m: torch.vdot(m.x, m.y), x="a", y="a"),
    "bmm": Law(lambda m: torch.bmm(m.x, m.y), x="n a b", y="n b c"),
    "baddbmm": Law(lambda m: torch.baddbmm(m.b, m.x, m.y), x="n i k", y="n k j", b="n i j"),
    "addbmm": Law(lambda m: torch.addbmm(m.b, m.x, m.y), x="n i k", y="n k j", b="i j"),
    "addr": Law(lambda m: torch.addr(m.b, m.x, m.y), x="i", y="j", b="i j"),
    "bilinear": Law(lambda m: F.bilinear(m.x, m.y, m.w, m.b), x="n i", y="n j", w="o i j", b="o"),
    "conv_tbc": Law(lambda m: torch.conv_tbc(m.x, m.w, m.b, 1), x="5 n i", w="3 i o", b="o"),
    "linear": Law(lambda m: F.linear(m.x, m.w, m.b), x="n l i", w="o i", b="o"),
    "matmul": Law(lambda m: m.x @ m.y, x="n h a b", y="n h b c"),
    "einsum": Law(lambda m: torch.einsum("nhqd,nhkd->nhqk", m.x, m.y), x="n h q d", y="n h k d"),
    "tensordot": Law(lambda m: torch.tensordot(m.x, m.y, 1), x="a b c", y="c d"),
    "outer": Law(lambda m: torch.outer(m.x, m.y), x="a", y="b"),
    "attention": Law(
        lambda m: F.scaled_dot_product_attention(m.q, m.k, m.v, scale=0.5),
        q="n h q d",
        k="n h k d",
        v="n h k v",
    ),
    "attention-masked": Law(
        lambda m: F.scaled_dot_product_attention(m.q, m.k, m.v, attn_mask=m.b, scale=0.5),
        q="n h q d",
        k="n h k d",
        v="n h k d",
        b="h q k",
    ),
}


@over(LAWS)
def test_contraction_when_inputs_are_cut_then_outputs_are_cut_alike(case):
    case.check()
