"""A run as its parts see it: what was decided so far, and on what."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from secateur.config import Config
from secateur.errors import ConfigError
from secateur.masks import masking
from secateur.selection.decision import Decision
from secateur.selection.running import RunningScores
from secateur.selection.targets import Selectable
from secateur.training import Method
from secateur.types import Masks

from .candidates import Candidates
from .optimizing import Optimizing


class Run(Protocol):
    """What a ``Pruner`` knows of its run.

    Attributes:
        calls: of ``step``.
        before: what was masked before the last decision; None where that was repaired.
        whole: what was decided on is the whole goal.
    """

    model: nn.Module
    config: Config
    method: Method
    selectables: list[Selectable]
    candidates: Candidates
    statistics: RunningScores
    optimizing: Optimizing
    decision: Decision
    calls: int
    before: Masks | None
    whole: bool

    @property
    def share(self) -> float:
        """The share of the goal that is asked for now."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what is scored and masked by name."""


def masks_on(run: Run) -> Masks:
    """Return the masks that are on the model: none before the first pruning step."""
    return run.decision.masks if masking.is_masked(run.model) else {}


def check_alone(run: Run) -> None:
    """Raise a ConfigError where a run that has decided nothing finds masks on its model."""
    if run.decision.masks or not masking.is_masked(run.model):
        return
    found = [name for name, mask in masking.masks_on(run.model).items() if not mask.all()]
    if not found:  # a method that learns masks puts them on before they mask anything
        return
    raise ConfigError(
        f"masks are on {', '.join(found[:3])} that are not of this pruner: since it was made "
        "another one has stepped that shares these modules, and two cannot mask one. Prune one "
        "model whose forward runs all that is shared (an nn.Module that holds both), or finish() "
        "the other pruner before this one is made"
    )
