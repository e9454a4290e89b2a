"""Widths that code reads from its input or compares.

Attention that says ``B, N, C = x.shape`` … ``reshape(B, N, C)`` has as many heads times their width
as there are channels: neither goes without the others.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.structure import analyze
from tests.graph.test_mechanisms import half, randomised


class Block(nn.Module):
    def __init__(self, heads: int, width: int, *, norm: bool = False):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(heads * width) if norm else nn.Identity()
        self.qkv = nn.Linear(heads * width, 3 * heads * width)
        self.proj = nn.Linear(heads * width, heads * width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, channels = x.shape
        packed = self.qkv(self.norm(x)).reshape(
            batch, length, 3, self.heads, channels // self.heads
        )
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(2, 3)).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).reshape(batch, length, channels))


def network(heads: int, width: int, **options: bool) -> nn.Module:
    blocks = [Block(heads, width, **options) for _ in range(2)]
    return randomised(nn.Sequential(nn.Linear(3, heads * width), *blocks, nn.Linear(24, 2)))


def tokens() -> Tensor:
    return torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    ("heads", "width", "kept"), [(3, 8, "width"), (8, 3, "heads"), (2, 12, "width")]
)
def test_width_when_it_comes_from_the_input_then_channels_follow_the_larger_factor(
    heads, width, kept
):
    model, x = network(heads, width), tokens()
    structure = analyze(model, x)
    larger, smaller = max(heads, width), min(heads, width)
    assert [g.size for g in structure.groups] == [larger] * (smaller + 2)  # pieces, and each block
    assert all(len(g.sized) == smaller + 1 and g.exact for g in structure.groups)
    result = half(structure, structure.groups, model, x)
    assert result.verification.exact
    assert result.verification.passed
    assert result.model[0].out_features == 12
    assert result.model[1].heads == (heads if kept == "width" else heads // 2)
    assert result.model[1].qkv.weight.shape == (36, 12)


def test_width_when_channels_are_normalised_then_nothing_of_the_attention_is_exact():
    structure = analyze(network(3, 8, norm=True), tokens())
    assert structure.exact == ()
    queries = next(g for g in structure.groups if "qkv" in g.name)
    assert "must keep as many positions as" in queries.inexact.why
    assert "normalises" in queries.inexact.why


class Thirds(nn.Module):
    """One bias for three parts, as Swin v2 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(3, 12, bias=False), nn.Linear(12, 2)
        self.bias = nn.Parameter(torch.zeros(36))

    def forward(self, x: Tensor) -> Tensor:
        third = self.bias.numel() // 3
        y = self.layer(x) * self.bias[:third] + self.bias[third : 2 * third]
        return self.last(y + self.bias[2 * third :])


def test_number_of_elements_when_code_divides_it_then_parts_stay_free():
    model, x = randomised(Thirds()), tokens()
    structure = analyze(model, x)
    assert {g.name: g.size for g in structure.exact} == {"layer": 12}
    result = half(structure, structure.exact, model, x)
    assert result.verification.exact
    assert result.verification.passed
    assert result.model.bias.shape == (18,)


class Widens(nn.Module):
    """It has a way around where it is wider than its input, as Hiera's blocks do."""

    def __init__(self, inner: int = 8):
        super().__init__()
        self.given, self.width, self.half = inner, 12, 6
        self.first, self.wide = nn.Linear(3, inner), nn.Linear(inner, 12)
        self.last = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.wide(y)
        if self.width != self.given:
            z = z.view(x.shape[0], -1, self.width).relu()
        return self.last(z)


@pytest.mark.parametrize(("inner", "least"), [(8, 9), (11, 12), (20, 1)])
def test_comparison_when_code_found_a_width_larger_then_it_stays_larger(inner, least):
    model, x = randomised(Widens(inner)), tokens()
    structure = analyze(model, x)
    assert structure["wide"].least == least
    result = half(structure, structure.exact, model, x)
    assert result.verification.passed
    assert result.model.width == max(least, 6)


def test_comparison_when_a_size_is_larger_than_an_attribute_then_it_stays_larger():
    class Asks(Widens):
        def forward(self, x: Tensor) -> Tensor:
            y = self.wide(self.first(x))
            return self.last(y.relu() if y.shape[-1] > self.half else -y)

    structure = analyze(randomised(Asks()), tokens())
    assert (structure["wide"].least, structure["first"].least) == (7, 1)
