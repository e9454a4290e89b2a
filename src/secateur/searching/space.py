"""What is searched over: a share for each unit, and how shares are made to meet the goal.

A *unit* is a group, several that must keep equally many positions, or all of a block.  Whatever
shares a sampler draws, ``Space.settled`` lets them grow or shrink together until the goal is met
from below, so that every trial costs what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from secateur.errors import ConfigError
from secateur.pruner import Pruner
from secateur.selection.bisection import fewest, ratios_around
from secateur.selection.budget import Budget
from secateur.selection.families import families
from secateur.selection.select import Request
from secateur.selection.targets import Selectable, scored

MOST = 0.99
"""The largest share that is drawn; how much is left of it, the goal decides."""
FINEST = 1e-4
NEAR = 1e-9
"""Of the whole: what rounding may add to a goal."""
BLOCK = re.compile(r"(.*?\.\d+(?:\.\d+)*)\.")


@dataclass(frozen=True)
class Allocation:
    """Shares that meet a goal.

    Attributes:
        shares: of each unit, in their order.
        removed: group or tensor → the share of its positions that goes; what ``Config`` takes.
        cost: what is left, as a share of the whole.
    """

    shares: tuple[float, ...]
    removed: Mapping[str, float]
    cost: float


class Space:
    """The units of a pruner, and what their shares cost.

    Args:
        pruner: has a goal, and has seen the data that its criterion needs.
        per: "group" or "block".

    Attributes:
        units: name → the groups or tensors that lose one share.
        goal: the share of the cost that may be left; more than was asked for where that cannot go.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
    ...                     nn.Linear(16, 4))
    >>> pruner = Pruner(net, {"sparsity": 0.5, "of": "params"}, torch.zeros(1, 8))
    >>> space = Space(pruner)
    >>> list(space.units)
    ['0', '2']
    >>> found = space.settled([0.6, 0.2])
    >>> found.cost <= 0.5, found.removed
    (True, {'0': 0.5625, '2': 0.125})
    """

    def __init__(self, pruner: Pruner, per: str = "group"):
        if per not in ("group", "block"):
            raise ConfigError(f"per={per!r}: a share is drawn per 'group' or per 'block'")
        exact = [s.name for s in pruner.selectables if s.parts[0].granularity.sparsity is not None]
        if exact:
            raise ConfigError(
                f"a search draws shares, and the granularity of {exact[0]!r} removes one share "
                "exactly: there is nothing to search"
            )
        self.pruner = pruner
        self.selectables = pruner.selectables
        self.units = self._units(per)
        self._place = {name: i for i, unit in enumerate(self.units.values()) for name in unit}
        self._sizes = {each.name: _positions(each, pruner) for each in self.selectables}
        unbound = pruner.config.replace(of="channels", budget=(), allocate="uniform")
        self._counting = Budget(unbound, pruner.structure, self.selectables)
        self.whole = self._cost(self._sizes)
        self.goal = max(self._asked(), self.cost([1.0] * len(self.units)))

    def _units(self, per: str) -> dict[str, tuple[str, ...]]:
        tied = families(self.pruner.config, self.pruner.structure, self.selectables)
        family = {name: f"{names[0]} and {len(names) - 1} more" for names in tied for name in names}
        units: dict[str, list[str]] = {}
        for each in (s for s in self.selectables if not s.request.fixed):
            block = BLOCK.match(each.name) if per == "block" else None
            alone = block[1] if block else each.name
            units.setdefault(family.get(each.name, alone), []).append(each.name)
        return {name: tuple(members) for name, members in units.items()}

    def _asked(self) -> float:
        """Return the share of the cost that may be left."""
        if self.pruner.budget.goals:
            return 1 - self.pruner.budget.asked
        if any(each.request.sparsity is None for each in self.selectables):
            raise ConfigError("a search needs a sparsity, which its trials meet, and no threshold")
        left = {e.name: n * (1 - (e.request.sparsity or 0.0)) for e, n in self._with_sizes()}
        return self._cost(left) / self.whole

    def _with_sizes(self) -> list[tuple[Selectable, int]]:
        return [(each, self._sizes[each.name]) for each in self.selectables]

    @cached_property
    def first(self) -> tuple[float, ...]:
        """The shares that pruning without a search has."""
        self.pruner.decide()
        kept = {name: int(keep.sum()) for name, keep in self.pruner.keeps.items()}
        return tuple(
            min(MOST, 1 - sum(kept[n] for n in unit) / sum(self._sizes[n] for n in unit))
            for unit in self.units.values()
        )

    @property
    def alone(self) -> dict[str, Any]:
        """What pruning without a search came to, as plain data; ``resume`` takes it."""
        return {"shares": list(self.first), "unmet": self.pruner.budget.unmet}

    def resume(self, alone: Any) -> None:
        """Take over what pruning without a search came to: it may have measured for long.

        What is of other units is left: whose search it is is checked elsewhere.
        """
        shares = alone.get("shares") if isinstance(alone, dict) else None
        if not isinstance(shares, list) or len(shares) != len(self.units):
            return
        if all(isinstance(share, float) and 0 <= share <= MOST for share in shares):
            self.first = tuple(shares)
            self.pruner.budget.unmet = str(alone.get("unmet", ""))

    def settled(self, shares: Sequence[float], goal: float | None = None) -> Allocation:
        """Return the allocation nearest to some shares that costs at most the goal.

        What each unit keeps is raised to one power, so that the order of shares stays.

        Args:
            shares: in [0, 1), one for each unit.
            goal: the share of the whole that may be left; by default the pruner's.

        Raises:
            ConfigError: not so much can go.
        """
        allowed = self.goal if goal is None else goal
        kept = [1 - min(MOST, max(1 - MOST, share)) for share in shares]

        def at(ratio: float) -> list[float]:
            power = ratio / (1 - ratio) if ratio < 1 else 1e9
            return [1 - k**power for k in kept]

        ratios = ratios_around(lambda r: self.cost(at(r)), allowed + NEAR, FINEST)
        more, fewer = map(at, ratios)

        def mixed(steps: int) -> list[float]:  # one ratio for all may be several percent at once
            return [*fewer[:steps], *more[steps:]]

        found = mixed(fewest(len(kept), lambda n: self.cost(mixed(n)), allowed + NEAR))
        if (cost := self.cost(found)) > allowed + NEAR:
            raise ConfigError(f"{1 - allowed:.1%} cannot go, at most {1 - cost:.1%} can")
        return self.made(found)

    def made(self, shares: Sequence[float]) -> Allocation:
        """Return the allocation of some shares as they are."""
        return Allocation(tuple(shares), self.removed(shares), self.cost(shares))

    def removed(self, shares: Sequence[float]) -> dict[str, float]:
        """Return the share of its positions that each group or tensor loses."""
        counts, sizes = self.counts(shares), self._sizes
        return {
            each.name: _within(each, 1 - counts[each.name] / max(sizes[each.name], 1))
            for each in self.selectables
        }

    def cost(self, shares: Sequence[float]) -> float:
        """Return what is left of the whole cost; in [0, 1]."""
        return self._cost(self.counts(shares)) / self.whole

    def counts(self, shares: Sequence[float]) -> dict[str, int]:
        """Return how many positions of each group or tensor stay."""
        requests = [self._request(each, shares) for each in self.selectables]
        keeps, _ = self._counting.select(requests)
        pairs = zip(self.selectables, keeps, strict=True)
        return {each.name: int(keep.sum()) for each, keep in pairs}

    def _request(self, each: Selectable, shares: Sequence[float]) -> Request:
        if each.request.fixed:
            return scored(each, torch.zeros(self._sizes[each.name]))
        share = shares[self._place[each.name]]
        share = _within(each, share)
        made = scored(each, torch.zeros(self._sizes[each.name]))
        return replace(made, sparsity=share, threshold=None, pool=None, fixed=True)

    def _cost(self, counts: Mapping[str, float]) -> float:
        if not self.pruner.budget.goals:
            grains = {each.name: each.request.grain for each in self.selectables}
            return sum(grains[name] * count for name, count in counts.items())
        return self.pruner.budget.over(counts)  # type: ignore[arg-type]

    def facts(self) -> dict[str, Any]:
        """Return what another space must have in common, so that trials of both are alike."""
        return {
            name: {each: self._sizes[each] for each in unit} for name, unit in self.units.items()
        }


def _within(each: Selectable, share: float) -> float:
    """Return the share nearest to one that the bounds of a group or tensor allow."""
    low, high = each.request.min_sparsity, each.request.max_sparsity
    return min(1.0 if high is None else high, max(low or 0.0, share))


def _positions(each: Selectable, pruner: Pruner) -> int:
    if each.group is not None:
        return each.group.size
    part = each.parts[0]
    return part.granularity.units(tuple(pruner.model.get_parameter(part.tensor).shape))
