"""``AutoCompressPruner``: rounds of annealing, which says how much of which layer, and of ADMM."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.nni.evaluators import Evaluator, LegacyEvaluator
from secateur.nni.pruning.v2.config_list import canonical
from secateur.nni.pruning.v2.signature import also

from .annealing import SimulatedAnnealingPruner
from .generators import LotteryTicketTaskGenerator
from .pruners import IterativePruner, pruner_of
from .task import Rules, Task


class AutoCompressTaskGenerator(LotteryTicketTaskGenerator):
    """In each round the same share of what is left goes, as annealing spreads it over the layers.

    Args:
        total_iteration: rounds until the goals.
        origin_model, origin_config_list, origin_masks, log_dir, keep_intermediate_result: as for
            ``TaskGenerator``.
        sa_params: arguments of ``SimulatedAnnealingPruner``.
    """

    def __init__(
        self,
        total_iteration: int,
        origin_model: nn.Module | None = None,
        origin_config_list: Rules | None = None,
        origin_masks: Mapping[str, Mapping[str, Tensor | None]] | None = None,
        sa_params: Mapping[str, Any] | None = None,
        log_dir: str | os.PathLike[str] = ".",
        keep_intermediate_result: bool = False,
    ):
        self.sa_params = dict(sa_params or {})
        super().__init__(
            total_iteration,
            *(origin_model, origin_config_list, origin_masks, log_dir, keep_intermediate_result),
        )

    def next(self) -> Task | None:
        task = super().next()
        if task is None:
            return None
        folder = Path(self.store.folder) / "SA"
        annealing = _annealing({**self.sa_params, "log_dir": folder})
        annealing.reset(task.model, task.config_list(), task.masks, dense=self.dense)
        annealing.compress()
        found = annealing.get_best_result()
        assert found is not None  # of at least one try
        task.goals = canonical(found[4], task.model)
        task.state["sa_score"] = found[3]
        return task


class AutoCompressPruner(IterativePruner):
    """Rounds of simulated annealing and ADMM (Liu et al. 2020, arXiv:1907.03141).

    Args:
        model: any module, which stays as it is.
        config_list: NNI 2.x's configuration, with ``total_sparsity``.
        total_iteration: rounds until the goals; in each the same share of what is left goes.
        admm_params: arguments of ``ADMMPruner``; without a granularity it is that of what anneals.
        sa_params: arguments of ``SimulatedAnnealingPruner``.
        log_dir: where a folder with the results is made, as safetensors and JSON.
        keep_intermediate_result: write the result of each round too.
        evaluator: fine-tunes after each round; None does not.
        speedup: cut the model after each round.
    """

    @also(
        *("model", "config_list", "total_iteration", "admm_params", "sa_params", "log_dir"),
        *("keep_intermediate_result", "finetuner", "speedup", "dummy_input", "evaluator"),
    )
    def __init__(
        self,
        model: nn.Module,
        config_list: Rules,
        total_iteration: int,
        admm_params: Mapping[str, Any],
        sa_params: Mapping[str, Any],
        log_dir: str | os.PathLike[str] = ".",
        keep_intermediate_result: bool = False,
        evaluator: Evaluator | LegacyEvaluator | None = None,
        speedup: bool = False,
    ):
        for name, value in (("admm_params", admm_params), ("sa_params", sa_params)):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name} must be a dict, got {value!r}.")
        _annealing(sa_params)  # which raises where they are wrong, before anything is trained
        granularity = {"granularity": _granularity(sa_params)}
        pruner = pruner_of("admm", {**granularity, **admm_params})
        generator = AutoCompressTaskGenerator(
            total_iteration, model, config_list, {}, sa_params, log_dir, keep_intermediate_result
        )
        super().__init__(pruner, generator, evaluator, speedup)


def _annealing(parameters: Mapping[str, Any]) -> SimulatedAnnealingPruner:
    try:
        return SimulatedAnnealingPruner(None, None, **parameters)
    except TypeError as error:  # an argument that it needs
        raise ConfigError(f"sa_params: {error}") from error


def _granularity(sa_params: Mapping[str, Any]) -> str:
    """Return what ADMM removes: what annealing has removed when it was judged."""
    algorithm = sa_params.get("pruning_algorithm", "level")
    inner = sa_params.get("pruning_params") or {}
    fine = inner.get("granularity", "fine-grained") == "fine-grained"
    return (
        "fine-grained"
        if algorithm == "level" or (algorithm == "admm" and fine)
        else ("coarse-grained")
    )
