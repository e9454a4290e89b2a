"""No score reads memory that nobody wrote: torch fills what is empty, and nothing changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.scoring.criteria import criteria


class Beside(nn.Module):
    """Its last layer reads two groups and the input, side by side: a group is a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 12), nn.Linear(26, 4)

    def forward(self, x: Tensor) -> Any:
        return self.c(torch.cat([x, self.a(x).relu(), self.b(x).tanh()], -1))


class Dense(nn.Module):
    """Convolutions that read all maps before them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(11, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(19), nn.Conv2d(19, 4, 1)

    def forward(self, x: Tensor) -> Any:
        one = torch.cat([x, self.a(x).relu()], 1)
        return self.head(self.norm(torch.cat([one, self.b(one).relu()], 1)).relu())


class Sliced(nn.Module):
    """Half of a layer's outputs is read through a number that the code names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 24), nn.Linear(10, 5), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Any:
        h = self.a(x).relu()
        return self.b(h[:, :10]) + self.c(h[:, 10:])


MODELS = {Beside: (6,), Dense: (3, 6, 6), Sliced: (6,)}
MATRICES = ("elimination", "obs", "activation")
"""Criteria that lay rows out as the weights that they are of, and the default."""
CRITERIA = [
    pytest.param(name, marks=() if name in MATRICES else pytest.mark.slow)
    for name in criteria
    if not criteria.facts[name].experts and not criteria.asks(name, "backward")
]


@pytest.fixture
def filled() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def kept(kind: type[nn.Module], criterion: str, repair: str) -> Any:
    torch.manual_seed(0)
    model, data = kind().eval(), [torch.randn(16, *MODELS[kind]) for _ in range(8)]
    result = sc.prune(model, data[0], 0.5, criterion, data=data, repair=repair)
    return {name: list(keep) for name, keep in result.plan.keep.items()}, result.model.state_dict()


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("kind", MODELS)
def test_score_when_empty_memory_is_filled_then_the_same_is_kept(
    kind: type[nn.Module], criterion: str, request: pytest.FixtureRequest
) -> None:
    repair = "least_squares" if criterion == "obs" else "none"
    expected, values = kept(kind, criterion, repair)
    request.getfixturevalue("filled")
    found, others = kept(kind, criterion, repair)
    assert found == expected
    torch.testing.assert_close(others, values)
