"""What a ranking of all positions together leaves of each."""

from __future__ import annotations

from secateur.scoring.allocations import allocators

from .case import Case, Spread


@allocators.register("global", plain=True, pooled=True)
def ranked(case: Case) -> Spread:
    """Rank positions of all groups together, as ``scope="global"`` does."""
    return lambda ratio: [ratio] * len(case.selectables)  # of the pool that they are in
