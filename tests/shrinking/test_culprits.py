"""Where the check finds a difference, or the smaller model fails: what is left whole, and why."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ShrinkError, VerificationError
from secateur.shrinking.culprits import innocent

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))


class Part(nn.Module):
    """A residual branch; a bad one computes with its width where no analysis looks."""

    def __init__(self, bad: str = "") -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.bad = bad

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()
        width = str(self.up.weight.shape[0])  # a text, which nobody follows
        if self.bad == "scale":
            h = h / float(width)
        elif self.bad == "fails":
            assert width == "16", "I want 16"
        return x + self.down(h)


class Stack(nn.Sequential):
    def __init__(self, *bad: str) -> None:
        torch.manual_seed(0)
        super().__init__(*map(Part, bad))


def widths(model: nn.Module) -> list[int]:
    return [part.up.out_features for part in model]


def masked_copy(model: nn.Module, result: sc.Result) -> nn.Module:
    """The oracle, made without the library: a dense copy with the result's masks on."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in result.masks.items():
            twin.get_parameter(name).mul_(mask)
    return twin


def agrees(model: nn.Module, result: sc.Result) -> bool:
    expected = masked_copy(model, result)(X)
    return torch.allclose(result.model(X), expected, rtol=1e-4, atol=1e-5)


# bisection


@hypothesis_settings(deadline=None, max_examples=60)
@given(st.integers(2, 40), st.data())
def test_innocent_when_some_fail_alone_then_all_others_stay_and_few_trials_are_made(n, data):
    bad = data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=3))
    tried = 0

    def fails(some: Any) -> ShrinkError | None:
        nonlocal tried
        tried += 1
        return ShrinkError("no") if bad & {*some} else None

    good, culprits = innocent(range(n), fails)
    assert {*good} == {*range(n)} - bad
    assert {each for each, _ in culprits} == bad
    assert tried <= 2 * len(bad) * (n.bit_length() + 1)


@hypothesis_settings(deadline=None, max_examples=60)
@given(st.integers(2, 20), st.data())
def test_innocent_when_two_fail_only_together_then_one_of_them_goes(n, data):
    pair = data.draw(st.sets(st.integers(0, n - 1), min_size=2, max_size=2))
    good, culprits = innocent(range(n), lambda some: ShrinkError("no") if pair <= {*some} else None)
    assert len(culprits) == 1
    assert len(good) == n - 1
    assert not pair <= {*good}


# every way to a smaller model


def pruned(model: nn.Module) -> sc.Result:
    return sc.prune(model, X, sparsity=0.5)


def finished(model: nn.Module) -> sc.Result:
    pruner = sc.Pruner(copy.deepcopy(model), sc.Config(sparsity=0.5), X)
    pruner.step()
    return pruner.finish()


def shrunk(model: nn.Module) -> sc.Result:
    structure = sc.analyze(model, X)
    return sc.shrink(model, planned(structure).masks(structure), X)


def applied(model: nn.Module) -> sc.Result:
    return sc.apply_plan(model, planned(sc.analyze(model, X)), X)


def sped_up(model: nn.Module) -> sc.Result:
    from secateur.nni.speedup import ModelSpeedup

    structure = sc.analyze(model, X)
    masks: dict[str, dict[str, Tensor]] = {}
    for name, mask in planned(structure).masks(structure).items():
        path, _, target = name.rpartition(".")
        masks.setdefault(path, {})[target] = mask.float()
    speedup = ModelSpeedup(copy.deepcopy(model), X, masks)
    speedup.speedup_model()
    assert speedup.result is not None
    return speedup.result


def planned(structure: sc.Structure) -> sc.Plan:
    return sc.Plan({g.name: tuple(range(g.size // 2)) for g in structure.groups})


WAYS = [pruned, finished, shrunk, applied, sped_up]


@pytest.mark.parametrize(("way", "place"), [*((way, 1) for way in WAYS), (pruned, 0), (pruned, 2)])
@pytest.mark.parametrize("bad", ["scale", "fails"])
def test_cut_when_one_part_is_a_culprit_then_it_stays_whole_and_the_rest_goes(way, bad, place):
    model = Stack(*(bad if i == place else "" for i in range(3)))
    result = way(model)
    assert widths(result.model) == [16 if i == place else 8 for i in range(3)]
    assert result.verification.passed
    assert result.verification.exact
    assert agrees(model, result)
    assert f"{place}.up" not in result.plan.keep
    (why,) = (note for note in result.notes if "stays whole" in note)
    assert why.startswith(f"{place}.up stays whole: the smaller Stack ")
    if bad == "scale":
        assert f"the first module whose output differs is '{place}.down' (Linear)" in why
    else:
        assert "does not run: AssertionError: I want 16" in why
    gone = 1 - result.after.params / result.before.params
    assert any(w.startswith(f"{gone:.1%} of the parameters and") for w in result.warnings)


@pytest.mark.parametrize("way", [pruned, shrunk])
def test_cut_when_several_parts_are_culprits_then_all_of_them_stay_whole(way):
    kinds = ["scale", "", "fails", "scale", ""]
    model = Stack(*kinds)
    result = way(model)
    assert widths(result.model) == [16 if kind else 8 for kind in kinds]
    assert result.verification.passed
    assert agrees(model, result)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", ["scale", "fails"])
def test_cut_when_nothing_can_be_cut_then_an_error_says_why_and_the_model_is_as_before(way, bad):
    model = Stack(bad, bad)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(VerificationError if bad == "scale" else ShrinkError) as caught:
        way(model)
    assert "none of 2 parts can be cut" in str(caught.value)
    assert "'0.down' (Linear)" in str(caught.value) or bad == "fails"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_finish_when_a_part_stays_whole_then_it_stays_masked_as_it_was_trained():
    model = Stack("scale", "")
    pruner = sc.Pruner(model, sc.Config(sparsity=0.5), X)
    pruner.step()
    expected = model(X)
    result = pruner.finish()
    assert torch.allclose(result.model(X), expected, rtol=1e-4, atol=1e-6)
    assert widths(result.model) == [16, 8]


def test_prune_when_a_part_stays_whole_then_its_weights_are_the_dense_ones():
    model = Stack("scale", "")
    result = pruned(model)
    assert torch.equal(result.model[0].up.weight, model[0].up.weight)


class Counts(Part):
    """Adds how often it was called, where nobody puts it back."""

    calls = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        Counts.calls = [self.calls[0]]
        return super().forward(x) + Counts.calls[0]


def test_prune_when_the_model_does_not_compute_the_same_twice_then_the_error_says_so():
    with pytest.raises(VerificationError, match="does not compute the same twice"):
        pruned(nn.Sequential(Counts(), Part()))


class Halves(nn.Module):
    """Two layers that one attribute names: they keep equally many, or neither loses any."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.other = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(8, 12)
        self.width = 12
        self.head = nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).view(-1, self.width)
        b = self.b(x).view(-1, self.width) / float(str(self.b.weight.shape[0]))
        return self.head(torch.cat([a, b, self.other(x)], 1))


def test_prune_when_a_culprit_keeps_as_many_as_another_then_both_stay_whole():
    model = Halves()
    result = pruned(model)
    assert result.model.a.out_features == result.model.b.out_features == 12
    assert result.model.other.out_features == 6
    assert any(note.startswith("a, b stays whole") for note in result.notes)
    assert agrees(model, result)


def test_prune_when_inexact_parts_are_cut_too_then_the_exact_ones_are_checked_all_the_same():
    model = nn.Sequential(Part("scale"), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4), Head())
    result = sc.prune(model, X, sparsity=0.5, inexact=True)
    assert not result.verification.exact
    assert result.model[0].up.out_features == 16
    assert result.model[1].out_features == 4
    assert any(note.startswith("0.up stays whole") for note in result.notes)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())
