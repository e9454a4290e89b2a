"""How strongly weights are held to their old values: as rows that were not fitted say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from .system import LEAST, System

CANDIDATES = (LEAST, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Fitted(NamedTuple):
    """A weight, the damping that made it (None: left as it was), and its error on held-out rows."""

    weight: Tensor
    damping: float | None
    error: float


def best(
    solve: Callable[..., Tensor],
    fit: System,
    held: System,
    candidates: Sequence[float] = CANDIDATES,
) -> Fitted:
    """Return the repair with the least error on held-out rows, summed over the outputs.

    The masked weight as it is takes part, so that no repair is kept that only fits its own rows.

    >>> import torch
    >>> from secateur.repair.least_squares import least_squares
    >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> x[:, 2] = x[:, 1]
    >>> weight, mask = torch.ones(2, 3), torch.tensor([True, True, False]).expand(2, 3)
    >>> halves = [System.of(weight, mask, half) for half in x.split(20)]
    >>> best(least_squares, *halves).damping
    1e-07

    Args:
        solve: ``(system, *, damping) -> weight``, as in the registry ``repairs``.
        fit: what is solved.
        held: the same reader on other rows, which only judge.
        candidates: dampings to try; of equal errors the first is taken.
    """
    asis = fit.weight * fit.mask
    found = Fitted(asis, None, float(held.error(asis).sum()))
    for damping in candidates:
        weight = solve(fit, damping=damping)
        error = float(held.error(weight).sum())
        if error < found.error:
            found = Fitted(weight, damping, error)
    return found
