"""AutoML for model compression: an episode walks through the units and gives each its share.

What the agent may remove from a unit is bounded so that the goal is met in the end, and no more
goes than that.  States are normalised over the units, and what happened to one stands in the
state of the next, as in the paper.

He et al., 2018, arXiv:1802.03494
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .space import MOST, Space

STEPS = 7
"""Bisections for a bound: it is off by less than a hundredth."""
DYNAMIC = 3
"""The last numbers of a state: what has gone, what still can go, and the last share."""


@dataclass(frozen=True)
class Episode:
    """The states that were seen, and what was done in each of them."""

    states: tuple[tuple[float, ...], ...]
    shares: tuple[float, ...]


def normalised(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return rows whose columns reach from 0 to 1; a column of one number stays as it is.

    >>> normalised([[1.0, 5.0], [3.0, 5.0]])
    [[0.0, 5.0], [1.0, 5.0]]
    """
    columns = []
    for column in zip(*rows, strict=True):
        low, high = min(column), max(column)
        columns.append([(x - low) / (high - low) for x in column] if high > low else list(column))
    return [list(row) for row in zip(*columns, strict=True)]


def bounded(
    action: float, cost: float, original: float, most: float, goal: float, gone: float, later: float
) -> float:
    """Return an action made such that the goal can be met, and is not exceeded.

    Costs are of layers that know nothing of each other, as NNI counts them.

    Args:
        action: the share of the layer's cost that is to go.
        cost: of the layer as it is now.
        original: of the layer in the dense model.
        most: the largest share of the original that may go.
        goal: how much is to go from all layers.
        gone: how much went already.
        later: the most that the layers after this one can give.

    >>> bounded(0.1, cost=10, original=10, most=0.8, goal=12, gone=0, later=8)
    0.4
    >>> bounded(0.9, cost=10, original=10, most=0.8, goal=12, gone=9, later=8)
    0.3
    """
    low = (goal - gone - later) / cost
    high = min(original * most - (original - cost), goal - gone) / cost
    return max(0.0, min(high, max(low, action)))


def walked(space: Space, act: Callable[[tuple[float, ...]], float]) -> Episode:
    """Go through the units of a space, and let each lose what ``act`` says, within the bounds.

    Args:
        space: what is pruned.
        act: a state → a share in [0, 1].
    """
    fixed = normalised(_features(space))
    count, goal = len(fixed), space.goal
    states, shares, last = [], list[float](), 0.0
    for i, row in enumerate(fixed):

        def left(share: float | None, later: float, before: Sequence[float] = shares) -> float:
            middle = [] if share is None else [share]
            rest = count - len(before) - len(middle)
            return space.cost([*before, *middle, *[later] * rest])

        now = left(None, 0.0)
        states.append((*row, 1 - now, now - left(0.0, MOST), last))
        low = _least(lambda share: left(share, MOST) <= goal)
        high = _least(lambda share: left(share, 0.0) <= goal)
        last = max(0.0, min(high, max(low, act(states[i]))))
        shares = [*shares, last]
    return Episode(tuple(states), tuple(shares))


def _least(enough: Callable[[float], bool]) -> float:
    """Return the least share that is enough; the most that can go where none is."""
    if enough(0.0):
        return 0.0
    low, high = 0.0, MOST
    for _ in range(STEPS):
        middle = (low + high) / 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def _features(space: Space) -> list[list[float]]:
    """Return for each unit what does not change: where it is, how large, and what it costs."""
    whole = space.cost([0.0] * len(space.units))
    structure = space.pruner.structure
    rows = []
    for i, names in enumerate(space.units.values()):
        groups = [each.group for each in space.selectables if each.name in names]
        known = [group for group in groups if group is not None]
        members = [member.role for group in known for member in group.members]
        sizes = sum(group.size for group in known)
        assert structure is not None or not known  # groups come from one
        macs = sum(structure.macs_per_index(g) * g.size for g in known) if structure else 0.0
        alone = [MOST if j == i else 0.0 for j in range(len(space.units))]
        rows.append(
            [
                float(i),
                float(members.count("out")),
                float(members.count("in")),
                float(sizes),
                float(sum(group.params * group.size for group in known)),
                float(macs),
                whole - space.cost(alone),
            ]
        )
    return rows
