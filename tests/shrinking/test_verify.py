"""How two models are compared: in which numbers, by which measure, against which tolerance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur import Verification, analyze, prune
from secateur.errors import VerificationError
from secateur.runtime.forward import full_precision
from secateur.shrinking.difference import difference
from secateur.shrinking.verify import Check


def one(*values: float, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    return [[torch.tensor(values, dtype=dtype)]]


def checked(model: nn.Module, other: nn.Module, example: Any) -> Verification:
    """What the check says of two models, the first of which is taken for the masked one."""
    check = Check(analyze(model, example), example)
    return check.compare(other, check.expect(model), exact=True)


class Times(nn.Module):
    """A linear layer whose output is multiplied by a number."""

    def __init__(self, number: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4).to(dtype)
        self.number = number
        nn.init.constant_(self.layer.weight, 0.25)
        nn.init.constant_(self.layer.bias, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.number


# the measure


def test_difference_when_columns_differ_in_size_then_each_counts_by_its_own():
    boxes_and_scores = torch.tensor([[[512.0, 0.5], [640.0, 0.25]]])
    other = boxes_and_scores.clone()
    other[0, 1, 1] += 0.05
    assert difference([[boxes_and_scores]], [[other]]) == pytest.approx(0.1)
    assert difference([[boxes_and_scores]], [[other]], floor=1) == pytest.approx(0.05 / 640)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_difference_when_one_slice_of_any_dimension_is_small_then_it_is_not_hidden(dim):
    old = torch.ones(2, 3, 4, 5)
    old.select(dim, 1).mul_(1e-3)
    new = old.clone()
    new.select(dim, 1)[0, 0, 0] += 1e-4
    assert difference([[old]], [[new]]) == pytest.approx(0.1)


def test_difference_when_a_column_is_zero_then_it_counts_beside_the_largest():
    old = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    assert difference([[old]], [[old + torch.tensor([0.0, 2e-7])]]) == pytest.approx(1e-3)


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
        (one(float("inf")), one(float("-inf"))),
        (one(float("nan")), one(float("inf"))),
    ],
    ids=["shape", "number of outputs", "nan", "inf", "sign", "nan and inf"],
)
def test_difference_when_outputs_cannot_be_compared_then_it_is_infinite(before, after):
    assert difference(before, after) == float("inf")


def test_difference_when_both_have_the_same_infinities_then_the_rest_counts():
    inf = float("inf")
    assert difference(one(inf, -inf, 4.0), one(inf, -inf, 5.0)) == 0.25


def test_difference_when_outputs_are_whole_numbers_or_bool_then_they_compare_too():
    assert difference([[torch.tensor([True])]], [[torch.tensor([False])]]) == 1
    assert difference([[torch.tensor([4])]], [[torch.tensor([3])]]) == 0.25


def test_difference_when_outputs_are_complex_then_both_parts_count():
    old = torch.tensor([1 + 1j])
    assert difference([[old]], [[old + 0.5j]]) == 0.5


# what it is computed in


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("factor", [1 + 1e-7, 1 + 1e-3])
def test_check_when_models_differ_by_less_than_their_type_resolves_then_it_is_seen(dtype, factor):
    found = checked(Times(1.0, dtype), Times(factor, dtype), torch.ones(2, 8, dtype=dtype))
    assert not found.passed
    assert found.difference == pytest.approx(factor - 1, rel=1e-3)
    assert found.precision == "float64"


class Casts(Times):
    """Casts to a coarser type on its way, as norms and rotary tables do, or lets torch do it."""

    def __init__(self, number: float, how: str) -> None:
        super().__init__(number)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.layer(x) * self.number
        if self.how == "made":
            y = torch.zeros(len(x), 4, dtype=torch.float32)
            y[:, :4] = self.layer(x)
            return y * self.number
        if self.how == "read":
            return (self.layer(x) * torch.ones(4, dtype=torch.float32)).to(x.dtype) * self.number
        return getattr(self.layer(x), self.how)() * self.number


@pytest.mark.parametrize("how", ["half", "bfloat16", "float", "autocast", "made", "read"])
def test_check_when_the_code_casts_to_a_coarse_type_then_it_computes_finely_all_the_same(how):
    same = checked(Casts(1.0, how), Casts(1.0, how), torch.randn(2, 8))
    assert same.difference == 0
    found = checked(Casts(1.0, how), Casts(1 + 1e-8, how), torch.randn(2, 8))
    assert not found.passed
    assert found.precision == "float64"


def test_check_when_it_has_run_then_the_model_holds_what_it_held():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    held = [(t, t.data.data_ptr(), t.clone()) for t in (*model.parameters(), *model.buffers())]
    x = torch.randn(6, 3)
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    assert checked(model, model, x).difference == 0
    assert all(t.data_ptr() == place and torch.equal(t, was) for t, place, was in held)
    assert model.training
    assert model[2].training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() is dtype


class Asserts(Times):
    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype is torch.float32, "float32 only"
        return super().forward(x)


def test_check_when_the_model_does_not_run_in_float64_then_it_says_so_and_uses_float32():
    found = checked(Asserts(1.0), Asserts(1 + 1e-4), torch.ones(2, 8))
    assert not found.passed
    assert found.precision == (
        "float32, because it does not run in float64 (AssertionError: float32 only)"
    )
    assert "in float32, because" in str(found)


def test_check_when_the_model_is_large_then_it_says_so(monkeypatch):
    monkeypatch.setattr("secateur.shrinking.verify.MOST_MACS", 10)
    found = checked(Times(1.0), Times(1.0), torch.ones(2, 8))
    assert found.passed
    assert found.precision == "float32, because it is large"


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": x + torch.rand_like(x)}


def test_check_when_the_model_draws_numbers_then_both_runs_see_the_same():
    assert checked(Noisy(), Noisy(), torch.randn(3)).difference == 0


class Chaos(nn.Module):
    """Repeats a map that doubles what two numbers differ by."""

    def __init__(self, times: int, number: float = 1.0) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 96), nn.Linear(96, 4)
        self.times, self.number = times, number

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).sigmoid() * self.number
        for _ in range(self.times):
            x = 3.9 * x * (1 - x)
        return x


def test_check_when_the_model_is_chaotic_then_roundings_are_no_difference():
    torch.manual_seed(0)
    model, other = Chaos(60), Chaos(60, 1 + 2**-51)  # whose sums round otherwise, on any processor
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 4)
    assert prune(model, x, sparsity=0.5).verification.passed
    found = checked(model, other, x)
    assert found.passed
    assert found.tolerance > 1e-3
    assert "as far as roundings allow to see" in str(found)


def test_check_when_the_model_amplifies_a_little_then_a_difference_beyond_that_is_seen():
    torch.manual_seed(0)
    model, other = Chaos(20), Chaos(20, 1 + 1e-6)
    other.load_state_dict(model.state_dict())
    found = checked(model, other, torch.randn(2, 4))
    assert not found.passed


class OneOfTwo(nn.Module):
    """Two outputs, of which one is chaotic and the other may be off."""

    def __init__(self, number: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        rounded = 1.0 if number == 1 else 1 + 2**-51
        self.chaos, self.plain = Chaos(60, rounded), Times(number)

    def forward(self, x: Tensor) -> Tensor:
        return self.chaos(x[:, :4]) if bool((x > 0.9).all()) else self.plain(x)


def test_check_when_one_trial_cannot_be_resolved_then_a_difference_in_another_is_seen():
    found = checked(OneOfTwo(), OneOfTwo(1.01), torch.ones(2, 8))
    assert not found.passed
    assert found.tolerance == 1e-9
    assert found.difference == pytest.approx(0.01)


class Unsteady(Times):
    """Adds what it was called before: no two runs are alike."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Unsteady.calls += 1
        return super().forward(x) * (1 + Unsteady.calls)


def test_check_when_no_two_runs_are_alike_then_roundings_do_not_excuse_it():
    model = Unsteady(1.0)
    assert not checked(model, model, torch.ones(2, 8)).passed


# differences that a lax check forgave


class Scaled(nn.Module):
    """Attention whose scale is computed from a width where no one sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.hidden = 0.0

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        weights = (q @ k.transpose(1, 2)) * float(np.prod(np.array(q.shape[-1:])) ** -0.5)
        return x + self.down(self.up(x + weights.softmax(-1) @ v).relu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_prune_when_a_scale_hides_from_analysis_then_the_check_sees_it_in_every_type(dtype):
    torch.manual_seed(0)
    model, x = Scaled().to(dtype), torch.randn(2, 5, 16).to(dtype)
    result = prune(model, x, sparsity=0.5)
    assert result.verification.passed
    assert result.model.q.out_features == 16
    assert result.model.up.out_features == 12
    assert any("q stays whole: the smaller Scaled differs" in note for note in result.notes)


class Boxes(nn.Module):
    """Pixels and probabilities in one tensor; one of the latter is off where a width shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        out = self.head(h)
        scores = out[..., 4:].sigmoid() * (1 + 1e-4 * self.stem.weight.shape[0])
        return torch.cat([out[..., :4] * 640, scores], -1)


def test_prune_when_a_score_beside_pixels_is_off_then_verification_error():
    with pytest.raises(VerificationError, match="though every removal is exact"):
        prune(Boxes(), torch.randn(2, 10, 8), sparsity=0.5)


# the verdict


@pytest.mark.parametrize(
    ("difference", "exact", "passed"),
    [(1e-10, True, True), (1e-3, True, False), (1e-3, False, True), (float("inf"), True, False)],
)
def test_verification_when_removal_is_exact_then_the_difference_must_be_small(
    difference, exact, passed
):
    assert Verification(difference, 1e-9, exact, 2).passed is passed


def test_verification_when_printed_then_it_says_how_far_and_what_was_expected():
    assert str(Verification(1.2e-12, 1e-9, True, 2)) == (
        "outputs differ by 1.2e-12 relative on 2 inputs (exact), in float64"
    )
    assert "inexact, as reported" in str(Verification(0.1, 1e-9, False, 2))


def test_check_when_convolutions_may_round_to_tf32_then_a_run_on_the_cpu_leaves_that(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    model, seen = nn.Identity(), []
    check = Check(analyze(model, torch.zeros(2)), torch.zeros(2))
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    check.expect(model)
    assert seen
    assert all(seen)  # a flag of the process, which other threads read too
    with full_precision():  # as it is on a GPU
        assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cudnn.allow_tf32 is True
