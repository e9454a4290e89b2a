"""Grids of all pairs of channels: Gram matrices, second-order pooling, outer products."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur import Plan, analyze, prune, shrink
from secateur.graph.axes import Atom, concat, positions, product
from secateur.graph.layout import Along, among, labels
from secateur.shrinking import cut_and_verify, group_masks
from tests.graph.rules.harness import Net, numbers

C = 5


def pairs(x: Tensor) -> Tensor:
    return torch.bmm(x, x.mT).flatten(1)


def gram(function: Callable[[Tensor], Tensor], inputs: int, read: int = 3) -> nn.Module:
    """``maker`` makes channels, of which a function makes what ``reader`` reads."""
    torch.manual_seed(0)
    return Net(
        lambda m, x: m.reader(function(m.maker(x).mT.contiguous())),
        maker=nn.Linear(4, C),
        reader=nn.Linear(inputs, read),
    ).double()


FORMS: dict[str, nn.Module] = {
    "gram": gram(pairs, C * C),
    "matmul": gram(lambda x: (x @ x.mT).reshape(len(x), -1), C * C),
    "einsum": gram(lambda x: torch.einsum("bcn,bdn->bcd", x, x).flatten(1), C * C),
    "outer": gram(lambda x: (x.sum(2)[:, :, None] * x.sum(2)[:, None, :]).flatten(1), C * C),
    "beside-its-channels": gram(lambda x: torch.cat([x.sum(2), pairs(x)], 1), C + C * C),
    "twice": gram(lambda x: torch.cat([pairs(x), pairs(x) ** 2], 1), 2 * C * C),
    "triples": gram(
        lambda x: torch.einsum("bc,bd,be->bcde", *[x.sum(2)] * 3).flatten(1), C * C * C
    ),
}


def masked(net: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for name, mask in masks.items():
            twin.get_parameter(name).mul_(mask)
    return twin


@pytest.mark.parametrize("form", FORMS)
def test_masks_when_a_channel_of_a_grid_of_pairs_goes_then_all_its_entries_are_masked(form):
    net, x = FORMS[form], numbers(2, 6, 4)
    structure = analyze(net, x)
    keep = torch.tensor([True, False, True, True, False])
    masks = group_masks(structure, {"maker": keep})
    result = cut_and_verify(
        copy.deepcopy(net),
        structure,
        Plan.from_keeps(structure, {"maker": keep}),
        masks,
        x,
        notes=[],
        verify=True,
    )
    entries = torch.ones(C, C, dtype=torch.bool)
    entries[~keep] = False
    entries[:, ~keep] = False
    kept = int(masks["reader.weight"][0].sum())
    assert kept == result.model.reader.weight.shape[1]
    if form == "gram":
        assert torch.equal(masks["reader.weight"][0], entries.flatten())
    # what the masks say is what was cut: a weight outside of them plays no part
    twin = masked(net, masks)
    with torch.no_grad():
        assert torch.equal(twin.reader.weight != 0, masks["reader.weight"])
        torch.testing.assert_close(twin(x), result.model(x))


@settings(max_examples=25, deadline=None)
@given(form=st.sampled_from(sorted(FORMS)), seed=st.integers(0, 9999))
def test_shrink_when_pairs_are_masked_at_random_then_equals_the_masked_copy(form, seed):
    net, x = FORMS[form], numbers(2, 6, 4)
    generator = torch.Generator().manual_seed(seed)
    reader = net.reader.weight
    gone = torch.rand(C, generator=generator) < 0.3
    masks = {"reader.weight": torch.ones_like(reader, dtype=torch.bool)}
    for _ in range(2):  # rows of the grid, its columns, or both; and single entries
        if torch.rand((), generator=generator) < 0.7:
            size = reader.shape[1]
            inner = C ** int(torch.randint(0, 2, (), generator=generator))
            column = torch.arange(size) // inner % C
            masks["reader.weight"] &= ~gone[column]
    if seed % 2:
        masks["maker.weight"] = (torch.rand(C, generator=generator) < 0.6)[:, None].expand(C, 4)
        masks["maker.bias"] = masks["maker.weight"][:, 0]
    result = shrink(net, masks, x)
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), masked(net, masks)(x), rtol=1e-8, atol=1e-9)


def test_prune_when_pairs_are_ranked_then_each_channel_is_scored_by_all_its_entries():
    net, x = FORMS["gram"], numbers(2, 6, 4)
    grid = net.reader.weight.detach().view(3, C, C)
    structure = analyze(net, x)
    axis, atom = structure.tensor("reader.weight")[1].axis, structure["maker"].atom
    rows = Along(1, axis, atom).rows(net.reader.weight.detach())
    for i in range(C):
        other = [j for j in range(C) if j != i]
        entries = torch.cat([grid[:, i].flatten(), grid[:, other, i].flatten()])
        assert torch.equal(rows[i].sort().values, entries.sort().values)
    assert prune(net, x, sparsity=0.4, criterion="l2").verification.passed


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_labels_when_an_atom_occurs_anywhere_then_they_are_where_it_takes_positions_away(data):
    atom = Atom(3)

    def axis(depth: int):
        kind = data.draw(st.sampled_from(["atom", "other", "product", "concat"][: 2 + 2 * depth]))
        if kind == "atom":
            return atom
        if kind == "other":
            return Atom(2)
        parts = [axis(depth - 1) for _ in range(data.draw(st.integers(2, 3)))]
        return product(*parts) if kind == "product" else concat(*parts)

    whole = axis(data.draw(st.integers(0, 2)))
    if whole.size > 300:
        return
    gone = torch.tensor(data.draw(st.lists(st.booleans(), min_size=3, max_size=3)))
    kept = (~gone).nonzero().flatten().tolist()
    left = positions(whole, lambda a: kept if a is atom else range(a.size))
    found = (~among(labels(whole, atom), gone)).nonzero().flatten().tolist()
    assert found == left
