"""``LightningEvaluator``: a live Lightning ``Trainer`` and its data."""

from __future__ import annotations

from functools import partial
from typing import Any, Unpack

from torch import nn

from secateur.errors import ConfigError
from secateur.runtime.undo import Undo

from .evaluator import AfterStep, Limits, metric_in


class LightningEvaluator:
    """Trains by ``trainer.fit``.

    Args:
        trainer: a ``lightning.pytorch.Trainer``; it is as before after each training.
        data_module: what ``fit`` takes as data: a ``LightningDataModule`` or loaders.
        dummy_input: example inputs.
    """

    def __init__(self, trainer: Any, data_module: Any, dummy_input: Any = None):
        if not hasattr(trainer, "fit") or not hasattr(trainer, "callbacks"):
            raise ConfigError(f"trainer must be a Lightning Trainer, got {trainer!r}")
        self.trainer = trainer
        self.data_module = data_module
        self.dummy_input = dummy_input

    def train(self, model: nn.Module, after_step: AfterStep, **limits: Unpack[Limits]) -> None:
        """Fit the model, which is a LightningModule; see ``Evaluator``."""
        from secateur.trainers.lightning import AfterOptimizerStep

        callback = AfterOptimizerStep(after_step)
        loop = self.trainer.fit_loop
        steps, epochs = limits.get("max_steps"), limits.get("max_epochs")
        with Undo() as undo:
            undo(partial(setattr, loop, "max_epochs", loop.max_epochs))
            undo(partial(setattr, loop.epoch_loop, "max_steps", loop.epoch_loop.max_steps))
            undo(partial(_without, self.trainer, callback))
            if steps is not None:  # both limits count from the trainer's first fit
                loop.epoch_loop.max_steps = self.trainer.global_step + steps
                loop.max_epochs = -1 if epochs is None else loop.max_epochs
            if epochs is not None:
                loop.max_epochs = self.trainer.current_epoch + epochs
            self.trainer.callbacks.append(callback)
            self.trainer.fit(model, self.data_module)

    def finetune(self, model: nn.Module) -> None:
        """Fit for as long as the trainer was built to, from its first epoch on."""
        loop = self.trainer.fit_loop
        steps = loop.epoch_loop.max_steps
        limits: Limits = {"max_steps": None if steps == -1 else steps}
        limits["max_epochs"] = None if loop.max_epochs in (None, -1) else loop.max_epochs
        self.train(model, lambda: None, **limits)

    def bound_to(self, model: nn.Module, dense: nn.Module) -> LightningEvaluator:
        """Return this: a copy of a LightningModule builds its optimizers itself."""
        return self

    def evaluate(self, model: nn.Module) -> float:
        """Return the first metric that ``trainer.test`` reports, or the one named "default"."""
        reported = self.trainer.test(model, self.data_module, verbose=False)
        if not reported or not reported[0]:
            raise ConfigError("trainer.test reported no metric; log one in the test_step")
        return float(metric_in(reported[0]))  # type: ignore[arg-type]


def _without(trainer: Any, callback: Any) -> None:
    trainer.callbacks = [each for each in trainer.callbacks if each is not callback]
