"""Views, permutations, joining and cutting."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.graph.rules.harness import (
    HALVES,
    LITERAL,
    Case,
    Net,
    channels,
    check,
    cut_half,
    features,
    numbers,
    over,
    structure_of,
    two,
)
from tests.graph.rules.laws import Law

CASES = {
    "cat": Case(
        Net(
            lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)),
            a=nn.Conv2d(3, 4, 1),
            b=nn.Conv2d(3, 6, 1),
            c=nn.Conv2d(10, 2, 1),
        ),
        numbers(2, 3, 6, 6),
        {"a": 4, "b": 6},
    ),
    "stack": two(lambda a, b: torch.stack([a, b], 1).sum(1), exact={"a": 8}),
    "split-attributes": features(
        lambda m, x: torch.cat(x.split([m.left, m.right], 1)[::-1], 1),
        left=4,
        right=4,
        exact=HALVES,
    ),
    "split-literal": features(
        lambda m, x: torch.cat(x.split([3, 5], 1), 1),
        exact={},
        frozen={"first": LITERAL, "first[1]": LITERAL},
    ),
    "split-literal-size": features(
        lambda m, x: sum(x.split(4, 1)), after=4, exact={}, frozen={"first": LITERAL}
    ),
    "chunk-sized": features(lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1), exact=HALVES),
    "chunk-gated": features(
        lambda m, x: x.chunk(2, 1)[0] * torch.tanh(x.chunk(2, 1)[1]), after=4, exact={"first": 4}
    ),
    "tensor_split": features(
        lambda m, x: torch.cat(x.tensor_split(2, 1)[::-1], 1),
        exact={},
        frozen={"first": "where an operation computes"},
    ),
    "tensor_split-number": features(  # which is not the length of a piece, though equal to it
        lambda m, x: torch.cat(x.tensor_split(m.n, 1)[::-1], 1),
        n=2,
        width=4,
        after=4,
        exact={},
        frozen={"first": "where an operation computes"},
    ),
    "tensor_split-bound": features(
        lambda m, x: torch.cat(x.tensor_split([m.k], 1)[::-1], 1), k=4, exact=HALVES
    ),
    "slice-attribute": features(lambda m, x: x[:, : m.k], k=4, after=4, exact=HALVES),
    "slice-literal": features(
        lambda m, x: x[:, 2:], after=6, exact={"first[1]": 6}, frozen={"first": LITERAL}
    ),
    "slice-half-of-size": features(
        lambda m, x: torch.cat([-x[:, x.size(1) // 2 :], x[:, : x.size(1) // 2]], 1), exact=HALVES
    ),
    "slice-stepped": features(
        lambda m, x: x[:, ::2],
        after=4,
        exact={"first": 4},
        frozen={"first[1]": "every n-th position is read"},
    ),
    "narrow-attribute": features(
        lambda m, x: x.narrow(1, 2, m.k),
        k=4,
        after=4,
        exact={"first[1]": 4, "first[2]": 2},
        frozen={"first": LITERAL},
    ),
    "narrow-literal": features(
        lambda m, x: x.narrow(1, 1, 5),
        after=5,
        exact={"first[1]": 2},
        frozen={"first": LITERAL},
    ),
    "narrow-literal-that-may-be-an-input's-length": features(
        lambda m, x: x.narrow(1, 2, len(x)),
        after=4,
        exact={},
        frozen={"first[1]": LITERAL, "first[2]": "reads a part of it"},
    ),
    "select": features(
        lambda m, x: x * x[:, 2, None], exact={}, frozen={"first": "one position is read"}
    ),
    "unbind": features(
        lambda m, x: torch.stack(x.unbind(1), 1), exact={}, frozen={"first": "one by one"}
    ),
    "flatten": Case(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 36, 2)),
        numbers(2, 3, 6, 6),
        {"0": 8},
        frozen={"2:1": "a spatial dimension"},
    ),
    "view-attributes": features(
        lambda m, x: x.view(4, m.h, m.d).transpose(1, 2).reshape(4, -1),
        h=4,
        d=2,
        exact={"first": 4, "first[1]": 2},
    ),
    "view-product-of-attributes": features(
        lambda m, x: x.view(4, m.h, m.d).transpose(1, 2).reshape(4, m.h * m.d),
        h=4,
        d=2,
        exact={"first": 4, "first[1]": 2},
    ),
    **{
        name: features(  # as many positions as the other tensor has, though not the same
            lambda m, x, f=f: f(m.mid(x), x), mid=nn.Linear(8, 8), exact={"first": 8, "mid": 8}
        )
        for name, f in (
            ("view_as", lambda y, x: y.view_as(x)),
            ("reshape_as", lambda y, x: y.reshape_as(other=x)),
            ("view_as-wider", lambda y, x: y[:, None].view_as(x.unsqueeze(1)).flatten(1)),
        )
    },
    "view-literal": features(
        lambda m, x: x.view(4, -1, 2).transpose(1, 2).reshape(4, -1),
        exact={"first": 4},
        frozen={"first[1]": LITERAL},
    ),
    "unflatten-attributes": features(
        lambda m, x: x.unflatten(1, (m.h, m.d)).transpose(1, 2).flatten(1),
        h=4,
        d=2,
        exact={"first": 4, "first[1]": 2},
    ),
    "unflatten-module": features(
        lambda m, x: m.mid(x).transpose(1, 2).flatten(1),
        mid=nn.Unflatten(1, (4, 2)),
        exact={"first": 4, "first[1]": 2},
    ),
    "permute": channels(lambda m, x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)),
    "expand-attribute": features(
        lambda m, x: x[:, None].expand(-1, m.n, -1).reshape(4, -1),
        n=3,
        after=24,
        exact={"first": 8, "last:1": 3},
    ),
    "expand-literal": features(
        lambda m, x: x[:, None].expand(-1, 3, -1).reshape(4, -1),
        after=24,
        frozen={"last:1": LITERAL},
    ),
    "repeat": features(
        lambda m, x: x.repeat(1, m.n), n=3, after=24, exact={"first": 8, "last:1": 3}
    ),
    "repeat_interleave": features(
        lambda m, x: x.repeat_interleave(m.n, 1), n=3, after=24, exact={"first": 8, "last:1": 3}
    ),
    "flip": features(lambda m, x: x.flip(1), exact={}, frozen={"first": "change places"}),
    "flip-space": channels(lambda m, x: x.flip(2)),
    "roll": features(lambda m, x: x.roll(3), exact={}, frozen={"first": "change places"}),
    "roll-space": channels(lambda m, x: x.roll((1, 1), (2, 3))),
    "triangle": features(lambda m, x: x.tril(), exact={}, frozen={"first": "triangle"}),
    "glu": features(lambda m, x: F.glu(x, 1), after=4, exact={"first": 4}),
    "glu-channels": channels(lambda m, x: F.glu(x, 1), after=4, exact={"first": 4}),
}


@over(CASES)
def test_shape_when_half_is_cut_then_the_groups_are_these_and_behave_as_they_say(case):
    check(case)


def test_shape_when_code_computes_with_it_then_it_is_traced_as_size_is():
    case = features(lambda m, x: torch.cat([x[:, x.shape[1] // 2 :], x[:, : x.shape[1] // 2]], 1))
    structure = structure_of(case)
    assert {g.name: g.size for g in structure.exact} == HALVES
    assert cut_half(case, structure, structure.exact).verification.difference < 1e-10


# The law: cutting the inputs of one call is cutting its outputs.

LAWS = {
    "unsafe_split": Law(
        lambda m: (
            *m.x.unsafe_split(m.d, 1),
            *m.x.unsafe_chunk(2, 1),
            *m.x.unsafe_split_with_sizes((m.d, m.d), 1),
        ),
        x="n [d d]",
    ),
    "diag_embed": Law(lambda m: torch.diag_embed(m.x), x="a b"),
    "view-split": Law(lambda m: m.x.view(m.n, m.h, m.d), x="n (h d)"),
    "view-merge": Law(lambda m: m.x.reshape(m.n, -1), x="n h d"),
    "view-across": Law(lambda m: m.x.view(-1, m.c, m.d), x="a (b c) d"),
    "reshape-transposed": Law(lambda m: m.x.mT.reshape(m.n, -1), x="n h d"),
    "flatten": Law(lambda m: m.x.flatten(1, 2), x="n h d"),
    "unflatten": Law(lambda m: m.x.unflatten(-1, (m.h, m.d)), x="n (h d)"),
    "unflatten-ones": Law(
        lambda m: (
            m.x.unflatten(1, (m.h, 1)),
            m.x.unflatten(1, (1, m.h)),
            m.x.unflatten(1, (1, m.h, 1, 1)),
            m.x.unflatten(1, (m.h, -1)),
            m.x.unsqueeze(1).unflatten(2, (m.h, -1)),
        ),
        x="n h 3",
    ),
    "t": Law(lambda m: m.x.t(), x="a b"),
    "transpose": Law(lambda m: m.x.transpose(1, 2), x="a b c"),
    "transpose-in-place": Law(lambda m: m.x.clone().transpose_(1, 2), x="a b c"),
    "permute": Law(lambda m: m.x.permute(2, 0, 1), x="a b c"),
    "movedim": Law(lambda m: m.x.movedim(0, -1), x="a b c"),
    "unsqueeze": Law(lambda m: m.x.unsqueeze(1), x="a b"),
    "unsqueeze-in-place": Law(lambda m: m.x.clone().unsqueeze_(1), x="a b"),
    "squeeze": Law(lambda m: (m.x.squeeze(1), m.x.squeeze((1, 3))), x="a 1 b 1"),
    "squeeze-in-place": Law(lambda m: m.x.clone().squeeze_(1), x="a 1 b"),
    "expand": Law(lambda m: m.x.expand(m.n, -1, m.k), least={"n": 2, "k": 2}, x="a 1"),
    "repeat": Law(lambda m: m.x.repeat(m.k, 1, m.n), least={"n": 2, "k": 2}, x="a b"),
    "repeat_interleave": Law(lambda m: m.x.repeat_interleave(m.k, 1), least={"k": 2}, x="a b"),
    "cat": Law(lambda m: torch.cat([m.x, m.y, m.x], 1), x="n a", y="n b"),
    "stack": Law(lambda m: torch.stack([m.x, m.y], 1), x="a b", y="a b"),
    "split": Law(lambda m: m.x.split(m.d, 1), x="n (h d)"),
    "split_with_sizes": Law(lambda m: m.x.split([m.a, m.b], 1), x="n [a b]"),
    "chunk": Law(lambda m: m.x.chunk(m.h, 1), x="n (h d)"),
    "tensor_split": Law(lambda m: m.x.tensor_split(2, 1), x="n c"),
    "slice": Law(lambda m: m.x[:, 1:], x="n c", least={"c": 3}),
    "slice-stepped": Law(lambda m: m.x[:, ::2], x="n c"),
    "narrow": Law(lambda m: m.x.narrow(1, 1, 2), x="n c", least={"c": 4}),
    "select": Law(lambda m: m.x[:, 1], x="n c d"),
    "unbind": Law(lambda m: m.x.unbind(1), x="n c d"),
    "flip": Law(lambda m: m.x.flip(1), x="n c d"),
    "roll": Law(lambda m: m.x.roll(1, 2), x="n c d"),
    "tril": Law(lambda m: (m.x.tril(), m.x.triu()), x="n c d"),
    "tril-in-place": Law(lambda m: (m.x.clone().tril_(), m.x.clone().triu_()), x="n c d"),
    "diagonal": Law(lambda m: m.x.diagonal(0, 1, 2), x="n c c"),
    "unfold": Law(lambda m: m.x.unfold(1, 2, 1), x="n c d", least={"c": 3}),
    "as_strided": Law(lambda m: m.x.as_strided((2, 2), (1, 1)), x="n c"),
    "as_strided-in-place": Law(lambda m: m.x.clone().as_strided_((2, 2), (1, 1)), x="n c"),
}


@over(LAWS)
def test_shape_when_inputs_are_cut_then_outputs_are_cut_alike(case):
    case.check()
