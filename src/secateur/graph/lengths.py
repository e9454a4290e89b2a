"""Integers in Python code, as equations on lengths.

A size that a model's code passes to ``view``, ``split`` or ``pad`` has an ``Origin``: a number
times powers of module attributes (``self.num_heads``) and of tensor sizes (``x.shape[1]``).  After
the cut the code will pass that expression again, so it must equal the axis's new length: one
equation.  A literal can never follow and freezes its axis; an attribute follows by being set; two
axes named by one attribute must keep the same number of positions (they are ``sized`` together).

Lengths are polynomials in the lengths of free atoms: a product multiplies, a concatenation adds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, cast

from .axes import Atom, Axis, Concat, Ragged, find, freeze


@dataclass(frozen=True)
class Attribute:
    """An integer that a module holds: ``path`` of the module, ``name``, ``index`` in a tuple."""

    path: str
    name: str
    index: int | None = None

    def __str__(self) -> str:
        where = f"{self.path}.{self.name}" if self.path else self.name
        return where if self.index is None else f"{where}[{self.index}]"

    @classmethod
    def parse(cls, text: str, paths: Collection[str]) -> Attribute:
        """Return the attribute that was written as ``text``; ValueError where it is none.

        Args:
            text: as ``str`` writes it.
            paths: of the modules; the longest that the text starts with is its module.

        >>> Attribute.parse("block.1.config.sizes[2]", ["", "block", "block.1"])
        Attribute(path='block.1', name='config.sizes', index=2)
        """
        words, path = text.split("."), ""
        for cut in range(len(words) - 1, 0, -1):
            if ".".join(words[:cut]) in paths:
                path, words = ".".join(words[:cut]), words[cut:]
                break
        match = re.fullmatch(r"((?:[A-Za-z]\w*\.)*[A-Za-z]\w*)(?:\[(\d{1,6})\])?", ".".join(words))
        if match is None:
            raise ValueError(f"{text!r} is no attribute of a module")
        return cls(path, match[1], int(match[2]) if match[2] else None)


@dataclass(frozen=True)
class Size:
    """The size of a dimension of a recorded tensor: ``x.shape[dim]``."""

    value: int
    dim: int


@dataclass(frozen=True)
class Origin:
    """``coefficient · Π factorᵉ``; a literal has no factors."""

    coefficient: Fraction
    powers: tuple[tuple[Attribute | Size, int], ...] = ()
    pins: tuple[Attribute | Size, ...] = ()  # went into a sum: they must stay as they are

    @property
    def factors(self) -> tuple[Attribute | Size, ...]:
        """All that the integer was computed from."""
        return (*(factor for factor, _ in self.powers), *self.pins)

    def times(self, other: Origin, sign: int = 1) -> Origin:
        """Return the product (or with ``sign=-1`` the quotient) of two origins."""
        powers = Counter(dict(self.powers))
        for factor, exponent in other.powers:
            powers[factor] += sign * exponent
        left = tuple((f, e) for f, e in powers.items() if e)
        pins = tuple({*self.pins, *other.pins})
        return Origin(self.coefficient * other.coefficient**sign, left, pins)


# A polynomial: product of atoms (sorted by identity) → coefficient.
Polynomial = dict[tuple[int, ...], Fraction]


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
            key = above
        return key

    def tie(self, a: Atom, b: Atom) -> None:
        """Say that two atoms keep equally many positions; frozen ones freeze the other."""
        self._leader[self.leader(a)] = self.leader(b)

    def classes(self) -> list[list[Atom]]:
        """Return the sets of two or more atoms that are sized together."""
        sets: dict[int, list[Atom]] = {}
        for atom in list(self.members.values()):
            sets.setdefault(self.leader(atom), []).append(atom)
        return [found for found in sets.values() if len(found) > 1]

    def length(self, axis: Axis) -> Polynomial:
        """Return the length of an axis after any cut; what is frozen counts as a number."""
        axis = find(axis)
        if isinstance(axis, Atom):
            if axis.frozen is not None:
                return {(): Fraction(axis.size)}
            return {(self.leader(axis),): Fraction(1)}
        if isinstance(axis, Ragged):  # its parts are sized together
            return self.length(axis.parts[0])
        total: Polynomial = {} if isinstance(axis, Concat) else {(): Fraction(1)}
        for part in axis.parts:  # type: ignore[attr-defined]
            length = self.length(part)
            total = add(total, length) if isinstance(axis, Concat) else multiply(total, length)
        return total


def add(a: Polynomial, b: Polynomial, sign: int = 1) -> Polynomial:
    """Return a + sign·b, without terms that cancel."""
    out = dict(a)
    for term, c in b.items():
        out[term] = out.get(term, Fraction(0)) + sign * c
    return {term: c for term, c in out.items() if c}


def multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    """Return the product of two polynomials."""
    out: Polynomial = {}
    for s, c in a.items():
        for t, d in b.items():
            term = tuple(sorted(s + t))
            out[term] = out.get(term, Fraction(0)) + c * d
    return {term: c for term, c in out.items() if c}


@dataclass(frozen=True)
class Named:
    """The code passes ``origin`` where an axis has its length."""

    axis: Axis
    origin: Origin
    reason: Any


def solve(
    names: Sequence[Named],
    pairs: Sequence[tuple[Axis, Axis, Any]],
    axis_of: Callable[[Size], Axis],
    sizing: Sizing,
) -> dict[Attribute, tuple[Axis, Fraction]]:
    """Make every equation true for all cuts: set attributes, tie atoms, freeze the rest.

    Args:
        names: the equations of one trace.
        pairs: axes that keep equal lengths, with the reason.
        axis_of: the axis of a recorded tensor's dimension.
        sizing: receives the ties.

    Returns:
        For each attribute that some axis names alone: that axis and the factor c such that the
        attribute must be set to ``length(axis) / c``.
    """
    bindings: dict[Attribute, tuple[Axis, Fraction]] = {}
    equations: list[Named] = []
    for named in names:
        origin = named.origin
        if len(origin.powers) == 1 and not origin.pins:
            factor, power = origin.powers[0]
            if isinstance(factor, Attribute) and power == 1 and factor not in bindings:
                bindings[factor] = (named.axis, origin.coefficient)
                continue
        equations.append(named)
    for named in names:
        for pin in named.origin.pins:
            if isinstance(pin, Size):
                freeze(axis_of(pin), named.reason)
            elif pin in bindings:
                freeze(bindings[pin][0], named.reason)
    changed = True
    while changed:  # freezing an atom can break an equation that held
        changed = False
        for a, b, reason in pairs:
            changed |= _balance(sizing.length(a), sizing.length(b), reason, sizing)
        for named in equations:
            left, right = _sides(named, bindings, axis_of, sizing)
            changed |= _balance(left, right, named.reason, sizing)
        for tied in sizing.classes():
            reasons = [a.frozen for a in tied if a.frozen is not None]
            for atom in tied if reasons else ():
                if atom.frozen is None:
                    freeze(atom, reasons[0])
                    changed = True
    return bindings


def _sides(
    named: Named,
    bindings: Mapping[Attribute, tuple[Axis, Fraction]],
    axis_of: Callable[[Size], Axis],
    sizing: Sizing,
) -> tuple[Polynomial, Polynomial]:
    """Return both sides of an equation, with all denominators multiplied out."""
    sides: list[Polynomial] = [sizing.length(named.axis), {(): named.origin.coefficient}]
    unbound = False
    for factor, power in named.origin.powers:
        if isinstance(factor, Size):
            length = sizing.length(axis_of(factor))
        elif factor in bindings:
            axis, c = bindings[factor]
            length = multiply(sizing.length(axis), {(): 1 / c})
        else:  # an attribute that no axis follows keeps its value
            unbound = True
            continue
        side = 1 if power > 0 else 0
        for _ in range(abs(power)):
            sides[side] = multiply(sides[side], length)
    left, right = sides
    if unbound:  # its value is what makes the equation true of the model as it stands
        right = multiply(right, {(): _value(left, sizing) / _value(right, sizing)})
    return left, right


def _balance(left: Polynomial, right: Polynomial, reason: Any, sizing: Sizing) -> bool:
    """Make two lengths equal for all cuts: tie two atoms, or freeze; True if anything changed."""
    difference = add(left, right, -1)
    terms = list(difference.items())
    if len(terms) == 2 and all(len(term) == 1 for term, _ in terms):
        (a,), (b,) = terms[0][0], terms[1][0]
        if terms[0][1] == -terms[1][1] and sizing.members[a].size == sizing.members[b].size:
            sizing.tie(sizing.members[a], sizing.members[b])
            return True
    frozen = False
    for key in {key for term in difference for key in term}:
        for atom in [a for a in sizing.members.values() if sizing.leader(a) == key]:
            if atom.frozen is None:
                freeze(atom, reason)
                frozen = True
    return frozen


def _value(polynomial: Polynomial, sizing: Sizing) -> Fraction:
    total = Fraction(0)
    for term, c in polynomial.items():
        for key in term:
            c = c * sizing.members[key].size
        total += c
    return total


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
    lengths = [now(part, count) for part in axis.parts]  # type: ignore[attr-defined]
    if isinstance(axis, Ragged):  # the mean, so that a cost can be shared out among the parts
        return _mean(lengths)
    if isinstance(axis, Concat):
        return sum(lengths)
    total = 1
    for length in lengths:
        total *= length
    return total
