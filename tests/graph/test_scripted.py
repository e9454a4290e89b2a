"""Functions that TorchScript compiled: their sizes are followed like any other."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur as sc


def root(x: Tensor) -> Tensor:
    return torch.sqrt(torch.tensor(x.size(-1), dtype=torch.float))


def scaled(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT / float(q.size(-1)) ** 0.5


def halves(q: Tensor, k: Tensor) -> Tensor:
    a, b = q.split(q.size(-1) // 2, -1)
    return (a * b) @ k.chunk(2, -1)[0].mT


class Attention(nn.Module):
    def __init__(self, score: Callable[..., Tensor]):
        super().__init__()
        self.q, self.k, self.out = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(5, 3)
        self.score = score

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.score(self.q(x), self.k(x)))


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch advises against it
        return torch.jit.script(function)


@pytest.mark.parametrize(
    "score", [lambda q, k: q @ k.mT / root(q), scaled, halves], ids=["root", "scaled", "halves"]
)
def test_analyze_when_a_function_is_compiled_then_its_groups_are_those_of_its_source(
    score: Callable[..., Tensor],
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    plain = score
    if score.__name__ == "<lambda>":
        small = compiled(root)

        def fast(q: Tensor, k: Tensor) -> Tensor:
            return q @ k.mT / small(q)
    else:
        fast = compiled(score)
    found, expected = (sc.analyze(Attention(each), x) for each in (fast, plain))
    told = [(g.name, g.size, g.exact, g.sized) for g in expected.groups]
    assert [(g.name, g.size, g.exact, g.sized) for g in found.groups] == told
    assert {g.exact for g in expected.groups} == {score is halves}


def test_scripted_function_when_a_trace_is_over_then_runs_compiled_again() -> None:
    function = compiled(scaled)
    kind = type(function)
    before = kind.__call__
    sc.analyze(Attention(function), torch.randn(2, 5, 8))
    assert kind.__call__ is before
