"""Make two lengths equal for all cuts: tie atoms to each other, or freeze them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

from .axes import Atom, Axis, cut, find, freeze
from .lengths import Polynomial, Sizing, add

Open: TypeAlias = tuple[Polynomial, Any]  # a difference that must be zero, and why


def balance(
    left: Polynomial,
    right: Polynomial,
    reason: Any,
    sizing: Sizing,
    products: list[Open],
) -> bool:
    """Make two lengths equal for all cuts: tie atoms, or freeze; True if anything changed.

    Where lengths are multiplied, so that it matters which of them stays free, the equation is put
    on the list of products instead.

    A gate of eight positions is a half of sixteen, so that both halves keep as many as it does:

    >>> gate, both, sizing = Atom(8), Atom(16), Sizing()
    >>> twice = {(sizing.leader(gate),): 2}
    >>> balance(sizing.length(both), twice, "a chunk in two", sizing, [])
    True
    >>> [[atom.size for atom in tied] for tied in sizing.classes()]
    [[8, 8, 8]]
    """
    difference = _reduced(add(left, right, -1))
    if not all(len(term) < 2 for term in difference):
        products.append((difference, reason))
        return False
    if _solved(difference, reason, sizing):
        return True
    return _freeze_all({key for term in difference for key in term}, reason, sizing)


def settle(difference: Polynomial, reason: Any, sizing: Sizing) -> None:
    """Make an equation true in which lengths are multiplied, with as much left free as can be.

    ``heads · width = heads · width``: each follows its like.  ``heads · width = channels``: the
    smaller factor freezes and channels follow the other, which leaves the most positions to choose
    from.  Where neither can do, all freeze.
    """
    if _paired(difference, sizing):
        return
    factors = {key for term in difference if len(term) > 1 for key in term}
    for kept in _by_size(factors, sizing):
        linear = difference
        for key in factors - {kept}:
            linear = _known(linear, key, sizing.members[key].size)
        if len(linear) == 2 and all(len(term) == 1 for term in linear):
            ((a,), p), (_, q) = linear.items()
            if sizing.members[a].size % abs(Fraction(p) / Fraction(q)).denominator == 0:
                _freeze_all(factors - {kept}, reason, sizing)
                balance(linear, {}, reason, sizing, [])
                return
    _freeze_all({key for term in difference for key in term}, reason, sizing)


def _paired(difference: Polynomial, sizing: Sizing) -> bool:
    """Tie the factors of two products that are alike; False where they are not."""
    if len(difference) != 2 or {*difference.values()} != {1, -1}:
        return False
    ours, theirs = (_by_size(term, sizing) for term in difference)
    sizes = [[sizing.members[key].size for key in keys] for keys in (ours, theirs)]
    if sizes[0] != sizes[1]:
        return False
    for a, b in zip(ours, theirs, strict=True):
        sizing.tie(sizing.members[a], sizing.members[b])
    return True


def _by_size(keys: Collection[int], sizing: Sizing) -> list[int]:
    """Return leaders, the largest first; equal ones in the order in which the model has them."""
    place = {key: i for i, key in enumerate(sizing.members)}
    return sorted(keys, key=lambda key: (-sizing.members[key].size, place[key]))


def _known(polynomial: Polynomial, key: int, value: int) -> Polynomial:
    """Return a polynomial with a number in the place of one length."""
    out: Polynomial = {}
    for term, c in polynomial.items():
        rest = tuple(k for k in term if k != key)
        out[rest] = out.get(rest, 0) + c * value ** (len(term) - len(rest))
    return {term: c for term, c in out.items() if c}


def _freeze_all(keys: Collection[int], reason: Any, sizing: Sizing) -> bool:
    """Freeze atoms and all that are sized with them; True if any was free."""
    frozen = False
    for key in keys:
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
