"""The best weights under any mask: conjugate gradients on every output's own support, together.

Meng et al., 2024, arXiv:2406.07831 (ALPS)
"""

from __future__ import annotations

import torch
from torch import Tensor

from .system import System

TOLERANCE = 1e-8
"""A step that takes less than this share of an output's energy off its error is the last."""


def polish(system: System, weight: Tensor, *, damping: float = 1e-2, steps: int = 32) -> Tensor:
    r"""Return weights with a smaller error than the given ones, zero where those of a mask are.

    Each output minimises :math:`\|Xv - y\|^2 / n + \lambda \|v - w\|^2` over the inputs that its
    row of the mask keeps, by conjugate gradients preconditioned by the diagonal.  A step is one
    product with the Gram matrix for all outputs.  An output whose error did not fall keeps what
    it was given.

    >>> x = torch.tensor([[1.0, 1.0], [2.0, 2.0], [-1.0, -1.0]])
    >>> weight = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    >>> system = System.of(weight, torch.tensor([[True, False], [False, True]]), x)
    >>> polish(system, weight, damping=0.0).round(decimals=3)
    tensor([[7., 0.],
            [0., 7.]])

    Args:
        system: the reader, its moments and its mask.
        weight: where to start, ``(out, features)``; what it holds off the mask is dropped.
        damping: at least 0, in shares of the inputs' mean second moment.
        steps: the most steps; fewer where all outputs are done.
    """
    start = weight * system.mask
    ridge = system.ridge(damping)
    preconditioner = 1 / (system.gram.diagonal().clamp(min=0) + ridge)
    now = start.clone()
    left = system.cross.T + ridge * (system.weight - now) - now @ system.gram
    left *= system.mask
    ahead = left * preconditioner
    power = (left * ahead).sum(1)
    for _ in range(steps):
        image = (ahead @ system.gram + ridge * ahead) * system.mask
        bend = (ahead * image).sum(1)
        length = _ratio(power, bend)
        now += length[:, None] * ahead
        if bool((length * power <= TOLERANCE * system.energy).all()):
            break
        left -= length[:, None] * image
        scaled = left * preconditioner
        before, power = power, (left * scaled).sum(1)
        ahead = scaled + _ratio(power, before)[:, None] * ahead
    better = system.error(now) < system.error(start)
    return torch.where(better[:, None], now, start)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Divide, with 0 where there is nothing left to move or nothing that bends."""
    return torch.where((above > 0) & (below > 0), above / below, 0)
