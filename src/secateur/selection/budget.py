"""Selection under a budget: which positions stay so that parameters or MACs are met.

Groups that must keep equally many positions do, whatever their scores.  Whether the goal can be met
at all is known before anything is scored: by taking as much as may go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import floor

import torch
from torch import Tensor

from secateur.config import Config
from secateur.errors import ConfigError, GoalError
from secateur.graph.cost import macs, params
from secateur.structure import Structure

from .bisection import fewest, nearest, ratios_around
from .families import families
from .reach import held_back, in_the_way
from .select import Request, rungs, select, select_count
from .shared import late, shared
from .targets import Selectable, scored

NEAR = 0.005
"""A share of the whole by which a goal may be exceeded before a nearer way to it is looked for."""


class Budget:
    """What a config wants to be left of a model's selectables.

    Attributes:
        unmet: what a user must know first, where the goal cannot be met; else "".

    Raises:
        ConfigError: a budget of parameters or MACs that has no meaning for such selectables.
        GoalError: it cannot be met, and the config is strict.
    """

    def __init__(
        self, config: Config, structure: Structure | None, selectables: Sequence[Selectable]
    ):
        self.config = config
        self.structure = structure
        self.selectables = selectables
        self._families = families(config, structure, selectables)
        self._open = [not each.request.fixed for each in selectables]
        self._check()
        self.unmet = self._shortfall()
        if self.unmet and config.strict:
            raise GoalError(
                f"{self.unmet}\n  Ask for less, or give strict=False (--best-effort) for as much "
                "as can go"
            )

    def _check(self) -> None:
        if self.config.of == "channels":
            return
        if self.structure is None or any(s.group is None for s in self.selectables):
            raise ConfigError(f"of={self.config.of!r} needs granularity 'group' for all targets")
        open_ = [s.request.sparsity for s in self.selectables if not s.request.fixed]
        if any(sparsity is None for sparsity in open_):
            raise ConfigError(f"of={self.config.of!r} needs a sparsity, not a threshold")
        if len(set(open_)) > 1:
            raise ConfigError(f"of={self.config.of!r} needs one sparsity for all targets")
        if all(target.sparsity is None for target in self.config.resolved_targets()):
            raise ConfigError(f"of={self.config.of!r} needs a sparsity, which is its goal")
        if not open_:
            raise ConfigError(
                f"of={self.config.of!r}: the allocation names all that could meet the goal; leave "
                "some of it out, or of"
            )

    @property
    def asked(self) -> float:
        """The share of parameters or MACs that is to go."""
        return next(s.request.sparsity or 0.0 for s in self.selectables if not s.request.fixed)

    def _shortfall(self) -> str:
        """Return that, and why, the goal is out of reach; "" where it is not.

        A goal of channels is met where as many go, to the rounding of each group.
        """
        groups = [s.group for s in self.selectables if s.group is not None]
        if self.structure is None or not groups or len(groups) < len(self.selectables):
            return ""  # single weights are no budget: each tensor gives what it is asked for
        if any(s.request.sparsity is None for s in self.selectables):
            return ""
        every = [
            scored(each, torch.zeros(group.size))
            for each, group in zip(self.selectables, groups, strict=True)
        ]
        if self.config.of == "channels":
            return self._too_few(every)
        asked = self.asked
        most = self._most([r if r.fixed else replace(r, sparsity=1.0) for r in every])
        if most >= asked - 1e-9:
            return ""
        whole = self.cost({})
        reasons = in_the_way(
            self.structure, self.config, groups, most, lambda keep: 1 - self.cost(keep) / whole
        )
        said = f"{asked:.1%} of {self.config.of} cannot go, at most {most:.1%} can"
        return "\n  ".join([said, *self._held(), *reasons])

    def missed(self, counts: Mapping[str, int]) -> str:
        """Return that what was cut in the end is less than the goal; "" where it is not.

        Args:
            counts: group → positions that it keeps.
        """
        if self.config.of == "channels":
            return ""
        asked = self.asked
        gone = 1 - self.cost(counts) / self.cost({})
        said = f"{asked:.1%} of {self.config.of} were to go, and {gone:.1%} went: see the notes"
        return said if gone < asked - 1e-9 else ""

    def _too_few(self, every: list[Request]) -> str:
        """Return that, and why, fewer channels can go than are asked for."""
        held = {name for inside, _ in self._outside() for name in inside}
        names = [s.name for s in self.selectables]
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
        return "\n  ".join([said, *self._held(), *reasons])

    def _most(self, requests: list[Request]) -> float:
        """Return the share that goes at these requests' ratios, in what the goal is of."""
        names = [s.name for s in self.selectables]
        keeps, _ = self._balanced(requests, names)
        if self.config.of == "channels":
            total = sum(map(len, keeps))
            return 1 - sum(int(keep.sum()) for keep in keeps) / total
        return 1 - self.cost(self._counts(keeps)) / max(self.cost({}), 1)

    def select(self, requests: list[Request]) -> tuple[list[Tensor], list[str]]:
        """Return which positions of each selectable stay, and what a user should know."""
        names = [s.name for s in self.selectables]
        goal = next((r.sparsity for r in requests if not r.fixed), None)
        if self.config.of == "channels" or goal is None:
            return self._balanced(requests, names)
        allowed = (1 - goal) * self.cost({})

        later = self._later(requests)

        def at(ratio: float) -> tuple[list[Tensor], list[str]]:
            shares = (late(ratio) if last else ratio for last in later)
            pairs = zip(requests, shares, strict=True)
            tried = [r if r.fixed else replace(r, sparsity=share) for r, share in pairs]
            return self._balanced(tried, names)

        # so fine that between two ratios at most one unit more goes of whatever is ranked together
        finest = min(r.grain for r in requests) / sum(len(r.score) * r.grain for r in requests)
        low, high = ratios_around(
            lambda ratio: self.cost(self._counts(at(ratio)[0])), allowed, finest
        )
        keeps, notes = at(high)
        keeps = self._one_by_one(requests, at(low)[0], keeps, allowed, later)
        return self._back(requests, keeps, allowed), notes

    def _later(self, requests: Sequence[Request]) -> list[bool]:
        """Return which of the requests lose positions later than the others, if any."""
        assert self.structure is not None  # of what groups are of
        if self.config.alike or any(r.pool is not None for r in requests):
            return [False] * len(requests)
        common = shared(self.structure)
        later = [each.name in common for each in self.selectables]
        return later if not all(later) else [False] * len(later)

    def _one_by_one(
        self,
        requests: list[Request],
        more: list[Tensor],
        fewer: list[Tensor],
        allowed: float,
        later: Sequence[bool],
    ) -> list[Tensor]:
        """Return the first keeps on the way from ``more`` to ``fewer`` that cost little enough.

        One ratio for all groups takes a position from many of them at once, which on a narrow
        network is several percent; here they go in the order of the scores that are lost, those
        that go later than others after these.
        """
        place = {s.name: i for i, s in enumerate(self.selectables)}
        units = [[place[n] for n in family if n in place] for family in self._families]
        alone = set(place.values()) - {i for unit in units for i in unit}
        changing = [
            unit
            for unit in [*units, *([i] for i in sorted(alone))]
            if any(not torch.equal(more[i], fewer[i]) for i in unit)
        ]

        def lost(unit: list[int]) -> tuple[bool, float]:
            scores = (float(requests[i].score[more[i] & ~fewer[i]].sum()) for i in unit)
            return any(later[i] for i in unit), sum(scores)

        changing.sort(key=lost)

        def after(steps: int) -> list[Tensor]:
            done = {i for unit in changing[:steps] for i in unit}
            return [fewer[i] if i in done else keep for i, keep in enumerate(more)]

        steps = fewest(len(changing), lambda k: self.cost(self._counts(after(k))), allowed)
        return after(steps)

    def _back(self, requests: list[Request], keeps: list[Tensor], allowed: float) -> list[Tensor]:
        """Give back what overshoots the goal: a step of ``round_to`` can be much of a network."""
        if all(request.round_to == 1 for request in requests):
            return keeps
        names = [s.name for s in self.selectables]
        place = {name: i for i, name in enumerate(names)}
        units = [[place[n] for n in f] for f in self._families if all(n in place for n in f)]
        tied = {name for family in self._families for name in family}
        units += [[place[name]] for name in names if name not in tied]
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
            return self.cost(self._counts(keeps) | changed)

        found = nearest(ladders, start, cost, allowed, NEAR * self.cost({}))
        keeps = list(keeps)
        for unit, before, count in zip(units, start, found, strict=True):
            for i in unit if count != before else ():
                keeps[i] = select_count(requests[i].score, len(keeps[i]) - count)
        return keeps

    def _counts(self, keeps: list[Tensor]) -> dict[str, int]:
        return {s.name: int(k.sum()) for s, k in zip(self.selectables, keeps, strict=True)}

    def cost(self, counts: Mapping[str, int]) -> float:
        """Return the parameters or MACs that are left when groups keep so many positions."""
        assert self.structure is not None  # of what groups are of
        measure = macs if self.config.of == "macs" else params
        return measure(self.structure.inferred, self.structure.counter(counts))

    def _balanced(
        self, requests: list[Request], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """Select, then give equally many positions to groups that must keep equally many."""
        selection = select(requests, names)
        keeps, notes = list(selection.keeps), [*selection.notes, *self._held()]
        place = {name: i for i, name in enumerate(names)}
        for family in self._families:
            members = [place[name] for name in family if name in place]
            if not members:
                continue
            whole = len(members) < len(family)  # a member that is not pruned keeps everything
            counts = [len(keeps[i]) if whole else int(keeps[i].sum()) for i in members]
            width = max(counts) if whole else round(sum(counts) / len(counts))
            step = max((requests[i].round_to for i in members), default=1)
            if width % step and not whole:
                width = min(
                    max(step, step * round(width / step)), *(len(keeps[i]) for i in members)
                )
            for i in members:
                if int(keeps[i].sum()) != width:
                    keeps[i] = select_count(requests[i].score, len(keeps[i]) - width)
        return keeps, notes

    def _outside(self) -> Iterator[tuple[list[str], str]]:
        """Yield groups that stay whole, and the mate because of which: it is not pruned."""
        here = {s.name for s in self.selectables}
        for family in self._families:
            inside = [name for name in family if name in here]
            if inside and len(inside) < len(family):
                yield inside, next(name for name in family if name not in here)

    def _held(self) -> list[str]:
        return [
            f"{', '.join(inside)}: stays whole, as it must keep as many positions as {mate!r}, "
            "which the config leaves out"
            for inside, mate in self._outside()
        ]
