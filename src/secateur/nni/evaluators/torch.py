"""``TorchEvaluator``: the user's own training function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self, Unpack

from torch import nn
from torch.optim import Optimizer

from secateur.errors import ConfigError
from secateur.runtime.undo import Undo, unhook_optimizer

from .evaluator import AfterStep, Limits, judged
from .rebuilt import fresh, rescheduled, set_to, settings, state_of


class TorchEvaluator:
    """Trains by a function of the user's.

    Args:
        training_func: ``training_func(model, optimizers, training_step, lr_schedulers, max_steps,
            max_epochs)``, called with these six by position.  One that goes on after ``max_steps``
            is stopped before the step that would be too many.
        optimizers: the optimizer, or several; the first that trains the model is watched.
        training_step: ``training_step(batch, model) → loss``; handed on to ``training_func``.
        lr_schedulers: the scheduler, or several, or None; handed on likewise.
        dummy_input: example inputs.
        evaluating_func: ``evaluating_func(model)`` → the metric, or a tuple or dict that starts
            with it.

    Raises:
        ConfigError: an argument is not what it should be.

    >>> import torch
    >>> model = nn.Linear(2, 1)
    >>> def training_func(model, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
    ...     for _ in range(1000):
    ...         training_step(torch.ones(1, 2), model).backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> evaluator = TorchEvaluator(training_func, sgd, lambda batch, model: model(batch).sum())
    >>> steps = []
    >>> evaluator.train(model, lambda: steps.append(len(steps)), max_steps=3)
    >>> steps
    [0, 1, 2]
    """

    def __init__(
        self,
        training_func: Callable[..., object],
        optimizers: Optimizer | Sequence[Optimizer],
        training_step: Callable[..., Any],
        lr_schedulers: Any = None,
        dummy_input: Any = None,
        evaluating_func: Callable[[nn.Module], object] | None = None,
    ):
        self.training_func = training_func
        self.optimizers = optimizers
        self.training_step = training_step
        self.lr_schedulers = lr_schedulers
        self.dummy_input = dummy_input
        self.evaluating_func = evaluating_func
        several = optimizers if isinstance(optimizers, (list, tuple)) else [optimizers]
        functions: dict[str, object] = {
            "training_func": training_func,
            "training_step": training_step,
        }
        problems = [
            f"{name} must be a function, got {value!r}"
            for name, value in functions.items()
            if not callable(value)
        ]
        if not several or not all(isinstance(each, Optimizer) for each in several):
            problems.append(f"optimizers must be one torch optimizer or more, got {optimizers!r}")
        if problems:
            raise ConfigError(*problems)
        self._several = [innermost(each) for each in several]
        self._built = [settings(each) for each in self._several], state_of(lr_schedulers)

    def train(self, model: nn.Module, after_step: AfterStep, **limits: Unpack[Limits]) -> None:
        """Call ``training_func``; see ``Evaluator``."""
        with stepping(self._watched(model), after_step, limits.get("max_steps")):
            self.training_func(
                model,
                self.optimizers,
                self.training_step,
                self.lr_schedulers,
                limits.get("max_steps"),
                limits.get("max_epochs"),
            )

    def evaluate(self, model: nn.Module) -> float:
        """Return the metric of ``evaluating_func``."""
        return judged(self, model)

    def finetune(self, model: nn.Module) -> None:
        """Train for as long as ``training_func`` does without limits."""
        self.train(model, lambda: None)

    def bound_to(self, model: nn.Module, dense: nn.Module) -> Self:
        """Return one that trains a copy of the model, from the settings that this was built with.

        Args:
            model: the copy, which may be smaller.
            dense: the model that the optimizers were built for.
        """
        known = substitutes(model, dense)
        groups, state = self._built
        made = [fresh(each, known) for each in self._several]
        for optimizer, values in zip(made, groups, strict=True):
            set_to(optimizer, values)
        by_id = {id(old): new for old, new in zip(self._several, made, strict=True)}
        again = copy.copy(self)  # of the user's class
        again.optimizers = made if isinstance(self.optimizers, (list, tuple)) else made[0]
        again.lr_schedulers = rescheduled(self.lr_schedulers, state, by_id)
        again._several = made
        return again

    def _watched(self, model: nn.Module) -> Optimizer:
        own = {id(parameter) for parameter in model.parameters()}
        for optimizer in self._several:
            trained = (p for group in optimizer.param_groups for p in group["params"])
            if any(id(parameter) in own for parameter in trained):
                return optimizer
        raise ConfigError(
            "no optimizer of the TorchEvaluator trains a parameter of this model; build it from "
            "the parameters of the very model that is pruned"
        )


class _Enough(BaseException):
    """Ends a training function that goes on too long; no Exception, so that none swallows it."""


@contextmanager
def stepping(optimizer: Optimizer, after_step: AfterStep, max_steps: int | None) -> Iterator[None]:
    """Within it, call ``after_step`` after each step of the optimizer, and end it before one more.

    A function that ends by itself after ``max_steps`` is left alone: it may step its scheduler,
    evaluate and save after the last step.
    """
    done = 0

    def before(*_: object) -> None:
        if done == max_steps:
            raise _Enough

    def after(*_: object) -> None:
        nonlocal done
        done += 1
        after_step()

    with Undo() as undo:
        for hook in (before, after):
            undo(partial(unhook_optimizer, optimizer, hook))
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        try:
            yield
        except _Enough:
            optimizer.zero_grad()  # of the step that was not made


def substitutes(model: nn.Module, dense: nn.Module) -> dict[int, nn.Parameter]:
    """Return the parameters of a copy by the ids of those that they were made from."""
    own = dict(model.named_parameters(remove_duplicate=False))
    named = dense.named_parameters(remove_duplicate=False)
    return {id(p): own[name] for name, p in named if name in own}


def innermost(optimizer: Any) -> Any:
    """Return the optimizer inside Accelerate's, which has no hooks of its own."""
    while "_optimizer_step_pre_hooks" not in vars(optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
