"""Which widths a device likes: those that are faster than every wider one, by its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from secateur.costs import Goal, Timed
from secateur.costs.cost import Count
from secateur.structure import Structure

from .families import Family
from .select import Request, rungs
from .targets import Selectable, scored

MOST = 24
"""Widths of a group that are measured, at most: every one of small groups."""


def liked(
    requests: Sequence[Request], cost: Callable[[int], float], noise: Callable[[int], float]
) -> frozenset[int]:
    """Return the widths that cost less than every wider one, by more than half their noise.

    A width that costs as much as a wider one is never the better choice.

    Args:
        requests: of groups that keep equally many positions.
        cost: of the model, by the width of these groups.
        noise: how sure that is.

    >>> import torch
    >>> steps = lambda width: -(-width // 8)
    >>> sorted(liked([Request(torch.rand(32), sparsity=0.5)], steps, lambda width: 0.0))
    [8, 16, 24, 32]
    """
    size = len(requests[0].score)
    fits = sorted(set.intersection(*map(rungs, requests)) | {size}, reverse=True)
    step = 1
    while len(fits) > MOST * step:  # powers of two: what devices' steps are multiples of
        step *= 2
    tried = [k for k in fits if k % step == 0 or k in (fits[0], fits[-1])]
    best, found = float("inf"), []
    for width in tried:
        spent = cost(width)
        if spent < best - noise(width) / 2:
            found.append(width)
            best = spent
    return frozenset(found)


def liked_by(
    goals: Sequence[Goal],
    structure: Structure | None,
    selectables: Sequence[Selectable],
    families: Sequence[Family],
) -> dict[str, frozenset[int]]:
    """Return the widths that the device likes, by group; nothing where no goal is of time."""
    costs = [goal.cost for goal in goals if isinstance(goal.cost, Timed)]
    if not costs or structure is None:
        return {}
    here = {s.name: scored(s, torch.zeros(s.group.size)) for s in selectables if s.group}
    tied = [[name for name in family if name in here] for family in families]
    alone = here.keys() - {name for family in tied for name in family}
    found: dict[str, frozenset[int]] = {}
    for names in [*(names for names in tied if names), *([name] for name in sorted(alone))]:
        at = _at(structure, names)
        widths = liked(
            [here[name] for name in names],
            lambda width: costs[0].of(at(width)),  # noqa: B023
            lambda width: costs[0].noise(at(width)),  # noqa: B023
        )
        found |= dict.fromkeys(names, widths)
    return found


def _at(structure: Structure, names: Sequence[str]) -> Callable[[int], Count]:
    return lambda width: structure.counter(dict.fromkeys(names, width))
