"""What a method may see and change of the run that it is part of; ``Pruner`` is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from secateur.config import Config
from secateur.selection.targets import Selectable
from secateur.types import Masks, Scores


class Run(Protocol):
    """A pruning run, as its method sees it."""

    model: nn.Module
    config: Config
    selectables: list[Selectable]
    """What is decided on; a method may replace an entry by another of the same name."""

    @property
    def masks(self) -> Masks:
        """Parameter name → bool tensor of its shape, True is kept; of the last pruning step."""

    @property
    def keeps(self) -> dict[str, Tensor]:
        """Name of a group or target → bool tensor, one decision per position."""

    @property
    def share(self) -> float:
        """The share of the goal that the schedule asks for now, in [0, 1]."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what is scored and masked by name: the parameters, without their masks."""

    def scores(self, tensors: Mapping[str, Tensor], given: Scores) -> list[Tensor]:
        """Return the scores of each selectable: those that are given, and else the criterion's."""

    def masks_of(self, tensors: Mapping[str, Tensor]) -> Masks:
        """Return the masks that the whole goal makes of other values of the parameters."""
