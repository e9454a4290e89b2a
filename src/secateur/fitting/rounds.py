"""What a fit tells: each round, and what came of all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from secateur.shrinking import Result


@dataclass(frozen=True)
class Round:
    """Where a fit was when it was measured: after so many prunings, and training since.

    >>> print(Round(2, 5, 120, 31.4, 0.912))
    pruned 2 of 5, step 120, 31 s: 0.912
    """

    number: int
    of: int
    step: int
    seconds: float
    value: float
    """What ``evaluate`` returned."""

    def __str__(self) -> str:
        return (
            f"pruned {self.number} of {self.of}, step {self.step}, {self.seconds:.0f} s: "
            f"{self.value:.4g}"
        )

    def facts(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> Round:
        """Return the round that ``facts`` are of."""
        return cls(**facts)


def kept(rounds: Sequence[Round], dense: float) -> Round:
    """Return the round whose model is kept: the best that was trained.

    Where training costs more than the cut itself did, it is the cut as the repair left it.  A
    smaller loss is no reason: on samples that the dense model was trained on, what is nearest to
    it looks best.

    >>> cut, trained = Round(1, 1, 0, 1.0, 0.98), Round(1, 1, 9, 3.0, 0.97)
    >>> kept([cut, trained], dense=1.0).step, kept([cut, trained], dense=0.985).step
    (9, 0)

    Args:
        rounds: of which those in which all was pruned count, the first before it was trained.
        dense: what ``evaluate`` returned for the dense model.
    """
    cut, *trained = [each for each in rounds if each.number == each.of]
    least = cut.value - max(dense - cut.value, 0.0)
    good = [each for each in trained if each.value >= least]
    return max(good, key=lambda each: each.value) if good else cut


@dataclass
class Fitted:
    """A smaller model that was trained, and what was measured on the way.

    Attributes:
        result: of the cut, with the plan; its ``model`` has the weights of the best round.
        rounds: in their order; those after the last pruning are of the model that is returned.
        dense: what ``evaluate`` returned for the dense model.
        precision: of the training steps, "float32" or "bfloat16".

    >>> from secateur import prune
    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> result = prune(net, torch.zeros(1, 8), 0.5)
    >>> Fitted(result, 0.92, [Round(1, 1, 9, 3.0, 0.90), Round(1, 1, 18, 6.0, 0.91)]).best
    0.91

    See also:
        ``fit``, which returns one.
    """

    result: Result
    dense: float
    rounds: list[Round] = field(default_factory=list)
    precision: str = "float32"

    @property
    def model(self) -> nn.Module:
        """The smaller model."""
        return self.result.model

    @property
    def best(self) -> float:
        """The value of the round that the model is of."""
        return kept(self.rounds, self.dense).value

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the smaller model and its plan; see ``Result.save``."""
        return Path(self.result.save(folder))

    def __str__(self) -> str:
        return f"{self.result}\ndense {self.dense:.4g}, smaller {self.best:.4g}"
