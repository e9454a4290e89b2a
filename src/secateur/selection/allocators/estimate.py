"""By error curves that are estimated, all at once."""

from __future__ import annotations

from secateur.runtime.progress import shown
from secateur.scoring.allocations import allocators

from .case import Case, Spread
from .curves import cheapest, curve_of, cuts_of, measured, unknown

SHARES = (0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0.9375)
"""Of a group that are estimated: more of them cost little."""


@allocators.register(data=True, coarse=True)
def estimate(case: Case) -> Spread:
    """As ``error``, by second-order estimates: two passes over the data for all groups together.

    Errors are squares of what the outputs move by; a group of which gradients say nothing (whole
    experts) is measured.
    """
    if units := unknown(case):
        case.needs_data("estimate")
        assert case.known.estimated is not None
        cuts = [cuts_of(case, unit, SHARES) for unit in units]
        errors = iter(case.known.estimated([keeps for every in cuts for _, keeps in every]))
        told = {
            unit: (every, [next(errors) for _ in every])
            for unit, every in zip(units, cuts, strict=True)
        }
        for unit, (every, found) in told.items():
            sure = [error for error in found if error is not None]
            if len(sure) == len(every):
                case.known.curves[unit] = curve_of(every, sure)
        for unit in shown(unknown(case), "error curves"):
            case.known.curves[unit] = measured(case, unit, squares=True)
    return cheapest(case)
