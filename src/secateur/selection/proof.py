"""What really cut models were measured at, for goals that are of time."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from secateur.costs import Goal, Reached, Timed
from secateur.runtime.measure import Latency
from secateur.structure import Structure

from .goals import counts_of, reached

Seen = tuple[str, tuple[tuple[str, int], ...]]


class Proof:
    """Measures smaller models, and remembers what widths were measured at."""

    def __init__(self, structure: Structure | None):
        self.structure = structure
        self._seen: dict[Seen, Latency] = {}

    def measured(self, goal: Goal, counts: Mapping[str, int], model: nn.Module) -> float:
        """Return a model's time as a share of what is allowed; the cost learns from it."""
        assert isinstance(goal.cost, Timed)
        assert self.structure is not None
        if goal.relative:
            found = goal.cost.against_dense(model)
        else:
            found = goal.cost.time({"smaller": model})["smaller"]
        goal.cost.correct(self.structure.counter(counts), found.median / 1000)
        self._seen[_key(goal, counts)] = found
        return found.median / 1000 / goal.allowed

    def told(self, goal: Goal, counts: Mapping[str, int], model: nn.Module) -> Reached:
        """Return what was asked and what is reached, by the time that these widths had."""
        assert self.structure is not None
        if not isinstance(goal.cost, Timed):
            return reached(goal, counts_of(goal, self.structure, counts))
        found = self._seen.get(_key(goal, counts))
        if found is None:
            found = goal.cost.time({"smaller": model})["smaller"]
        return reached(goal, found.median / 1000, goal.cost.told(found))


def _key(goal: Goal, counts: Mapping[str, int]) -> Seen:
    return goal.asked, tuple(sorted(counts.items()))
