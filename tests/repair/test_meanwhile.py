"""Repair of models whose forward holds something of its own meanwhile: batches are not mixed up."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear

import secateur


class Net(nn.Module):
    """What each form of it computes, said plainly."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU())
        self.c = nn.Linear(12, 3)
        self.note: Tensor | None = None
        self.notes: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.inner(x) * x.sum(1, keepdim=True))


class Attribute(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.note = x
        y = self.c(self.inner(x) * self.note.sum(1, keepdim=True))
        self.note = None
        return y


class Stays(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.note = x
        return self.c(self.inner(x) * self.note.sum(1, keepdim=True))


class Entry(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.notes["x"] = x
        h = self.inner(x)
        return self.c(h * self.notes.pop("x").sum(1, keepdim=True))


class Inside(nn.Module):
    """A note on another module than the one that reads."""

    def __init__(self) -> None:
        super().__init__()
        self.note: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.note is not None
        return x * self.note


class Elsewhere(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = Inside()

    def forward(self, x: Tensor) -> Tensor:
        self.scale.note = x.sum(1, keepdim=True)
        y = self.c(self.scale(self.inner(x)))
        self.scale.note = None
        return y


class Scaled(Net):
    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.inner[0], self.inner[2]):
            x = linear(x, layer.weight * 1.5, layer.bias * 1.5).relu()
        return self.c(x)


class Called(Net):
    """Other weights meanwhile, and nobody else is found under their names."""

    def forward(self, x: Tensor) -> Tensor:
        scaled = {name: p * 1.5 for name, p in self.inner.named_parameters()}
        return self.c(functional_call(self.inner, scaled, (x,)))


@cache
def repaired(kind: Callable[[], nn.Module]) -> secateur.Result:
    torch.manual_seed(0)
    model = kind().double().eval()
    made = torch.Generator().manual_seed(1)
    batches = [torch.randn(32, 6, generator=made).double() for _ in range(5)]
    return secateur.prune(model, batches[0], sparsity=0.4, criterion="obs", data=batches)


@pytest.mark.parametrize(
    ("form", "plain"),
    [(Attribute, Net), (Stays, Net), (Entry, Net), (Elsewhere, Net), (Called, Scaled)],
)
def test_repair_when_a_forward_holds_something_meanwhile_then_batches_are_not_mixed_up(form, plain):
    found, expected = repaired(form), repaired(plain)
    assert found.plan.keep == expected.plan.keep
    state = found.model.state_dict()
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-8, msg=name)
    assert str(found.repair) == str(expected.repair)
