"""Selection under a budget: which positions stay so that all goals are met, counted or measured.

Groups that must keep equally many positions do, whatever their scores.  Whether a goal can be met
at all is known before anything is scored: by taking as much as may go.  What is of time is believed
only when what was really cut was timed (``proof.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import floor
from typing import Any

import torch
from torch import Tensor, nn

from secateur.config import Config
from secateur.costs import Cost, Goal, Reached, Timed
from secateur.errors import GoalError
from secateur.graph.groups import Group
from secateur.scoring.allocations import allocators
from secateur.scoring.schedules import asked
from secateur.structure import Structure
from secateur.types import Example

from .allocators import Case, Known, Spread, held
from .bisection import fewest, nearest, ratios_around
from .families import families
from .goals import counts_of, goals_of
from .proof import NEARLY, Candidate, Cut, Proof
from .reach import beyond_bounds, held_back, in_the_way, too_small, went
from .select import Request, rungs, select_count
from .targets import Selectable, scored
from .ties import Ties
from .widths import liked_by

NEAR = 0.005
"""A share of the whole by which a goal may be exceeded before a nearer way to it is looked for."""
AIM = 0.985
"""Of a time that is asked for, so much is aimed at: it is met from below, and measured."""
LESS = "\n  Ask for less, or give strict=False (--best-effort) for as much as can go"


class Budget:
    """What a config wants to be left of a model's selectables.

    Attributes:
        goals: what is asked of costs; none where channels or single weights are asked for.
        unmet: what a user must know first, where the goal cannot be met; else "".
        known: data and errors that allocations may need.
        drop: residual blocks that go besides.

    Raises:
        ConfigError: a budget that has no meaning for such selectables.
        GoalError: it cannot be met, and the config is strict.
    """

    def __init__(
        self,
        config: Config,
        structure: Structure | None,
        selectables: Sequence[Selectable],
        model: nn.Module | None = None,
        example: Example = None,
        costs: dict[str, Cost] | None = None,
        blocks: Sequence[str] = (),
    ):
        self.config = config
        self.structure = structure
        self.selectables = selectables
        self.known = Known(model)
        self._allocator = allocators.facts[config.allocate]
        names = [each.name for each in selectables]
        self._ties = Ties(names, families(config, structure, selectables))
        self.costs = costs if costs is not None else {}
        self.goals = goals_of(config, structure, selectables, model, example, self.costs)
        self._proof = Proof(structure, self.goals)
        self._widths = liked_by(self._proof.timed, structure, selectables, self._ties.families)
        self._spread: Spread | None = None
        self._units = 0  # of all that is ranked: channels, or single weights
        self.drop: tuple[str, ...] = tuple(blocks[1:])
        self.unmet = self._short = self._shortfall(self.goals)
        self.drop = ()
        if self.unmet and config.strict:
            raise GoalError(f"{self.unmet}{LESS}")

    def _shortfall(self, goals: Sequence[Goal]) -> str:
        """Return that, and why, goals are out of reach; "" where they are not.

        A goal of channels is met where as many go, to the rounding of each group.
        """
        groups = [s.group for s in self.selectables if s.group is not None]
        if self.structure is None or not groups or len(groups) < len(self.selectables):
            return beyond_bounds(self.selectables)
        if any(s.request.sparsity is None for s in self.selectables):
            return ""
        every = [
            scored(each, torch.zeros(group.size))
            for each, group in zip(self.selectables, groups, strict=True)
        ]
        if not self.goals:
            return self._too_few(every)
        least = self._counts(self._everything(every))
        return "\n  ".join(found for goal in goals for found in self._beyond(goal, least, groups))

    def _beyond(self, goal: Goal, least: Mapping[str, int], groups: Sequence[Group]) -> list[str]:
        """Return that, and why, one goal is out of reach when as much goes as may go."""
        assert self.structure is not None  # of what groups are of
        left = counts_of(goal, self.structure, least, self.drop)
        if left <= goal.allowed + 1e-9 * goal.dense:
            return []
        most, name, structure = 1 - left / goal.dense, goal.cost.name(), self.structure
        reasons = in_the_way(
            structure,
            self.config,
            groups,
            most,
            lambda keep: 1 - counts_of(goal, structure, keep, self.drop) / goal.dense,
        )
        said = f"{goal.share:.1%} of {name} cannot go, at most {most:.1%} can"
        if goal.asked.startswith("at most"):
            shown = goal.cost.shown
            said += f" (asked {goal.asked}, at least {shown(left)} of {shown(goal.dense)} stay)"
        return [said, *self._ties.notes(), *reasons]

    def reached(self, counts: Mapping[str, int], model: nn.Module) -> list[Reached]:
        """Return what was asked for beside what a smaller model costs, measured where it can be.

        Args:
            counts: group → positions that it keeps.
            model: the smaller one.
        """
        wide = {name: counts.get(name, size) for name, size in self._whole().items()}
        return [self._proof.told(goal, wide, model, self.drop) for goal in self.goals]

    def _too_few(self, every: list[Request]) -> str:
        """Return that, and why, fewer channels can go than are asked for."""
        held = self._ties.held()
        names = self._ties.names
        wanted = [floor(len(r.score) * (r.sparsity or 0.0) + 1e-9) for r in every]
        free = [0 if name in held else n for name, n in zip(names, wanted, strict=True)]
        asked = free if any(free) else wanted  # what a note tells of is left out, unless it is all
        total = sum(len(r.score) for r in every)
        most = round(self._most(every) * total)
        pairs = zip(every, asked, strict=True)  # to the nearest multiple that leaves something
        rounding = sum(max(r.round_to / 2, r.round_to - (len(r.score) - n)) for r, n in pairs)
        if sum(asked) == 0 or (most and most >= sum(asked) - rounding):
            return ""
        reasons = held_back(self.config, every, [s.name for s in self.selectables])
        said = f"{sum(asked)} of {total} channels cannot go, at most {most} can"
        return "\n  ".join([said, *self._ties.notes(), *reasons])

    def _everything(self, requests: list[Request]) -> list[Tensor]:
        """Return what stays when as much goes as may go."""
        return self._ties.select(self._at(requests, [1.0] * len(requests)))[0]

    def _most(self, requests: list[Request]) -> float:
        """Return the share of channels that goes at these requests' ratios."""
        keeps, _ = self._ties.select(requests)
        return 1 - sum(int(keep.sum()) for keep in keeps) / sum(map(len, keeps))

    def _at(self, requests: Sequence[Request], shares: Sequence[float]) -> list[Request]:
        """Return requests for such shares, but for those whose share was said."""
        pairs = zip(requests, shares, strict=True)
        return [r if r.fixed else replace(r, sparsity=share) for r, share in pairs]

    def select(
        self, requests: list[Request], share: float = 1.0, cut: Cut | None = None
    ) -> tuple[list[Tensor], list[str]]:
        """Return which positions of each selectable stay, and what a user should know.

        Args:
            requests: of the selectables, with scores, for the share of the goal.
            share: of the goal, in [0, 1].
            cut: makes the smaller model of what stays, for costs that are measured.

        Raises:
            GoalError: what was really cut is measured to miss the goal, and the config is strict.
        """
        if cut is not None:
            self.unmet = self._short  # what was measured of an earlier decision is no matter
        names = self._ties.names
        if not requests or (not self.goals and self._allocator.plain):
            keeps, notes = self._ties.select(requests)
            if share == 1:
                notes[:0] = self._fell_short(requests, keeps, final=cut is not None)
            return keeps, notes
        pairs = zip(requests, names, strict=True)
        requests = [replace(r, widths=self._widths.get(name)) for r, name in pairs]
        idle = self._inside_dropped()
        requests = [
            replace(r, sparsity=0.0, fixed=True) if name in idle else r
            for r, name in zip(requests, names, strict=True)
        ]
        if not self._proof.timed or cut is None or share < 1:
            return self._met(requests, share)
        return self._confirmed(requests, cut)

    def _fell_short(
        self, requests: list[Request], keeps: list[Tensor], *, final: bool
    ) -> list[str]:
        """Return notes on what goes less than was asked for; much less is an unmet goal."""
        small = too_small(self.structure, self.config, self.selectables, requests, keeps)
        gone, wanted = went(requests, keeps)
        if self._short or gone >= wanted - 1e-9:
            return small
        reasons = held_back(self.config, requests, self._ties.names)
        said = f"{gone:.1%} of all positions go, where {wanted:.1%} were asked for"
        said = "\n  ".join([said, *self._ties.notes(), *reasons])
        if gone >= NEARLY * wanted:
            return [said, *small]
        if final:
            self.unmet = said
        return small

    def without(self, drop: Sequence[str]) -> None:
        """Let blocks go besides, which costs nothing of what groups lose."""
        if tuple(drop) != self.drop:
            self.drop = tuple(drop)
            self.take_over({})

    def take_over(self, found: Mapping[str, Any]) -> None:
        """Share by what an allocator found out in an earlier run, or find it out again."""
        self.known.found, self._spread = dict(found), None
        self.known.notes.clear()

    def _inside_dropped(self) -> set[str]:
        """Return the groups that go with the blocks, and that no other must be as wide as."""
        if self.structure is None or not self.drop:
            return set()
        own = {n for name in self.drop for n in self.structure.block(name).own}
        tied = {name for family in self._ties.families for name in family}
        return {
            each.name
            for each in self.selectables
            if each.name not in tied and {part.tensor for part in each.parts} <= own
        }

    def _confirmed(self, requests: list[Request], cut: Cut) -> tuple[list[Tensor], list[str]]:
        """Select, cut and measure, and do it again with what that said, until the goal is met."""

        def proposed() -> Candidate:
            keeps, notes = self._met(requests, 1.0)
            return Candidate(keeps, notes, self._counts(keeps))

        found, every = self._proof.settle(proposed, cut)
        asked = ", ".join(goal.asked for goal in self._proof.timed)
        took = ", ".join(f"{each.worst:.3f}" for each in every)
        said = f"{asked}: what was cut took {took} of that, and none"
        counted = [goal for goal in self.goals if goal not in self._proof.timed]
        self.unmet = self._shortfall(counted)
        if not found.met:
            self.unmet = f"{said} met it"
            if self.config.strict:
                raise GoalError(f"{self.unmet}{LESS}")
        elif not found.near and self._slack(found.counts, counted):
            found.notes.append(
                f"{said} that met it was nearer: the device's steps, round_to and limits leave no "
                "width between, or the device was busy"
            )
        return found.keeps, found.notes

    def _slack(self, counts: Mapping[str, int], counted: Sequence[Goal]) -> bool:
        """Tell whether more could stay, by all goals that are no times."""
        assert self.structure is not None
        left = [counts_of(g, self.structure, counts) / (g.allowed or 1e-9) for g in counted]
        return counts != self._whole() and max(left, default=0.0) < NEARLY

    def _met(self, requests: list[Request], share: float) -> tuple[list[Tensor], list[str]]:
        """Return what stays so that all goals are met, by what costs are said to be."""

        def kept(shares: Sequence[float]) -> list[Tensor]:
            return self._ties.select(self._at(requests, shares))[0]

        def over(shares: Sequence[float]) -> float:
            return self.over(self._counts(kept(shares)), share)

        self._units = sum(len(request.score) for request in requests)
        spread = self._shares(requests, kept, over)
        # so fine that between two ratios at most one unit more goes of whatever is ranked together
        finest = min(r.grain for r in requests) / sum(len(r.score) * r.grain for r in requests)
        low, high = ratios_around(lambda ratio: over(spread(ratio)), 1.0, finest)
        (more, _), (keeps, notes) = (
            self._ties.select(self._at(requests, spread(ratio))) for ratio in (low, high)
        )
        even = spread(high) if self._allocator.later else []
        later = [each < max(even) for each in even] or [False] * len(requests)
        keeps = self._one_by_one(requests, more, keeps, share, later)
        return self._back(requests, keeps, share), [*notes, *self.known.notes]

    def over(self, counts: Mapping[str, int], share: float = 1.0) -> float:
        """Return how far a model is over a share of the goal: what it costs by what is allowed.

        Where channels, or single weights, are asked for, it is their number.
        """
        if not self.goals:
            gone = sum(s.request.sparsity or 0.0 for s in self.selectables) / len(self.selectables)
            units = self._units or sum(self._whole().values())
            return sum(counts.values()) / max(units * (1 - share * gone), 1e-9)
        assert self.structure is not None
        found = [0.0]
        for goal in self.goals:
            left = 1 - asked(self.config.schedule, goal.share, share)
            allowed = goal.dense * left if goal.share else goal.allowed
            aim = AIM if isinstance(goal.cost, Timed) else 1.0
            found.append(
                counts_of(goal, self.structure, counts, self.drop) / (allowed * aim or 1e-9)
            )
        return max(found)

    @property
    def asked(self) -> float:
        """The share of what the model costs that is to go, by the goal that asks for most."""
        return max(0.0, 1 - 1 / self.over(self._whole())) if self.goals else 0.0

    def _shares(
        self,
        requests: Sequence[Request],
        kept: Callable[[Sequence[float]], list[Tensor]],
        over: Callable[[Sequence[float]], float],
    ) -> Spread:
        """Return how the goal is shared, found once: it is of the dense model."""
        if self._spread is None:
            case = Case(
                self.selectables,
                requests,
                self._ties.units,
                alike=self.config.alike,
                structure=self.structure,
                keeps=kept,
                over=over,
                known=self.known,
            )
            name = self.config.allocate
            self._spread = held(name, allocators[name](case), len(case.selectables))
        return self._spread

    def _one_by_one(
        self,
        requests: list[Request],
        more: list[Tensor],
        fewer: list[Tensor],
        share: float,
        later: Sequence[bool],
    ) -> list[Tensor]:
        """Return the first keeps on the way from ``more`` to ``fewer`` that cost little enough.

        One ratio for all groups takes a position from many of them at once, which on a narrow
        network is several percent; here they go in the order of the scores that are lost, those
        that go later than others after these.
        """
        changing = [
            unit
            for unit in self._ties.units
            if any(not torch.equal(more[i], fewer[i]) for i in unit)
        ]

        def lost(unit: list[int]) -> tuple[bool, float]:
            scores = (float(requests[i].score[more[i] & ~fewer[i]].sum()) for i in unit)
            return any(later[i] for i in unit), sum(scores)

        changing.sort(key=lost)

        def after(steps: int) -> list[Tensor]:
            done = {i for unit in changing[:steps] for i in unit}
            return [fewer[i] if i in done else keep for i, keep in enumerate(more)]

        steps = fewest(len(changing), lambda k: self.over(self._counts(after(k)), share), 1.0)
        return after(steps)

    def _back(self, requests: list[Request], keeps: list[Tensor], share: float) -> list[Tensor]:
        """Give back what overshoots the goal: a step of ``round_to`` can be much of a network."""
        fine = all(r.round_to == 1 and r.widths is None for r in requests)
        if fine and not self._allocator.coarse:
            return keeps
        names, units = self._ties.names, self._ties.free
        start = [int(keeps[unit[0]].sum()) for unit in units]
        ladders = [
            sorted({count} | set.intersection(*(rungs(requests[i]) for i in unit)))
            if not any(requests[i].fixed for i in unit)
            else [count]
            for unit, count in zip(units, start, strict=True)
        ]

        def cost(counts: Sequence[int]) -> float:
            pairs = zip(units, counts, strict=True)
            changed = {names[i]: count for unit, count in pairs for i in unit}
            return self.over(self._counts(keeps) | changed, share)

        found = nearest(ladders, start, cost, 1.0, NEAR * self.over(self._whole(), share))
        keeps = list(keeps)
        for unit, before, count in zip(units, start, found, strict=True):
            for i in unit if count != before else ():
                keeps[i] = select_count(requests[i].score, len(keeps[i]) - count)
        return keeps

    def _counts(self, keeps: list[Tensor]) -> dict[str, int]:
        return {s.name: int(k.sum()) for s, k in zip(self.selectables, keeps, strict=True)}

    def _whole(self) -> dict[str, int]:
        return {s.name: s.group.size for s in self.selectables if s.group is not None}
