"""What a plan's kept positions make of a number that a model holds.

A file says both, and the two must agree: ``num_heads`` is what is left of the heads, and the width
of a fused projection three times what is left of its columns.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm, prod
from typing import TypeAlias

from secateur.graph.axes import Axis
from secateur.structure import Structure

Terms: TypeAlias = tuple[tuple[int, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Length:
    """A factor of a number: ``(Σ coefficient · Π counts of groups / over) ** power``.

    Attributes:
        step: the plan whose counts these are.
        terms: coefficients, each with the names of the groups that it is multiplied by.
        over: what the sum is divided by.
        power: 1 of an integer.

    >>> Length(0, ((3, ("heads", "width")), (2, ()))).value([{"heads": 4, "width": 8}])
    Fraction(98, 1)
    """

    step: int
    terms: Terms
    over: int = 1
    power: float = 1.0

    def value(self, steps: Sequence[Mapping[str, int]]) -> Fraction | float:
        """Return it for what each step keeps of its groups.

        Raises:
            LookupError: there is no such step or group.
            ArithmeticError: it is no number.
        """
        counts = steps[self.step]
        total = sum(c * prod(counts[name] for name in names) for c, names in self.terms)
        share = Fraction(total, self.over)
        if share <= 0:
            raise ArithmeticError(f"{share} is no length")
        return share if self.power == 1 else float(share) ** self.power


Implied: TypeAlias = tuple[Length, ...]
"""Factors; of a float, of what it was in the dense model."""


def implied_by(
    structure: Structure, counts: Mapping[str, int], step: int, changed: Container[str]
) -> Iterator[tuple[str, Implied]]:
    """Yield each number that changed with what makes it, where that is what a plan keeps.

    Args:
        structure: of the model before the step.
        counts: of the groups that lose positions; the others are numbers.
        step: the place of the plan among all that were applied.
        changed: the attributes that have other values now.
    """
    length, inferred = _lengths(structure, counts, step), structure.inferred
    for attribute, (axis, factor) in inferred.attributes.items():
        if str(attribute) in changed:
            yield str(attribute), (length(axis, Fraction(factor), Fraction(1)),)
    for each in inferred.rescaled:
        if str(each.what) in changed:
            powers = [(axis, -power) for axis, power in each.powers]
            yield str(each.what), tuple(length(a, Fraction(a.size), p) for a, p in powers)


def _lengths(
    structure: Structure, counts: Mapping[str, int], step: int
) -> Callable[[Axis, Fraction, Fraction], Length]:
    """Return what makes a ``Length`` of an axis, what that is divided by, and a power."""
    sizing = structure.inferred.sizing
    named = {sizing.leader(structure[name].atom): name for name in counts}

    def length(axis: Axis, over: Fraction, power: Fraction) -> Length:
        found: dict[tuple[str, ...], Fraction] = {}
        for keys, coefficient in sizing.length(axis).items():
            names = tuple(sorted(named[key] for key in keys if key in named))
            whole = prod(sizing.members[key].size for key in keys if key not in named)
            found[names] = found.get(names, Fraction(0)) + coefficient * whole / over
        below = lcm(*(c.denominator for c in found.values()))
        terms = tuple((int(c * below), names) for names, c in found.items())
        return Length(step, terms, below, float(power))

    return length
