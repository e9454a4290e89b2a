"""Pruning in a Hugging Face ``Trainer``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from secateur.pruner import Pruner
from secateur.shrink import Result


class AfterOptimizerStep(TrainerCallback):
    """Calls a function after each optimizer step, while the gradients are still there."""

    def __init__(self, function: Callable[[], object]):
        self.function = function

    def on_optimizer_step(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
        if not getattr(optimizer, "step_was_skipped", False):  # as mixed precision may
            self.function()


class PruningCallback(AfterOptimizerStep):
    """Steps a pruner while a ``Trainer`` trains.

    Give it to ``Trainer(callbacks=[…])``, and its ``metrics`` are in the Trainer's log; loggers
    such as TensorBoard run before such callbacks, and have them too after ``attach(trainer)``.

    Args:
        pruner: a ``Pruner`` of the very model that is trained.
        finish: cut the model at the end of the training; ``result`` then tells what was done.
    """

    def __init__(self, pruner: Pruner, *, finish: bool = False):
        super().__init__(pruner.step)
        self.pruner = pruner
        self.finish = finish
        self.result: Result | None = None

    def attach(self, trainer: Any) -> None:
        """Add this callback before all others of a Trainer."""
        trainer.callback_handler.callbacks.insert(0, self)

    def on_log(self, args: Any, state: Any, *_: Any, logs: Any = None, **__: Any) -> None:
        for log in (logs, state.log_history[-1] if state.log_history else None):
            if log is not None:
                log.update(self.pruner.metrics())

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if self.finish:
            self.result = self.pruner.finish()
