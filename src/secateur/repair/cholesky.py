"""Factors of damped Gram matrices, which exist whatever rank the data had."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import ScoreError

LAST = 1e12
"""So many times the damping that was asked for never helps a matrix that is a Gram matrix."""


def exact(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, where its device has that."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def damped_factor(gram: Tensor, ridge: Tensor) -> Tensor:
    """Return the lower Cholesky factor of ``gram + ridge · I``.

    Where rounding leaves that without a factor, the ridge grows tenfold until there is one.

    >>> gram = torch.ones(2, 2, dtype=torch.float64)  # of rank 1
    >>> factor = damped_factor(gram, torch.tensor(1e-7))
    >>> torch.allclose(factor @ factor.T, gram)
    True

    Args:
        gram: ``(features, features)``, positive semidefinite up to rounding.
        ridge: above 0, without dimensions.

    Raises:
        ScoreError: the matrix is far from positive semidefinite.
    """
    times = 1.0
    while times <= LAST:
        damped = gram.clone()
        damped.diagonal().add_(times * ridge)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed and bool(factor.diagonal().isfinite().all()):
            return factor
        times *= 10
    raise ScoreError(
        "second moments of a reader's inputs are far from positive semidefinite, which no data's"
        " are: look at how they were summed"
    )
