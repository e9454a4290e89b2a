"""How a fit is conducted, beside what is pruned and how long it may take."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.errors import ConfigError
from secateur.repair import repairs
from secateur.runtime.fingerprints import facts_of
from secateur.runtime.sameness import problem_of_same
from secateur.training.distillation import TEMPERATURE, WEIGHT
from secateur.types import Example

from .precision import AUTO, check
from .rounds import Round

Train = Iterable[Any] | Callable[[], Iterable[Any]]
GIVEN = ("train", "evaluate")
"""What every fit is given."""
COMPARED = ("evaluate", "loss", "optimizer")
"""Functions that decide the numbers of a fit: an interrupted one goes on with the same only."""


@dataclass(frozen=True)
class Options:
    """How a fit is conducted; ``secateur.fit`` takes each field by its name.

    Attributes:
        rounds: prunings on the way to the goal; of one, the smaller model has all of the budget.
        loss: ``(model, batch) → scalar``; by default the cross entropy of pairs, and of dicts the
            ``loss`` that the model returns.
        optimizer: ``(parameters) → optimizer``; by default AdamW, at a rate of 1e-3 or, for models
            that take tokens, 5e-5.
        repair: after each pruning: a name in ``secateur.repairs``, or "none".
        weight: of the dense model's outputs in the loss; see ``Distillation``.
        temperature: of these outputs.
        hidden: names of layers whose outputs are matched as well; see ``Distillation``.
        precision: of training steps: "float32", "bfloat16" (autocast; weights stay as they are), or
            "auto": with a budget of minutes and no ``loss`` of yours, the faster one here.
        example_inputs: as for ``prune``; by default of the first batch.
        folder: where all state is kept; called again, an interrupted fit goes on from there.
        same: of ``COMPARED``, what counts as the same as in the folder though it is other.
        on_round: called with each ``Round``.

    >>> Options(train=[], evaluate=len, rounds=0)
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: rounds must be a whole number from 1 on, got 0
    """

    train: Train
    evaluate: Callable[[nn.Module], float]
    rounds: int = 1
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None
    repair: str = "least_squares"
    weight: float = WEIGHT
    temperature: float = TEMPERATURE
    hidden: Sequence[str] = ()
    precision: str = AUTO
    example_inputs: Example = None
    folder: str | os.PathLike[str] | None = None
    same: Sequence[str] = ()
    on_round: Callable[[Round], object] = print

    def __post_init__(self) -> None:
        if type(self.rounds) is not int or self.rounds < 1:
            raise ConfigError(f"rounds must be a whole number from 1 on, got {self.rounds!r}")
        if self.repair != "none":
            repairs[self.repair]
        check(self.precision)
        for name in ("evaluate", "on_round", "loss", "optimizer"):
            given = getattr(self, name)
            if not callable(given) and not (given is None and name in ("loss", "optimizer")):
                of = " of the parameters that returns one" * (name == "optimizer")
                raise ConfigError(f"{name} must be a function{of}, got a {type(given).__name__}")
        if problem := problem_of_same(self.same, COMPARED):
            raise ConfigError(problem)
        if self.folder is not None and Path(self.folder).is_file():
            raise ConfigError(f"folder={str(self.folder)!r} is a file")

    @classmethod
    def of(
        cls, settings: MutableMapping[str, Any], train: Train, evaluate: Callable[..., Any]
    ) -> Options:
        """Take the fields among settings out of them."""
        names = [field.name for field in fields(cls) if field.name not in GIVEN]
        own = {name: settings.pop(name) for name in names if name in settings}
        return cls(train=train, evaluate=evaluate, **own)

    def given(self) -> dict[str, Any]:
        """Return the facts of the functions that are compared, by name."""
        return {name: facts_of(getattr(self, name)) for name in COMPARED}

    @property
    def file(self) -> Path | None:
        """Where the state is kept."""
        return None if self.folder is None else Path(self.folder) / "fit.safetensors"
