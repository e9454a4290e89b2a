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
MOVED = (0.125, 0.25, 0.5)
"""Of what the best kind alone would lose, what another loses in its place; on while it helps."""
OTHERS = 2
"""So many other kinds are tried."""

Kinds = Mapping[str, set[int]]
"""Kind of group → places of such selectables."""


def with_alternatives(case: Case, own: Spread) -> Spread:
    """Return an allocator's own shares or, where these are nearer, what needs no allocator.

    Sums of single errors say little of how errors meet: equal shares, each kind alone, and the best
    kind mixed with another, are measured beside what has the least sum.
    """
    found, several = case.known.found, _kinds(case)
    ways = {"by curves": own, "alike": uniform(case)}
    ways |= {f"{kind} first": _first(some, len(case.selectables)) for kind, some in several.items()}
    if TAKEN not in found:
        found[TAKEN] = [_Judge(case, ways, several).nearest()]
    match [at for row in found[TAKEN] for at in row]:
        case [place] if place in range(len(ways)):
            return [*ways.values()][int(place)]
        case [one, other, share] if one != other and {one, other} <= {*range(len(several))}:
            if 0 <= share <= 1:
                return _mixed(case, [*several.values()], int(one), int(other), share)
    raise FileError(FOREIGN)


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


def _mixed(case: Case, several: Sequence[set[int]], one: int, other: int, share: float) -> Spread:
    """Return shares by which one kind loses so much first, another what is left, and then all."""

    def spread(ratio: float) -> list[float]:
        then = late(ratio)
        last = late(then)
        lost = max(min(share, 2 * ratio), last)
        rest = (then if i in several[other] else last for i in range(len(case.selectables)))
        return [lost if i in several[one] else each for i, each in enumerate(rest)]

    return spread


class _Judge:
    """Measures ways to share at the goal, each cut once."""

    def __init__(self, case: Case, ways: Mapping[str, Spread], several: Kinds):
        self.case, self.ways, self.several = case, ways, several
        self.seen: list[tuple[list[Tensor], float]] = []
        self.told: dict[str, float] = {}

    def nearest(self) -> list[float]:
        """Return what leaves the outputs nearest: the place of a way, or the numbers of a mix."""
        found = [self.lost(*each) for each in shown([*self.ways.items()], "ways to share")]
        errors = [error for error, _ in found]
        best = min(range(len(errors)), key=errors.__getitem__)
        taken, least = [float(best)], errors[best]
        start = len(errors) - len(self.several)  # each kind alone comes last
        order = sorted(range(len(self.several)), key=lambda at: errors[start + at])
        for other in shown(order[1 : 1 + OTHERS], "mixtures"):
            alone = min(1.0, 2 * found[start + order[0]][1])
            error, row = self.mixed(order[0], other, alone)
            taken, least = (row, error) if error < least else (taken, least)
        said = ", ".join(f"{name} {error:.3g}" for name, error in self.told.items())
        name = min(self.told, key=self.told.__getitem__, default="by curves")
        self.case.known.notes.append(f"shared out {name}: the outputs' errors at the goal: {said}")
        return taken

    def mixed(self, one: int, other: int, alone: float) -> tuple[float, list[float]]:
        """Return the least error of mixtures of two kinds, and the numbers of that one.

        Args:
            one: the place of the kind that loses most.
            other: of the one that loses the rest.
            alone: the share that the first would lose by itself.
        """
        best, taken = inf, list[float]()
        kinds, places = [*self.several], [*self.several.values()]
        for moved in MOVED:
            share, before = (1 - moved) * alone, len(self.seen)
            name = f"{kinds[one]} to {share:.0%}, then {kinds[other]}"
            error, _ = self.lost(name, _mixed(self.case, places, one, other, share))
            if error < best:
                best, taken = error, [float(one), float(other), share]
            elif len(self.seen) > before:  # another cut, and no better
                break
        return best, taken

    def lost(self, name: str, way: Spread) -> tuple[float, float]:
        """Return how far the outputs are off when the goal is shared so, and the ratio."""
        case = self.case
        assert case.known.error is not None
        _, ratio = ratios_around(lambda at: case.over(way(at)), 1.0, FINEST)
        keeps = [*case.keeps(way(ratio))]
        for other, known in self.seen:
            if all(map(torch.equal, keeps, other)):
                return known, ratio
        error = case.known.error(dict(enumerate(keeps)), goal=True)
        error = error if isfinite(error) else inf
        self.seen.append((keeps, error))
        if error < inf:
            self.told[name] = error
        return error, ratio
