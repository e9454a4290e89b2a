"""Weights that a forward casts, as autocast does, are the weights: roles, scores and repairs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Autocast(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


class Double(Net):
    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x.double(), self.a.weight.double(), self.a.bias.double()).relu()
        return F.linear(hidden, self.b.weight.double(), self.b.bias.double()).float()


class To(Net):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).relu().to(torch.bfloat16)
        return (hidden @ self.b.weight.to(hidden.dtype).T).float() + self.b.bias


class Cloned(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.a(x).relu(), self.b.weight.clone(), self.b.bias)


DATA = [torch.randn(64, 8, generator=torch.Generator().manual_seed(i)) for i in range(8)]


@pytest.mark.parametrize("kind", [Autocast, Double, To, Cloned])
@pytest.mark.parametrize("criterion", ["l2", "activation", "obs"])
def test_prune_when_weights_are_cast_then_it_chooses_and_repairs_as_without(
    kind: Callable[[], nn.Module], criterion: str
) -> None:
    plain, cast = Net().eval(), kind().eval()
    roles = {(m.tensor, m.dim): m.role for m in sc.analyze(cast, DATA[0]).groups[0].members}
    assert roles == {("a.weight", 0): "out", ("a.bias", 0): "out", ("b.weight", 1): "in"}
    expected, found = (sc.prune(m, DATA[0], 0.5, criterion, data=DATA) for m in (plain, cast))
    same = set(expected.plan.keep["a"]) & set(found.plan.keep["a"])
    assert len(same) >= 14  # of 16: scores that are near each other are rounded
    (one,), (other,) = expected.repair.refits, found.repair.refits
    assert other.rows == one.rows
    assert other.after == pytest.approx(one.after, rel=0.25)
    assert other.after < other.before


def test_prune_when_a_forward_rounds_weights_to_whole_numbers_then_they_are_none_of_its_weights():
    class Rounded(Net):
        def forward(self, x: Tensor) -> Tensor:
            whole = (self.b.weight * 100).to(torch.int32)
            return F.linear(self.a(x).relu(), whole.float() / 100, self.b.bias)

    result = sc.prune(Rounded().eval(), DATA[0], 0.5, data=DATA)
    assert result.verification.passed
    assert [refit.why for refit in result.repair.refits if refit.tensor == "b.weight"] != [""]
