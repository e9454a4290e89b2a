"""How long axes are after a cut: polynomials in the lengths of free atoms.

A product of axes multiplies, a concatenation adds.  ``Sizing`` knows which atoms keep equally many
positions, so that their lengths are one variable.

Three heads of width four, then two more columns: ``3 · width + 2``, if only the width may be cut.

>>> from secateur.graph.axes import Atom, concat, freeze, product
>>> heads, width, rest = Atom(3), Atom(4), Atom(2)
>>> freeze(heads, "a test says so")
>>> freeze(rest, "a test says so")
>>> axis = concat(product(heads, width), rest)
>>> Sizing().length(axis) == {(id(width),): 3, (): 2}
True
>>> now(axis, lambda atom: 1)  # each free atom keeps one position
5
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import reduce
from typing import cast

from .axes import Atom, Axis, Concat, Ragged, find, parts_of

# A polynomial: product of atoms (sorted by identity) → coefficient: an int where it can be, which
# is ten times as fast as a Fraction.
Polynomial = dict[tuple[int, ...], int | Fraction]


@dataclass
class Sizing:
    """Which atoms must keep equally many positions, though not the same ones."""

    members: dict[int, Atom] = field(default_factory=dict)
    _leader: dict[int, int] = field(default_factory=dict)

    def leader(self, atom: Atom) -> int:
        """Return the representative of all atoms that are sized with this one."""
        key = id(atom)
        self.members[key] = atom
        while (above := self._leader.setdefault(key, key)) != key:
            self._leader[key] = key = self._leader.setdefault(above, above)
        return key

    def tie(self, a: Atom, b: Atom) -> None:
        """Say that two atoms keep equally many positions; frozen ones freeze the other."""
        self._leader[self.leader(a)] = self.leader(b)

    def classes(self) -> list[list[Atom]]:
        """Return the sets of two or more atoms that are sized together."""
        return [found for found in self._sets().values() if len(found) > 1]

    def tied(self, key: int) -> list[Atom]:
        """Return all atoms that are sized with a leader, itself included."""
        return self._sets().get(key, [])

    def _sets(self) -> dict[int, list[Atom]]:
        sets: dict[int, list[Atom]] = {}
        for atom in list(self.members.values()):
            if atom.link is None:
                sets.setdefault(self.leader(atom), []).append(atom)
        return sets

    def length(self, axis: Axis) -> Polynomial:
        """Return the length of an axis after any cut; what is frozen counts as a number."""
        axis = find(axis)
        if isinstance(axis, Atom):
            if axis.frozen is not None:
                return {(): axis.size}
            return {(self.leader(axis),): 1}
        if isinstance(axis, Ragged):  # its parts are sized together
            return self.length(axis.parts[0])
        lengths = [self.length(part) for part in parts_of(axis)]
        if isinstance(axis, Concat):
            return _sum(lengths)
        return reduce(multiply, lengths, {(): 1})


def _sum(lengths: Iterable[Polynomial]) -> Polynomial:
    out: Polynomial = {}
    for length in lengths:  # in place: there may be as many as positions
        for term, c in length.items():
            out[term] = out.get(term, 0) + c
    return {term: c for term, c in out.items() if c}


def add(a: Polynomial, b: Polynomial, sign: int = 1) -> Polynomial:
    """Return a + sign·b, without terms that cancel."""
    return _sum([a, {term: sign * c for term, c in b.items()}])


def multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    """Return the product of two polynomials."""
    out: Polynomial = {}
    for s, c in a.items():
        for t, d in b.items():
            term = tuple(sorted(s + t))
            out[term] = out.get(term, 0) + c * d
    return {term: c for term, c in out.items() if c}


def _mean(lengths: Sequence[int]) -> int:
    total = sum(lengths)
    if total % len(lengths):
        return cast(int, Fraction(total, len(lengths)))  # of no model, only of a question
    return total // len(lengths)


def now(axis: Axis, count: Callable[[Atom], int]) -> int:
    """Return the length of an axis when each free atom keeps ``count(atom)`` positions."""
    axis = find(axis)
    if isinstance(axis, Atom):
        return axis.size if axis.frozen is not None else count(axis)
    lengths = [now(part, count) for part in parts_of(axis)]
    if isinstance(axis, Ragged):  # the mean, so that a cost can be shared out among the parts
        return _mean(lengths)
    if isinstance(axis, Concat):
        return sum(lengths)
    total = 1
    for length in lengths:
        total *= length
    return total
