"""``PruningScheduler``: does the tasks that a generator makes, each on a copy of its model."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.masks import masking
from secateur.nni.evaluators import Evaluator
from secateur.nni.pruning.v2.pruner import OneShotPruner
from secateur.nni.pruning.v2.signature import also
from secateur.nni.speedup import ModelSpeedup
from secateur.runtime.copying import copied

from .task import Best, Masks, Rules, Task, TaskGenerator


class PruningScheduler:
    """Prunes in tasks.  The model that it was given stays as it is.

    Args:
        pruner: one of the one-shot pruners, made with None for model and config_list.
        task_generator: makes the tasks.
        evaluator: fine-tunes and judges; None does neither.
        speedup: cut each result, on the evaluator's ``dummy_input``.
        reset_weight: rewind: train first, then prune, then go back to the weights of before.

    Raises:
        ConfigError: what ``speedup`` needs is missing.
    """

    @also(
        *("pruner", "task_generator", "finetuner", "speedup", "dummy_input", "evaluator"),
        "reset_weight",
    )
    def __init__(
        self,
        pruner: OneShotPruner,
        task_generator: TaskGenerator,
        evaluator: Evaluator | None = None,
        speedup: bool = False,
        reset_weight: bool = False,
    ):
        self.pruner, self.task_generator = pruner, task_generator
        self.evaluator, self.speedup, self.reset_weight = evaluator, speedup, reset_weight
        if speedup and getattr(evaluator, "dummy_input", None) is None:
            raise ConfigError("speedup=True needs example inputs: give the evaluator a dummy_input")

    def compress(self) -> None:
        """Do all tasks; ``get_best_result`` says what came of them."""
        if not hasattr(self.task_generator, "goals"):
            raise ConfigError("there is no model yet: call reset(model, config_list) before")
        while (task := self.task_generator.next()) is not None:
            model, masks, score = self._done(task)
            self.task_generator.receive_task_result(task, model, masks, score)

    def reset(
        self,
        model: nn.Module,
        config_list: Rules,
        masks: Mapping[str, Mapping[str, Tensor | None]] | None = None,
        *,
        dense: nn.Module | None = None,
    ) -> None:
        """Begin anew with a model, its configuration and its masks; see ``TaskGenerator.reset``."""
        self.task_generator.reset(model, config_list, masks, dense=dense)

    def get_best_result(self) -> Best | None:
        """Return the best task's number, model, masks, score and config_list; None before any.

        The model has no masks on; they are baked into it.  After a speedup the masks are ``{}``.
        """
        return self.task_generator.get_best_result()

    def _done(self, task: Task) -> tuple[nn.Module, Masks, float | None]:
        """Do a task; return the model, the masks that belong to it, and its score."""
        pruner, dense = self.pruner, self.task_generator.dense
        model = copied(task.model)
        before = copy.deepcopy(model.state_dict()) if self.reset_weight else None
        pruner.reset(model, [goal.entry() for goal in task.goals], dense=dense)
        pruner.load_masks(task.masks)
        if before is not None and task.finetune:
            self._finetune(model)
        _, masks = pruner.compress()
        pruner.show_pruned_weights()
        pruner._unwrap_model()
        if before is not None:
            model.load_state_dict(before)
            pruner._wrap_model()
            pruner._unwrap_model()
        whole = pruner.parameter_masks()
        if self.speedup and task.speedup:
            assert self.evaluator is not None  # as the constructor saw to
            ModelSpeedup(model, self.evaluator.dummy_input, masks).speedup_model()
            masks, whole = {}, _zeros(model, whole)
        if before is None and task.finetune:
            masking.put_on(model, whole)
            self._finetune(model)
            masking.take_off(model)
        return model, masks, self._score(model) if task.evaluate else None

    def _finetune(self, model: nn.Module) -> None:
        if self.evaluator is not None:
            self._bound(model).finetune(model)

    def _score(self, model: nn.Module) -> float | None:
        """Return the score where the best is what has the highest, and there is who judges."""
        silent = getattr(self.evaluator, "evaluating_func", True) is None
        if self.task_generator.best_result_mode == "latest" or self.evaluator is None or silent:
            return None
        return self._bound(model).evaluate(model)

    def _bound(self, model: nn.Module) -> Any:
        assert self.evaluator is not None
        return self.evaluator.bound_to(model, self.task_generator.dense)


def _zeros(model: nn.Module, masks: Collection[str]) -> dict[str, Tensor]:
    """Return masks of the zeros that no cut could take, of what was masked: single weights."""
    left = {name: p.detach() != 0 for name, p in model.named_parameters() if name in masks}
    return {name: kept for name, kept in left.items() if not bool(kept.all())}
