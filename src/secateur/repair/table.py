"""The table of repairs: how what stays of a reader makes up for what goes.

A repair is a function ``(system, *, damping) -> weight``: a new weight of shape
``(out, features)``, zero off the mask.  The damping is the strength with which weights are held to
their old values, in shares of the inputs' mean second moment.  Registering it is all that it takes.

>>> import secateur.repair
>>> "least_squares" in repairs
True
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, overload

from torch import Tensor

from secateur.errors import ScoreError
from secateur.registry import F, Registry
from secateur.runtime.values import not_finite

from .system import System


class RepairRegistry(Registry):
    """A registry that knows which repairs look at second moments, and which leave weights alone.

    >>> import secateur.repair
    >>> [name for name in repairs if name in repairs.means_only]
    ['bias']
    """

    def __init__(self, kind: str):
        super().__init__(kind, takes="system, *, damping")
        self.means_only: set[str] = set()

    @overload
    def register(self, function: F) -> F: ...

    @overload
    def register(self, *, means_only: bool) -> Callable[[F], F]: ...

    def register(self, function: Any = None, *, means_only: bool = False) -> Any:
        """Register a repair under its own name.

        Args:
            function: ``(system, *, damping) -> weight``.
            means_only: it returns the masked weight: then no second moments are summed, and only
                intercepts change.
        """
        if function is None:
            return partial(self.register, means_only=means_only)
        super().register(function)
        if means_only:
            self.means_only.add(function.__name__)
        return function


repairs = RepairRegistry("repair")


def solver(how: str) -> Callable[..., Tensor]:
    """Return a repair that raises a ScoreError where its weight is none for the system.

    Raises:
        UnknownNameError: there is no such repair.
    """
    solve = repairs[how]

    def solved(system: System, *, damping: float) -> Tensor:
        weight = solve(system, damping=damping)
        wanted = system.weight
        if not isinstance(weight, Tensor) or weight.shape != wanted.shape:
            said = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            raise ScoreError(
                f"repair {how!r} must return a weight of shape {tuple(wanted.shape)}, not {said}"
            )
        if not_finite({how: weight}):
            raise ScoreError(
                f"repair {how!r} returned NaN or infinite weights, damping {damping:g}"
            )
        if bool(weight.where(system.mask, 0).ne(weight).any()):
            raise ScoreError(f"repair {how!r} must return zeros where the mask is False")
        return weight.to(wanted)

    return solved
