"""NNI 2.10's evaluators: ``TorchEvaluator`` takes a ``criterion`` where 3.0's takes a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from secateur.nni.evaluators import LightningEvaluator as LightningEvaluator
from secateur.nni.evaluators import TorchEvaluator as _TorchEvaluator
from secateur.nni.evaluators import TransformersEvaluator as TransformersEvaluator


class TorchEvaluator(_TorchEvaluator):
    """Trains by a function of the user's.

    Args:
        training_func: ``training_func(model, optimizers, criterion, lr_schedulers, max_steps,
            max_epochs)``, called with these six by position.  One that goes on after ``max_steps``
            is stopped before the step that would be too many.
        optimizers: the optimizer, or several; ``nni.trace`` is not needed.
        criterion: handed on to ``training_func``.
        lr_schedulers: the scheduler, or several, or None; handed on likewise.
        dummy_input: example inputs.
        evaluating_func: ``evaluating_func(model)`` → the score, or a tuple or dict that starts with
            it.

    Raises:
        ConfigError: an argument is not what it should be.
    """

    def __init__(
        self,
        training_func: Callable[..., object],
        optimizers: Optimizer | Sequence[Optimizer],
        criterion: Callable[..., Any],
        lr_schedulers: Any = None,
        dummy_input: Any = None,
        evaluating_func: Callable[[nn.Module], object] | None = None,
    ):
        super().__init__(
            training_func, optimizers, criterion, lr_schedulers, dummy_input, evaluating_func
        )
        self.criterion = criterion
