"""Single weights go one by one, and those to their right make up for each: optimal brain surgery.

Frantar and Alistarh, 2023, arXiv:2301.00774 (SparseGPT)
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cholesky import damped_factor, exact
from .polish import polish
from .system import System
from .table import repairs

BLOCK = 128
"""Columns whose errors reach the columns to their right in one product."""


@repairs.register
def sparse(system: System, *, damping: float = 1e-2) -> Tensor:
    """Return weights for a mask of any pattern: SparseGPT's update, then the best on its support.

    ``least_squares`` comes to the same weights without the update, which is worth about one step of
    the polish and takes longer.

    >>> x = torch.tensor([[1.0, 1.0], [2.0, 2.0], [-1.0, -1.0]])
    >>> weight = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    >>> system = System.of(weight, torch.tensor([[False, True], [True, True]]), x)
    >>> sparse(system, damping=1e-6).round(decimals=3)
    tensor([[0., 7.],
            [3., 4.]])

    Args:
        system: the reader, its moments and its mask.
        damping: at least 0, in shares of the inputs' mean second moment.

    Returns:
        Shape ``(out, features)``, in the dtype of the system's weight; zero off the mask.
    """
    return polish(system, obs_update(system, damping=damping), damping=damping)


def obs_update(system: System, *, damping: float = 1e-2) -> Tensor:
    """Return SparseGPT's weights for a mask: ``sparse`` without the polish.

    Row j of the upper factor of the inverse Gram matrix says how the weights after j move when j
    goes, with all before j settled.  An output never gets worse than by its mask alone.
    """
    gram, ridge = exact(system.gram), exact(system.ridge(damping))
    weight, mask = exact(system.weight).T.clone(), system.mask.T  # (features, out)
    missed = exact(system.cross) - gram @ weight
    # the factor of the matrix read backwards, read backwards, is upper; its inverse is wanted
    backwards = damped_factor(gram.flip(0, 1), ridge)
    weight += torch.cholesky_solve(missed.flip(0), backwards).flip(0)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    upper = torch.linalg.solve_triangular(backwards.flip(0, 1), eye, upper=True)
    for start in range(0, len(weight), BLOCK):
        stop = min(start + BLOCK, len(weight))
        inner = upper[start:stop, start:stop]
        part, moved = weight[start:stop], torch.empty_like(weight[start:stop])
        for j in range(stop - start):
            moved[j] = part[j].masked_fill(mask[start + j], 0) / inner[j, j]
            part[j:] -= torch.outer(inner[j, j:], moved[j])
        weight[stop:] -= upper[start:stop, stop:].T @ moved
    new = (weight.T * system.mask).to(system.weight.dtype)
    masked = system.weight * system.mask
    better = system.error(new) < system.error(masked)
    return torch.where(better[:, None], new, masked)
