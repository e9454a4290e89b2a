"""Every granularity cuts a tensor into units and puts it together again."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import ConfigError, MaskError
from secateur.scoring.granularity import NM, Channel, Element, Granularity, Tile

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@st.composite
def fitting(draw: st.DrawFn) -> tuple[Granularity, tuple[int, ...]]:
    """A granularity and a shape that it fits."""
    shape = draw(SHAPES)
    kind = draw(st.sampled_from([Element, Channel, Tile, NM]))
    if kind is Channel:
        return Channel(draw(st.integers(-len(shape), len(shape) - 1))), shape
    if kind is Tile:
        size = st.sampled_from([-1, 1, 2, 3, 7])
        sizes = draw(st.lists(size, min_size=1, max_size=len(shape)))
        return Tile(tuple(sizes)), shape
    if kind is NM:
        m = draw(st.integers(2, 4))
        shape = (shape[0], m * draw(st.integers(1, 3)), *shape[1:])
        return NM(draw(st.integers(1, m - 1)), m), shape
    return Element(), shape


def numbered(shape: tuple[int, ...]) -> Tensor:
    """A tensor whose elements are all different, and none of them zero (which is padding)."""
    return torch.arange(1, 1 + int(torch.tensor(shape).prod())).reshape(shape)


@settings(max_examples=200)
@given(case=fitting(), data=st.data())
def test_expand_when_blocks_are_kept_then_their_weights_and_no_others_are(case, data):
    granularity, shape = case
    weight = numbered(shape)
    rows = granularity.rows(weight)
    assert len(rows) == granularity.units(shape)
    assert sorted(rows[rows != 0].tolist()) == weight.flatten().tolist(), (
        "each weight is in 1 block"
    )

    choice = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    keep = torch.tensor(choice, dtype=torch.bool)
    mask = granularity.expand(keep, shape)
    assert mask.shape == weight.shape
    assert mask.dtype is torch.bool
    assert mask.is_contiguous()
    kept = rows[keep]
    assert weight[mask].tolist() == sorted(kept[kept != 0].tolist())


@settings(max_examples=100)
@given(case=fitting())
def test_expand_when_the_mask_is_written_to_then_the_decisions_are_untouched(case):
    granularity, shape = case
    keep = torch.ones(granularity.units(shape), dtype=torch.bool)
    granularity.expand(keep, shape).fill_(False)
    assert keep.all()


@settings(max_examples=100)
@given(case=fitting())
def test_clusters_when_asked_then_divide_the_blocks_evenly(case):
    granularity, shape = case
    assert isinstance(granularity, Granularity)
    assert granularity.units(shape) % granularity.clusters(shape) == 0
    assert isinstance(granularity, NM) or granularity.clusters(shape) == 1


@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1])
def test_dim_when_given_a_convolution_then_rows_are_the_slices_of_that_dim(dim):
    weight = torch.randn(4, 3, 2, 5)
    rows = Channel(dim).rows(weight)
    assert len(rows) == weight.shape[dim]
    for i, row in enumerate(rows):
        assert torch.equal(row, weight.select(dim, i).flatten())


def test_dim_when_given_a_bias_then_each_entry_is_a_block():
    assert torch.equal(Channel(0).rows(torch.tensor([1.0, 2.0])), torch.tensor([[1.0], [2.0]]))


@pytest.mark.parametrize("granularity", [Element(), Channel(0), Channel(-1)])
def test_granularity_when_given_a_scalar_then_it_is_one_block(granularity):
    assert granularity.rows(torch.tensor(3.0)).tolist() == [[3.0]]
    assert granularity.expand(torch.tensor([False]), ()).shape == ()


@pytest.mark.parametrize(
    "granularity", [Element(), Channel(0), Channel(1), Tile((1, -1)), Tile((2,))]
)
def test_granularity_when_given_an_empty_tensor_then_nothing_fails(granularity):
    shape = (0, 3)
    rows = granularity.rows(torch.empty(shape))
    assert len(rows) == granularity.units(shape)
    keep = torch.ones(len(rows), dtype=torch.bool)
    assert granularity.expand(keep, shape).shape == shape


def test_block_when_all_but_the_first_are_whole_then_equals_dim_0():
    weight = torch.randn(4, 3, 2, 5)
    assert torch.equal(Tile((1, -1, -1, -1)).rows(weight), Channel(0).rows(weight))


def test_block_when_it_has_fewer_sizes_than_dims_then_the_leading_dims_are_cut_singly():
    weight = torch.randn(4, 3, 2, 5)
    assert torch.equal(Tile((-1, -1)).rows(weight), weight.reshape(12, 10))


def test_block_when_it_does_not_divide_then_equals_slices_filled_with_zeros():
    weight = torch.randn(5, 7)
    rows = Tile((2, 3)).rows(weight)
    corners = list(product(range(0, 5, 2), range(0, 7, 3)))
    assert len(rows) == len(corners)
    for row, (i, j) in zip(rows, corners, strict=True):
        expected = torch.zeros(2, 3)
        piece = weight[i : i + 2, j : j + 3]
        expected[: piece.shape[0], : piece.shape[1]] = piece
        assert torch.equal(row, expected.flatten())


@pytest.mark.parametrize("shape", [(3, 8), (2, 8, 3, 3)])
def test_nm_when_half_of_each_cluster_goes_then_every_4_inputs_keep_2(shape):
    pattern = NM(2, 4)
    scores = pattern.rows(torch.rand(shape)).reshape(pattern.clusters(shape), 4)
    keep = scores >= scores.median(dim=1, keepdim=True).values
    keep = torch.ones_like(keep).scatter(1, scores.topk(2, largest=False).indices, False)
    mask = pattern.expand(keep.flatten(), shape)
    per_four = mask.movedim(1, -1).reshape(-1, 4).sum(dim=1)
    assert (per_four == 2).all()
    assert pattern.sparsity == 0.5


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [
        (Channel(2), (3, 4)),
        (Channel(-3), (3, 4)),
        (Channel(1), ()),
        (Tile((1, 1, 1)), (3, 4)),
        (NM(2, 4), (3, 6)),
        (NM(2, 4), (8,)),
        (NM(2, 4), ()),
    ],
)
def test_granularity_when_the_shape_does_not_fit_then_every_method_says_so(granularity, shape):
    for call in (
        lambda: granularity.units(shape),
        lambda: granularity.rows(torch.zeros(shape)),
        lambda: granularity.expand(torch.tensor([True]), shape),
    ):
        with pytest.raises(ConfigError, match="does not fit a tensor of shape"):
            call()


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(Tile, [()]), (Tile, [(0, 1)]), (Tile, [(-2,)]), (NM, [4, 4]), (NM, [0, 4]), (NM, [-1, 2])],
)
def test_granularity_when_its_sizes_make_no_sense_then_says_what_to_give(kind, arguments):
    with pytest.raises(ConfigError, match="give"):
        kind(*arguments)


@pytest.mark.parametrize(
    "keep", [torch.ones(3, dtype=torch.bool), torch.ones(4), torch.ones(4, 1, dtype=torch.bool)]
)
@pytest.mark.parametrize("granularity", [Channel(0), Tile((1, -1))])
def test_expand_when_the_mask_has_the_wrong_shape_or_dtype_then_names_both(granularity, keep):
    with pytest.raises(MaskError, match=r"needs a bool mask of shape \(4,\), got"):
        granularity.expand(keep, (4, 2))
