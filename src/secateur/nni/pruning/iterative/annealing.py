"""``SimulatedAnnealingPruner``: each task tries other shares of the same total.

The walk is that of ``secateur.searching``, here over the layers that a config_list names.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.nni.evaluators import Evaluator, LegacyEvaluator
from secateur.nni.pruning.v2.config_list import Goal
from secateur.nni.pruning.v2.signature import also
from secateur.searching.annealing import Annealing, Walk, first_shares, next_shares

from .pruners import IterativePruner, pruner_of
from .task import Masks, Rules, Task, TaskGenerator, left


class SimulatedAnnealingTaskGenerator(TaskGenerator):
    """Shares of layers that are changed at random, and kept when they score better, or nearly so.

    Args:
        origin_model, origin_config_list, origin_masks, log_dir, keep_intermediate_result: as for
            ``TaskGenerator``.
        start_temperature, stop_temperature, cool_down_rate, perturbation_magnitude: of the walk.
        score_scale: what a score may be lower by and still be taken with probability 1/e at the
            start; by default the start temperature, as in NNI, which suits scores in %.
    """

    best_result_mode = "maximize"

    def __init__(
        self,
        origin_model: nn.Module | None = None,
        origin_config_list: Rules | None = None,
        origin_masks: Mapping[str, Mapping[str, Tensor | None]] | None = None,
        start_temperature: float = 100,
        stop_temperature: float = 20,
        cool_down_rate: float = 0.9,
        perturbation_magnitude: float = 0.35,
        log_dir: str | os.PathLike[str] = ".",
        keep_intermediate_result: bool = False,
        score_scale: float | None = None,
    ):
        scale = start_temperature if score_scale is None else score_scale
        steps = start_temperature, stop_temperature, cool_down_rate, perturbation_magnitude
        try:
            self.annealing = Annealing(*steps, scale)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if stop_temperature > start_temperature or cool_down_rate == 1:
            raise ConfigError(
                "annealing ends where stop_temperature <= start_temperature and cool_down_rate < "
                f"1, got {stop_temperature}, {start_temperature} and {cool_down_rate}"
            )
        super().__init__(
            origin_model, origin_config_list, origin_masks, log_dir, keep_intermediate_result
        )

    def begin(self) -> None:
        self._random = Random(int(torch.randint(1 << 62, ())))  # torch.manual_seed repeats it
        self._walk: Walk | None = None
        self._tried: tuple[float, ...] = ()
        for goal in self.goals:
            self._check_reachable(goal)
        if all(len(goal.names) == 1 for goal in self.goals):
            warnings.warn(
                "each layer has a sparsity of its own, so that there is nothing to anneal: give "
                "total_sparsity for several",
                stacklevel=2,
            )

    def next(self) -> Task | None:
        if self._walk is not None and self.annealing.over(self._walk):
            return None
        shares: list[float] = []
        goals: list[Goal] = []
        for goal in self.goals:
            found = self._shares(goal, len(shares))
            shares += found
            for name, share in zip(goal.names, found, strict=True):
                gone = self._gone(Goal((name,), 0.0))
                whole = min(gone + share * (1 - gone), 1 - 1e-6)  # where all is masked already
                goals.append(replace(goal, names=(name,), sparsity=whole, most=None))
        self._tried = tuple(shares)
        task = self._task(self.origin, self.masks, goals)
        task.state["current_temperature"] = self._temperature
        return task

    def received(self, task: Task, model: nn.Module, masks: Masks) -> None:
        if task.score is None:
            raise ConfigError("simulated annealing needs scores: give the evaluator a function")
        if self._walk is None:
            self._walk = self.annealing.begun(self._tried, task.score)
        else:
            draw = self._random.random()
            self._walk = self.annealing.judged(self._walk, self._tried, task.score, draw)

    @property
    def _temperature(self) -> float:
        walk = self._walk
        return self.annealing.start_temperature if walk is None else walk.temperature

    def _shares(self, goal: Goal, place: int) -> list[float]:
        """Return the share of what is left of each layer of a goal that is tried now.

        Args:
            goal: of one or more layers.
            place: of its first layer in the walk.
        """
        gone = self._gone(goal)
        wanted = 0.0 if gone >= goal.sparsity else (goal.sparsity - gone) / (1 - gone)
        count = len(goal.names)
        if count == 1 or wanted == 0:
            return [wanted] * count
        asked = self._sizes(goal), wanted, self._random, self._most(goal)
        try:
            if self._walk is None:
                return first_shares(*asked)
            here = replace(self._walk, shares=self._walk.shares[place : place + count])
            return next_shares(self.annealing, here, *asked)
        except ValueError as error:
            raise ConfigError(f"total_sparsity {goal.sparsity}: {error}") from error

    def _sizes(self, goal: Goal) -> list[int]:
        """Return how many weights are left of each layer of a goal."""
        return [left(Goal((name,), 0.0), self.origin, self.masks) for name in goal.names]

    def _most(self, goal: Goal) -> list[float] | None:
        """Return the share of what is left of each layer that may go, or None for all."""
        if goal.most is None or goal.most == 1:
            return None
        gone = [self._gone(Goal((name,), 0.0)) for name in goal.names]
        return [max(0.0, goal.most - share) / (1 - share) if share < 1 else 0.0 for share in gone]

    def _check_reachable(self, goal: Goal) -> None:
        """Raise a ConfigError where the bounds of layers let less go than a goal asks for."""
        most = self._most(goal)
        if most is None:
            return
        gone = self._gone(goal)
        able = sum(n * share for n, share in zip(self._sizes(goal), most, strict=True))
        able = gone + able / left(goal, self.origin, {})
        if able < goal.sparsity - 1e-9:
            raise ConfigError(
                f"total_sparsity {goal.sparsity}: with what is masked, max_sparsity_per_layer "
                f"{goal.most} lets only {able:.1%} go"
            )

    def _gone(self, goal: Goal) -> float:
        """Return the share of a goal's weights that is masked from the start."""
        return 1 - left(goal, self.origin, self.masks) / left(goal, self.origin, {})


class SimulatedAnnealingPruner(IterativePruner):
    """Anneals the shares of layers under a total, and keeps the best (Kirkpatrick et al. 1983).

    Args:
        model: any module, which stays as it is; None: ``reset`` gives it.
        config_list: NNI 2.x's configuration, with ``total_sparsity``; no layer loses more than its
            entry's ``max_sparsity_per_layer``.
        evaluator: fine-tunes each try, and judges it; larger scores are better.
        start_temperature, stop_temperature, cool_down_rate: each accepted try cools it down; below
            the stop it is over.
        perturbation_magnitude: the most that a share changes at first.
        pruning_algorithm: what prunes in each try, a name in ``ALGORITHMS``.
        pruning_params: further arguments of the pruner.
        log_dir: where a folder with the results is made, as safetensors and JSON.
        keep_intermediate_result: write the result of each try too.
        speedup: cut each try.
        score_scale: not in NNI; what a score may be lower by and still be taken with probability
            1/e at the start.  By default the start temperature, which suits scores in %: of
            accuracies in [0, 1] all are taken, so give 0.01 or so for those.
    """

    @also(
        *("model", "config_list", "evaluator", "start_temperature", "stop_temperature"),
        *("cool_down_rate", "perturbation_magnitude", "pruning_algorithm", "pruning_params"),
        *("log_dir", "keep_intermediate_result", "finetuner", "speedup", "dummy_input"),
    )
    def __init__(
        self,
        model: nn.Module | None,
        config_list: Rules | None,
        evaluator: Evaluator | LegacyEvaluator,
        start_temperature: float = 100,
        stop_temperature: float = 20,
        cool_down_rate: float = 0.9,
        perturbation_magnitude: float = 0.35,
        pruning_algorithm: str = "level",
        pruning_params: Mapping[str, Any] | None = None,
        log_dir: str | os.PathLike[str] = ".",
        keep_intermediate_result: bool = False,
        speedup: bool = False,
        score_scale: float | None = None,
    ):
        check_judge(evaluator, type(self).__name__)
        generator = SimulatedAnnealingTaskGenerator(
            *(model, config_list, {}, start_temperature, stop_temperature, cool_down_rate),
            *(perturbation_magnitude, log_dir, keep_intermediate_result, score_scale),
        )
        pruner = pruner_of(pruning_algorithm, pruning_params)
        super().__init__(pruner, generator, evaluator, speedup)


def check_judge(evaluator: object, kind: str) -> None:
    """Raise a ConfigError where an evaluator cannot say how good a model is."""
    if evaluator is None or getattr(evaluator, "evaluating_func", True) is None:
        raise ConfigError(f"{kind} needs scores: give an evaluator with an evaluating function")
