"""What a constant adds behind a layer, from its weights alone, against the layer itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur import shrink
from secateur.repair.fold import _effect

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def convolutions(draw: Any) -> tuple[nn.Module, list[int]]:
    """A convolution of any rank, stride, dilation and padding, and a space that it fits."""
    rank = draw(st.integers(1, 3))

    def numbers(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))

    kernel, dilation, stride = numbers(1, 3), numbers(1, 2), numbers(1, 3)
    mode = draw(st.sampled_from(["zeros", "circular", "replicate"]))
    padding = draw(st.sampled_from(["same", "valid", "numbers"]))
    if padding == "same":
        stride = [1] * rank
        kernel = [size - 1 + size % 2 for size in kernel]  # torch warns of even ones
    conv = CONVOLUTIONS[rank](
        3,
        4,
        kernel,
        stride=stride,
        dilation=dilation,
        padding=numbers(0, 2) if padding == "numbers" else padding,
        padding_mode=mode,
    )
    sizes = zip(kernel, dilation, numbers(1, 4), strict=True)
    space = [d * (k - 1) + 1 + extra for k, d, extra in sizes]
    return conv.double(), space


@settings(max_examples=60)
@given(case=convolutions(), seed=st.integers(0, 99))
def test_effect_when_a_convolution_reads_constants_then_it_is_the_mean_of_what_they_add(case, seed):
    conv, space = case
    value = torch.randn(3, generator=torch.Generator().manual_seed(seed)).double()
    constant = value.view(1, 3, *[1] * len(space)).expand(1, 3, *space)
    with torch.no_grad():
        change = (conv(constant) - conv(torch.zeros_like(constant)))[0].flatten(1)
        amount, even = _effect(conv, value, constant.shape)
    torch.testing.assert_close(amount, change.mean(1))
    flat = torch.allclose(change, change.mean(1, keepdim=True))
    assert not even or flat, "even means that every place has the same"


@pytest.mark.parametrize("bias", [True, False])
def test_effect_when_a_linear_layer_reads_constants_then_it_is_even(bias):
    layer, value = nn.Linear(3, 4, bias=bias), torch.tensor([1.0, -2.0, 0.5])
    with torch.no_grad():
        amount, even = _effect(layer, value, (2, 3))
        expected = layer(value) - layer(torch.zeros(3))
    assert even
    torch.testing.assert_close(amount, expected)


class Experts(nn.Module):
    """Each token goes to one of two layers, the second of which is never chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.experts = nn.ModuleList(nn.Linear(6, 4) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x).sigmoid()
        out = y.new_zeros(len(y), 4)
        for i, expert in enumerate(self.experts):
            at = torch.full((len(y),), i == 0).nonzero()[:, 0]
            out = out.index_add(0, at, expert(y[at]))
        return out


def test_fold_when_a_layer_read_no_row_then_its_constants_are_masked_instead():
    torch.manual_seed(0)
    mask = torch.ones(6, 3, dtype=torch.bool)
    mask[:2] = False
    small = shrink(Experts(), {"first.weight": mask, "first.bias": mask[:, 0]}, torch.randn(5, 3))
    assert small.model.first.out_features == 4
    assert small.verification.passed
    assert any("it is masked too" in note for note in small.notes)


class Remembers(nn.Module):
    """Subtracts a moving mean that its own forward changes, in one of several ways."""

    def __init__(self, way: str):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("mean", torch.zeros(8))
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        mean = self.mean
        moved = 0.5 * mean + 0.5 * hidden.detach().mean(0)
        if self.way == "assigned":
            self.mean = moved
        elif self.way == "in place":
            self.mean.copy_(moved)
        else:
            self.mean.data = moved
        return self.second(hidden - mean)


@pytest.mark.parametrize("way", ["assigned", "in place", "data"])
def test_shrink_when_a_constant_changes_from_call_to_call_then_it_is_masked_and_said(
    way: str,
) -> None:
    torch.manual_seed(0)
    net = Remembers(way).double().eval()
    mask = torch.ones(8, 4, dtype=torch.bool)
    mask[:3] = False
    result = shrink(net, {"first.weight": mask}, torch.randn(5, 4, dtype=torch.float64))
    assert result.model.first.out_features == 5
    assert not result.folded
    assert any("which no bias can take over" in note for note in result.notes)
    assert result.warnings


class Windows(nn.Module):
    """Pads its input to whole windows of 4, with what a masked channel does not emit there."""

    def __init__(self, rank: int, pads: bool) -> None:
        super().__init__()
        conv = CONVOLUTIONS[rank]
        self.a, self.b = conv(3, 8, 1), conv(8, 6, 4, stride=4)
        self.rank, self.pads = rank, pads

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        if self.pads:
            amounts = [[0, -n % 4] for n in reversed(y.shape[2:])]
            y = torch.nn.functional.pad(y, sum(amounts, []))
        return self.b(y)


@pytest.mark.parametrize("pads", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_shrink_when_other_lengths_are_padded_then_a_constant_is_masked_and_said(rank, pads):
    torch.manual_seed(0)
    model = Windows(rank, pads).eval()
    with torch.no_grad():
        model.a.bias.fill_(1.0)
    mask = torch.ones_like(model.a.weight, dtype=torch.bool)
    mask[:3] = False
    example = torch.randn(2, 3, *[8] * rank)
    result = shrink(model, {"a.weight": mask}, example)
    assert result.model.a.out_channels == 5
    assert ("masked too" in str(result.notes)) == pads
    given = copy.deepcopy(model)
    with torch.no_grad():
        given.a.weight.mul_(mask)
        if pads:
            given.a.bias[:3] = 0
        for length in (8, 11, 5):
            x = torch.randn(2, 3, *[length] * rank)
            torch.testing.assert_close(result.model(x), given(x), rtol=1e-4, atol=1e-5)
