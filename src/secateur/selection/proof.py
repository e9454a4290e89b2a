"""What really cut models are measured at, for goals of time: twice, before it is believed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from torch import Tensor, nn

from secateur.costs import Goal, Reached, Timed
from secateur.runtime.measure import Latency
from secateur.structure import Structure

from .goals import counts_of, reached

NEARLY = 0.95
"""Of a time that is asked for: what is measured below is as wrong as what is above all of it."""
ROUNDS = 8
"""So often a smaller model is really cut and measured, at most."""
TIMINGS = 3
"""Widths that were timed so often and are proposed again say that nothing more is learnt."""

Cut = Callable[[list[Tensor]], nn.Module]
"""From what stays of each selectable to the smaller model."""
Key = tuple[tuple[str, int], ...]


@dataclass
class Candidate:
    """What may stay, and all that its widths were measured at, by the words of each goal.

    ``shares`` are of what the goals allow: 1 is all of it.
    """

    keeps: list[Tensor]
    notes: list[str]
    counts: Mapping[str, int]
    seen: dict[str, list[Latency]] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)

    @property
    def over(self) -> float:
        """The median of all timings, of the goal that is nearest to being missed."""
        return max(map(median, self.shares.values()))

    @property
    def last(self) -> float:
        """The last timing, likewise: it is what is reported."""
        return max(found[-1] for found in self.shares.values())

    @property
    def worst(self) -> float:
        """What it is judged by: the median, or the last timing where that is worse."""
        return max(self.over, self.last)

    @property
    def met(self) -> bool:
        """Whether all goals are met by the median, and by the last timing too."""
        return self.worst <= 1

    @property
    def timings(self) -> int:
        """How often it was timed."""
        return max(map(len, self.seen.values()), default=0)

    @property
    def near(self) -> bool:
        """Whether they are met, and little more than met."""
        return self.met and min(self.over, self.last) >= NEARLY


class Proof:
    """Measures smaller models, and remembers what was found for those that were settled on."""

    def __init__(self, structure: Structure | None, goals: Sequence[Goal]):
        self.structure = structure
        self.timed = [goal for goal in goals if isinstance(goal.cost, Timed)]
        self._settled: dict[tuple[str, Key], Latency] = {}

    def settle(
        self, proposed: Callable[[], Candidate], cut: Cut
    ) -> tuple[Candidate, list[Candidate]]:
        """Return the candidate that meets all goals of time, or else the nearest; and all tried.

        The first that is measured just below what is allowed is timed once more, on its own: only
        where that says the same it is taken, and it is what is told.  Else the costs learn of the
        median of its timings, so that the next is nearer.  When nothing more is learnt, what was
        below by more is timed again, the nearest first.

        Args:
            proposed: what is to be tried next, by what costs are said to be now.
        """
        tried: dict[Key, Candidate] = {}
        for _ in range(ROUNDS):
            each = proposed()
            each = tried.setdefault(_key(each.counts), each)
            if each.timings >= TIMINGS:
                break
            model = cut(each.keeps)
            self._time(each, model)
            if each.near:
                self._time(each, model)
            if each.near:
                return self._taken(each), [*tried.values()]
        for each in sorted(tried.values(), key=lambda each: each.over, reverse=True):
            if each.over <= 1:
                self._time(each, cut(each.keeps))
                if each.met:
                    return self._taken(each), [*tried.values()]
        nearest = min(tried.values(), key=lambda each: abs(each.worst - 1))
        return self._taken(nearest), [*tried.values()]

    def told(
        self, goal: Goal, counts: Mapping[str, int], model: nn.Module, drop: Iterable[str] = ()
    ) -> Reached:
        """Return what was asked and what is reached, by the time that settled these widths.

        Where none did (after a resume) it is measured now, in the same way.
        """
        assert self.structure is not None
        if not isinstance(goal.cost, Timed):
            return reached(goal, counts_of(goal, self.structure, counts, drop))
        found = self._settled.get((goal.asked, _key(counts))) or _timed(goal, model)
        spread = goal.cost.told(found, self.structure.counter(counts))
        return reached(goal, found.median / 1000, spread)

    def _time(self, each: Candidate, model: nn.Module) -> None:
        """Time a candidate once more; the costs learn from all that it was measured at."""
        assert self.structure is not None
        for goal in self.timed:
            assert isinstance(goal.cost, Timed)
            seen = each.seen.setdefault(goal.asked, [])
            seen.append(_timed(goal, model))
            times = [found.median / 1000 for found in seen]
            each.shares[goal.asked] = [time / goal.allowed for time in times]
            goal.cost.correct(self.structure.counter(each.counts), median(times))

    def _taken(self, each: Candidate) -> Candidate:
        key = _key(each.counts)
        self._settled = {(asked, key): seen[-1] for asked, seen in each.seen.items()}
        return each


def _timed(goal: Goal, model: nn.Module) -> Latency:
    """Measure a model: of a share in turns with the dense one, whose time is the whole."""
    assert isinstance(goal.cost, Timed)
    if goal.relative:
        return goal.cost.against_dense(model)
    return goal.cost.time({"smaller": model})["smaller"]


def _key(counts: Mapping[str, int]) -> Key:
    return tuple(sorted(counts.items()))
