"""Integers in Python code, as equations on lengths.

A size that a model's code passes to ``view``, ``split`` or ``pad`` has an ``Origin``.  After the
cut the code will pass that expression again, so it must equal the axis's new length: one equation.
A literal can never follow and freezes its axis; an attribute follows by being set; two axes named
by one attribute must keep the same number of positions (they are ``sized`` together).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeAlias

from .axes import Axis, concat, freeze, product
from .balance import Open, balance, settle
from .lengths import Polynomial, Sizing, add, multiply
from .origins import Attribute, Factor, Origin, Size, Term
from .tables import Tables


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
    tables: Tables | None = None,
) -> Bindings:
    """Make every equation true for all cuts: set attributes, tie atoms, freeze the rest.

    Args:
        names: the equations of one trace.
        pairs: axes that keep equal lengths, with the reason.
        axis_of: the axis of a recorded tensor's dimension.
        sizing: receives the ties.
        tables: what is cut at a length of an input's, and stays whole.

    Returns:
        For each attribute that some axis names alone: that axis and the factor c such that the
        attribute must be set to ``length(axis) / c``.

    A model that views 12 positions as ``heads`` times ``width``, both its attributes: whatever is
    cut of either, the attribute of the same name follows.

    >>> from secateur.graph.axes import Atom
    >>> from secateur.graph.origins import Attribute, Origin
    >>> heads, width = Atom(3), Atom(4)
    >>> a = Attribute("attn", "heads", value=3)
    >>> b = Attribute("attn", "width", value=4)
    >>> sizing = Sizing()
    >>> names = [Named(heads, Origin.of(a), "view"), Named(width, Origin.of(b), "view")]
    >>> bindings = solve(names, [], lambda size: heads, sizing)
    >>> [(str(attribute), axis) for attribute, (axis, _) in bindings.items()]
    [('attn.heads', 3), ('attn.width', 4)]
    """
    bindings, equations = _bound(names, axis_of, sizing)
    _hold(equations, pairs, bindings, axis_of, sizing, tables)
    return bindings


def _bound(
    names: Sequence[Named], axis_of: Callable[[Size], Axis], sizing: Sizing
) -> tuple[Bindings, list[Named]]:
    """Let each attribute follow the first axis that it names; return the other equations too."""
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
    return bindings, equations


def _hold(
    equations: list[Named],
    pairs: Sequence[tuple[Axis, Axis, Any]],
    bindings: Bindings,
    axis_of: Callable[[Size], Axis],
    sizing: Sizing,
    tables: Tables | None = None,
) -> None:
    """Tie and freeze atoms until every equation and every pair holds, whatever is cut."""
    changed = True
    while changed:  # freezing an atom can break an equation that held
        changed = tables is not None and tables.freeze_cut(axis_of)
        products: list[Open] = []
        for a, b, reason in pairs:
            sides = sizing.length(a), sizing.length(b), reason
            changed |= balance(*sides, sizing, products)
        open_ones = []
        for named in equations:
            left, right = _sides(named, bindings, axis_of, sizing)
            changed |= balance(left, right, named.reason, sizing, products)
            if any(left) or any(right):  # else all is frozen, and stays so
                open_ones.append(named)
        equations = open_ones
        for tied in sizing.classes():
            reasons = [a.frozen for a in tied if a.frozen is not None]
            for atom in tied if reasons else ():
                if atom.frozen is None:
                    freeze(atom, reasons[0])
                    changed = True
        if products and not changed:  # all that is certain is said; these have a choice
            difference, reason = products[0]
            settle(difference, reason, sizing)
            changed = True


def _bind_quotient(
    named: Named, bindings: Bindings, axis_of: Callable[[Size], Axis], sizing: Sizing
) -> None:
    """Let an attribute be what is left of a length.

    In ``view(heads · width)`` that is heads, where only the width has an axis of its own; in
    ``split(x, [a, dim - a])`` it is dim.
    """
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
    elif divisor == {(): 1} and () not in total and {*total.values()} == {1}:
        parts = [product(*(sizing.members[key] for key in term)) for term in total]
        bindings[attribute] = (concat(*parts), Fraction(1))


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
