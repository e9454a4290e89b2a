"""Backward elimination: which unit goes next, when all that stay make up for those that went.

Kurtic et al., 2023, arXiv:2302.04089 (ZipLM)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 64
"""In so many rounds all units go; in one, turns are taken among the cheapest, ``NEAR`` times as
many as go, and the others follow at its end.  Of fewer units all take part in every turn."""
NEAR = 2


@dataclass
class Remaining:
    """What is left of one reader's inputs: ``weight`` multiplies them, refitted to what stays.

    ``weight`` is ``(out, features)``, ``inverse`` the inverse of the second moments of the
    features, and ``units`` says which unit each feature belongs to; what belongs to none that may
    go has the number behind the last, and stays.
    """

    weight: Tensor
    inverse: Tensor
    units: Tensor

    def costs(self, count: int) -> Tensor:
        """Return the error that each of ``count`` units would leave if it went next, float64."""
        found = self.weight.new_zeros(count)
        sizes = torch.bincount(self.units, minlength=count)[: count + 1]
        sizes[count:] = 0
        for size in sizes[sizes > 0].unique().tolist():
            members = (sizes[self.units] == size).nonzero()[:, 0]
            members = members[self.units[members].argsort(stable=True)].reshape(-1, size)
            blocks = self.inverse[members[:, :, None], members[:, None, :]]
            w = self.weight[:, members].movedim(1, 0)  # units, out, size
            solved = torch.linalg.solve(blocks, w.mT)
            found[self.units[members[:, 0]]] = (w.mT * solved).sum((1, 2))
        return found

    def among(self, units: Tensor) -> Remaining:
        """Return what is left of some units' features, by a bool for each unit."""
        f = self._which(units).nonzero()[:, 0]
        return Remaining(self.weight[:, f], self.inverse[f][:, f], self.units[f])

    def _which(self, units: Tensor) -> Tensor:
        """Return a bool for each feature: whether its unit is one of these."""
        return F.pad(units, (0, 1))[self.units]

    def drop(self, gone: Tensor) -> None:
        """Take units away, and let the others make up for them; ``gone`` is bool, by unit."""
        leaves = self._which(gone)
        out, stay = leaves.nonzero()[:, 0], (~leaves).nonzero()[:, 0]
        if not len(out):
            return
        rows = self.inverse[out]
        moved = torch.linalg.solve(rows[:, out], rows[:, stay])
        inverse = self.inverse[stay]
        self.inverse = inverse[:, stay].addmm_(inverse[:, out], moved, alpha=-1)
        self.weight = self.weight[:, stay].addmm_(self.weight[:, out], moved, alpha=-1)
        self.units = self.units[stay]


def eliminate(readers: Sequence[Remaining], count: int) -> Tensor:
    """Return for each of ``count`` units the error that it adds when its turn comes, float64.

    Errors grow with the turns, so that ranking by them is the order in which units go.

    >>> gram = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 4.0]]).double()
    >>> reader = Remaining(
    ...     torch.ones(1, 3).double(),
    ...     torch.linalg.inv(gram + 1e-9 * torch.eye(3).double()),
    ...     torch.arange(3),
    ... )
    >>> eliminate([reader], 3).round(decimals=3)  # the first two say the same
    tensor([0., 4., 4.], dtype=torch.float64)
    """
    errors = torch.zeros(count, dtype=torch.float64, device=readers[0].weight.device)
    alive = torch.ones_like(errors, dtype=torch.bool)
    step, level = max(1, count // ROUNDS), errors.new_zeros(())

    def cheapest(parts: Sequence[Remaining], among: Tensor, many: int) -> tuple[Tensor, Tensor]:
        costs = torch.stack([part.costs(count) for part in parts]).sum(0)
        left = among.nonzero()[:, 0]  # of what overflows, too, somebody goes
        return costs, left[costs[left].argsort(stable=True)[:many]]

    while alive.any():
        near, gone = torch.zeros_like(alive), torch.zeros_like(alive)
        near[cheapest(readers, alive, NEAR * step)[1]] = True
        parts = [reader.among(near) for reader in readers]
        for _ in range(min(step, int(near.sum()))):
            costs, unit = cheapest(parts, near & ~gone, 1)
            errors[unit] = level = costs[unit].clamp(min=level)
            turn = torch.zeros_like(alive)
            turn[unit] = True
            for part in parts:
                part.drop(turn)
            gone |= turn
        alive &= ~gone
        for reader in readers:
            reader.drop(gone)
    return errors
