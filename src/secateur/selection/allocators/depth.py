"""Less at the start, more at the end."""

from __future__ import annotations

from secateur.scoring.allocations import allocators

from .case import Case, Spread

SLOPE = 0.5
"""How much the share differs between the first and the last group, as a part of the mean share."""


@allocators.register
def depth(case: Case) -> Spread:
    """A share that grows linearly with depth: early layers make what all others read.

    At a mean share s the first group loses ``s · (1 - 0.25)`` and the last ``s · (1 + 0.25)``, and
    less of both where the last could not lose so much.
    """
    last = max(len(case.units) - 1, 1)
    place = {i: at / last - 0.5 for at, unit in enumerate(case.units) for i in unit}

    def spread(ratio: float) -> list[float]:
        slope = min(SLOPE * ratio, 2 * (1 - ratio))
        return [ratio + slope * place[i] for i in range(len(case.selectables))]

    return spread
