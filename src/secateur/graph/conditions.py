"""When is a removed position really zero?  Monotone conditions over "this slice is masked".

Every dimension of every activation carries two conditions: ``zero`` (a position is zero if …) and
``const`` (a position does not depend on the data if …).  Their leaves are slices of parameters, so
one trace answers both questions that pruning asks: *is removing this position exact when all its
slices are masked?* and *which positions does somebody else's partial mask really kill?*

Conditions are asked for one atom at a time.  A leaf that does not contain the atom has nothing to
say about it and is true: that makes the conjunction over a concatenation exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .axes import Atom, Axis, contains


@dataclass(frozen=True, eq=False)
class Never:
    """No position of this axis is ever zero."""

    axis: Axis


@dataclass(frozen=True, eq=False)
class Shared:
    """What all positions of this axis share is in them: a mean, a gate for all of them.

    So none is constant, yet none brings data of its own; asked leniently, that is enough.
    """

    axis: Axis


@dataclass(frozen=True)
class Masked:
    """All weights of this parameter at this position of this dimension are masked."""

    parameter: str
    dim: int


@dataclass(frozen=True)
class Every:
    conditions: frozenset[Condition]


@dataclass(frozen=True)
class Either:
    conditions: frozenset[Condition]


Condition: TypeAlias = Never | Shared | Masked | Every | Either

ALWAYS = Every(frozenset())


def every(*conditions: Condition) -> Condition:
    """Return the conjunction, flattened."""
    flat: set[Condition] = set()
    for condition in conditions:
        flat |= condition.conditions if isinstance(condition, Every) else {condition}
    return next(iter(flat)) if len(flat) == 1 else Every(frozenset(flat))


def either(*conditions: Condition) -> Condition:
    """Return the disjunction, flattened.  All must speak of the same axis."""
    flat: set[Condition] = set()
    for condition in conditions:
        if condition == ALWAYS:
            return ALWAYS
        flat |= condition.conditions if isinstance(condition, Either) else {condition}
    if any(not isinstance(c, Never) for c in flat):
        flat = {c for c in flat if not isinstance(c, Never)}
    return next(iter(flat)) if len(flat) == 1 else Either(frozenset(flat))


def holds(
    condition: Condition,
    atom: Atom,
    contains: Callable[[Axis, Atom], bool],
    masked: Callable[[str, int, Atom], Tensor],
    *,
    lenient: bool = False,
) -> Tensor:
    """Return for each position of the atom whether the condition is true, as a bool tensor.

    Args:
        condition: what is asked.
        atom: whose positions are asked about.
        contains: whether an axis mentions the atom.
        masked: ``(parameter, dim, atom)`` → bool tensor ``(atom.size,)``; true where the slice is
            masked, all true where the dimension does not contain the atom.
        lenient: what all positions share does not count.
    """
    known: dict[Condition, Tensor] = {}

    def ask(c: Condition) -> Tensor:
        if c not in known:
            if isinstance(c, Masked):
                known[c] = masked(c.parameter, c.dim, atom)
            elif isinstance(c, (Never, Shared)):
                passed = lenient and isinstance(c, Shared)
                known[c] = torch.full((atom.size,), passed or not contains(c.axis, atom))
            else:
                result = torch.full((atom.size,), isinstance(c, Every))
                for part in c.conditions:
                    result = result & ask(part) if isinstance(c, Every) else result | ask(part)
                known[c] = result
        return known[c]

    return ask(condition)


def zero_when_masked(condition: Condition, atom: Atom) -> bool:
    """Tell whether a position of an atom is zero for sure once all its slices are masked."""
    single = Atom(1)  # the answer is the same for every position

    def mentions(axis: Axis, _: Atom) -> bool:
        return contains(axis, atom)

    return bool(holds(condition, single, mentions, lambda *_: torch.ones(1, dtype=torch.bool)))
