"""How two models are compared: on which inputs, by which measure, against which tolerance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur import Verification
from secateur.shrinking.verify import difference, run, tolerance_of, trials


def one(*values: float, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    return [[torch.tensor(values, dtype=dtype)]]


# inputs


def test_trials_when_the_example_is_floats_then_the_second_has_its_shape_and_range():
    example = (100 + 5 * torch.randn(400), {"mask": torch.ones(3, dtype=torch.bool)})
    first, second = trials(example)
    assert first is example
    assert second[0].shape == example[0].shape
    assert not torch.equal(second[0], example[0])
    assert abs(float(second[0].mean()) - 100) < 2
    assert 4 < float(second[0].std()) < 6
    assert torch.equal(second[1]["mask"], example[1]["mask"])


def test_trials_when_the_example_is_numbers_then_the_second_has_the_same_ones_in_another_order():
    example = torch.arange(20).reshape(4, 5)
    _, second = trials(example)
    assert not torch.equal(second, example)
    assert torch.equal(second.flatten().sort().values, example.flatten())


@pytest.mark.parametrize("example", [torch.zeros(2, 3), torch.zeros(0), torch.ones(1)])
def test_trials_when_the_example_is_constant_or_empty_then_the_second_is_finite(example):
    _, second = trials(example)
    assert second.shape == example.shape
    assert second.isfinite().all()


def test_trials_when_asked_twice_then_they_are_the_same():
    example = torch.randn(3, 4)
    assert torch.equal([*trials(example)][1], [*trials(example)][1])


# runs


def test_run_when_the_model_trains_then_it_runs_in_eval_mode_and_trains_afterwards():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    mean = model[1].running_mean.clone()
    first, second = run(model, torch.randn(6, 3)), run(model, torch.randn(6, 3))
    assert model.training
    assert model[2].training
    assert torch.equal(model[1].running_mean, mean)
    assert len(first) == 2
    assert not first[0][0].requires_grad
    assert difference(first, second) > 0


def test_run_when_the_model_draws_numbers_then_both_runs_see_the_same_and_the_user_loses_none():
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": x + torch.rand_like(x)}

    example = torch.randn(3)
    state = torch.get_rng_state()
    assert difference(run(Noisy(), example), run(Noisy(), example)) == 0
    assert torch.equal(torch.get_rng_state(), state)


# the measure


def test_difference_when_values_differ_then_it_is_relative_to_the_largest():
    assert difference(one(1.0, -200.0), one(2.0, -200.0)) == pytest.approx(1 / 200)


def test_difference_when_there_are_several_outputs_then_the_worst_counts():
    before = [[torch.ones(2), torch.ones(2)], [torch.ones(2), torch.ones(2)]]
    after = [[torch.ones(2), torch.ones(2)], [torch.ones(2), torch.full((2,), 1.5)]]
    assert difference(before, after) == 0.5


def test_difference_when_everything_is_zero_or_empty_then_it_is_zero():
    assert difference(one(0.0, 0.0), one(0.0, 0.0)) == 0
    assert difference(one(), one()) == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (one(1.0), one(1.0, 1.0)),
        ([[torch.ones(1)]], [[torch.ones(1), torch.ones(1)]]),
        (one(1.0, 2.0), one(1.0, float("nan"))),
        (one(1.0, float("inf")), one(1.0, 2.0)),
    ],
    ids=["shape", "number of outputs", "nan", "inf"],
)
def test_difference_when_outputs_cannot_be_compared_then_it_is_infinite(before, after):
    assert difference(before, after) == float("inf")


@pytest.mark.parametrize(
    ("before", "after"),
    [(one(float("inf")), one(float("-inf"))), (one(float("nan")), one(float("inf")))],
    ids=["sign", "nan and inf"],
)
def test_difference_when_not_finite_values_are_of_another_kind_then_it_is_infinite(before, after):
    assert difference(before, after) == float("inf")


def test_difference_when_both_have_the_same_infinities_then_the_rest_counts():
    inf = float("inf")
    assert difference(one(inf, -inf, 4.0), one(inf, -inf, 5.0)) == 0.25


def test_difference_when_outputs_are_whole_numbers_or_bool_then_they_compare_too():
    assert difference([[torch.tensor([True])]], [[torch.tensor([False])]]) == 1
    assert difference([[torch.tensor([4])]], [[torch.tensor([3])]]) == 0.25


# the verdict


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-8), (torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 5e-2)],
)
def test_tolerance_when_the_dtype_is_coarse_then_it_is_wide(dtype, tolerance):
    assert tolerance_of(one(1.0, dtype=dtype)) == tolerance


def test_tolerance_when_dtypes_are_mixed_then_the_coarsest_counts():
    assert tolerance_of([*one(1.0), *one(1.0, dtype=torch.float16)]) == 2e-2


@pytest.mark.parametrize(
    ("difference", "exact", "passed"),
    [(1e-6, True, True), (1e-3, True, False), (1e-3, False, True), (float("inf"), True, False)],
)
def test_verification_when_removal_is_exact_then_the_difference_must_be_small(
    difference, exact, passed
):
    assert Verification(difference, 1e-4, exact, 2).passed is passed


def test_verification_when_printed_then_it_says_how_far_and_what_was_expected():
    assert str(Verification(1.2e-7, 1e-4, True, 2)) == (
        "outputs differ by 1.2e-07 relative on 2 inputs (exact)"
    )
    assert "inexact, as reported" in str(Verification(0.1, 1e-4, False, 2))


class Asked(nn.Module):
    """Notes whether convolutions may round to TF32 while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(torch.backends.cudnn.allow_tf32)
        return x


def test_run_when_convolutions_may_round_to_tf32_then_not_while_it_runs(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    model = Asked()
    run(model, torch.zeros(2))
    assert model.seen == [False, False]
    assert torch.backends.cudnn.allow_tf32 is True
