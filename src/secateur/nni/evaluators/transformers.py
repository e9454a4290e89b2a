"""``TransformersEvaluator``: a live Hugging Face ``Trainer``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Unpack

from torch import nn

from secateur.errors import ConfigError
from secateur.runtime.undo import Undo

from .evaluator import AfterStep, Evaluator, Limits
from .rebuilt import fresh, rescheduled, set_to, settings, state_of
from .torch import innermost, substitutes


class TransformersEvaluator:
    """Trains by ``trainer.train()``.

    Args:
        trainer: a ``transformers.Trainer`` that was built with ``model=``; its arguments,
            callbacks, optimizer and scheduler are as before after each training.
        dummy_input: example inputs.

    Raises:
        ConfigError: ``trainer`` is no Trainer, or would make a new model at each training.
    """

    def __init__(self, trainer: Any, dummy_input: Any = None):
        if not hasattr(trainer, "add_callback") or not hasattr(trainer, "args"):
            raise ConfigError(f"trainer must be a Hugging Face Trainer, got {trainer!r}")
        if getattr(trainer, "model_init", None) is not None:
            raise ConfigError(
                "the Trainer has a model_init, and would train a new model, not the pruned one; "
                "build it with model=…"
            )
        self.trainer = trainer
        self.dummy_input = dummy_input
        groups = None if trainer.optimizer is None else settings(innermost(trainer.optimizer))
        self._built = groups, state_of(trainer.lr_scheduler)

    def train(self, model: nn.Module, after_step: AfterStep, **limits: Unpack[Limits]) -> None:
        """Train the trainer's model; see ``Evaluator``."""
        from secateur.trainers.transformers import AfterOptimizerStep

        trainer = self._owner_of(model)
        args, callback = trainer.args, AfterOptimizerStep(after_step)
        steps, epochs = limits.get("max_steps"), limits.get("max_epochs")
        with Undo() as undo:
            for held, name in (
                (args, "max_steps"),
                (args, "num_train_epochs"),
                (trainer, "optimizer"),
                (trainer, "lr_scheduler"),
            ):
                undo(partial(setattr, held, name, getattr(held, name)))
            undo(partial(trainer.remove_callback, callback))
            if steps is not None or epochs is not None:
                args.max_steps = -1 if steps is None else steps
            if epochs is not None:
                args.num_train_epochs = epochs
            callback.attach(trainer)
            trainer.train()

    def finetune(self, model: nn.Module) -> None:
        """Train for as long as the Trainer's arguments say."""
        self.train(model, lambda: None)

    def bound_to(self, model: nn.Module, dense: nn.Module) -> Evaluator:
        """Return one that lends its Trainer to a copy of the model while it trains or evaluates."""
        return _Lent(self, model, dense)

    def evaluate(self, model: nn.Module) -> float:
        """Return the Trainer's ``metric_for_best_model``, or else minus its loss."""
        trainer = self._owner_of(model)
        metrics = trainer.evaluate()
        name = trainer.args.metric_for_best_model or "loss"
        value = float(metrics[name if name in metrics else f"eval_{name}"])
        return value if trainer.args.greater_is_better else -value

    def _owner_of(self, model: nn.Module) -> Any:
        if self.trainer.model is not model:
            raise ConfigError(
                "the TransformersEvaluator's Trainer has another model than the one that is "
                "pruned; give both the same"
            )
        return self.trainer


class _Lent:
    """An evaluator whose Trainer has another model for as long as it is used."""

    def __init__(self, lender: TransformersEvaluator, model: nn.Module, dense: nn.Module):
        self.lender, self.model, self.dummy_input = lender, model, lender.dummy_input
        self.optimizer, self.scheduler = lender.trainer.optimizer, lender.trainer.lr_scheduler
        groups, state = lender._built
        if self.optimizer is not None and groups is not None:
            optimizer = innermost(self.optimizer)
            self.optimizer = fresh(optimizer, substitutes(model, dense))
            set_to(self.optimizer, groups)
            by_id = {id(optimizer): self.optimizer}
            self.scheduler = rescheduled(self.scheduler, state, by_id)

    def train(self, model: nn.Module, after_step: AfterStep, **limits: Unpack[Limits]) -> None:
        with self._lent():
            self.lender.train(model, after_step, **limits)

    def finetune(self, model: nn.Module) -> None:
        with self._lent():
            self.lender.finetune(model)

    def evaluate(self, model: nn.Module) -> float:
        with self._lent():
            return self.lender.evaluate(model)

    def bound_to(self, model: nn.Module, dense: nn.Module) -> Evaluator:
        return self.lender.bound_to(model, dense)

    @contextmanager
    def _lent(self) -> Iterator[None]:
        trainer = self.lender.trainer
        names = "model", "model_wrapped", "optimizer", "lr_scheduler"
        before = {name: getattr(trainer, name) for name in names}
        lent = self.model, self.model, self.optimizer, self.scheduler
        with Undo() as undo:
            undo(partial(vars(trainer).update, before))
            vars(trainer).update(zip(names, lent, strict=True))
            yield
