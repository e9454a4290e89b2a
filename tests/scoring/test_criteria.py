"""What each criterion computes, and what may be registered as one."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import UnknownNameError
from secateur.scoring.criteria import (
    CriterionRegistry,
    criteria,
    fpgm,
    l1,
    l2,
    magnitude,
    needs,
    random,
)
from tests.statistics import made_up

module = import_module("secateur.scoring.criteria")

ANY_SHAPE = st.tuples(st.integers(0, 7), st.integers(1, 5))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def call(name: str, rows: Tensor) -> Tensor:
    return criteria[name](rows, **made_up(name, rows))


def all_distances(rows: Tensor) -> Tensor:
    """The definition, with every difference written out, in float64."""
    rows = rows.double()
    return (rows[:, None] - rows[None]).square().sum(dim=2).sqrt().sum(dim=1)


@pytest.mark.parametrize("name", list(criteria))
@settings(max_examples=20)
@given(shape=ANY_SHAPE, seed=st.integers(0, 99))
def test_criterion_when_called_twice_then_one_equal_finite_score_per_block(name, shape, seed):
    rows = torch.randn(shape, generator=seeded(seed))
    before = rows.clone()
    first, second = call(name, rows), call(name, rows)
    assert first.shape == (shape[0],)
    assert first.isfinite().all()
    assert torch.equal(first, second)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("name", ["magnitude", "l1", "l2", "fpgm"])
def test_criterion_when_blocks_are_permuted_then_scores_follow(name):
    rows = torch.randn(9, 4, generator=seeded())
    order = torch.randperm(9, generator=seeded())
    torch.testing.assert_close(call(name, rows[order]), call(name, rows)[order])


def test_norms_when_computed_then_equal_their_formulas():
    rows = torch.randn(6, 10, generator=seeded())
    torch.testing.assert_close(magnitude(rows), rows.abs().mean(dim=1))
    torch.testing.assert_close(l1(rows), rows.abs().sum(dim=1))
    torch.testing.assert_close(l2(rows), rows.square().sum(dim=1).sqrt())


@pytest.mark.parametrize("name", ["magnitude", "l1", "l2", "fpgm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_criterion_when_weights_are_half_precision_then_scores_are_float32(name, dtype):
    rows = torch.randn(4, 3000, generator=seeded()).to(dtype)
    scores = call(name, rows)
    assert scores.dtype is torch.float32
    torch.testing.assert_close(scores, call(name, rows.float()))


@settings(max_examples=60)
@given(shape=ANY_SHAPE, seed=st.integers(0, 999), tile=st.sampled_from([1, 6, 20, 1 << 22]))
def test_fpgm_when_cut_into_any_tiles_then_equals_the_definition(shape, seed, tile):
    rows = torch.randn(shape, generator=seeded(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE_ELEMENTS", tile)
        torch.testing.assert_close(fpgm(rows).double(), all_distances(rows), rtol=1e-5, atol=1e-6)


def test_fpgm_when_rows_almost_coincide_then_distances_survive_cancellation():
    base = torch.randn(1, 500, generator=seeded())
    rows = base + 1e-5 * torch.randn(40, 500, generator=seeded(1))
    torch.testing.assert_close(fpgm(rows).double(), all_distances(rows), rtol=1e-5, atol=0)


def test_fpgm_when_a_block_is_at_the_median_then_it_matters_least():
    rows = torch.tensor([[10.0, 10.0], [10.0, 11.0], [10.0, 9.0], [0.0, 0.0]])
    assert fpgm(rows).argmin() == 0, "the zero block has the least norm, but is far from the others"


def test_fpgm_when_blocks_are_single_weights_then_a_million_are_fine():
    weights = torch.randn(1_000_000, 1, generator=seeded())
    scores = fpgm(weights)
    some = torch.tensor([0, 1, 999_999])
    expected = (weights[some] - weights.T).abs().double().sum(dim=1).float()
    torch.testing.assert_close(scores[some], expected)


def test_fpgm_when_the_layer_is_large_then_no_tile_exceeds_its_budget(monkeypatch):
    seen = []
    cdist = torch.cdist

    def watched(a: Tensor, b: Tensor, **options: str) -> Tensor:
        seen.append(max(a.numel(), b.numel(), a.shape[0] * b.shape[0]))
        return cdist(a, b, **options)

    monkeypatch.setattr(torch, "cdist", watched)
    fpgm(torch.randn(300, 2048 * 9, generator=seeded()))
    assert len(seen) > 1
    assert max(seen) <= module.TILE_ELEMENTS


@pytest.mark.parametrize("name", ["magnitude", "l1", "l2", "fpgm"])
@pytest.mark.parametrize("width", [1, 3])
def test_criterion_when_a_weight_is_nan_then_its_score_is_not_finite(name, width):
    rows = torch.ones(3, width)
    rows[1, 0] = torch.nan
    assert not call(name, rows)[1].isfinite()


def test_random_when_seeded_alike_then_alike_and_otherwise_different():
    rows = torch.ones(20, 2)
    same = random(rows, generator=seeded(1))
    assert torch.equal(same, random(rows, generator=seeded(1)))
    assert not torch.equal(same, random(rows, generator=seeded(2)))


def test_needs_when_asked_then_reads_the_signature():
    assert {name: needs(criteria[name]) for name in criteria} == {
        "activation": ("input_norm",),
        "apoz": ("input_zeros",),
        "contribution": ("delivered_share",),
        "elimination": ("input_elimination",),
        "energy": ("input_moments",),
        "fluctuation": ("input_variance",),
        "fpgm": (),
        "frequency": ("input_rows",),
        "l1": (),
        "l2": (),
        "magnitude": (),
        "mean_activation": ("input_mean",),
        "obs": ("input_inverse",),
        "random": ("generator",),
        "reap": ("delivered_norm",),
        "taylor": ("grad",),
        "wanda": ("input_norm",),
    }


def test_register_when_a_statistic_is_unknown_then_names_the_nearest():
    def noisy(rows: Tensor, *, generater: torch.Generator) -> Tensor:
        return rows.sum(dim=1)

    with pytest.raises(UnknownNameError, match=r"'generater'\. Did you mean 'generator'\?"):
        CriterionRegistry("criterion").register(noisy)


WRONG = {
    "no_rows": lambda: None,
    "positional_statistic": lambda rows, grad: rows,
    "any_keyword": lambda rows, **anything: rows,
    "any_position": lambda *rows: rows[0],
    "only_statistics": lambda *, generator: None,
}


@pytest.mark.parametrize("case", WRONG)
def test_register_when_the_signature_is_wrong_then_shows_the_right_one(case):
    with pytest.raises(ValueError, match=r"must have the signature \(rows, \*, <statistics>\)"):
        CriterionRegistry("criterion").register(WRONG[case])
