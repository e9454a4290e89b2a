"""One trial: allocation → prune → repair → train → evaluate, the same whenever it is run again."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from secateur.config import Config
from secateur.errors import ConfigError
from secateur.pruner import Pruner
from secateur.runtime.copying import copied
from secateur.runtime.drawing import keep_generators
from secateur.runtime.ordinary import in_ordinary_mode
from secateur.runtime.undo import Undo
from secateur.shrinking import Result
from secateur.types import Example

GOALS = {"of", "budget", "allocate", "allocation"}
"""Settings that an allocation of every group stands for."""
Score = float | Tensor
Evaluate = Callable[[nn.Module], Score | Iterator[Score]]
Train = Callable[[nn.Module], object]
Stop = Callable[[int, float], bool]


@dataclass(frozen=True)
class Job:
    """What is done to a copy of the model in each trial.

    Attributes:
        pruner: of the dense model, which has seen the data that its criterion needs.
        example: example inputs.
        data: batches that a repair sees.
        repair: a name in ``secateur.repairs``, or None.
        train: ``(model) → anything``: trains the smaller model a little.
        evaluate: ``(model) → number``, or an iterator over numbers of which the last one counts.
    """

    pruner: Pruner
    example: Example
    data: list[Any] | None
    repair: str | None
    train: Train | None
    evaluate: Evaluate

    def pruned(self, removed: Mapping[str, float], seed: int, *, verify: bool = False) -> Result:
        """Return the smaller model of an allocation, repaired and trained.

        Args:
            removed: group or tensor → the share of its positions that goes.
            seed: of what training draws.
            verify: compare it with the masked model.
        """
        result = self._cut(removed, verify)
        if self.train is not None:
            with seeded(seed):
                self.train(result.model)
        return result

    @in_ordinary_mode
    def _cut(self, removed: Mapping[str, float], verify: bool) -> Result:
        given = self.pruner.config.model_fields_set - GOALS
        kept = {name: getattr(self.pruner.config, name) for name in given}
        config = Config(**kept, allocation=dict(removed))
        pruner = Pruner(
            copied(self.pruner.model),
            config,
            self.example,
            structure=self.pruner.structure,
            trained=False,
        )
        pruner.statistics.load_state_dict(self.pruner.statistics.state_dict())
        pruner.decide()
        if self.repair is not None and self.data is not None:
            pruner.repair(self.data, self.repair)
        return pruner.finish(verify=verify)

    def score(self, model: nn.Module, seed: int, stop: Stop) -> float | None:
        """Return what ``evaluate`` says of a model, or None where it was stopped on the way.

        Args:
            model: the smaller one.
            seed: of what evaluating draws.
            stop: is told each number that evaluate yields, and returns that this is enough.

        Raises:
            ConfigError: it says no number, or NaN.
        """
        with seeded(seed):
            found = self.evaluate(model)
            if not isinstance(found, Iterator):
                return number(found)
            value = None
            for step, each in enumerate(found):
                value = number(each)
                if stop(step, value):
                    return None
        if value is None:
            raise ConfigError("evaluate yielded nothing: yield a number at least once")
        return value


def number(found: object) -> float:
    """Return a score as a float.

    >>> number(torch.tensor(0.5)), number(1)
    (0.5, 1.0)
    >>> number("0.5")
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: evaluate must return a number, got '0.5' (str)
    """
    if isinstance(found, Tensor) and found.numel() == 1:
        found = found.item()
    if not isinstance(found, Real):
        raise ConfigError(f"evaluate must return a number, got {found!r} ({type(found).__name__})")
    value = float(found)
    if not isfinite(value):
        raise ConfigError(
            f"evaluate returned {value}, with which nothing can be compared; of a model that is no "
            "good, return a number that is far from all others"
        )
    return value


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let what is drawn within it be the same each time, and the process go on as before."""
    numpy: Any = sys.modules.get("numpy")
    with Undo() as undo:
        keep_generators(undo)
        torch.manual_seed(seed)
        random.seed(seed)
        if numpy:
            numpy.random.seed(seed)
        yield
