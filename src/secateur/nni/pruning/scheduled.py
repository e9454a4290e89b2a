"""The pruners that let another one remove a little more at a time while the model trains."""

from __future__ import annotations

from typing import Any

from secateur.nni.evaluators import Evaluator

from .pruner import Pruner, at_least_one


class LinearPruner(Pruner):
    """Reaches the goals of any pruner in equal parts.

    Ratios, thresholds and their bounds all grow from 0 to what the config_list says, after every
    ``interval_steps`` optimizer steps by the same amount, ``total_times`` times.

    Args:
        pruner: what decides what goes: any pruner that has not compressed yet.
        interval_steps: optimizer steps from one update of the masks to the next.
        total_times: updates until the goal.
        evaluator: trains the model; by default the one that ``pruner`` has.

    Raises:
        ConfigError: a number is below 1, or there is no evaluator.
    """

    schedule = "linear"
    trains = True

    def __init__(
        self,
        pruner: Pruner,
        interval_steps: int,
        total_times: int,
        evaluator: Evaluator | None = None,
    ):
        self.pruner = pruner
        self.interval_steps = at_least_one("interval_steps", interval_steps)
        self.total_times = at_least_one("total_times", total_times)
        self.criterion = pruner.criterion
        self.default_granularity = pruner.default_granularity
        evaluator = pruner.evaluator if evaluator is None else evaluator
        super().__init__(pruner.bound_model, pruner.config_list, evaluator)
        self._fused = pruner._fused

    def settings(self) -> dict[str, Any]:
        return {
            **self.pruner.settings(),
            "schedule": self.schedule,
            "start": 0,
            "steps": self.total_times,
            "every": self.interval_steps,
        }


class AGPPruner(LinearPruner):
    """Reaches the goals of any pruner by 1 - (1 - k/K)^3: much at first, little near the end.

    Zhu & Gupta 2017, arXiv:1710.01878.
    """

    schedule = "cubic"
