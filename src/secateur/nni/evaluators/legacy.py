"""What NNI's pruners took before it had evaluators: functions that train, fine-tune and judge."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self, Unpack

from torch import nn
from torch.optim import Optimizer

from secateur.errors import ConfigError

from .evaluator import AfterStep, Limits, judged
from .rebuilt import fresh
from .torch import stepping, substitutes


class LegacyEvaluator:
    """Trains by ``trainer(model, optimizer, criterion)``, one epoch a call.

    Args:
        trainer: such a function, or None where nothing is trained while a pruner watches.
        traced_optimizer: of the model that is pruned; ``nni.trace`` is not needed.
        criterion: handed on to ``trainer``.
        finetuner: ``finetuner(model)``, or None.
        evaluating_func: ``evaluating_func(model)`` → the score, or None.
        dummy_input: example inputs.

    Raises:
        ConfigError: a function is none, or the optimizer.
    """

    def __init__(
        self,
        trainer: Callable[..., object] | None = None,
        traced_optimizer: Optimizer | None = None,
        criterion: Any = None,
        finetuner: Callable[[nn.Module], object] | None = None,
        evaluating_func: Callable[[nn.Module], object] | None = None,
        dummy_input: Any = None,
    ):
        functions: dict[str, object] = {
            "trainer": trainer,
            "finetuner": finetuner,
            "evaluator": evaluating_func,
        }
        problems = [
            f"{name} must be a function, got {value!r}"
            for name, value in functions.items()
            if value is not None and not callable(value)
        ]
        if trainer is not None and not isinstance(traced_optimizer, Optimizer):
            problems.append(f"traced_optimizer must be a torch optimizer, got {traced_optimizer!r}")
        if problems:
            raise ConfigError(*problems)
        self.trainer, self.traced_optimizer, self.criterion = trainer, traced_optimizer, criterion
        self.finetuner, self.evaluating_func = finetuner, evaluating_func
        self.dummy_input = dummy_input

    def train(self, model: nn.Module, after_step: AfterStep, **limits: Unpack[Limits]) -> None:
        """Call the trainer until a limit is met, once where there is none; see ``Evaluator``."""
        if self.trainer is None or self.traced_optimizer is None:
            raise ConfigError("this pruner trains the model: give a trainer, or an evaluator")
        most, epochs = limits.get("max_steps"), limits.get("max_epochs")
        made = 0

        def after() -> None:
            nonlocal made
            made += 1
            after_step()

        calls = 0
        with stepping(self.traced_optimizer, after, most):
            while calls < (epochs or 1) if epochs or most is None else made < most:
                before, calls = made, calls + 1
                self.trainer(model, self.traced_optimizer, self.criterion)
                if most is not None and made == before:
                    raise ConfigError("the trainer made no step with the optimizer it was given")

    def finetune(self, model: nn.Module) -> None:
        """Call the finetuner, if there is one."""
        if self.finetuner is not None:
            self.finetuner(model)

    def evaluate(self, model: nn.Module) -> float:
        """Return the score of the evaluating function."""
        return judged(self, model)

    def bound_to(self, model: nn.Module, dense: nn.Module) -> Self:
        """Return one whose optimizer trains a copy of the model, which may be smaller."""
        again = copy.copy(self)
        if self.traced_optimizer is not None:
            again.traced_optimizer = fresh(self.traced_optimizer, substitutes(model, dense))
        return again
