"""Sizes that reach numbers: what analysis follows, and what the check finds where it cannot."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc

Form = Callable[["Net", Tensor], Tensor]
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    """Two widths: a form computes with the first, and the second is free."""

    def __init__(self, form: Form) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.form = form
        self.d, self.h = 16, 4
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 6)
        self.c, self.e = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        f = self.a(x).relu().view(-1, self.d)
        return self.e(self.c(self.b(self.form(self, f))).relu())


FOLLOWED: dict[str, Form] = {
    "np.sqrt": lambda s, f: f / np.sqrt(s.d),
    "np.log": lambda s, f: f * float(np.log(s.d)),
    "np.float64": lambda s, f: f * float(np.float64(1) / s.d),
    "math.log": lambda s, f: f * math.log(s.d),
    "math.log2": lambda s, f: f * math.log2(s.d),
    "math.isqrt": lambda s, f: f * math.isqrt(s.d),
    "math.gcd": lambda s, f: f * math.gcd(s.d, 16),
    "math.ceil": lambda s, f: f * math.ceil(s.d),
    "abs": lambda s, f: f * abs(s.d),
    "abs of a difference": lambda s, f: f * abs(4 - s.d),
    "round": lambda s, f: f * round(s.d),
    "right shift": lambda s, f: f * (s.d >> 1),
    "left shift": lambda s, f: f * (s.d << 1),
    "and": lambda s, f: f * (s.d & 31),
    "or": lambda s, f: f * (s.d | 32),
    "xor": lambda s, f: f * (1 ^ s.d),
    "not": lambda s, f: f * (~s.d),
    "divmod": lambda s, f: f * divmod(s.d, 3)[1],
    "quotient of both": lambda s, f: f * (s.h / s.d),
    "fraction": lambda s, f: f * float(Fraction(1, s.d)),
    "bits": lambda s, f: f * s.d.bit_length(),
    "new_full": lambda s, f: f * f.new_full((1,), s.d),
    "full": lambda s, f: f * torch.full((1,), s.d, dtype=f.dtype),
    "full_like": lambda s, f: f * torch.full_like(f[:, :1], s.d),
    "fill": lambda s, f: f * torch.empty(1, dtype=f.dtype).fill_(s.d),
    "masked fill": lambda s, f: f + (f[:, :1] * 0).masked_fill(f[:, :1] < 9, s.d),
    "clamp": lambda s, f: f * torch.full((1,), 99.0, dtype=f.dtype).clamp(max=s.d),
    "alpha": lambda s, f: torch.add(f, f, alpha=s.d),
    "len": lambda s, f: f / len(f[0]),
    "list": lambda s, f: f * len([0] * s.d),
    "equal": lambda s, f: f if f.shape[1] == 16 else -f,
    "equal attribute": lambda s, f: f if s.d == 16 else -f,
    "at least": lambda s, f: f if f.shape[1] >= 16 else -f,
    "at most a float": lambda s, f: f if f.shape[1] <= 16.0 else -f,
    "arange": lambda s, f: f * torch.arange(f.shape[1]).sum(),
    "random numbers": lambda s, f: f * torch.rand(f.shape[1]).sum(),
    "randn_like": lambda s, f: f + torch.randn_like(f),
    "narrow": lambda s, f: torch.cat([f.narrow(1, 8, 8), f.narrow(1, 0, 8)], 1),
    "narrow inside": lambda s, f: torch.cat(
        [f.narrow(1, 4, 8), f.narrow(1, 0, 4), f.narrow(1, 12, 4)], 1
    ),
    "narrow whole": lambda s, f: f.narrow(1, 0, 16),
}
"""What analysis sees: the first width is not cut by default."""

FOUND: dict[str, Form] = {
    "float on the left": lambda s, f: f * (1.0 / s.d),
    "float times": lambda s, f: f * (0.5 * s.d),
    "np.prod": lambda s, f: f / float(np.prod(f.shape[1:])),
    "np.array": lambda s, f: f * float(np.array(s.d)),
    "range": lambda s, f: f * sum(1 / (i + 1) for i in range(s.d)),
    "larger": lambda s, f: f if f.shape[1] > 8 else -f,
    "not larger": lambda s, f: -f if f.shape[1] <= 8 else f,
    "text": lambda s, f: f * float(str(f.shape[1])),
    "int": lambda s, f: f * int(s.d),
    "strides": lambda s, f: f.as_strided((f.shape[0], 16), (16, 1)),
}
"""What only the smaller model shows."""


def outside(model: Net, result: sc.Result, x: Tensor) -> float:
    """The difference from a masked copy that was made without the library."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in result.masks.items():
            twin.get_parameter(name).mul_(mask)
        torch.manual_seed(1)
        expected = twin(x)
        torch.manual_seed(1)
        found = result.model(x)
    return float((expected - found).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", FOLLOWED)
def test_analyze_when_a_number_is_computed_from_a_size_then_it_is_not_cut_as_exact(name):
    model = Net(FOLLOWED[name])
    structure = sc.analyze(model, X)
    assert not any(group.exact and group.name.startswith("a") for group in structure.groups)
    result = sc.prune(model, X, sparsity=0.5)
    assert result.model.a.out_features == 16
    assert result.model.c.out_features == 8
    assert not any("stays whole" in note for note in result.notes)
    assert max(outside(model, result, x) for x in (X, torch.randn(7, 8))) < 1e-5


@pytest.mark.parametrize("name", FOUND)
def test_prune_when_analysis_does_not_see_a_number_then_the_check_does_and_the_rest_goes(name):
    model = Net(FOUND[name])
    result = sc.prune(model, X, sparsity=0.5)
    assert result.model.a.out_features == 16
    assert result.model.c.out_features == 8
    assert any(note.startswith("a stays whole") for note in result.notes)
    assert max(outside(model, result, x) for x in (X, torch.randn(7, 8))) < 1e-5


SIZES: dict[str, Form] = {
    "abs": lambda s, f: f.view(-1, abs(s.d)),
    "right shift": lambda s, f: f.view(-1, 2, s.d >> 1).flatten(1),
    "divmod": lambda s, f: f.view(-1, s.h, divmod(s.d, s.h)[0]).flatten(1),
    "product": lambda s, f: f.view(-1, math.prod(f.shape[1:])),
    "rounded": lambda s, f: f.view(-1, round(s.d)),
    "ceiling": lambda s, f: f.view(-1, math.ceil(s.d)),
}


@pytest.mark.parametrize("name", SIZES)
def test_analyze_when_a_size_is_computed_by_whole_numbers_then_it_follows(name):
    model = Net(SIZES[name])
    result = sc.prune(model, X, sparsity=0.5)
    assert result.model.a.out_features == 8
    assert not any("stays whole" in note for note in result.notes)
    assert outside(model, result, X) < 1e-5


def test_trace_when_code_converts_to_the_type_of_a_size_then_it_is_a_plain_integer():
    def converts(net: Any, f: Tensor) -> Tensor:
        kind = type(f.shape[1])
        assert kind("3") + kind(2.5) + kind() == 5
        return f

    assert sc.prune(Net(converts), X, sparsity=0.5).model.a.out_features == 8


def test_analyze_when_it_ends_then_math_is_as_it_was():
    before = {name: getattr(math, name) for name in dir(math)}
    sc.analyze(Net(FOLLOWED["math.log"]), X)
    assert {name: getattr(math, name) for name in dir(math)} == before


@pytest.mark.parametrize("ran", [False, True], ids=["fresh", "ran before"])
def test_prune_when_a_property_was_cached_then_it_is_as_in_a_fresh_model(ran: bool) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(6, 64), nn.Linear(64, 4)

        @functools.cached_property
        def scale(self) -> float:
            return self.first.weight.shape[0] ** -0.5

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x) * self.scale)

    x, model = torch.randn(5, 6), Scaled().eval()
    if ran:
        model(x)
    with pytest.raises(sc.errors.NoMatchError, match="a number from its size"):
        sc.prune(model, x, 0.5)
    assert ("scale" in vars(model)) is ran


LAYERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "in_features": lambda m, h: h / math.sqrt(m.down.in_features),
    "out_features": lambda m, h: h * (m.up.out_features - 1),
    "a share": lambda m, h: h * (m.down.in_features**-0.5 + 1),
    "of a norm": lambda m, h: h / m.norm.num_features,
    "compared": lambda m, h: h * (2 if m.up.out_features == 32 else 1),
}


@pytest.mark.parametrize("gate", [0.0, 1e-12, 1.0])
@pytest.mark.parametrize("name", LAYERS)
def test_prune_when_code_computes_with_what_a_layer_says_of_its_width_then_that_stays(
    name: str, gate: float
) -> None:
    class Said(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm, self.down = nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Linear(32, 8)
            self.other, self.last = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = LAYERS[name](self, self.norm(self.up(x)).relu())
            return x + self.last(self.other(x).relu()) + gate * self.down(h)

    result = sc.prune(Said().eval(), X, 0.5)
    assert result.model.up.out_features == 32
    assert result.model.other.out_features == 8
    reasons = {group.name: group.inexact for group in result.structure.groups}
    assert "size" in str(reasons["up"])
