"""What an allocator is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.selection.select import Request
from secateur.selection.targets import Selectable
from secateur.structure import Structure

Spread = Callable[[float], Sequence[float]]
"""A strength in [0, 1] → the share that each selectable loses; never falls, and ends at 1."""

FOREIGN = "the state of the run shares its goal out among other groups than there are"
"""Said of what an allocator is to have found out, and cannot have."""

Curve = list[tuple[float, float]]
"""(Share of a group that goes, error of the model's output), ascending."""


class Measure(Protocol):
    """How far the output is off when positions go.

    ``squares``: of outputs, logits too; ``goal``: beside all blocks that go.
    """

    def __call__(
        self, keeps: Mapping[int, Tensor], *, squares: bool = False, goal: bool = False
    ) -> float: ...


@dataclass
class Known:
    """What a run knows besides scores.

    Attributes:
        model: the dense model.
        batches: of inputs, where the run has data.
        labelled: the run has data, whose batches are what a loss takes.
        error: how far the model's output is from the dense one's when these positions are kept, by
            place of the selectable; after the repair that will follow, if one will.
        estimated: such errors of many cuts at once, in squares of outputs, from gradients; None
            where these do not tell.
        curves: errors of these scores that are known already, by places of selectables.
        found: what an allocator has found out, as plain data: a run that is resumed has it.
        notes: what a user is told of it.
    """

    model: nn.Module | None = None
    batches: Sequence[Any] = ()
    labelled: bool = False
    error: Measure | None = None
    estimated: Callable[[Sequence[dict[int, Tensor]]], Sequence[float | None]] | None = None
    curves: dict[tuple[int, ...], Curve] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Case:
    """What is decided on, and what is known of it.

    Attributes:
        selectables: what is decided on, with ``requests`` that have scores.
        units: places of selectables that keep equally many positions, and of each other one.
        alike: all lose the same share, as far as that is the allocator's choice.
        keeps: what stays of each selectable when they lose these shares.
        over: how far such selectables are over the goal, 1 is met.
    """

    selectables: Sequence[Selectable]
    requests: Sequence[Request]
    units: Sequence[Sequence[int]]
    alike: bool
    structure: Structure | None
    keeps: Callable[[Sequence[float]], Sequence[Tensor]]
    over: Callable[[Sequence[float]], float]
    known: Known

    def needs_data(self, name: str) -> Sequence[Any]:
        """Return the batches.

        Raises:
            ConfigError: there are none.
        """
        if self.known.batches:
            return self.known.batches
        if self.known.labelled:
            raise ConfigError(
                f"allocate={name!r} runs the model on batches of inputs, and with loss=… a batch "
                "is what the loss takes: leave loss=… out, with a criterion that needs none; or "
                "use Pruner, and after calibrate(batches, loss) call calibrate(batches of inputs)"
            )
        raise ConfigError(
            f"allocate={name!r} needs data: give prune(..., data=batches of inputs), or call "
            "calibrate(batches) before step(), also after a resume"
        )
