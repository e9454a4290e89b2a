"""``LinearPruner``, ``AGPPruner``, ``LotteryTicketPruner`` with NNI 2.x's constructors."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from secateur.errors import ConfigError, did_you_mean
from secateur.nni.evaluators import Evaluator, LegacyEvaluator
from secateur.nni.pruning import v2
from secateur.nni.pruning.v2.signature import also

from .generators import AGPTaskGenerator, LinearTaskGenerator, LotteryTicketTaskGenerator
from .scheduler import PruningScheduler
from .task import Rules

log = logging.getLogger(__name__)

ALGORITHMS: dict[str, type[v2.OneShotPruner]] = {
    "level": v2.LevelPruner,
    "l1": v2.L1NormPruner,
    "l2": v2.L2NormPruner,
    "fpgm": v2.FPGMPruner,
    "slim": v2.SlimPruner,
    "apoz": v2.ActivationAPoZRankPruner,
    "mean_activation": v2.ActivationMeanRankPruner,
    "taylorfo": v2.TaylorFOWeightPruner,
    "admm": v2.ADMMPruner,
}
"""What prunes in each task, by ``pruning_algorithm``."""

_ROUNDS = ("model", "config_list", "pruning_algorithm", "total_iteration", "log_dir")
_OLD = ("finetuner", "speedup", "dummy_input", "evaluator")


def pruner_of(
    algorithm: str, parameters: Mapping[str, Any] | None, among: Mapping[str, Any] = ALGORITHMS
) -> v2.OneShotPruner:
    """Return a one-shot pruner that has no model yet.

    Raises:
        ConfigError: there is no such algorithm, or its parameters are wrong.

    >>> type(pruner_of("l1", None)).__name__
    'L1NormPruner'
    """
    if algorithm not in list(among):  # which may be no text at all
        raise ConfigError(
            f"pruning_algorithm must be one of {', '.join(among)}, got {algorithm!r}."
            f"{did_you_mean(str(algorithm), among)}"
        )
    if parameters is not None and not isinstance(parameters, Mapping):
        raise ConfigError(f"pruning_params of {algorithm!r} must be a dict, got {parameters!r}.")
    made = ALGORITHMS[algorithm]
    try:
        return made(None, None, **dict(parameters or {}))
    except TypeError as error:  # an argument that the constructor needs, or has not
        raise ConfigError(f"pruning_params of {algorithm!r}: {error}") from error


class IterativePruner(PruningScheduler):
    """Base: the model is not wrapped, and the results are in ``log_dir``."""

    def _wrap_model(self) -> None:
        log.warning("%s wraps no model: each task works on a copy", type(self).__name__)

    def _unwrap_model(self) -> None:
        log.warning("%s wraps no model: each task works on a copy", type(self).__name__)

    def export_model(self, *args: Any, **kwargs: Any) -> None:
        """Warn that this does nothing: the best result is in ``log_dir``, and as NNI says it."""
        folder = self.task_generator.store.folder
        log.warning("nothing is exported: the best result is in %s, after compress()", folder)


class LinearPruner(IterativePruner):
    """Prunes in rounds, the same amount in each, after one that only fine-tunes.

    Args:
        model: any module, which stays as it is.
        config_list: NNI 2.x's configuration.
        pruning_algorithm: what prunes in each round, a name in ``ALGORITHMS``.
        total_iteration: rounds until the goals.
        log_dir: where a folder with the results is made, as safetensors and JSON.
        keep_intermediate_result: write the result of each round too.
        evaluator: fine-tunes after each round; None does not.
        speedup: cut the model after each round.
        pruning_params: further arguments of the pruner.
    """

    generator: type[LinearTaskGenerator | AGPTaskGenerator] = LinearTaskGenerator

    @also(*_ROUNDS, "keep_intermediate_result", *_OLD, "pruning_params")
    def __init__(
        self,
        model: nn.Module,
        config_list: Rules,
        pruning_algorithm: str,
        total_iteration: int,
        log_dir: str | os.PathLike[str] = ".",
        keep_intermediate_result: bool = False,
        evaluator: Evaluator | LegacyEvaluator | None = None,
        speedup: bool = False,
        pruning_params: Mapping[str, Any] | None = None,
    ):
        pruner = pruner_of(pruning_algorithm, pruning_params)
        keep = keep_intermediate_result
        generator = self.generator(total_iteration, model, config_list, {}, log_dir, keep)
        super().__init__(pruner, generator, evaluator, speedup)


class AGPPruner(LinearPruner):
    """Prunes in rounds, much at first and little near the end (Zhu & Gupta 2017).

    Its arguments are those of ``LinearPruner``.
    """

    generator = AGPTaskGenerator


class LotteryTicketPruner(IterativePruner):
    """Rounds of training, pruning and going back to the first weights (Frankle & Carbin 2019).

    The result is the winning ticket, with the first weights: train it yourself.  The modern method
    ``lottery`` does the same in your own loop, and goes back to a later step too.

    Args:
        model: any module, which stays as it is.
        config_list: NNI 2.x's configuration.
        pruning_algorithm: what prunes in each round, a name in ``ALGORITHMS``.
        total_iteration: rounds until the goals; in each the same share of what is left goes.
        log_dir: where a folder with the results is made, as safetensors and JSON.
        keep_intermediate_result: write the result of each round too.
        evaluator: trains in each round; with None nothing is trained.
        speedup: cut the model after each round.
        reset_weight: go back; False goes on with the weights, fine-tuned after each round.
        pruning_params: further arguments of the pruner.
    """

    @also(*_ROUNDS, "keep_intermediate_result", *_OLD, "reset_weight", "pruning_params")
    def __init__(
        self,
        model: nn.Module,
        config_list: Rules,
        pruning_algorithm: str,
        total_iteration: int,
        log_dir: str | os.PathLike[str] = ".",
        keep_intermediate_result: bool = False,
        evaluator: Evaluator | LegacyEvaluator | None = None,
        speedup: bool = False,
        reset_weight: bool = True,
        pruning_params: Mapping[str, Any] | None = None,
    ):
        pruner = pruner_of(pruning_algorithm, pruning_params)
        keep = keep_intermediate_result
        generator = LotteryTicketTaskGenerator(
            total_iteration, model, config_list, {}, log_dir, keep
        )
        super().__init__(pruner, generator, evaluator, speedup, reset_weight)
