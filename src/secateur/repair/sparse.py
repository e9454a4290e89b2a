"""Single weights go one by one, and those to their right make up for each: optimal brain surgery.

Frantar and Alistarh, 2023, arXiv:2301.00774 (SparseGPT)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.errors import MaskError

from .cholesky import damped_factor, exact
from .polish import polish
from .system import System
from .table import repairs

BLOCK = 128
"""Columns whose errors reach the columns to their right in one product."""

Choose = Callable[[Tensor, int], Tensor]
"""What each weight would cost, ``(columns, out)``, and the first column → bool, True is kept."""


@repairs.register
def sparse(system: System, *, damping: float = 1e-2) -> Tensor:
    """Return weights for a mask of any pattern: SparseGPT's update, then the best on its support.

    For a mask that is given, ``least_squares`` comes to the same weights without the update, which
    is worth about one step of the polish and takes longer; it counts where the mask is chosen by
    what a removal costs, as ``obs_mask`` does.

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
    """Return SparseGPT's weights for the mask that the system has: ``sparse`` without the polish.

    An output never gets worse than by its mask alone.
    """
    mask = system.mask.T
    return _sweep(system, damping, BLOCK, lambda cost, at: mask[at : at + len(cost)])[1]


def obs_mask(
    system: System, remove: int | tuple[int, int], *, damping: float = 1e-2
) -> tuple[Tensor, Tensor]:
    """Choose which weights go by what that costs once the others made up for those before.

    >>> x = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 3.0], [-1.0, -1.0, 2.0]])
    >>> system = System.of(torch.tensor([[3.0, 4.0, 1.0]]), torch.ones(1, 3).bool(), x)
    >>> mask, weight = obs_mask(system, 1, damping=1e-6)
    >>> mask, weight.round(decimals=3)
    (tensor([[False,  True,  True]]), tensor([[0., 7., 1.]]))

    Args:
        system: the reader and its moments; what its mask removes already goes first, and counts.
        remove: how many weights in all, spread evenly over blocks of 128 inputs, in which the
            outputs may lose different numbers; or ``(n, m)``: n of every m consecutive inputs.
        damping: at least 0, in shares of the inputs' mean second moment.

    Returns:
        A bool mask and weights, both ``(out, features)``; no output is worse than by its mask
        alone.  Of equal costs the first input's, then the first output's, goes.

    Raises:
        MaskError: there are not so many weights, or m does not divide the inputs.
    """
    outputs, features = system.weight.shape
    if isinstance(remove, tuple):
        n, m = remove
        if not 0 < n < m or features % m:
            raise MaskError(
                f"{n}:{m} does not fit {features} inputs: m must divide them, 0 < n < m"
            )
        size, choose = m, _lowest_of_each(n, system.mask.T)
    else:
        if not 0 <= remove <= outputs * features:
            raise MaskError(f"cannot remove {remove} of {outputs * features} weights")
        size, choose = BLOCK, _lowest_of_block(remove, system.mask.T)
    return _sweep(system, damping, size, choose)


def _lowest_of_block(remove: int, allowed: Tensor) -> Choose:
    """Return what chooses a block's share of all that go; the shares add up exactly."""

    def choose(cost: Tensor, at: int) -> Tensor:
        width, features = len(cost), len(allowed)
        count = remove * (at + width) // features - remove * at // features
        before = allowed[at : at + width]
        order = cost.masked_fill(~before, -1).flatten().argsort(stable=True)
        keep = before.flatten().clone()
        keep[order[:count]] = False
        return keep.view_as(before)

    return choose


def _lowest_of_each(n: int, allowed: Tensor) -> Choose:
    """Return what chooses the n cheapest of one run of inputs, for each output."""

    def choose(cost: Tensor, at: int) -> Tensor:
        before = allowed[at : at + len(cost)]
        order = cost.masked_fill(~before, -1).argsort(dim=0, stable=True)
        return before.scatter(0, order[:n], False)

    return choose


def _sweep(system: System, damping: float, size: int, choose: Choose) -> tuple[Tensor, Tensor]:
    """Go through the inputs, removing what is chosen every ``size`` of them; mask and weights.

    Inside, weights are held as ``(features, out)``.  Row j of the upper factor of the inverse Gram
    matrix says how those after j move when j does, with all before j settled.
    """
    gram, ridge = exact(system.gram), exact(system.ridge(damping))
    weight = exact(system.weight).T.clone()
    missed = exact(system.cross) - gram @ weight
    # the factor of the matrix read backwards, read backwards, is upper; its inverse is wanted
    backwards = damped_factor(gram.flip(0, 1), ridge)
    weight += torch.cholesky_solve(missed.flip(0), backwards).flip(0)
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    upper = torch.linalg.solve_triangular(backwards.flip(0, 1), eye, upper=True)
    mask = torch.ones_like(weight, dtype=torch.bool)
    block = max(size, BLOCK // size * size)
    for start in range(0, len(weight), block):
        stop = min(start + block, len(weight))
        inner = upper[start:stop, start:stop]
        part, moved = weight[start:stop], torch.empty_like(weight[start:stop])
        for j in range(stop - start):
            if j % size == 0:
                run = slice(j, min(j + size, stop - start))
                cost = part[run] ** 2 / inner.diagonal()[run, None] ** 2
                mask[start:stop][run] = choose(cost, start + j)
            moved[j] = part[j].masked_fill(mask[start + j], 0) / inner[j, j]
            part[j:] -= torch.outer(inner[j, j:], moved[j])
        weight[stop:] -= upper[start:stop, stop:].T @ moved
    kept = mask.T.contiguous()
    new, masked = (weight.T * kept).to(system.weight.dtype), system.weight * kept
    better = system.error(new) < system.error(masked)
    return kept, torch.where(better[:, None], new, masked)
