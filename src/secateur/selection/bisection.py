"""Budgets: which ratio of channels leaves the parameters or MACs that were asked for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

MOST_EXCHANGED = 8
MOST_STEPS = 4


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


def nearest(
    ladders: Sequence[Sequence[int]],
    start: Sequence[int],
    cost: Callable[[Sequence[int]], float],
    goal: float,
    near: float,
) -> list[int]:
    """Return counts whose cost is at most ``goal``, and no further below it than need be.

    From the start, which costs little enough, counts go up, alone or while another goes down, by
    what brings most each time, until the cost is within ``near`` of the goal or nothing helps.
    Where there are many counts they only go up: then enough small steps are among them.

    Args:
        ladders: of each count, the numbers that it may be, ascending.
        start: the counts, each on its ladder.

    >>> nearest([[8, 16], [8, 12, 24]], [8, 8], sum, 30, 1)
    [16, 12]
    """
    places = [list(ladder).index(count) for ladder, count in zip(ladders, start, strict=True)]

    def counts(at: Sequence[int]) -> list[int]:
        return [ladder[place] for ladder, place in zip(ladders, at, strict=True)]

    spent = cost(counts(places))
    while spent < goal - near:
        prices = ((cost(counts(at)), at) for at in _moves(places, ladders))
        found = [(price, at) for price, at in prices if spent < price <= goal]
        if not found:
            break
        spent, places = max(found, key=lambda pair: pair[0])
    return counts(places)


def _moves(places: list[int], ladders: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield places with one higher, and with another one step lower besides."""
    for i, ladder in enumerate(ladders):
        for up in range(places[i] + 1, min(len(ladder), places[i] + 1 + MOST_STEPS)):
            higher = [*places[:i], up, *places[i + 1 :]]
            yield higher
            for j in range(len(ladders)) if len(ladders) <= MOST_EXCHANGED else ():
                if j != i and places[j]:
                    yield [*higher[:j], places[j] - 1, *higher[j + 1 :]]
