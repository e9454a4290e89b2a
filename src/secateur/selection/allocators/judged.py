"""Which of several ways to share a goal leaves the outputs nearest, measured at the goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite

import torch
from torch import Tensor

from secateur.errors import FileError
from secateur.graph.kinds import kinds, of_kind
from secateur.runtime.progress import shown
from secateur.selection.bisection import ratios_around
from secateur.selection.shared import late

from .case import FOREIGN, Case, Spread
from .uniform import uniform

FINEST = 1e-4
TAKEN = "taken"
"""Under this name a run that is resumed knows what was found."""


def with_alternatives(case: Case, own: Spread) -> Spread:
    """Return an allocator's own shares or, where these are nearer, what needs no allocator.

    Sums of single errors say little of how errors meet: equal shares, and each kind alone, are
    measured beside what has the least sum.
    """
    ways: dict[str, Spread] = {"by curves": own, "alike": uniform(case)}
    for kind, places in _kinds(case).items():
        ways[f"{kind} first"] = _first(places, len(case.selectables))
    if TAKEN not in case.known.found:
        case.known.found[TAKEN] = [[_nearest(case, ways)]]
    place = [at for row in case.known.found[TAKEN] for at in row]
    if len(place) != 1 or place[0] not in range(len(ways)):
        raise FileError(FOREIGN)
    return [*ways.values()][int(place[0])]


def _kinds(case: Case) -> dict[str, set[int]]:
    """Return the places of each kind of group, where there are several."""
    if case.structure is None:
        return {}
    inferred, groups = case.structure.inferred, case.structure.groups
    found = {}
    for kind in kinds:
        names = of_kind(kind, inferred, groups)
        found[kind] = {i for i, each in enumerate(case.selectables) if each.name in names}
    own = {kind: places for kind, places in found.items() if places}
    return own if len(own) > 1 else {}


def _first(places: set[int], count: int) -> Spread:
    """Return shares by which some go first, all alike, and the others where that is too little."""

    def spread(ratio: float) -> list[float]:
        return [min(1.0, 2 * ratio) if i in places else late(ratio) for i in range(count)]

    return spread


def _nearest(case: Case, ways: Mapping[str, Spread]) -> int:
    """Return the place of the way whose outputs are nearest to the dense model's at the goal."""
    assert case.known.error is not None
    errors, seen = list[float](), list[Sequence[Tensor]]()
    for way in shown(ways.values(), "ways to share"):
        _, at = ratios_around(lambda ratio: case.over(way(ratio)), 1.0, FINEST)  # noqa: B023
        keeps = case.keeps(way(at))
        again = any(all(map(torch.equal, keeps, other)) for other in seen)
        seen.append(keeps)
        lost = inf if again else case.known.error(dict(enumerate(keeps)), goal=True)
        errors.append(lost if isfinite(lost) else inf)
    best = min(range(len(errors)), key=errors.__getitem__)
    told = ", ".join(f"{n} {e:.3g}" for n, e in zip(ways, errors, strict=True) if e < inf)
    case.known.notes.append(f"shared out {[*ways][best]}: the outputs' errors at the goal: {told}")
    return best
