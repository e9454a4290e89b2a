"""Tasks in rounds: each begins where the last one ended, and goes a little nearer to the goals."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from torch import Tensor, nn

from secateur.nni.pruning.pruner import at_least_one
from secateur.nni.pruning.v2.config_list import Goal
from secateur.scoring.schedules import asked, schedules

from .task import Rules, Task, TaskGenerator, left


class RoundsTaskGenerator(TaskGenerator):
    """Base: a schedule says what share of the goals each round asks for.

    What a round asks of layers that are smaller already is a share of what is left of them.

    Args:
        total_iteration: rounds until the goals.
        origin_model, origin_config_list, origin_masks, log_dir, keep_intermediate_result: as for
            ``TaskGenerator``.
        skip_first_iteration: leave the warm-up out, a round that removes nothing.
    """

    schedule: ClassVar[str] = "linear"
    first: ClassVar[int] = 0

    def __init__(
        self,
        total_iteration: int,
        origin_model: nn.Module | None = None,
        origin_config_list: Rules | None = None,
        origin_masks: Mapping[str, Mapping[str, Tensor | None]] | None = None,
        log_dir: str | os.PathLike[str] = ".",
        keep_intermediate_result: bool = False,
        skip_first_iteration: bool = False,
    ):
        self.total_iteration = at_least_one("total_iteration", total_iteration)
        self._first = max(self.first, int(skip_first_iteration))
        super().__init__(
            origin_model, origin_config_list, origin_masks, log_dir, keep_intermediate_result
        )

    def next(self) -> Task | None:
        number = len(self.tasks) + self._first
        if number > self.total_iteration:
            return None
        model, masks = self._latest
        share = schedules[self.schedule](number / self.total_iteration)
        goals = [self._now(goal, model, share) for goal in self.goals]
        return self._task(model, masks, goals)

    def _now(self, goal: Goal, model: nn.Module, share: float) -> Goal:
        wanted = asked(self.schedule, goal.sparsity, share)
        gone = 1 - left(goal, model, {}) / left(goal, self.origin, {})
        return replace(goal, sparsity=max(0.0, (wanted - gone) / (1 - gone)))


class LinearTaskGenerator(RoundsTaskGenerator):
    """Equal parts of the goals, after a round that only fine-tunes."""

    schedule = "linear"


class AGPTaskGenerator(RoundsTaskGenerator):
    """Much at first, little near the end (Zhu & Gupta 2017), after a round that only fine-tunes."""

    schedule = "cubic"


class LotteryTicketTaskGenerator(RoundsTaskGenerator):
    """The same share of what is left in each round (Frankle & Carbin 2019)."""

    schedule = "geometric"
    first = 1
