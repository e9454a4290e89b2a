"""What an allocator is given, and what it returns."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from reprlib import repr as brief
from typing import Any, Protocol

from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.runtime.values import as_number
from secateur.selection.select import Request
from secateur.selection.targets import Selectable
from secateur.structure import Structure

Spread = Callable[[float], Sequence[float]]
"""A strength in [0, 1] → the share that each selectable loses: nothing at 0, and it never falls."""

ROUNDING = 1e-9
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


def held(name: str, spread: object, count: int) -> Spread:
    """Return a spread of so many shares that refuses to return what a search cannot use.

    >>> held("mine", lambda strength: [0.5], 1)
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: allocation 'mine' must let nothing go at 0, and gives 0.5

    Raises:
        ConfigError: it is no function, or, when it is called, gives something else than shares.
    """
    if not callable(spread):
        raise ConfigError(
            f"allocation {name!r} must return a function of a strength, not {brief(spread)}"
        )
    asked: list[tuple[float, list[float]]] = []

    def shares(strength: float) -> list[float]:
        given = spread(strength)
        found = [as_number(share) for share in given] if isinstance(given, Iterable) else []
        if len(found) != count or not all(0 <= share <= 1 for share in found):
            raise ConfigError(
                f"allocation {name!r} must give a share from 0 to 1 for each of the {count} of "
                f"case.selectables, and gives {brief(given)} at {strength:.3g}"
            )
        at = bisect([before for before, _ in asked], strength)
        asked.insert(at, (strength, found))
        for (low, less), (high, more) in pairwise(asked[max(at - 1, 0) : at + 2]):
            if fell := [i for i in range(count) if more[i] < less[i] - ROUNDING]:
                first = fell[0]
                raise ConfigError(
                    f"allocation {name!r} gives selectable {first} a share of {less[first]:.3g} at "
                    f"a strength of {low:.3g} and of {more[first]:.3g} at {high:.3g}: none may fall"
                )
        return found

    if most := max(shares(0.0), default=0.0):
        raise ConfigError(f"allocation {name!r} must let nothing go at 0, and gives {most:.3g}")
    for strength in (0.5, 1.0):
        shares(strength)
    return shares
