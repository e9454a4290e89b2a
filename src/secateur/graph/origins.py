"""Where integers in Python code come from: sums of products of numbers, attributes and sizes.

A size that a model's code passes to ``view``, ``split`` or ``pad`` is computed from module
attributes (``self.num_heads``), tensor sizes (``x.shape[1]``) and literals.  ``attributes`` follows
them while the model runs; ``equations`` makes equations of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Attribute:
    """An integer that a module, or an object that it holds, keeps.

    ``path`` of the module; ``name``, dotted when an object of the module holds it
    (``config.num_heads``); ``index`` in a tuple, or key of a dict.  ``value`` is what it holds
    while traced.
    """

    path: str
    name: str
    index: int | str | None = None
    value: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        where = f"{self.path}.{self.name}" if self.path else self.name
        return where if self.index is None else f"{where}[{self.index}]"

    def held_by(self, module: Any) -> Any:
        """Return what the module's own attribute holds, without running code of anybody's."""
        value: Any = module
        for name in self.name.split("."):
            inside = getattr(value, "__dict__", None) if not isinstance(value, type) else None
            value = inside.get(name) if isinstance(inside, dict) else None
        if self.index is None:
            return value
        if isinstance(self.index, str):
            return value.get(self.index) if isinstance(value, dict) else None
        inside = value if isinstance(value, (tuple, list)) else ()
        return inside[self.index] if self.index < len(inside) else None

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
        for end in range(len(words) - 1, 0, -1):
            if ".".join(words[:end]) in paths:
                path, words = ".".join(words[:end]), words[end:]
                break
        place = r"(\d{1,6}|[A-Za-z_]\w*)"
        match = re.fullmatch(rf"((?:[A-Za-z]\w*\.)*[A-Za-z]\w*)(?:\[{place}\])?", ".".join(words))
        if match is None:
            raise ValueError(f"{text!r} is no attribute of a module")
        return cls(path, match[1], int(match[2]) if match[2] and match[2].isdigit() else match[2])


@dataclass(frozen=True)
class Size:
    """The size of a dimension of a recorded tensor: ``x.shape[dim]``."""

    value: int
    dim: int


Factor: TypeAlias = Attribute | Size


@dataclass(frozen=True)
class Term:
    """``coefficient · Π factorᵉ``; a literal has no factors."""

    coefficient: Fraction
    powers: tuple[tuple[Factor, int], ...] = ()

    def times(self, other: Term, sign: int = 1) -> Term:
        """Return the product (or with ``sign=-1`` the quotient) of two terms."""
        powers = Counter(dict(self.powers))
        for factor, exponent in other.powers:
            powers[factor] += sign * exponent
        left = tuple((f, e) for f, e in powers.items() if e)
        return Term(self.coefficient * other.coefficient**sign, left)


@dataclass(frozen=True)
class Origin:
    """A sum of terms.  ``pins`` went into something else: they must stay as they are."""

    terms: tuple[Term, ...]
    pins: tuple[Factor, ...] = ()

    @classmethod
    def of(cls, what: Factor | int | Fraction) -> Origin:
        """Return the origin of a literal, an attribute or a size."""
        if isinstance(what, (int, Fraction)):
            return cls((Term(Fraction(what)),))
        return cls((Term(Fraction(1), ((what, 1),)),))

    @property
    def factors(self) -> tuple[Factor, ...]:
        """All that the integer was computed from."""
        return (*(factor for term in self.terms for factor, _ in term.powers), *self.pins)

    @property
    def number(self) -> Fraction:
        """The sum of its literals: all of it, where it has no factors."""
        return sum((term.coefficient for term in self.terms if not term.powers), Fraction(0))

    @property
    def single(self) -> Term | None:
        """The only term, or None."""
        return self.terms[0] if len(self.terms) == 1 and not self.pins else None

    @property
    def factor(self) -> Factor | None:
        """The attribute or size that this is, or None where it is computed from any."""
        first = self.factors[0] if len(self.factors) == 1 else None
        return first if first is not None and self == Origin.of(first) else None

    def times(self, other: Origin) -> Origin:
        """Return the product of two origins."""
        return _sum((a.times(b) for a in self.terms for b in other.terms), self, other)

    def over(self, other: Origin) -> Origin | None:
        """Return the quotient of two origins, or None where it is no sum of terms."""
        divisor = other.single
        if divisor is None or not divisor.coefficient:
            return None
        return _sum((a.times(divisor, -1) for a in self.terms), self, other)

    def plus(self, other: Origin, sign: int = 1) -> Origin:
        """Return the sum (or with ``sign=-1`` the difference) of two origins."""
        scaled = (Term(sign * b.coefficient, b.powers) for b in other.terms)
        return _sum((*self.terms, *scaled), self, other)

    def pinned_to(self, factors: Sequence[Factor]) -> Origin:
        """Return this number, computed from factors in a way that no sum of terms can say."""
        return Origin(self.terms, tuple(dict.fromkeys((*self.pins, *factors))))


def _sum(terms: Any, a: Origin, b: Origin) -> Origin:
    total: dict[frozenset[tuple[Factor, int]], Term] = {}
    for term in terms:
        key = frozenset(term.powers)
        before = total[key].coefficient if key in total else Fraction(0)
        total[key] = Term(before + term.coefficient, term.powers)
    left = tuple(term for term in total.values() if term.coefficient)
    return Origin(left or (Term(Fraction(0)),), tuple(dict.fromkeys((*a.pins, *b.pins))))
