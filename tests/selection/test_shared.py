"""What blocks share goes later, where a budget leaves the choice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.selection.shared import late, shared
from tests.zoo import CifarResNet


class Gated(nn.Module):
    """A stream, and a block whose width is squeezed and multiplied: no sum runs along it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.squeeze, self.excite = nn.Linear(32, 4), nn.Linear(4, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = self.up(x).relu()
        inner = inner * self.excite(self.squeeze(inner).relu()).sigmoid()
        return self.head(x + self.down(inner))


def test_shared_when_widths_are_multiplied_then_only_the_stream_is_shared() -> None:
    structure = sc.analyze(Gated(), torch.zeros(2, 4))
    assert {group.name for group in structure.groups} == {"stem", "up", "squeeze"}
    assert shared(structure) == {"stem"}


class Joined(nn.Module):
    """Channels laid end to end, as in a DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(torch.cat([x, self.b(x)], 1))


@pytest.mark.parametrize(
    "model", [Joined(), nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))]
)
def test_shared_when_nothing_is_added_then_nothing_is_shared(model: nn.Module) -> None:
    structure = sc.analyze(model.eval(), torch.zeros(2, 4))
    assert structure.groups
    assert not shared(structure)


@given(st.floats(0, 1), st.floats(0, 1))
def test_late_when_more_goes_then_not_less_goes_later(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 0 <= late(low) <= late(high) <= high <= 1
    assert late(1.0) == 1.0


@pytest.mark.parametrize("of", ["macs", "params"])
@pytest.mark.parametrize("share", [0.2, 0.45])
def test_budget_when_inner_widths_are_enough_then_streams_stay_whole(of: str, share: float) -> None:
    model, x = CifarResNet(20).eval(), torch.randn(1, 3, 8, 8)
    result = sc.prune(model, x, share, of=of)
    after, before = getattr(result.after, of), getattr(result.before, of)
    assert result.model.linear.in_features == 64
    assert result.model.conv1.out_channels == 16
    assert 0.97 < after / before / (1 - share) <= 1


@pytest.mark.parametrize("share", [0.7, 0.9])
def test_budget_when_inner_widths_are_not_enough_then_the_goal_is_met(share: float) -> None:
    model, x = CifarResNet(20).eval(), torch.randn(1, 3, 8, 8)
    result = sc.prune(model, x, share, of="macs")
    assert result.model.linear.in_features < 64
    assert result.after.macs <= (1 - share) * result.before.macs


@pytest.mark.parametrize("how", [{"alike": True}, {"names": ["layer*.conv2"]}])
def test_budget_when_all_are_alike_then_streams_are_narrowed(how: dict[str, object]) -> None:
    model, x = CifarResNet(20).eval(), torch.randn(1, 3, 8, 8)
    result = sc.prune(model, x, 0.2, of="macs", **how)
    streams = shared(result.structure) & result.plan.counts.keys()
    assert any(result.plan.counts[name] < result.structure[name].size for name in streams)


def test_channels_when_half_of_them_go_then_streams_lose_half() -> None:
    model, x = CifarResNet(20).eval(), torch.randn(1, 3, 8, 8)
    assert sc.prune(model, x, 0.5).model.linear.in_features == 32
