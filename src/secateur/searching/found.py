"""``Search``: what was tried, what was best, and the model that it makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import ConsoleOptions, RenderableType
from rich.markup import escape
from rich.table import Table

from secateur.errors import ConfigError
from secateur.runtime.shown import Shown
from secateur.shrinking import Result

from .job import Job
from .seeds import seed_of

if TYPE_CHECKING:
    from optuna.study import Study

MOST_SHOWN = 10


@dataclass(frozen=True)
class Tried:
    """One trial.

    Attributes:
        slot: its place in the search, from 0.
        allocation: group or tensor → the share of its positions that went.
        value: what ``evaluate`` said.
        cost: what was left of what the goal is of, as a share.
        seconds: from its start to its end.
        stopped: it was so bad that it was not evaluated to the end.
    """

    slot: int
    allocation: Mapping[str, float]
    value: float
    cost: float
    seconds: float
    stopped: bool = False


@dataclass
class Search(Shown):
    """A search that is done: every trial, the best of them, and the front of value against cost.

    It is what its storage says; calling ``search`` again with the same storage reads it anew.

    Attributes:
        study: Optuna's, for its own plots and tables.
        trials: those that were evaluated, by their slots.
        failed: slots of which every attempt failed.
        cause: what the first attempt at the first of these raised; "" where none failed.
        of: what costs are of.
        goal: the share of it that might be left.
        higher: larger values are better.
        fronts: it looked for a front, not for one best.

    >>> import torch, secateur
    >>> from tempfile import TemporaryDirectory
    >>> from torch import nn
    >>> layers = nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    >>> net, x = nn.Sequential(*layers), torch.randn(64, 8)
    >>> @torch.no_grad()
    ... def likeness(smaller):
    ...     return -(smaller(x) - net(x)).square().mean()
    >>> with TemporaryDirectory() as folder:
    ...     found = secateur.search(net, x, likeness, 0.5, trials=4, storage=f"{folder}/a.journal")
    >>> len(found.trials), found.best.cost <= 0.5
    (4, True)
    >>> smaller = found.result().model
    """

    study: Study
    trials: tuple[Tried, ...]
    failed: tuple[int, ...]
    of: str
    goal: float
    higher: bool
    fronts: bool
    job: Job
    seed: int
    warnings: Sequence[str] = ()
    cause: str = ""

    @property
    def whole(self) -> tuple[Tried, ...]:
        """The trials that were evaluated to their end."""
        return tuple(t for t in self.trials if not t.stopped)

    @property
    def none_whole(self) -> str:
        """Why there is no best trial, and what to do; "" where there is one."""
        if self.whole:
            return ""
        if self.failed:
            return (
                f"no trial was evaluated to its end: {len(self.failed)} failed each time, the "
                f"first with {self.cause}. Repair that, and give the search another name or more "
                "trials"
            )
        return "no trial was evaluated to its end: let the search make more, or stop fewer"

    @property
    def best(self) -> Tried:
        """The trial of the best value; the earliest, and cheapest, of several.

        Raises:
            ConfigError: none was evaluated.
        """
        if not self.whole:
            raise ConfigError(self.none_whole)
        sign = 1 if self.higher else -1
        return min(self.whole, key=lambda t: (-sign * t.value, t.cost, t.slot))

    @property
    def front(self) -> tuple[Tried, ...]:
        """The trials of which no other is both better and cheaper, the cheapest first."""
        sign = 1 if self.higher else -1
        found: list[Tried] = []
        for trial in sorted(self.whole, key=lambda t: (t.cost, -sign * t.value, t.slot)):
            if not found or sign * trial.value > sign * found[-1].value:
                found.append(trial)
        return tuple(found)

    def result(self, trial: Tried | None = None) -> Result:
        """Return the smaller model of a trial, made again as it was, and verified.

        Args:
            trial: one of ``trials``; by default the best.
        """
        chosen = self.best if trial is None else trial
        result = self.job.pruned(chosen.allocation, seed_of(self.seed, chosen.slot), verify=True)
        result.goals = self.job.pruner.budget.reached(result.plan.counts, result.model)
        result.notes.append(f"the allocation is that of trial {chosen.slot} of {len(self.trials)}")
        return result

    def table(self, most: int | None = None) -> Table:
        """Return the trials as a table, the best first; by default all."""
        sign = 1 if self.higher else -1
        ranked = sorted(self.trials, key=lambda t: (t.stopped, -sign * t.value, t.slot))
        table = Table(title=self._title(), title_justify="left")
        for column in ("trial", "value", f"{self.of} left", "seconds", "shares that went"):
            table.add_column(column, justify="left" if column.startswith("shares") else "right")
        for trial in ranked[:most]:
            value = f"{trial.value:.5g}" + (" (stopped)" if trial.stopped else "")
            cost, seconds = f"{trial.cost:.1%}", f"{trial.seconds:.1f}"
            table.add_row(str(trial.slot), value, cost, seconds, _spread(trial.allocation))
        if most is not None and len(ranked) > most:
            table.caption = f"and {len(ranked) - most} more"
        return table

    def _title(self) -> str:
        what = f"{self.study.study_name}: {len(self.trials)} trials"
        return what if self.fronts else f"{what}, at most {self.goal:.1%} of {self.of} left"

    def __repr__(self) -> str:
        best = f", best {self.best.value:.5g}" if self.whole else ""
        return f"Search({self.study.study_name}: {len(self.trials)} trials{best})"

    def rows(self, options: ConsoleOptions) -> Iterator[RenderableType]:
        for warning in self.warnings:
            yield f"[bold yellow]warning[/] {escape(warning)}"
        yield self.table(MOST_SHOWN)
        yield from self._lines()

    def _lines(self) -> Iterator[str]:
        if self.failed:
            listed = ", ".join(map(str, self.failed))
            said = escape(f"every attempt failed: trials {listed}; the first: {self.cause}")
            yield f"[bold yellow]warning[/] {said}"
        if self.fronts and self.whole:
            yield "the front: " + "; ".join(f"{t.value:.5g} at {t.cost:.1%}" for t in self.front)
        elif self.whole:
            yield f"the best is trial {self.best.slot}; its model: search.result()"


def _spread(allocation: Mapping[str, float]) -> str:
    """Return the least, the middle and the largest share of an allocation.

    >>> _spread({"a": 0.25, "b": 0.5, "c": 0.0})
    '0% … 25% … 50%'
    """
    shares = sorted(allocation.values())
    if not shares:
        return ""
    return " … ".join(f"{shares[i]:.0%}" for i in (0, len(shares) // 2, -1))
