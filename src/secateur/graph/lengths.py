"""Integers in Python code, as equations on lengths.

A size that a model's code passes to ``view``, ``split`` or ``pad`` has an ``Origin``.  After the
cut the code will pass that expression again, so it must equal the axis's new length: one equation.
A literal can never follow and freezes its axis; an attribute follows by being set; two axes named
by one attribute must keep the same number of positions (they are ``sized`` together).

Lengths are polynomials in the lengths of free atoms: a product multiplies, a concatenation adds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, TypeAlias, cast

from .axes import Atom, Axis, Concat, Ragged, cut, find, freeze, product
from .origins import Attribute, Factor, Origin, Size, Term

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
        total: Polynomial = {} if isinstance(axis, Concat) else {(): 1}
        for part in axis.parts:  # type: ignore[attr-defined]
            length = self.length(part)
            total = add(total, length) if isinstance(axis, Concat) else multiply(total, length)
        return total


def add(a: Polynomial, b: Polynomial, sign: int = 1) -> Polynomial:
    """Return a + sign·b, without terms that cancel."""
    out = dict(a)
    for term, c in b.items():
        out[term] = out.get(term, 0) + sign * c
    return {term: c for term, c in out.items() if c}


def multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    """Return the product of two polynomials."""
    out: Polynomial = {}
    for s, c in a.items():
        for t, d in b.items():
            term = tuple(sorted(s + t))
            out[term] = out.get(term, 0) + c * d
    return {term: c for term, c in out.items() if c}


@dataclass(frozen=True)
class Named:
    """The code passes ``origin`` where an axis has its length."""

    axis: Axis
    origin: Origin
    reason: Any


Bindings: TypeAlias = dict[Attribute, tuple[Axis, Fraction]]


def solve(
    names: Sequence[Named],
    pairs: Sequence[tuple[Axis, Axis, Any]],
    axis_of: Callable[[Size], Axis],
    sizing: Sizing,
) -> Bindings:
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
    bindings: Bindings = {}
    equations: list[Named] = []
    for named in names:
        term = named.origin.single
        if term and len(term.powers) == 1:
            factor, power = term.powers[0]
            if isinstance(factor, Attribute) and power == 1 and factor not in bindings:
                bindings[factor] = (named.axis, term.coefficient)
                continue
        equations.append(named)
    for named in equations:
        _bind_quotient(named, bindings, axis_of, sizing)
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
        open_ones = []
        for named in equations:
            left, right = _sides(named, bindings, axis_of, sizing)
            changed |= _balance(left, right, named.reason, sizing)
            if any(left) or any(right):  # else all is frozen, and stays so
                open_ones.append(named)
        equations = open_ones
        for tied in sizing.classes():
            reasons = [a.frozen for a in tied if a.frozen is not None]
            for atom in tied if reasons else ():
                if atom.frozen is None:
                    freeze(atom, reasons[0])
                    changed = True
    return bindings


def _bind_quotient(
    named: Named, bindings: Bindings, axis_of: Callable[[Size], Axis], sizing: Sizing
) -> None:
    """Of ``heads · width`` where only the width has a name of its own, let heads be the rest."""
    terms = named.origin.terms
    powers = [(f, p) for term in terms for f, p in term.powers]
    free = [(f, p) for f, p in powers if isinstance(f, Attribute) and f not in bindings]
    if len(free) != 1 or free[0][1] != 1 or min(p for _, p in powers) < 0 or named.origin.pins:
        return
    attribute = free[0][0]

    def side(terms: Sequence[Term]) -> Polynomial:
        return _sides(replace(named, origin=Origin(tuple(terms))), bindings, axis_of, sizing)[1]

    mine = next(term for term in terms if attribute in dict(term.powers))
    divisor = side([mine.times(Term(Fraction(1), ((attribute, 1),)), -1)])
    total = add(sizing.length(named.axis), side([t for t in terms if t is not mine]), -1)
    quotient = _quotient(total, divisor)
    if quotient:
        ((term, c),) = quotient.items()
        axis = product(*(sizing.members[key] for key in term))
        bindings[attribute] = (axis, 1 / Fraction(c))


def _quotient(total: Polynomial, divisor: Polynomial) -> Polynomial | None:
    """Return the quotient where it is one product of atoms, else None."""
    for below in divisor:
        for above in total:
            parts = Counter(above)
            parts.subtract(below)
            if min(parts.values(), default=0) < 0 or not any(parts.values()):
                continue
            ratio = Fraction(total[above]) / divisor[below]
            found: Polynomial = {tuple(sorted(parts.elements())): ratio}
            if multiply(divisor, found) == total:
                return found
    return None


def _sides(
    named: Named,
    bindings: Mapping[Attribute, tuple[Axis, Fraction]],
    axis_of: Callable[[Size], Axis],
    sizing: Sizing,
) -> tuple[Polynomial, Polynomial]:
    """Return both sides of an equation, with all denominators multiplied out."""
    lengths: dict[Factor, Polynomial] = {}
    for factor in named.origin.factors:
        if isinstance(factor, Size):
            lengths[factor] = sizing.length(axis_of(factor))
        elif factor in bindings:
            axis, c = bindings[factor]
            lengths[factor] = multiply(sizing.length(axis), {(): 1 / c})
        else:  # an attribute that no axis follows keeps its value
            lengths[factor] = {(): factor.value}
    below: Counter[Factor] = Counter()
    for term in named.origin.terms:
        for factor, power in term.powers:
            below[factor] = max(below[factor], -power)
    left = _power(sizing.length(named.axis), below, lengths)
    right: Polynomial = {}
    for term in named.origin.terms:
        powers = Counter(below)
        powers.update(dict(term.powers))
        right = add(right, _power({(): term.coefficient}, powers, lengths))
    return left, right


def _power(
    start: Polynomial, powers: Mapping[Factor, int], lengths: Mapping[Factor, Polynomial]
) -> Polynomial:
    for factor, power in powers.items():
        for _ in range(power):
            start = multiply(start, lengths[factor])
    return start


def _balance(left: Polynomial, right: Polynomial, reason: Any, sizing: Sizing) -> bool:
    """Make two lengths equal for all cuts: tie atoms, or freeze; True if anything changed."""
    difference = _reduced(add(left, right, -1))
    if all(len(term) < 2 for term in difference) and _solved(difference, reason, sizing):
        return True
    frozen = False
    for key in {key for term in difference for key in term}:
        for atom in sizing.tied(key):
            if atom.frozen is None:
                freeze(atom, reason)
                frozen = True
    return frozen


def _reduced(difference: Polynomial) -> Polynomial:
    """Divide out what all terms have in common: lengths are never zero."""
    if len(difference) < 2:
        return difference
    common = Counter(next(iter(difference)))
    for term in difference:
        common &= Counter(term)
    if not common:
        return difference
    return {tuple(sorted((Counter(term) - common).elements())): c for term, c in difference.items()}


def _solved(difference: Polynomial, reason: Any, sizing: Sizing) -> bool:
    """Make a linear equation true for all cuts by ties, where it is true now."""
    constant = Fraction(difference.get((), 0))
    terms = [(term[0], Fraction(c)) for term, c in difference.items() if term]
    if sum((c * sizing.members[key].size for key, c in terms), constant):
        return False
    if len(terms) == 2 and not constant:
        (a, p), (b, q) = terms
        return _tie(a, b, abs(p / q), sizing)
    for key, c in terms:
        rest = [(other, -d / c) for other, d in terms if other != key]
        fixed = -constant / c
        counts = [d for _, d in rest] + [fixed]
        if len(terms) > 1 and all(d >= 0 and d.denominator == 1 for d in counts):
            _compose(key, [(other, int(d)) for other, d in rest], int(fixed), reason, sizing)
            return True
    return False


def _tie(a: int, b: int, ratio: Fraction, sizing: Sizing) -> bool:
    """Make ratio · a = b true for all cuts: pieces of one size on both sides."""
    if sizing.members[a].size % ratio.denominator:
        return False
    pieces = [
        part
        for key, count in ((a, ratio.denominator), (b, ratio.numerator))
        for atom in sizing.tied(key)
        for part in _pieces(atom, count)
    ]
    for part in pieces[1:]:
        sizing.tie(pieces[0], part)
    return True


def _compose(
    whole: int, parts: Sequence[tuple[int, int]], fixed: int, reason: Any, sizing: Sizing
) -> None:
    """Make whole = Σ count · part + fixed true: a piece for each part, and one that stays."""
    for atom in sizing.tied(whole):
        rest: Axis = atom
        for part, count in parts:
            for _ in range(count):
                rest = _take(rest, sizing.members[part], sizing)
        if fixed:
            freeze(rest, reason)


def _take(rest: Axis, part: Atom, sizing: Sizing) -> Axis:
    piece, rest = cut(rest, part.size) if rest.size > part.size else (rest, rest)
    sizing.tie(find(piece), part)  # type: ignore[arg-type]
    return rest


def _pieces(atom: Atom, count: int) -> list[Atom]:
    """Return an atom as equal pieces laid end to end."""
    parts: list[Atom] = []
    rest: Axis = atom
    size = atom.size // count
    for _ in range(count - 1):
        piece, rest = cut(rest, size)
        parts.append(piece)  # type: ignore[arg-type]
    return [*parts, find(rest)]  # type: ignore[list-item]


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
