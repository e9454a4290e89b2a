"""Look-ups by number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.graph.rules.harness import Case, Net, check, features, over
from tests.graph.rules.laws import Law

CASES = {
    "embedding": Case(
        nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 2)),
        torch.arange(6).view(2, 3),
        {"0:1": 8},
        frozen={"0": "a vocabulary"},
    ),
    "index": features(
        lambda m, x: x[:, [0, 2]], after=2, exact={}, frozen={"first": "looked up by number"}
    ),
    "index_select": features(
        lambda m, x: x.index_select(1, torch.tensor([0, 2])),
        after=2,
        exact={},
        frozen={"first": "looked up by number"},
    ),
    "gather": features(
        lambda m, x: x.gather(1, torch.zeros(4, 8, dtype=torch.int64)),
        exact={},
        frozen={"first": "looked up by number"},
    ),
    "embedding_bag": Case(
        Net(
            lambda m, at: m.last(m.first(at, torch.tensor([0, 2]))),
            first=nn.EmbeddingBag(9, 8),
            last=nn.Linear(8, 2),
        ),
        torch.tensor([1, 4, 0, 3, 3]),
        {"first:1": 8},
    ),
    "embedding_bag-max": Case(
        Net(
            lambda m, at: m.last(m.first(at)),
            first=nn.EmbeddingBag(9, 8, mode="max"),
            last=nn.Linear(8, 2),
        ),
        torch.tensor([[1, 4], [0, 3]]),
        {"first:1": 8},
    ),
    **{
        f"messages-{name}": features(f, exact={"first": 8}, at=torch.tensor([1, 0, 1, 2]))
        for name, f in {
            "scatter_add": lambda m, x: x.new_zeros(4, x.shape[1]).scatter_add_(
                0, m.at[:, None].expand(-1, x.shape[1]), x
            ),
            "scatter_reduce": lambda m, x: torch.zeros_like(x).scatter_reduce(
                0, m.at.view(-1, 1).expand_as(x), x, "amax", include_self=False
            ),
            "scatter_mean": lambda m, x: torch.zeros_like(x).scatter_reduce_(
                0, m.at.view(-1, 1).expand_as(x), x, "mean"
            ),
            "scatter": lambda m, x: torch.zeros_like(x).scatter(
                0, m.at[:, None].repeat(1, x.size(1)), x
            ),
            "gather": lambda m, x: x.gather(0, m.at[:, None].expand(-1, x.size(-1))),
            "take_along_dim": lambda m, x: x.take_along_dim(m.at[:, None], 0),
            "index_add": lambda m, x: torch.zeros_like(x).index_add(0, m.at, x[m.at]),
            "index_reduce": lambda m, x: torch.zeros_like(x).index_reduce(0, m.at, x, "amax"),
            "index_select": lambda m, x: x.index_select(0, m.at),
            "segment": lambda m, x: torch.segment_reduce(x, "sum", lengths=torch.tensor([3, 1]))[
                m.at.clamp(max=1)
            ],
            "per-channel": lambda m, x: x.gather(0, x.argsort(0)),
        }.items()
    },
    "messages-of-a-literal-width": features(
        lambda m, x: torch.zeros(4, 8).double().scatter_add(0, m.at[:, None].expand(-1, 8), x),
        at=torch.tensor([1, 0, 1, 2]),
        exact={},
        frozen={"first": "written in the code"},
    ),
    "messages-to-some-channels": features(
        lambda m, x: x.scatter_add(0, m.at[:, None].expand(-1, x.shape[1] - 1), x),
        at=torch.tensor([1, 0, 1, 2]),
        exact={},
        frozen={"first": "spans a part"},
    ),
    "sort": features(lambda m, x: x.sort(1)[0], exact={}, frozen={"first": "ordered by value"}),
    "argmax": features(
        lambda m, x: x * x.argmax(1, keepdim=True), exact={}, frozen={"first": "selected by value"}
    ),
}


BETA = pytest.mark.filterwarnings("ignore:index_reduce", "ignore:segment_reduce")


@BETA
@over(CASES)
def test_indexing_when_half_is_cut_then_the_groups_are_these_and_behave_as_they_say(case):
    check(case)


# The law: cutting the inputs of one call is cutting its outputs.


def numbers_below(sizes: Any) -> dict[str, Any]:
    return {"at": torch.tensor([[1, 0, 1], [0, 0, 1]]), "row": torch.tensor([1, 0, 1])}


LAWS = {
    "made": Law(
        lambda m: (
            torch.full((2,), 1.0),
            torch.ones(2),
            torch.arange(3),
            torch.linspace(0, 1, 3),
            torch.eye(2),
            torch.rand(2),
            torch.randn(2),
            torch.randint(3, (2,)),
            torch.randperm(3),
            torch.tril_indices(2, 2),
            torch.triu_indices(2, 2),
            torch.scalar_tensor(2),
            torch.empty_strided((2,), (1,)).fill_(1),
        )
    ),
    "made-like": Law(
        lambda m: (
            torch.rand_like(m.x) * 0,
            torch.randn_like(m.x) * 0,
            torch.empty_like(m.x).zero_(),
            m.x.new_full((2,), 3.0),
            m.x.new_ones(2),
            m.x.new_empty_strided((2,), (1,)).zero_(),
        ),
        x="a b",
    ),
    "read": Law(lambda m: m.y * (m.x[0, 0].item() + torch.equal(m.x, m.x)), x="a b", y="c"),
    "counted": Law(lambda m: (m.row.bincount(), m.x.histc(3)), integers=numbers_below, x="a b"),
    "unique": Law(
        lambda m: (m.x.unique(), m.x.unique_consecutive(), m.x.index_copy(0, m.row[:1], m.x[:1])),
        integers=numbers_below,
        x="a b",
    ),
    "index-unsafe": Law(
        lambda m: torch.ops.aten._unsafe_index(m.x, [None, m.row]), integers=numbers_below, x="a b"
    ),
    "embedding": Law(lambda m: F.embedding(m.at, m.x), integers=numbers_below, x="v d"),
    "index": Law(lambda m: m.x[:, m.row], integers=numbers_below, x="n c d"),
    "index-two": Law(lambda m: m.x[:, m.row, m.row], integers=numbers_below, x="n c d e"),
    "index-by-mask": Law(lambda m: m.x[m.x > 0], x="n c"),
    "index_select": Law(lambda m: m.x.index_select(1, m.row), integers=numbers_below, x="n c d"),
    "gather": Law(lambda m: m.x.gather(1, m.at), integers=numbers_below, x="2 c"),
    "scatter": Law(
        lambda m: (m.x.scatter(1, m.at, m.y), m.x.clone().scatter_(1, m.at, 1.0)),
        integers=numbers_below,
        x="2 c",
        y="2 3",
    ),
    "scatter_add": Law(
        lambda m: (m.x.scatter_add(1, m.at, m.y), m.x.scatter_reduce(1, m.at, m.y, "sum")),
        integers=numbers_below,
        x="2 c",
        y="2 3",
    ),
    "index_add": Law(
        lambda m: (m.x.index_add(1, m.row, m.y), m.x.clone().index_copy_(1, m.row, m.y)),
        integers=numbers_below,
        x="n c d",
        y="n 3 d",
    ),
    "index_put": Law(
        lambda m: m.x.index_put((m.row,), m.y), integers=numbers_below, x="c d", y="3 d"
    ),
    **{
        f"along-{name}": Law(f, x="n c", y="3 c", integers=numbers_below)
        for name, f in {
            "gather": lambda m: m.x.gather(0, m.row[:, None].expand(-1, m.c)),
            "scatter": lambda m: m.x.scatter(0, m.row[:, None].expand(-1, m.c), m.y),
            "scatter-value": lambda m: (
                m.x.scatter(0, m.row[:, None].expand(-1, m.c), 0.0),
                m.x.scatter(0, m.row[:, None].expand(-1, m.c), 2.0),
            ),
            "scatter_add": lambda m: m.x.scatter_add(0, m.row[:, None].expand(-1, m.c), m.y),
            "scatter_reduce": lambda m: [
                m.x.scatter_reduce(0, m.row[:, None].expand(-1, m.c), m.y, how, include_self=own)
                for how in ("sum", "prod", "mean", "amax", "amin")
                for own in (True, False)
            ],
            "index_reduce": lambda m: m.x.index_reduce(0, m.row, m.y, "prod"),
            "index_fill": lambda m: (m.x.index_fill(0, m.row, 0), m.x.index_fill(0, m.row, 3)),
            "segment": lambda m: torch.segment_reduce(m.y, "max", lengths=m.row + 1 - m.row),
            "select_scatter": lambda m: m.x.select_scatter(m.y[0], 0, 1),
            "slice_scatter": lambda m: m.y.slice_scatter(m.x[:2], 0, 1),
        }.items()
    },
    "by-place": Law(
        lambda m: (
            m.x.take(m.row),
            m.x.put(m.row, m.x[0, 0].repeat(2)),
            m.x.masked_scatter(m.x > 9, m.x),
            torch.isin(m.x, m.x),
            m.x.repeat_interleave(m.row + 1 - m.row, 0)[:0],
        ),
        integers=lambda sizes: {"row": torch.tensor([1, 0])},
        x="2 c",
        partial=False,
    ),
    "searched": Law(
        lambda m: (
            torch.searchsorted(m.border, m.x),
            torch.bucketize(m.x, m.border),
            torch.searchsorted(m.border, 0.5),
        ),
        x="a b",
        integers=lambda sizes: {"border": torch.linspace(-1, 1, 4).double()},
    ),
    "embedding_bag": Law(
        lambda m: (
            F.embedding_bag(m.at, m.x),
            F.embedding_bag(m.at, m.x, mode="max"),
            F.embedding_bag(m.at, m.x, mode="sum", per_sample_weights=m.x[:1, :1].expand(2, 3)),
        ),
        integers=numbers_below,
        x="v d",
    ),
    "embedding-renormed": Law(
        lambda m: F.embedding(m.at, m.x.clone(), max_norm=0.5), integers=numbers_below, x="v d"
    ),
    "nonzero": Law(lambda m: (m.x.nonzero(), m.x.masked_select(m.x > 0)), x="a b"),
    "sort": Law(
        lambda m: (m.x.sort(1), m.x.argsort(1), m.x.topk(2, 1), m.x.kthvalue(1, 1)), x="a b"
    ),
    "cumulative": Law(
        lambda m: (m.x.cumprod(1), m.x.cummax(1), m.x.cummin(1), m.x.logcumsumexp(1)), x="a b"
    ),
    "cumsum": Law(lambda m: m.x.cumsum(1), x="a b c"),
    "cumsum-in-place": Law(lambda m: m.x.clone().cumsum_(1), x="a b c"),
    "argmax": Law(lambda m: (m.x.argmax(1), m.x.argmin(1), m.x.argmax()), x="a b"),
    "like": Law(
        lambda m: (torch.zeros_like(m.x), torch.ones_like(m.x), torch.full_like(m.x, 3)), x="a b"
    ),
    "new": Law(lambda m: m.x.new_zeros(m.a, m.b) + m.x, x="a b"),
}


@BETA
@over(LAWS)
def test_indexing_when_inputs_are_cut_then_outputs_are_cut_alike(case):
    case.check()
