"""What every evaluator does: train for some steps and tell after each, and evaluate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypedDict, Unpack

from torch import nn

from secateur.errors import ConfigError

AfterStep = Callable[[], Mapping[str, float] | None]
"""Called after each optimizer step, while the gradients are still there; returns what to log."""


class Limits(TypedDict, total=False):
    """How long a training may be at most; without a limit, as long as the trainer likes."""

    max_steps: int | None
    """Optimizer steps."""
    max_epochs: int | None


class Evaluator(Protocol):
    """How a pruner trains and judges a model; another trainer is another class of this shape."""

    dummy_input: Any
    """Example inputs, for what must run the model once; None where there are none."""

    def train(self, model: nn.Module, after_step: AfterStep, **limits: Unpack[Limits]) -> None:
        """Train in place, within the limits.

        Whatever the training raises comes through, and all hooks are gone then too.
        """
        ...

    def evaluate(self, model: nn.Module) -> float:
        """Return the metric of the model as it is; larger is better.

        Raises:
            ConfigError: the evaluator was not told how.
        """
        ...

    def finetune(self, model: nn.Module) -> None:
        """Train as long as the trainer likes."""
        ...

    def bound_to(self, model: nn.Module, dense: nn.Module) -> Evaluator:
        """Return one that trains a copy, maybe a smaller one, of the model it was built for."""
        ...


def judged(evaluator: Any, model: nn.Module) -> float:
    """Return the metric of an evaluator that has a function for it, or None in its place.

    Raises:
        ConfigError: it has none.
    """
    if evaluator.evaluating_func is None:
        raise ConfigError(f"this {type(evaluator).__name__} has no evaluating_func")
    return float(metric_in(evaluator.evaluating_func(model)))  # type: ignore[arg-type]


def metric_in(result: object) -> object:
    """Return the metric of what an evaluating function returned: NNI allows a tuple or a dict.

    >>> metric_in({"default": 0.9, "loss": 1.0}), metric_in((0.8, "details")), metric_in(0.7)
    (0.9, 0.8, 0.7)
    """
    if isinstance(result, dict):
        return result.get("default", next(iter(result.values()), None))
    return result[0] if isinstance(result, (tuple, list)) and result else result
