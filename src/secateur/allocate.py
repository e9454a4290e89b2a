"""Budgets: which ratio of channels leaves the parameters or MACs that were asked for."""

from __future__ import annotations

from collections.abc import Callable

STEPS = 24  # halvings: finer than one channel in ten million


def ratio_for(cost: Callable[[float], float], goal: float) -> float:
    """Return the smallest ratio in [0, 1] whose cost is at most ``goal``, by bisection.

    Costs that only fall with the ratio are assumed; where even 1.0 costs more than the goal
    (something must stay, something is frozen), 1.0 is returned.

    >>> round(ratio_for(lambda ratio: (1 - ratio) ** 2, 0.25), 3)
    0.5
    """
    low, high = 0.0, 1.0
    if cost(low) <= goal:
        return low
    for _ in range(STEPS):
        middle = (low + high) / 2
        if cost(middle) <= goal:
            high = middle
        else:
            low = middle
    return high
