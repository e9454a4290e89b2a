"""``DeepspeedTorchEvaluator``: the user's own training function on a DeepSpeed engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Unpack

from torch import nn

from secateur.errors import ConfigError, MissingExtraError

from .evaluator import AfterStep, Limits, judged
from .torch import stepping


class DeepspeedTorchEvaluator:
    """Trains by a function of the user's, on the engine that ``deepspeed.initialize`` makes.

    ZeRO stages 1 and 2 keep whole weights in every process, as pruning needs them; under stage 3
    prune before training.

    Args:
        training_func: as for ``TorchEvaluator``; its model is the engine.
        training_step: ``training_step(batch, engine) → loss``; handed on to ``training_func``.
        deepspeed: DeepSpeed's configuration, a dict or the path of a JSON file.
        optimizer: an optimizer, or None where the configuration names one.
        lr_scheduler: a scheduler, or None.
        resume_from_checkpoint_args: keyword arguments of ``engine.load_checkpoint``, or None.
        dummy_input: example inputs.
        evaluating_func: as for ``TorchEvaluator``.

    Raises:
        MissingExtraError: deepspeed is not installed.
    """

    def __init__(
        self,
        training_func: Callable[..., object],
        training_step: Callable[..., Any],
        deepspeed: str | Mapping[str, Any],
        optimizer: Any = None,
        lr_scheduler: Any = None,
        resume_from_checkpoint_args: Mapping[str, Any] | None = None,
        dummy_input: Any = None,
        evaluating_func: Callable[[nn.Module], object] | None = None,
    ):
        try:
            self._library = import_module("deepspeed")
        except ImportError as error:
            raise MissingExtraError("DeepspeedTorchEvaluator", "deepspeed", "deepspeed") from error
        self.training_func = training_func
        self.training_step = training_step
        self.deepspeed = deepspeed
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.resume_from_checkpoint_args = resume_from_checkpoint_args
        self.dummy_input = dummy_input
        self.evaluating_func = evaluating_func

    def train(self, model: nn.Module, after_step: AfterStep, **limits: Unpack[Limits]) -> None:
        """Make an engine of the model and call ``training_func``; see ``Evaluator``."""
        engine, optimizer, _, scheduler = self._library.initialize(
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=self.optimizer,
            lr_scheduler=self.lr_scheduler,
            config=self.deepspeed,
        )
        if self.resume_from_checkpoint_args is not None:
            engine.load_checkpoint(**self.resume_from_checkpoint_args)
        most = limits.get("max_steps"), limits.get("max_epochs")
        with stepping(engine.basic_optimizer, after_step, most[0]):
            self.training_func(engine, optimizer, self.training_step, scheduler, *most)

    def finetune(self, model: nn.Module) -> None:
        """Train for as long as ``training_func`` does without limits."""
        self.train(model, lambda: None)

    def bound_to(self, model: nn.Module, dense: nn.Module) -> DeepspeedTorchEvaluator:
        """Return this, if the configuration names the optimizer: it is made for each model anew.

        Raises:
            ConfigError: an optimizer was given, which trains one model.
        """
        if self.optimizer is not None:
            raise ConfigError(
                "pruners that work on copies need an optimizer for each: name it in DeepSpeed's "
                "configuration, not as optimizer=…"
            )
        return self

    def evaluate(self, model: nn.Module) -> float:
        """Return the metric of ``evaluating_func``."""
        return judged(self, model)
