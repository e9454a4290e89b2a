"""Budgets: which ratio of channels leaves the parameters or MACs that were asked for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable


def ratios_around(
    cost: Callable[[float], float], goal: float, finest: float
) -> tuple[float, float]:
    """Return two ratios in [0, 1] around a goal, by bisection: ``cost(low) > goal >= cost(high)``.

    They are at most ``finest`` apart.  Costs that only fall with the ratio are assumed.  Where even
    0 costs little enough both are 0, and where 1 still costs more than the goal (something must
    stay, something is frozen), 1.

    >>> ratios_around(lambda ratio: (1 - ratio) ** 2, 0.25, finest=0.01)
    (0.4921875, 0.5)
    """
    low, high = 0.0, 1.0
    if cost(low) <= goal:
        return low, low
    if cost(high) > goal:
        return high, high
    while high - low > finest:
        middle = (low + high) / 2
        if cost(middle) <= goal:
            high = middle
        else:
            low = middle
    return low, high


def fewest(count: int, cost: Callable[[int], float], goal: float) -> int:
    """Return the smallest number of steps of ``count`` whose cost is at most ``goal``.

    Costs that only fall with the number are assumed; ``count`` where none is low enough.

    >>> fewest(10, lambda steps: 100 - 7 * steps, 50)
    8
    """
    return bisect_left(range(count), True, key=lambda steps: cost(steps) <= goal)
