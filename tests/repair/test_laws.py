"""What holds for every repair, and for least squares and the polish against numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import ScoreError
from secateur.repair import System, repairs
from secateur.repair.cholesky import damped_factor
from secateur.repair.damping import best
from secateur.repair.least_squares import least_squares
from secateur.repair.polish import polish
from tests.repair.systems import columns, correlated, damped_error, everything, optimum, systems

DAMPINGS = st.sampled_from([1e-4, 1e-2, 1.0])
few = settings(max_examples=20)
every_repair = pytest.mark.parametrize("name", list(repairs))


@every_repair
@few
@given(system=systems(), damping=st.sampled_from([0.0, 1e-4, 1.0]))
def test_repair_when_called_then_weights_are_finite_off_zero_and_the_system_as_it_was(
    name: str, system: System, damping: float
) -> None:
    before = replace(system, weight=system.weight.clone(), gram=system.gram.clone())
    new = repairs[name](system, damping=damping)
    assert new.shape == system.weight.shape
    assert new.dtype == system.weight.dtype
    assert new.isfinite().all()
    assert not new[~system.mask].any()
    assert torch.equal(before.weight, system.weight)
    assert torch.equal(before.gram, system.gram)


@every_repair
@few
@given(system=systems(own=True), damping=st.sampled_from([1e-4, 1e-2, 1.0]))
def test_repair_when_nothing_is_removed_then_nothing_changes(
    name: str, system: System, damping: float
) -> None:
    new = repairs[name](everything(system), damping=damping)
    assert (new - system.weight).abs().max() <= 1e-9 * system.weight.abs().max()


@every_repair
@few
@given(system=systems(), damping=DAMPINGS)
def test_repair_when_an_input_is_always_zero_then_its_weight_stays(
    name: str, system: System, damping: float
) -> None:
    dead = (system.gram.diagonal() == 0) & system.mask
    new = repairs[name](system, damping=damping)
    torch.testing.assert_close(new[dead], system.weight[dead])


@every_repair
@few
@given(system=systems(), damping=DAMPINGS, scale=st.sampled_from([1e-3, 0.1, 1e3]))
def test_repair_when_inputs_are_scaled_then_weights_are_by_its_inverse(
    name: str, system: System, damping: float, scale: float
) -> None:
    scaled = replace(
        system,
        weight=system.weight / scale,
        gram=system.gram * scale**2,
        cross=system.cross * scale,
    )
    new, other = (repairs[name](each, damping=damping) for each in (system, scaled))
    gap = other * scale - new
    power = (new @ system.gram * new).sum() + (system.weight @ system.gram * system.weight).sum()
    # roundings may choose which step of a polish is the last, one that takes off 1e-8 of the energy
    held = (gap @ system.gram * gap).sum() + system.ridge(damping) * gap.square().sum()
    assert held <= 1e-6 * (power + system.energy.sum())


@every_repair
@few
@given(system=systems(), damping=DAMPINGS, seed=st.integers(0, 99))
def test_repair_when_outputs_are_permuted_then_weights_follow(
    name: str, system: System, damping: float, seed: int
) -> None:
    order = torch.randperm(len(system.weight), generator=torch.Generator().manual_seed(seed))
    turned = replace(
        system,
        weight=system.weight[order],
        cross=system.cross[:, order],
        energy=system.energy[order],
        mask=system.mask[order],
    )
    new, other = (repairs[name](each, damping=damping) for each in (system, turned))
    torch.testing.assert_close(other, new[order])


@every_repair
@few
@given(system=systems(own=True), damping=DAMPINGS)
def test_repair_when_solved_then_the_output_is_no_worse_than_by_the_mask_alone(
    name: str, system: System, damping: float
) -> None:
    new = repairs[name](system, damping=damping)
    rounding = 1e-12 * system.energy.sum()
    assert (system.error(new) <= system.error(system.weight * system.mask) + rounding).all()


@pytest.mark.parametrize("name", ["least_squares", "sparse"])
@few
@given(seed=st.integers(0, 99), features=st.integers(2, 12), damping=st.just(1e-9))
def test_repair_when_the_removed_are_combinations_of_the_kept_then_no_output_changes(
    name: str, seed: int, features: int, damping: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randn(3 * features, features, generator=generator).double()
    gone = kept @ torch.randn(features, 3, generator=generator).double()
    order = torch.randperm(features + 3, generator=generator)
    x = torch.cat([kept, gone], 1)[:, order]
    keep = (torch.arange(features + 3) < features)[order]
    weight = torch.randn(4, features + 3, generator=generator).double()
    system = System.of(weight, columns(4, features + 3, keep), x)
    new = repairs[name](system, damping=damping)
    assert (system.error(new) <= 1e-6 * system.energy).all()
    assert system.error(weight * keep).sum() > 1e-3 * system.energy.sum()


@pytest.mark.parametrize("solve", [least_squares, None], ids=["least_squares", "polish"])
@few
@given(data=st.data(), damping=DAMPINGS)
def test_solve_when_compared_with_numpy_then_it_is_the_optimum(solve, data, damping) -> None:
    system = data.draw(systems(whole=solve is not None))
    if solve is None:
        new = polish(system, system.weight, damping=damping, steps=200)
    else:
        new = solve(system, damping=damping)
    wanted = torch.from_numpy(optimum(system, damping))
    if solve is None:  # which may keep the start where pulling to the old weights costs error
        worse = system.error(wanted) >= system.error(system.weight * system.mask)
        wanted[worse] = new[worse]
    reached, least = damped_error(system, new, damping), damped_error(system, wanted, damping)
    assert (reached <= least + 1e-6 * (least + system.energy)).all()
    rows = ~system.mask.any(1)
    assert not new[rows].any()


@few
@given(system=systems(), damping=st.sampled_from([0.0, 1e-3]), seed=st.integers(0, 99))
def test_polish_when_started_anywhere_then_no_output_gets_worse(system, damping, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(system.weight.shape, generator=generator).double()
    for steps in (0, 1, 3, 50):
        new = polish(system, start, damping=damping, steps=steps)
        assert (system.error(new) <= system.error(start * system.mask)).all()


def test_polish_when_given_more_steps_then_it_comes_nearer() -> None:
    x = correlated(200, 24)
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(1)).double()
    mask = torch.rand(6, 24, generator=torch.Generator().manual_seed(2)) < 0.5
    system = System.of(weight, mask, x)
    errors = [
        float(system.error(polish(system, weight, damping=1e-6, steps=n)).sum())
        for n in (0, 2, 8, 32)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


@few
@given(system=systems(whole=True))
def test_least_squares_when_the_rank_is_too_low_and_nothing_damps_then_it_still_fits(system):
    new = least_squares(system, damping=0.0)
    wanted = np.zeros_like(new.numpy())
    for i, kept in enumerate(system.mask.numpy()):
        gram, cross = system.gram.numpy(), system.cross.numpy()
        wanted[i, kept] = np.linalg.pinv(gram[np.ix_(kept, kept)]) @ cross[kept, i]
    least = system.error(torch.from_numpy(wanted))
    assert (system.error(new) <= least + 1e-6 * (system.energy + least)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(repairs))
def test_repair_when_no_output_keeps_anything_then_all_is_zero(name, dtype) -> None:
    x = correlated(20, 6).to(dtype)
    weight = torch.ones(3, 6, dtype=dtype)
    system = System.of(weight, torch.zeros(3, 6, dtype=torch.bool), x)
    assert not repairs[name](system, damping=1e-2).any()


def test_repair_when_in_float32_then_it_is_near_that_in_float64() -> None:
    x = correlated(300, 40)
    weight = torch.randn(8, 40, generator=torch.Generator().manual_seed(0)).double()
    for mask in (columns(8, 40, torch.arange(40) % 3 > 0), torch.arange(320).view(8, 40) % 3 > 0):
        fine = System.of(weight, mask, x)
        coarse = System.of(weight.float(), mask, x.float())
        for repair in repairs.values():
            errors = [fine.error(repair(s, damping=1e-3).double()).sum() for s in (fine, coarse)]
            torch.testing.assert_close(errors[1], errors[0], rtol=1e-3, atol=0.0)


def test_best_when_rows_are_too_few_then_the_weight_stays_as_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 30, generator=generator).double()
    mask = columns(4, 30, torch.arange(30) % 2 > 0)
    noise = [torch.randn(n, 30, generator=generator).double() for n in (12, 400)]
    fit, held = (System.of(weight, mask, x) for x in noise)
    found = best(least_squares, fit, held, candidates=(1e-6, 1e-4))
    assert found.damping is None
    assert torch.equal(found.weight, weight * mask)


def test_best_when_inputs_are_correlated_then_the_held_out_error_falls() -> None:
    weight = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)).double()
    mask = columns(4, 30, torch.arange(30) % 2 > 0)
    fit, held = (System.of(weight, mask, x) for x in correlated(400, 30).split(200))
    found = best(least_squares, fit, held)
    assert found.damping is not None
    assert found.error == pytest.approx(float(held.error(found.weight).sum()))
    assert found.error < 0.5 * float(held.error(weight * mask).sum())
    tried = [least_squares(fit, damping=d) for d in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)]
    assert found.error == min(float(held.error(each).sum()) for each in tried)


@few
@given(seed=st.integers(0, 99), features=st.integers(1, 20), rank=st.integers(0, 20))
def test_damped_factor_when_rounding_leaves_negative_eigenvalues_then_it_is_near(
    seed: int, features: int, rank: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rank, features, generator=generator).double()
    gram = x.T @ x - 1e-10 * torch.eye(features).double()
    factor = damped_factor(gram, torch.tensor(1e-14))
    assert ((factor @ factor.T - gram).abs() <= 1e-7).all()


def test_damped_factor_when_the_matrix_is_no_gram_then_that_is_said() -> None:
    with pytest.raises(ScoreError, match="far from positive semidefinite"):
        damped_factor(torch.diag(torch.tensor([1.0, -1.0])), torch.tensor(1e-13))


@pytest.mark.parametrize("wrong", ["weight", "gram", "cross", "energy"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_system_when_a_number_is_not_finite_then_is_refused(wrong: str, value: float) -> None:
    system = System.of(torch.ones(2, 3), torch.ones(2, 3).bool(), torch.ones(4, 3))
    spoilt = getattr(system, wrong).clone()
    spoilt.view(-1)[-1] = value
    with pytest.raises(ScoreError, match="NaN or infinite"):
        replace(system, **{wrong: spoilt})


@few
@given(system=systems(own=False), seed=st.integers(0, 99))
def test_error_when_compared_with_the_rows_themselves_then_it_is_their_mean(system, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(50, system.weight.shape[1], generator=generator).double()
    y = torch.randn(50, len(system.weight), generator=generator).double()
    other = System.of(system.weight, system.mask, x, y)
    wanted = (x @ system.weight.T - y).square().mean(0)
    torch.testing.assert_close(other.error(system.weight), wanted)
