"""``ADMMPruner``: the method ``admm``, an epoch or more from one projection to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from secateur.errors import ConfigError
from secateur.nni.evaluators import Evaluator
from secateur.nni.pruning.engine import Engine
from secateur.nni.pruning.pruner import at_least_one
from secateur.nni.targets import full_name

from .config_list import RHO
from .pruner import OneShotPruner, nothing
from .signature import also


class ADMMPruner(OneShotPruner):
    """Trains with a pull to sparse weights, then removes the smallest (Zhang et al. 2018).

    The penalty is the paper's, rho / 2 times the *squared* norm; in NNI it is the root of the norm.
    Nothing is trained after the masks are made: fine-tune the model yourself.

    Args:
        model: any module, or None.
        config_list: NNI 2.x's configuration; ``rho`` of an entry, 1e-4 by default, is the weight
            of its pull.
        evaluator: trains the model.
        iterations: trainings with a projection after each.
        training_epochs: of one such training.
        granularity: "fine-grained", single weights, or "coarse-grained", output channels by L1
            norm.
    """

    trains = True

    @also(
        *("model", "config_list", "trainer", "traced_optimizer", "criterion"),
        *("iterations", "training_epochs", "granularity"),
    )
    def __init__(
        self,
        model: nn.Module | None,
        config_list: Sequence[Mapping[str, Any]] | None,
        evaluator: Evaluator,
        iterations: int,
        training_epochs: int,
        granularity: str = "fine-grained",
    ):
        if granularity not in ("fine-grained", "coarse-grained"):
            raise ConfigError(
                f"granularity must be 'fine-grained' or 'coarse-grained', got {granularity!r}."
            )
        self.iterations = at_least_one("iterations", iterations)
        self.training_epochs = at_least_one("training_epochs", training_epochs)
        self.granularity = granularity
        fine = granularity == "fine-grained"
        self.criterion = "magnitude" if fine else "l1"
        self.default_granularity = "element" if fine else "out_channel"
        super().__init__(model, config_list, evaluator)

    def settings(self) -> dict[str, Any]:
        rho = {
            full_name(name, "weight"): float(RHO if goal.rho is None else goal.rho)
            for name, goal in self._goal_of().items()
        }
        options = {"rho": rho, "interval": 1}
        start = self.iterations - 1
        return {
            "criterion": self.criterion,
            "method": "admm",
            "method_options": options,
            "start": start,
        }

    def _learn(self, engine: Engine) -> None:
        for _ in range(self.iterations):
            self._trainer().train(self.bound_model, nothing, max_epochs=self.training_epochs)
            engine.step()
