"""The pruners that learn from training what to remove."""

from __future__ import annotations

from typing import Any, Self

from torch import nn

from secateur.nni.evaluators import Evaluator

from .pruner import Pruner, at_least, at_least_one, not_negative


class TaylorPruner(Pruner):
    r"""Removes the channels without which the loss would change least, to first order.

    The score of a unit is :math:`\sum (w \cdot g)^2` with its weights and their gradients, the
    mean over ``training_steps`` optimizer steps, or over each interval of a schedule (Molchanov et
    al. 2019, arXiv:1906.10771).  Of an input or output, ``w`` is its gate, 1, so that :math:`g`
    sums its values times their gradients (Molchanov et al. 2017, arXiv:1611.06440).

    Args:
        model: any module.
        config_list: NNI's configuration.
        evaluator: trains the model.
        training_steps: optimizer steps after which the masks are made.
        existed_wrappers: accepted for NNI's signature, and not needed.
    """

    criterion = "taylor"
    trains = True

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator,
        training_steps: int,
        existed_wrappers: Any = None,
    ):
        self.training_steps = at_least_one("training_steps", training_steps)
        super().__init__(model, config_list, evaluator)

    @classmethod
    def from_compressor(  # type: ignore[override]
        cls,
        compressor: Pruner,
        new_config_list: list[dict[str, Any]],
        training_steps: int,
        evaluator: Evaluator | None = None,
    ) -> Self:
        """Return a pruner that works on the model of ``compressor``, and with it."""
        return cls._beside(compressor, new_config_list, evaluator, training_steps)

    def settings(self) -> dict[str, Any]:
        return {"criterion": self.criterion, "every": self.training_steps}


class SlimPruner(Pruner):
    r"""Removes what a penalty on its scale has made small (Liu et al. 2017, arXiv:1708.06519).

    The loss gains the L1 norm of the targets' scales; the smallest go.  Name the batch norms in the
    config_list: their weights are the paper's scales, of which NNI learns others instead.  The
    scale of a target with larger units, such as the channels of a convolution, is their L2 norm
    (group lasso; Wen et al. 2016, arXiv:1608.03665).  Of one ``global_group_id`` for all, as in the
    paper, the scales are ranked together.

    Args:
        model: any module.
        config_list: NNI's configuration.
        evaluator: trains the model.
        training_steps: optimizer steps after which the masks are made.
        regular_scale: times the mean over the targets of their L1 norms is added to the loss.  The
            paper's :math:`\lambda` is this divided by the number of targets.
        existed_wrappers: accepted for NNI's signature, and not needed.
    """

    criterion = "l2"
    trains = True

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator,
        training_steps: int,
        regular_scale: float = 1.0,
        existed_wrappers: Any = None,
    ):
        self.training_steps = at_least_one("training_steps", training_steps)
        self.regular_scale = not_negative("regular_scale", regular_scale)
        super().__init__(model, config_list, evaluator)

    @classmethod
    def from_compressor(  # type: ignore[override]
        cls,
        compressor: Pruner,
        new_config_list: list[dict[str, Any]],
        training_steps: int,
        regular_scale: float = 1.0,
        evaluator: Evaluator | None = None,
    ) -> Self:
        """Return a pruner that works on the model of ``compressor``, and with it."""
        return cls._beside(compressor, new_config_list, evaluator, training_steps, regular_scale)

    def settings(self) -> dict[str, Any]:
        penalised = sum(target.align is None for target in self.targets)
        return {
            "criterion": self.criterion,
            "method": "slim",
            "method_options": {"strength": self.regular_scale / max(penalised, 1)},
            "every": self.training_steps,
        }


class MovementPruner(Pruner):
    """Removes the weights that training moves towards zero (Sanh et al. 2020, arXiv:2005.07683).

    Each unit of a target's granularity has a score that is learned through the mask; from step
    ``warmup_step`` to ``cooldown_begin_step`` the sparsity grows to its goal, by a cubic schedule.
    A ``sparse_ratio`` keeps the best scores ("hard"), a ``sparse_threshold`` those whose sigmoid is
    above it ("soft").  As in the paper, and not in NNI, the scores' learning rate follows the
    weights'; scores are no parameters of the model, so that neither clipping nor weight decay nor
    the model's files touch them.

    Args:
        model: any module.
        config_list: NNI's configuration.
        evaluator: trains the model.
        warmup_step: optimizer steps before anything is masked.
        cooldown_begin_step: the step from which on the goal is held.
        regular_scale: weight of the mean of the scores' sigmoids in the loss, with a threshold.
        existed_wrappers: accepted for NNI's signature, and not needed.
    """

    trains = True

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator,
        warmup_step: int,
        cooldown_begin_step: int,
        regular_scale: float = 1.0,
        existed_wrappers: Any = None,
    ):
        self.warmup_step = warmup_step
        self.cooldown_begin_step = cooldown_begin_step
        first = at_least(0, "warmup_step", warmup_step)
        last = at_least_one("cooldown_begin_step", cooldown_begin_step)
        at_least_one("cooldown_begin_step - warmup_step", last - first)
        self.regular_scale = not_negative("regular_scale", regular_scale)
        super().__init__(model, config_list, evaluator)

    @classmethod
    def from_compressor(  # type: ignore[override]
        cls,
        compressor: Pruner,
        new_config_list: list[dict[str, Any]],
        warmup_step: int,
        cooldown_begin_step: int,
        regular_scale: float = 1.0,
        evaluator: Evaluator | None = None,
    ) -> Self:
        """Return a pruner that works on the model of ``compressor``, and with it."""
        steps = warmup_step, cooldown_begin_step
        return cls._beside(compressor, new_config_list, evaluator, *steps, regular_scale)

    def settings(self) -> dict[str, Any]:
        return {
            "method": "movement",
            "method_options": {"strength": self.regular_scale},
            "schedule": "cubic",
            "start": self.warmup_step,
            "steps": self.cooldown_begin_step - self.warmup_step,
        }
