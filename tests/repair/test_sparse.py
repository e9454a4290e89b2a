"""Optimal brain surgery, against its definition with an inverse for every single weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.repair import System
from secateur.repair.sparse import obs_update, sparse
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
