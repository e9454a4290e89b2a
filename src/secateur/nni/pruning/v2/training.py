"""NNI 2.x's pruners that learn from training, and that 3.0 has with other arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.nni.evaluators import Evaluator
from secateur.nni.pruning.engine import Engine
from secateur.nni.pruning.pruner import at_least, at_least_one, not_negative
from secateur.types import Example

from .config_list import modern
from .pruner import OneShotPruner, nothing
from .signature import also

Rules = Sequence[Mapping[str, Any]]
_OLD = ("model", "config_list", "trainer", "traced_optimizer", "criterion")


class SlimPruner(OneShotPruner):
    """Removes what a penalty on its scale has made small (Liu et al. 2017, arXiv:1708.06519).

    Args:
        model: any module, or None.
        config_list: NNI 2.x's configuration, which names batch norms.
        evaluator: trains the model.
        training_epochs: of training with the penalty, after which the masks are made.
        scale: weight of the sum of absolute scales in the loss.
        mode: "global" or "normal".
    """

    criterion = "l2"
    trains = True
    modes = ("global", "normal")

    @also(*_OLD, "training_epochs", "scale", "mode")
    def __init__(
        self,
        model: nn.Module | None,
        config_list: Rules | None,
        evaluator: Evaluator,
        training_epochs: int,
        scale: float = 0.0001,
        mode: str = "global",
    ):
        self.training_epochs = at_least_one("training_epochs", training_epochs)
        self.scale = not_negative("scale", scale)
        super().__init__(model, config_list, evaluator, mode)

    def settings(self) -> dict[str, Any]:
        options = {"strength": self.scale}
        return {"criterion": self.criterion, "method": "slim", "method_options": options}

    def _learn(self, engine: Engine) -> None:
        self._trainer().train(self.bound_model, nothing, max_epochs=self.training_epochs)


class TaylorFOWeightPruner(OneShotPruner):
    """Removes the channels without which the loss would change least (Molchanov et al. 2019).

    Args:
        model: any module, or None.
        config_list: NNI 2.x's configuration.
        evaluator: trains the model.
        training_steps: optimizer steps whose gradients are looked at.
        mode: "normal", "dependency_aware" or "global".
        dummy_input: example inputs, for "dependency_aware".
    """

    criterion = "taylor"
    trains = True
    modes = ("normal", "dependency_aware", "global")

    @also(*_OLD, "training_batches", "mode", "dummy_input", training_batches="training_steps")
    def __init__(
        self,
        model: nn.Module | None,
        config_list: Rules | None,
        evaluator: Evaluator,
        training_steps: int,
        mode: str = "normal",
        dummy_input: Example = None,
    ):
        self.training_steps = at_least_one("training_steps", training_steps)
        super().__init__(model, config_list, evaluator, mode, dummy_input)

    def settings(self) -> dict[str, Any]:
        return {"criterion": self.criterion, "every": self.training_steps}

    def compress(self) -> tuple[nn.Module, dict[str, dict[str, Tensor]]]:  # type: ignore[override]
        """Train, make the masks of the gradients seen, put them on, and return both."""
        return self._trained(self.training_steps)


class MovementPruner(OneShotPruner):
    """Removes the weights that training moves towards zero (Sanh et al. 2020, arXiv:2005.07683).

    Args:
        model: any module, or None.
        config_list: NNI 2.x's configuration; in "soft" mode ``sparsity`` is the threshold.
        evaluator: trains the model.
        warm_up_step: optimizer steps before anything is masked.
        cool_down_beginning_step: the step from which on the goal is held.
        training_epochs, training_steps: how long to train, the first that is met; one is needed.
        regular_scale: weight of the penalty, in "soft" mode.
        movement_mode: "hard" keeps the best scores, "soft" those above a threshold.
        sparse_granularity: "finegrained": single weights; "auto": here blocks of 32 × 32, in NNI
            whole heads and blocks of what it takes for BERT.
    """

    criterion = "magnitude"
    default_granularity = "element"
    trains = True

    @also(*_OLD, "training_epochs", "warm_up_step", "cool_down_beginning_step")
    def __init__(
        self,
        model: nn.Module | None,
        config_list: Rules | None,
        evaluator: Evaluator,
        warm_up_step: int,
        cool_down_beginning_step: int,
        training_epochs: int | None = None,
        training_steps: int | None = None,
        regular_scale: float | None = None,
        movement_mode: str = "hard",
        sparse_granularity: str = "finegrained",
    ):
        first = at_least(0, "warm_up_step", warm_up_step)
        last = at_least_one("cool_down_beginning_step", cool_down_beginning_step)
        at_least_one("cool_down_beginning_step - warm_up_step", last - first)
        if training_epochs is None and training_steps is None:
            raise ConfigError("MovementPruner needs training_epochs or training_steps")
        for name, limit in (("epochs", training_epochs), ("steps", training_steps)):
            if limit is not None:
                at_least_one(f"training_{name}", limit)
        for name, value, known in (
            ("movement_mode", movement_mode, ("hard", "soft")),
            ("sparse_granularity", sparse_granularity, ("finegrained", "auto")),
        ):
            if value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
        self.warm_up_step, self.cool_down_beginning_step = warm_up_step, cool_down_beginning_step
        self.training_epochs, self.training_steps = training_epochs, training_steps
        scale = 1.0 if regular_scale is None else regular_scale
        self.regular_scale = not_negative("regular_scale", scale)
        self.movement_mode, self.sparse_granularity = movement_mode, sparse_granularity
        super().__init__(model, config_list, evaluator)

    def settings(self) -> dict[str, Any]:
        return {
            "method": "movement",
            "method_options": {"strength": self.regular_scale},
            "schedule": "cubic",
            "start": self.warm_up_step,
            "steps": self.cool_down_beginning_step - self.warm_up_step,
        }

    def compress(self) -> tuple[nn.Module, dict[str, dict[str, Tensor]]]:  # type: ignore[override]
        """Train while the scores learn, put the masks on the model, and return both."""
        return self._trained(self.training_steps, self.training_epochs)

    def _modern(self, model: nn.Module) -> list[dict[str, Any]]:
        entries = modern(self.goals, model)
        for entry in entries:
            if self.sparse_granularity == "auto":
                entry["granularity"] = [32, 32]
            if self.movement_mode == "soft":
                entry["sparse_threshold"] = entry.pop("sparse_ratio")
        return entries
