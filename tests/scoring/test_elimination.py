"""Backward elimination, beside the same by solving every subset anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.scoring.elimination import ROUNDS, Remaining, eliminate

Reader = tuple[Tensor, Tensor, Tensor]
"""A weight, its second moments, and which unit each feature belongs to."""


def reader(seed: int, units: Tensor, out: int = 3) -> Reader:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(64, len(units), generator=draw, dtype=torch.float64)
    x[:, -1] = x[:, 0] + 0.1 * x[:, -1]
    weight = torch.randn(out, len(units), generator=draw, dtype=torch.float64)
    return weight, x.T @ x / 64, units


def left(weight: Tensor, gram: Tensor, gone: Tensor) -> float:
    """Return the mean square error without some features, the others refitted."""
    out, stay = gone.nonzero()[:, 0], (~gone).nonzero()[:, 0]
    within = gram[out][:, out]
    if len(stay):
        across = gram[stay][:, out]
        within = within - across.T @ torch.linalg.solve(gram[stay][:, stay], across)
    return float((weight[:, out] @ within * weight[:, out]).sum())


def by_subsets(readers: list[Reader], count: int) -> Tensor:
    errors, gone, before, level = torch.zeros(count).double(), set[int](), 0.0, 0.0
    while len(gone) < count:
        total = {}
        for unit in set(range(count)) - gone:
            off = torch.tensor([*gone, unit])
            total[unit] = sum(left(w, g, torch.isin(units, off)) for w, g, units in readers)
        cheapest = min(total, key=lambda unit: total[unit])
        level = max(level, total[cheapest] - before)
        errors[cheapest], before = level, total[cheapest]
        gone.add(cheapest)
    return errors


SINGLE, PAIRS = torch.arange(7), torch.tensor([0, 1, 2, 0, 1, 2])
UNEVEN = torch.tensor([2, 0, 0, 1, 1, 1, 2, 3])


@pytest.mark.parametrize(
    ("units", "count"),
    [
        pytest.param([SINGLE], 7, id="single features"),
        pytest.param([PAIRS], 3, id="heads"),
        pytest.param([UNEVEN], 4, id="units of different sizes"),
        pytest.param([SINGLE, SINGLE], 7, id="two readers"),
        pytest.param([UNEVEN, torch.arange(4)], 4, id="two readers of different widths"),
        pytest.param([PAIRS, 3 + PAIRS], 6, id="groups, each of its own units"),
        pytest.param([torch.tensor([3, 0, 1, 3, 2])], 3, id="features of no unit"),
        pytest.param([UNEVEN, torch.tensor([4, 4, 1, 3])], 4, id="of no unit in one reader"),
    ],
)
def test_eliminate_when_all_units_go_in_turn_then_errors_are_those_of_every_subset(units, count):
    readers = [reader(i, each) for i, each in enumerate(units)]
    remaining = [Remaining(w, torch.linalg.inv(g), each) for w, g, each in readers]
    torch.testing.assert_close(eliminate(remaining, count), by_subsets(readers, count))


def test_eliminate_when_units_are_many_then_it_takes_as_many_rounds_and_twins_go_once():
    twins = 3 * ROUNDS
    x = torch.randn(4 * twins, twins, generator=torch.Generator().manual_seed(0)).double()
    x = torch.cat([x, x], 1)
    gram = x.T @ x / len(x) + 1e-6 * torch.eye(2 * twins).double()
    weight = torch.ones(1, 2 * twins).double()
    whole: list[int] = []

    class Counted(Remaining):
        def drop(self, gone: Tensor) -> None:
            whole.append(int(gone.sum()))
            super().drop(gone)

    errors = eliminate(
        [Counted(weight, torch.linalg.inv(gram), torch.arange(2 * twins))], 2 * twins
    )
    assert len(whole) <= ROUNDS + 1
    assert sum(whole) == 2 * twins
    assert int((errors < 1e-3).sum()) == twins
    assert bool(((errors < 1e-3).view(2, twins).sum(0) == 1).all()), "of each pair one goes free"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("count", [3, 3 * ROUNDS])
def test_eliminate_when_moments_overflow_then_it_ends(value, count):
    units = torch.arange(count)
    inverse = torch.eye(count, dtype=torch.float64)
    inverse[1, 1] = value
    found = eliminate([Remaining(torch.ones(2, count).double(), inverse, units)], count)
    assert found.shape == (count,)
    broken = torch.full((count, count), value).double()
    found = eliminate([Remaining(torch.ones(2, count).double(), broken, units)], count)
    assert found.shape == (count,)
    assert value == value or not found.isfinite().any()  # an inverse of what overflows is NaN
