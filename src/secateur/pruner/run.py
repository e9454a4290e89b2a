"""A run as its parts see it: what was decided so far, and on what."""

from __future__ import annotations

from typing import Any, Protocol
from weakref import WeakSet

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


_masking: WeakSet[Any] = WeakSet()
"""Pruners that have put masks on."""


def keeps_masks(run: Run) -> None:
    """Let other runs know that this one has put its masks on."""
    _masking.add(run)


def check_alone(run: Run) -> None:
    """Raise a ConfigError where another run has masks on a parameter that this one masks."""
    own = dict(run.model.named_parameters())
    names = (part.tensor for each in run.selectables for part in each.parts)
    ours = {id(own[name]): name for name in names if name in own}  # an activation is none
    for other in [each for each in _masking if each is not run]:
        theirs = dict(other.model.named_parameters())
        on = {id(theirs[name]) for name in masks_on(other) if name in theirs}
        if both := [name for at, name in ours.items() if at in on]:
            raise ConfigError(
                f"masks are on {', '.join(both[:3])} that are not of this pruner: another one has "
                "stepped that shares these modules, and two cannot mask one. Prune one model whose "
                "forward runs all that is shared (an nn.Module that holds both), or finish() the "
                "other pruner before this one is made"
            )
