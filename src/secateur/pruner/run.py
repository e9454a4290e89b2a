"""A run as its parts see it: what was decided so far, and on what."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from secateur.config import Config
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
