"""Which parts of a plan make a smaller model another one: found by bisection, and left out.

What is exact is known from the operations of one forward.  Where the check finds a difference all
the same, or the smaller model does not run, the rest of the plan need not be lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from secateur.errors import ShrinkError
from secateur.structure import Structure

from .plan import Plan

T = TypeVar("T")


def parts(structure: Structure, plan: Plan) -> list[Plan]:
    """Return what of a plan can be left out alone; layers of one kind adjoin.

    That is each group with those that must keep as many positions, and each block.

    >>> import torch
    >>> from secateur import analyze
    >>> layers = [torch.nn.Linear(4, 4) for _ in range(3)]
    >>> structure = analyze(torch.nn.Sequential(*layers), torch.zeros(1, 4))
    >>> [part.keep for part in parts(structure, Plan({"0": (0, 1), "1": (2,)}))]
    [{'0': (0, 1)}, {'1': (2,)}]
    """
    families: dict[str, dict[str, tuple[int, ...]]] = {}  # by the first of each
    for name, kept in plan.keep.items():
        mates = {name, *structure[name].sized}
        first = next((f for f, members in families.items() if mates & members.keys()), name)
        families.setdefault(first, {})[name] = kept
    found = [Plan(family) for family in families.values()]
    found += [Plan({}, (name,)) for name in plan.drop]
    kinds = dict.fromkeys(re.sub(r"\d+", "#", named(part)) for part in found)
    place = {kind: i for i, kind in enumerate(kinds)}
    return sorted(found, key=lambda part: place[re.sub(r"\d+", "#", named(part))])


def joined(some: Iterable[Plan]) -> Plan:
    """Return the plan of several parts.

    >>> joined([Plan({"a": (0,)}), Plan({}, ("b",))])
    Plan(keep={'a': (0,)}, drop=('b',))
    """
    some = list(some)
    keep = {name: kept for part in some for name, kept in part.keep.items()}
    return Plan(keep, tuple(name for part in some for name in part.drop))


def named(part: Plan) -> str:
    """Return the names of what a part cuts."""
    return ", ".join((*part.keep, *part.drop))


def innocent(
    suspects: Sequence[T],
    fails: Callable[[Sequence[T]], ShrinkError | None],
    sure: Sequence[T] = (),
) -> tuple[list[T], list[tuple[T, ShrinkError]]]:
    """Return suspects that do well together, and each of the others with its error.

    Each half is tried with all that is known to do well, and halved again where it fails: a few
    culprits among n suspects cost a few times log n trials.

    Args:
        suspects: which fail as a whole.
        fails: returns the error of cutting some, or None.
        sure: what is cut with them, and does well alone.

    >>> def fails(some): return ShrinkError("no") if {*some} & {"c", "f"} else None
    >>> good, culprits = innocent("abcdefg", fails)
    >>> "".join(good), [name for name, _ in culprits]
    ('abdeg', ['c', 'f'])
    """
    good = [*sure]
    culprits: list[tuple[T, ShrinkError]] = []

    def halve(some: Sequence[T]) -> None:
        middle = (len(some) + 1) // 2
        for half in filter(None, (some[:middle], some[middle:])):
            error = fails([*good, *half])
            if error is None:
                good.extend(half)
            elif len(half) == 1:
                culprits.append((half[0], error))
            else:
                halve(half)

    halve(suspects)
    return good[len(sure) :], culprits
