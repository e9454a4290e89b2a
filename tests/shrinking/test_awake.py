"""Branches behind a zero: what a gate hides until it is trained is compared all the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import NoMatchError, ShrinkError

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))

GATES: dict[str, Callable[[], nn.Module]] = {}


def gate(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    GATES[make.__name__] = make
    return make


class Times(nn.Module):
    def __init__(self, *shape: int):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@gate
def rezero() -> nn.Module:
    return Times()


@gate
def layer_scale() -> nn.Module:
    return Times(8)


@gate
def last_layer() -> nn.Module:
    layer = nn.Linear(8, 8)
    nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    return layer


@gate
def last_norm() -> nn.Module:
    norm = nn.BatchNorm1d(8)
    nn.init.zeros_(norm.weight)
    return norm


@gate
def second_factor() -> nn.Module:
    layers = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
    nn.init.zeros_(layers[1].weight)
    return nn.Sequential(*layers)


class Branch(nn.Module):
    """A residual branch whose hidden layer ``use`` may read in a way that no operation shows."""

    def __init__(self, last: nn.Module, use: Callable[[Any, Tensor], Tensor]):
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.last, self.use = last, use

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.down(self.use(self, self.up(x).relu())))


UNSEEN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a layer's own width": lambda m, h: h / math.sqrt(m.down.in_features),
    "an array": lambda m, h: h * (1 + float(h.detach().cpu().numpy().mean())),
    "a list": lambda m, h: h + sum(h[0].tolist()) / len(h[0].tolist()),
    "a width that is compared": lambda m, h: h * (2 if h.shape[-1] > 20 else 1),
    "a stride": lambda m, h: h / h.stride(0),
}


@pytest.mark.parametrize("use", UNSEEN)
@pytest.mark.parametrize("name", GATES)
def test_prune_when_a_zero_hides_a_wrong_branch_then_it_stays_whole(name: str, use: str) -> None:
    torch.manual_seed(0)
    model = Branch(GATES[name](), UNSEEN[use]).eval()
    refused = r"differs|a number from its size|its numbers"
    with pytest.raises((ShrinkError, NoMatchError), match=refused):
        sc.prune(model, X, 0.5, names=["up"])


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", GATES)
def test_prune_when_a_zero_hides_a_right_branch_then_zeros_stay_zeros(
    name: str, inplace: bool
) -> None:
    torch.manual_seed(0)
    model = Branch(GATES[name](), lambda m, h: h).eval()
    before = {n: p.clone() for n, p in model.named_parameters()}
    zero = {n for n, p in before.items() if not p.any()}
    result = sc.prune(model, X, 0.5, names=["up"], inplace=inplace)
    assert result.verification.passed
    assert (result.model is model) is inplace
    after = dict(result.model.named_parameters())
    assert after["up.weight"].shape == (16, 8)
    assert {n for n, p in after.items() if not p.any()} == zero
    if not inplace:
        assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    with torch.no_grad():
        assert torch.equal(result.model(X), X)
        masked = {n: p * result.masks[n] if n in result.masks else p for n, p in before.items()}
        opened = {n: torch.ones_like(p) if n in zero else p for n, p in masked.items()}
        dense = Branch(GATES[name](), lambda m, h: h).eval()
        dense.load_state_dict({**dense.state_dict(), **opened})
        for n, p in result.model.named_parameters():
            if n in zero:
                p.fill_(1)
        assert torch.allclose(dense(X), result.model(X), atol=1e-5)


def test_prune_when_it_fails_then_zeros_of_the_model_are_zeros() -> None:
    torch.manual_seed(0)
    model = Branch(Times(8), UNSEEN["a stride"]).eval()
    with pytest.raises(ShrinkError):
        sc.prune(model, X, 0.5, inplace=True)
    assert not model.last.scale.any()
    assert model.up.out_features == 32


def test_drop_blocks_when_a_zero_head_hides_their_places_then_they_are_not_counted_anew() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Branch(nn.Identity(), lambda m, h: h) for _ in range(6))
            self.head = nn.Linear(8, 4)
            nn.init.zeros_(self.head.weight)

        def forward(self, x: Tensor) -> Tensor:
            for i, block in enumerate(self.blocks):
                x = block(x) * (1 + i % 2)
            return self.head(x)

    torch.manual_seed(0)
    result = sc.drop_blocks(Counted().eval(), ["blocks.1"], X)
    assert len(result.model.blocks) == 6
    assert not result.model.head.weight.any()


SILENT: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "no box": (lambda y: y[y[:, 0] > 1e3], "empty"),
    "dead": (lambda y: (y - 1e3).relu(), "all the same number"),
    "saturated": (lambda y: (y + 1e3).sigmoid(), "all the same number"),
    "clamped": (lambda y: (y * 1e6 + 1e9).clamp(0, 1), "all the same number"),
}


@pytest.mark.parametrize("name", SILENT)
def test_prune_when_outputs_cannot_show_a_difference_then_a_warning_says_so(name: str) -> None:
    last, said = SILENT[name]

    class Silent(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return last(super().forward(x))

    torch.manual_seed(0)
    result = sc.prune(Silent(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), X, 0.5)
    assert any(said in warning and "says little" in warning for warning in result.warnings)
    assert not sc.prune(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)).eval(), X, 0.5).warnings


def asserts(y: Tensor, zero: Tensor) -> Tensor:
    assert not zero.any(), "calibrate first"
    return y


ASKED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "asserts": asserts,
    "another way": lambda y, zero: y[:, [9]] if zero.sum() else y,
    "repeats": lambda y, zero: sum([y for _ in range(int(zero[0]))], y),
    "has the numbers": lambda y, zero: y[:, [9]] if max(zero.tolist()) else y,
}


class Zero(nn.Sequential):
    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]):
        torch.manual_seed(0)
        super().__init__(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        self.use, self.zero = use, nn.Parameter(torch.zeros(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.use(super().forward(x), self.zero)


@pytest.mark.parametrize("name", ASKED)
def test_prune_when_code_asks_for_the_numbers_of_a_zero_then_it_stays_zero(name: str) -> None:
    result = sc.prune(Zero(ASKED[name]).eval(), X, 0.5)
    assert result.model[0].out_features == 8
    assert result.verification.passed
    assert "compared: not what the zeros of 'zero' hide, because forward asks" in str(result.notes)


def test_prune_when_code_asks_for_what_a_zero_makes_of_an_input_then_the_error_names_it() -> None:
    model = Zero(lambda y, zero: y[:, [9]] if (y * zero).any() else y).eval()
    with pytest.raises(ShrinkError, match=r"because it fails, with nothing cut.*\('zero'\) holds"):
        sc.prune(model, X, 0.5)


def test_prune_when_code_goes_another_way_for_zeros_then_this_way_is_compared() -> None:
    def shorter(y: Tensor, zero: Tensor) -> Tensor:
        return y if zero.any() else y * model_of[0][2].weight.stride(0)

    model = Zero(shorter).eval()
    model_of = [model]
    with pytest.raises(ShrinkError, match="differs|does not"):
        sc.prune(model, X, 0.5)
