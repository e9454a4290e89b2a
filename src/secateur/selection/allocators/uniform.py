"""The same for all."""

from __future__ import annotations

from secateur.scoring.allocations import allocators
from secateur.selection.shared import late, shared

from .case import Case, Spread


@allocators.register(plain=True, later=True)
def uniform(case: Case) -> Spread:
    """The same share of every group; under a budget, widths that blocks share go later."""
    common = set[str]() if case.structure is None else shared(case.structure)
    later = [each.name in common for each in case.selectables]
    if case.alike or all(later) or any(r.pool is not None for r in case.requests):
        later = [False] * len(later)
    return lambda ratio: [late(ratio) if last else ratio for last in later]
