"""By error curves: what each group costs in errors of the output, and saves, at a few widths."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import inf, isfinite

from secateur.runtime.progress import shown
from secateur.scoring.allocations import allocators
from secateur.selection.bisection import ratios_around
from secateur.selection.select import rungs, select_count

from .case import Case, Spread

SHARES = (0.125, 0.25, 0.5, 0.75, 0.875)
"""Of a group that are taken out to see what the output loses; between them errors are drawn."""
WIDTHS = 33
"""So many widths of a group are weighed against each other, at most."""
FINEST = 1e-3
ROUNDS = 3
"""What a group saves depends on the others': it is asked again at what was found."""


@allocators.register(data=True, coarse=True)
def error(case: Case) -> Spread:
    """The cheapest: the sum of errors is least under the goal, by a multiplier found by bisection.

    Each group alone is cut to a few widths and the model is run on the data (after a repair, where
    one will follow), which costs one evaluation for each group and width.
    """
    case.needs_data("error")
    assert case.known.error is not None
    known = case.known.curves
    for unit in shown([u for u in case.units if tuple(u) not in known], "error curves"):
        known[tuple(unit)] = _curve(case, unit)
    curves = [known[tuple(unit)] for unit in case.units]
    ladders = [_ladder(case, unit) for unit in case.units]
    errors = [
        [_between(curve, share) for share in ladder]
        for curve, ladder in zip(curves, ladders, strict=True)
    ]
    _, at = ratios_around(lambda ratio: case.over([ratio] * len(case.selectables)), 1.0, FINEST)
    chosen = [_nearest(ladder, at) for ladder in ladders]
    for _ in range(ROUNDS):
        prices = _prices(case, ladders, chosen)
        found = _Shares(case, ladders, errors, prices)
        _, at = ratios_around(lambda ratio: case.over(found(ratio)), 1.0, FINEST**2)  # noqa: B023
        chosen = found.places(at)
    return found


class _Shares:
    """What each selectable loses at a strength: the cheapest of its widths at that price."""

    def __init__(
        self,
        case: Case,
        ladders: Sequence[Sequence[float]],
        errors: Sequence[Sequence[float]],
        prices: Sequence[Sequence[float]],
    ):
        self.case, self.ladders, self.errors, self.prices = case, ladders, errors, prices
        self.scale = max((max(e) for e in errors), default=1.0) or 1.0

    def places(self, ratio: float) -> list[int]:
        """Return the place on its ladder of each unit."""
        if ratio >= 1:
            return [len(ladder) - 1 for ladder in self.ladders]
        price = self.scale * ratio**3 / (1 - ratio)
        found = []
        for errors, costs in zip(self.errors, self.prices, strict=True):
            total = [e + price * c for e, c in zip(errors, costs, strict=True)]
            found.append(total.index(min(total)))
        return found

    def __call__(self, ratio: float) -> list[float]:
        shares = [0.0] * len(self.case.selectables)
        units = zip(self.case.units, self.ladders, self.places(ratio), strict=True)
        for unit, ladder, place in units:
            for i in unit:
                shares[i] = ladder[place]
        return shares


def _curve(case: Case, unit: Sequence[int]) -> list[tuple[float, float]]:
    """Return (share gone, error of the output), which never falls."""
    assert case.known.error is not None
    points, worst = [(0.0, 0.0)], 0.0
    for share in SHARES:
        keeps = {}
        for i in unit:
            score = case.requests[i].score
            gone = min(round(share * len(score)), len(score) - 1)
            keeps[i] = select_count(score, gone)
        first = keeps[unit[0]]
        gone_share = 1 - float(first.float().mean())
        if gone_share > points[-1][0]:
            found = case.known.error(keeps)
            worst = max(worst, found if isfinite(found) else 10 * worst)
            points.append((gone_share, worst))
    return points


def _between(curve: Sequence[tuple[float, float]], share: float) -> float:
    """Return the error between measured points, and beyond the last as it grew there.

    >>> _between([(0.0, 0.0), (0.5, 1.0)], 0.25)
    0.5
    """
    at = bisect_left(curve, (share, -inf))
    at = min(max(at, 1), len(curve) - 1)
    if len(curve) < 2:
        return 0.0
    (x0, y0), (x1, y1) = curve[at - 1], curve[at]
    return y0 + (y1 - y0) * (share - x0) / (x1 - x0)


def _ladder(case: Case, unit: Sequence[int]) -> list[float]:
    """Return the shares that a unit may lose, ascending."""
    request = case.requests[unit[0]]
    size = len(request.score)
    fits = sorted(set.intersection(*(rungs(case.requests[i]) for i in unit)) | {size}, reverse=True)
    step = max(1, -(-len(fits) // WIDTHS))
    return [1 - k / size for k in sorted({*fits[::step], fits[-1]}, reverse=True)]


def _nearest(ladder: Sequence[float], share: float) -> int:
    return min(range(len(ladder)), key=lambda place: abs(ladder[place] - share))


def _prices(
    case: Case, ladders: Sequence[Sequence[float]], chosen: Sequence[int]
) -> list[list[float]]:
    """Return how far over the goal the model is at each width of a unit, the others as chosen."""
    shares = [0.0] * len(case.selectables)
    for unit, ladder, place in zip(case.units, ladders, chosen, strict=True):
        for i in unit:
            shares[i] = ladder[place]
    found = []
    for unit, ladder in zip(case.units, ladders, strict=True):
        row = []
        for share in ladder:
            tried = list(shares)
            for i in unit:
                tried[i] = share
            row.append(case.over(tried))
        found.append(row)
    return found
