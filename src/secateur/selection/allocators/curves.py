"""Error curves of groups, and the widths at which the sum of errors is least under a goal."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from math import inf, isfinite

from torch import Tensor

from secateur.errors import FileError
from secateur.selection.bisection import ratios_around
from secateur.selection.select import rungs, select

from .case import FOREIGN, Case, Curve, Spread
from .judged import TAKEN, with_alternatives

SHARES = (0.125, 0.25, 0.5, 0.75, 0.875)
"""Of a group that are taken out to measure what the output loses; between them errors are drawn."""
WIDTHS = 33
"""So many widths of a group are weighed against each other, at most."""
FINEST = 1e-3
ROUNDS = 3
"""What a group saves depends on the others': it is asked again at what was found."""

Cut = tuple[float, dict[int, Tensor]]
"""The share of a unit that goes, and which positions of each of its selectables stay."""


def unknown(case: Case) -> list[tuple[int, ...]]:
    """Return the units that have no curve yet, though one is needed."""
    if case.known.found:
        return []
    return [unit for unit in map(tuple, case.units) if unit not in case.known.curves]


def cuts_of(case: Case, unit: Sequence[int], shares: Sequence[float]) -> list[Cut]:
    """Return the cuts of a unit that its curve is drawn through, ascending.

    They are such as may be chosen: a router that takes two experts is not left with one.
    """
    found: list[Cut] = []
    for share in shares:
        asked = [replace(case.requests[i], sparsity=share, threshold=None, pool=None) for i in unit]
        keeps = dict(zip(unit, select(asked).keeps, strict=True))
        gone_share = 1 - float(keeps[unit[0]].float().mean())
        if gone_share > (found[-1][0] if found else 0.0):
            found.append((gone_share, keeps))
    return found


def curve_of(cuts: Sequence[Cut], errors: Sequence[float]) -> Curve:
    """Return (share gone, error of the output) of each cut; errors never fall."""
    points, worst = [(0.0, 0.0)], 0.0
    for (share, _), found in zip(cuts, errors, strict=True):
        worst = max(worst, found if isfinite(found) else 10 * worst)
        points.append((share, worst))
    return points


def measured(case: Case, unit: Sequence[int], *, squares: bool = False) -> Curve:
    """Return the curve of a unit, measured at a few shares; of outputs' squares if asked for."""
    error = case.known.error
    assert error is not None
    cuts = cuts_of(case, unit, SHARES)
    return curve_of(cuts, [error(keeps, squares=squares) for _, keeps in cuts])


def cheapest(case: Case) -> Spread:
    """Return shares whose errors, by the curves of all units, have the least sum under the goal.

    They are measured beside what needs no curves; where that is nearer, it is taken.
    """
    found = case.known.found
    if not found:
        curves = [case.known.curves[tuple(unit)] for unit in case.units]
        found["ladders"] = [_ladder(case, unit) for unit in case.units]
        found["errors"] = [
            [_between(curve, share) for share in ladder]
            for curve, ladder in zip(curves, found["ladders"], strict=True)
        ]
        found["prices"] = _settled(case, found["ladders"], found["errors"])
    elif TAKEN not in found:
        found[TAKEN] = [[0]]  # by an older version, which had no other
    tables = [found.get(name, ()) for name in ("ladders", "errors", "prices")]
    sizes = {tuple(map(len, table)) for table in tables}
    shares = [share for ladder in tables[0] for share in ladder or (inf,)]
    if len(sizes) != 1 or len(tables[0]) != len(case.units) or not all(0 <= s <= 1 for s in shares):
        raise FileError(FOREIGN)
    return with_alternatives(case, _Shares(case, *tables))


def _settled(
    case: Case, ladders: Sequence[Sequence[float]], errors: Sequence[Sequence[float]]
) -> list[list[float]]:
    """Return what each width of each unit costs, beside what the others keep in the end."""
    _, at = ratios_around(lambda ratio: case.over([ratio] * len(case.selectables)), 1.0, FINEST)
    chosen = [_nearest(ladder, at) for ladder in ladders]
    prices: list[list[float]] = []
    for _ in range(ROUNDS):
        prices = _prices(case, ladders, chosen)
        shares = _Shares(case, ladders, errors, prices)
        _, at = ratios_around(lambda ratio: case.over(shares(ratio)), 1.0, FINEST**2)  # noqa: B023
        chosen = shares.places(at)
    return prices


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


def _between(curve: Curve, share: float) -> float:
    """Return the error between known points, and beyond the last as it grew there.

    It grows by the same factor for each position that goes, and as a square where nothing was lost
    before: straight lines would always choose one of the known widths.

    >>> curve = [(0.0, 0.0), (0.5, 1.0), (0.75, 4.0)]
    >>> [_between(curve, share) for share in (0.25, 0.5, 0.625, 0.875)]
    [0.25, 1.0, 2.0, 8.0]
    """
    at = bisect_left(curve, (share, -inf))
    at = min(max(at, 1), len(curve) - 1)
    if len(curve) < 2:
        return 0.0
    (x0, y0), (x1, y1) = curve[at - 1], curve[at]
    part = (share - x0) / (x1 - x0)
    return y0 * (y1 / y0) ** part if y0 > 0 else y1 * part**2


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
