"""Optimal brain surgery, against its definition with an inverse for every single weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import MaskError
from secateur.repair import System
from secateur.repair.sparse import obs_mask, obs_update, sparse
from tests.repair.systems import Array, correlated, systems

few = settings(max_examples=20)


def random_system(out: int, features: int, seed: int = 0) -> System:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, features, generator=generator).double()
    x = correlated(3 * features, features, seed)
    return System.of(weight, torch.ones(out, features).bool(), x)


def first_rows(system: System, damping: float) -> list[Array]:
    """The first row of the inverse of the damped Gram matrix of each input and those behind it."""
    gram = system.gram.numpy()
    gram = gram + damping * gram.diagonal().mean() * np.eye(len(gram))
    return [np.linalg.inv(gram[j:, j:])[0] for j in range(len(gram))]


def surgery(system: System, damping: float) -> Array:
    """Remove the masked weights from left to right; those behind move as their inverse says."""
    inverse = first_rows(system, damping)
    new = system.weight.numpy().copy()
    for row, kept in zip(new, system.mask.numpy(), strict=True):
        for j in np.flatnonzero(~kept):
            row[j:] -= row[j] / inverse[j][0] * inverse[j]
            row[j] = 0
    return new


@pytest.mark.parametrize("features", [1, 2, 7, 130])
def test_update_when_a_mask_is_given_then_each_removal_is_made_up_for_by_those_behind(
    features: int,
) -> None:
    system = random_system(3, features)
    mask = torch.rand(3, features, generator=torch.Generator().manual_seed(1)) < 0.6
    system = replace(system, mask=mask)
    better = torch.from_numpy(surgery(system, 1e-2))
    masked = system.weight * mask
    wanted = torch.where((system.error(better) < system.error(masked))[:, None], better, masked)
    torch.testing.assert_close(obs_update(system, damping=1e-2), wanted)


@few
@given(system=systems(), damping=st.sampled_from([1e-4, 1e-2, 1.0]))
def test_update_when_compared_with_the_mask_alone_then_no_output_is_worse(system, damping) -> None:
    masked = system.error(system.weight * system.mask)
    updated, polished = (
        system.error(repair(system, damping=damping)) for repair in (obs_update, sparse)
    )
    assert (updated <= masked).all()
    assert (polished <= updated).all()


@pytest.mark.parametrize("pattern", [0.5, (2, 4)])
def test_update_when_inputs_are_correlated_then_most_of_the_error_goes(pattern) -> None:
    system = random_system(16, 64)
    if isinstance(pattern, tuple):
        order = system.weight.abs().view(16, 16, 4).argsort(dim=2)
        mask = torch.ones(16, 16, 4).bool().scatter(2, order[..., :2], False).view(16, 64)
    else:
        mask = system.weight.abs() > system.weight.abs().median()
    system = replace(system, mask=mask)
    masked, updated, polished = (
        float(system.error(weight).sum())
        for weight in (
            system.weight * mask,
            obs_update(system, damping=1e-3),
            sparse(system, damping=1e-3),
        )
    )
    assert updated < 0.8 * masked
    assert polished < 0.9 * updated


@given(seed=st.integers(0, 99), share=st.floats(0, 1), features=st.integers(1, 300))
@few
def test_mask_when_so_many_go_then_exactly_so_many_in_every_block(seed, share, features) -> None:
    system = random_system(3, features, seed)
    remove = int(share * 3 * features)
    mask, weight = obs_mask(system, remove)
    assert int((~mask).sum()) == remove
    assert not weight[~mask].any()
    for start in range(0, features, 128):
        block = ~mask[:, start : start + 128]
        assert abs(int(block.sum()) - remove * block.shape[1] / features) < 1


@given(seed=st.integers(0, 99), data=st.data())
@few
def test_mask_when_n_of_m_go_then_exactly_n_of_every_m(seed, data) -> None:
    m = data.draw(st.integers(2, 9))
    n = data.draw(st.integers(1, m - 1))
    groups = data.draw(st.integers(1, 150 // m))
    system = random_system(4, groups * m, seed)
    mask, weight = obs_mask(system, (n, m))
    assert ((~mask).view(4, groups, m).sum(2) == n).all()
    assert torch.equal(weight != 0, mask)


@pytest.mark.parametrize("remove", [5, (2, 4)])
def test_mask_when_costs_are_equal_then_the_first_inputs_go(remove) -> None:
    system = System.of(torch.ones(2, 8), torch.ones(2, 8).bool(), torch.eye(8))
    mask, _ = obs_mask(system, remove)
    if isinstance(remove, tuple):
        assert (~mask).int().tolist() == [[1, 1, 0, 0] * 2] * 2
    else:
        assert (~mask).int().tolist() == [[1, 1, 1] + [0] * 5, [1, 1] + [0] * 6]


@pytest.mark.parametrize("remove", [24, (2, 4)])
def test_mask_when_some_are_masked_already_then_they_stay_so_and_count(remove) -> None:
    system = random_system(4, 12)
    before = torch.ones(4, 12).bool()
    before[:, 1] = before[0, 8:11] = False
    mask, weight = obs_mask(replace(system, mask=before), remove)
    assert not mask[~before].any()
    assert not weight[~before].any()
    if isinstance(remove, tuple):
        gone = (~mask).view(4, 3, 4).sum(2)
        assert gone[0, 2] == 3, "a group that has lost more already loses no more"
        assert (gone.flatten().sort().values[:-1] == 2).all()
    else:
        assert int((~mask).sum()) == remove


def chosen_one_by_one(system: System, n: int, m: int, damping: float) -> Tensor:
    """Of every m weights the n that cost least, with all before them removed and made up for."""
    inverse = first_rows(system, damping)
    weight, mask = system.weight.numpy().copy(), np.ones(system.weight.shape, dtype=bool)
    for row, kept in zip(weight, mask, strict=True):
        for start in range(0, len(row), m):
            cost = [row[j] ** 2 / inverse[j][0] for j in range(start, start + m)]
            gone = sorted(start + np.argsort(cost, kind="stable")[:n])
            kept[gone] = False
            for j in gone:
                row[j:] -= row[j] / inverse[j][0] * inverse[j]
    return torch.from_numpy(mask)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (4, 5)])
def test_mask_when_n_of_m_go_then_they_are_the_cheapest_after_what_went_before(n, m) -> None:
    system = random_system(2, 128 // m * m + m)
    mask, weight = obs_mask(system, (n, m), damping=1e-2)
    wanted = chosen_one_by_one(system, n, m, 1e-2)
    assert torch.equal(mask, wanted)
    updated = surgery(replace(system, mask=mask), 1e-2)
    torch.testing.assert_close(weight, torch.from_numpy(updated) * mask)


@pytest.mark.parametrize("remove", [256, (2, 4)])
def test_mask_when_chosen_by_what_it_costs_then_less_is_lost_than_by_size(remove) -> None:
    x = correlated(100, 32) * torch.logspace(-1, 1, 32)[torch.arange(32) * 5 % 32].double()
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0)).double()
    system = System.of(weight, torch.ones(16, 32).bool(), x)
    size = system.weight.abs()
    count = 2 if isinstance(remove, tuple) else remove
    parts = size.view(-1, 4) if isinstance(remove, tuple) else size.view(1, -1)
    order = parts.argsort(dim=1)[:, :count]
    by_size = torch.ones_like(parts, dtype=torch.bool).scatter(1, order, False).view(16, 32)
    mask, weight = obs_mask(system, remove, damping=1e-3)
    lost = [float(system.error(w).sum()) for w in (weight, system.weight * by_size)]
    lost.append(float(system.error(sparse(replace(system, mask=by_size), damping=1e-3)).sum()))
    lost.append(float(system.error(sparse(replace(system, mask=mask), damping=1e-3)).sum()))
    assert lost[0] < 0.5 * lost[1]
    assert lost[3] < lost[2]


def test_mask_when_outputs_are_of_other_inputs_then_weights_start_at_the_best_of_all() -> None:
    x = correlated(200, 12)
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(1)).double()
    best = weight + torch.randn(5, 12, generator=torch.Generator().manual_seed(2)).double()
    system = System.of(weight, torch.ones(5, 12).bool(), x, x @ best.T)
    mask, new = obs_mask(system, 0, damping=1e-9)
    assert mask.all()
    torch.testing.assert_close(new, best, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("remove", "features"),
    [(-1, 8), (17, 8), ((2, 4), 6), ((0, 4), 8), ((4, 4), 8)],
)
def test_mask_when_so_many_cannot_go_then_that_is_said(remove, features) -> None:
    with pytest.raises(MaskError, match=r"cannot remove|does not fit"):
        obs_mask(random_system(2, features), remove)


@given(system=systems(), remove=st.integers(0, 9))
@few
def test_mask_when_rows_are_few_or_inputs_dead_then_all_is_finite_and_exact(system, remove) -> None:
    remove = min(remove, system.weight.numel())
    mask, weight = obs_mask(system, remove, damping=0.0)
    assert weight.isfinite().all()
    assert int((~mask).sum()) >= remove
    assert not mask[~system.mask].any()
