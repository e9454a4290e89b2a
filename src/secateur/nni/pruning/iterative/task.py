"""A task, and what makes tasks: each is one pruning of a model, decided on from those before."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from secateur.nni.pruning.v2.config_list import Goal, canonical
from secateur.runtime.copying import copied

from .store import Store

Masks = dict[str, dict[str, Tensor]]
Rules = Sequence[Mapping[str, Any]]
Best = tuple[int, nn.Module, Masks, float | None, list[dict[str, Any]]]


@dataclass
class Task:
    """One pruning of a model.

    Attributes:
        number: counted from 0.
        model: what is pruned, left as it is: the task works on a copy.
        masks: from which nothing comes back.
        goals: what each layer is to lose.
        speedup, finetune, evaluate: whether that is done, where the run asks for it.
        state: what is known of it besides, for the file of tasks.
        said: the goals that its config_list names, where these are more than it works on.
    """

    number: int
    model: nn.Module
    masks: Masks
    goals: list[Goal]
    speedup: bool = True
    finetune: bool = True
    evaluate: bool = True
    status: str = "Pending"
    score: float | None = None
    state: dict[str, Any] = field(default_factory=dict)
    said: list[Goal] | None = None

    def config_list(self) -> list[dict[str, Any]]:
        """Return the goals in NNI 2.x's keys."""
        return [goal.entry() for goal in (self.goals if self.said is None else self.said)]

    def record(self) -> dict[str, Any]:
        """Return what the file of tasks says of it."""
        return {
            "task_id": self.number,
            "status": self.status,
            "score": self.score,
            "state": self.state,
            "config_list": self.config_list(),
        }


class TaskGenerator:
    """Base: makes one task after the other, takes their results, and keeps the best.

    Args:
        origin_model: any module, which stays as it is; None: ``reset`` gives it.
        origin_config_list: NNI 2.x's configuration, or None likewise.
        origin_masks: of ``origin_model``, from which nothing comes back.
        log_dir: where a folder with the results is made.
        keep_intermediate_result: write the result of each task too.

    Attributes:
        best_result_mode: "latest" or "maximize" (the score; the first of equal ones).
    """

    best_result_mode = "latest"

    def __init__(
        self,
        origin_model: nn.Module | None,
        origin_config_list: Rules | None = None,
        origin_masks: Mapping[str, Mapping[str, Tensor | None]] | None = None,
        log_dir: str | os.PathLike[str] = ".",
        keep_intermediate_result: bool = False,
    ):
        self.log_dir, self.keep_intermediate_result = log_dir, keep_intermediate_result
        self.tasks: list[Task] = []
        self._best: Best | None = None
        self.store = Store(log_dir)
        if origin_model is not None and origin_config_list is not None:
            self.reset(origin_model, origin_config_list, origin_masks)

    def reset(
        self,
        model: nn.Module,
        config_list: Rules,
        masks: Mapping[str, Mapping[str, Tensor | None]] | None = None,
        *,
        dense: nn.Module | None = None,
    ) -> None:
        """Begin anew.

        Args:
            model: any module, which stays as it is.
            config_list: NNI 2.x's configuration.
            masks: from which nothing comes back.
            dense: what evaluators were built for, where ``model`` is a copy of it.

        Raises:
            ConfigError: the config_list is wrong or does not fit the model.
        """
        self.goals = canonical(config_list, model)
        self.dense, self.origin = model if dense is None else dense, copied(model)
        self.masks: Masks = {
            name: {target: mask for target, mask in by_target.items() if mask is not None}
            for name, by_target in (masks or {}).items()
        }
        self.tasks, self._best = [], None
        self._latest: tuple[nn.Module, Masks] = self.origin, self.masks
        self.store = Store(self.log_dir)
        self.store.origin(self.origin, self.masks, [goal.entry() for goal in self.goals])
        self.begin()

    def begin(self) -> None:
        """Prepare for the first task."""

    def next(self) -> Task | None:
        """Return the task to do now, or None when all is done."""
        raise NotImplementedError

    def received(self, task: Task, model: nn.Module, masks: Masks) -> None:
        """Learn from the result of a task, whose score is ``task.score``."""

    def receive_task_result(
        self, task: Task, model: nn.Module, masks: Masks, score: float | None
    ) -> None:
        """Take the result of a task: the model without masks on, and those that belong to it."""
        task.score, task.status = score, "Finished"
        task.state["current2origin_sparsity"] = [
            1 - left(goal, model, masks) / left(goal, self.origin, {}) for goal in self.goals
        ]
        self.received(task, model, masks)
        self._latest = model, masks
        if self.keep_intermediate_result:
            self.store.intermediate(task.number, model, masks, task.config_list())
        if self._is_better(score):
            self._best = task.number, model, masks, score, task.config_list()
            self.store.best(model, masks, task.config_list())
        self.store.tasks([each.record() for each in self.tasks])

    def get_best_result(self) -> Best | None:
        """Return (task, model, its masks, score, config_list) of the best task, each a copy."""
        if self._best is None:
            return None
        number, model, masks, score, config = self._best
        own = {name: {t: m.clone() for t, m in by.items()} for name, by in masks.items()}
        return number, copied(model), own, score, [dict(entry) for entry in config]

    def _is_better(self, score: float | None) -> bool:
        best = None if self._best is None else self._best[3]
        if self.best_result_mode == "latest" or best is None:
            return True
        return score is not None and score > best

    def _task(self, model: nn.Module, masks: Masks, goals: list[Goal]) -> Task:
        task = Task(len(self.tasks), model, masks, goals)
        self.tasks.append(task)
        return task


def left(goal: Goal, model: nn.Module, masks: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Return how many weights of a goal's layers a model has, without those that are masked."""
    total = 0
    for name in goal.names:
        mask = masks.get(name, {}).get("weight")
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)  # of a layer that was selected
        total += weight.numel() if mask is None else int(mask.count_nonzero())
    return total
