"""Selection where groups must keep equally many positions: together, at one width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from .families import Family
from .select import Request, rungs, select, select_count

Unit = list[int]
"""Places of what keeps equally many positions."""


class Ties:
    """Which of what is decided on must keep equally many, and what is chosen then.

    A family of which a member is not decided on stays whole, as that member does.

    Attributes:
        units: places of each family's members here, and of each other one alone, by their first.
        free: those of them that no member elsewhere keeps whole.

    >>> ties = Ties(["a", "b", "c"], [("a", "c"), ("b", "elsewhere")])
    >>> ties.units, ties.free
    ([[0, 2], [1]], [[0, 2]])
    """

    def __init__(self, names: Sequence[str], families: Sequence[Family]):
        self.names, self.families = names, families
        place = {name: i for i, name in enumerate(names)}
        self._tied = [[place[n] for n in family if n in place] for family in families]
        here = [unit for unit in self._tied if unit]
        alone = set(place.values()) - {i for unit in here for i in unit}
        self.units: list[Unit] = sorted([*here, *([i] for i in alone)], key=min)
        held = [set(unit) for unit, family in self._pairs() if len(unit) < len(family)]
        self.free = [unit for unit in self.units if set(unit) not in held]

    def select(self, requests: list[Request]) -> tuple[list[Tensor], list[str]]:
        """Select, then give equally many positions to those that must keep equally many."""
        selection = select(requests, self.names)
        keeps, notes = list(selection.keeps), [*selection.notes, *self.notes()]
        for members, family in self._pairs():
            if not members:
                continue
            width = _width([requests[i] for i in members], [keeps[i] for i in members])
            if len(members) < len(family):
                width = max(len(keeps[i]) for i in members)
            for i in members:
                if int(keeps[i].sum()) != width:
                    keeps[i] = select_count(requests[i].score, len(keeps[i]) - width)
        return keeps, notes

    def held(self) -> set[str]:
        """Return what stays whole because of a member that is not decided on."""
        return {name for inside, _ in self._outside() for name in inside}

    def notes(self) -> list[str]:
        """Say what stays whole, and why."""
        return [
            f"{', '.join(inside)}: stays whole, as it must keep as many positions as {mate!r}, "
            "which the config leaves out"
            for inside, mate in self._outside()
        ]

    def _pairs(self) -> Iterator[tuple[Unit, Family]]:
        return zip(self._tied, self.families, strict=True)

    def _outside(self) -> Iterator[tuple[list[str], str]]:
        """Yield what stays whole, and the mate because of which: it is not pruned."""
        for unit, family in self._pairs():
            if unit and len(unit) < len(family):
                inside = [self.names[i] for i in unit]
                yield inside, next(name for name in family if name not in inside)


def _width(requests: Sequence[Request], keeps: Sequence[Tensor]) -> int:
    """Return the one width that is nearest to what each alone would keep."""
    width = round(sum(int(keep.sum()) for keep in keeps) / len(keeps))
    step = max(request.round_to for request in requests)
    if requests[0].widths is not None:
        fits = set.intersection(*map(rungs, requests))
        return min(fits, key=lambda k: (abs(k - width), k), default=width)
    if width % step:
        return min(max(step, step * round(width / step)), *map(len, keeps))
    return width
