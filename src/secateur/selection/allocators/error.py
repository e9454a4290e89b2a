"""By error curves that are measured, one group and width at a time."""

from __future__ import annotations

from secateur.runtime.progress import shown
from secateur.scoring.allocations import allocators

from .case import Case, Spread
from .curves import cheapest, measured, unknown


@allocators.register(data=True, coarse=True)
def error(case: Case) -> Spread:
    """The cheapest: the sum of measured errors is least under the goal, by a multiplier.

    Each group alone is cut to a few widths and the model is run on the data (after a repair, where
    one will follow), which costs one evaluation for each group and width.
    """
    for unit in shown(unknown(case), "error curves"):
        case.needs_data("error")
        case.known.curves[unit] = measured(case, unit)
    return cheapest(case)
