"""Criteria that look at what weights multiply: they need data, and no labels.

What they ask for has the shape of ``rows``, so that each of them scores channels, heads, experts,
blocks, N:M patterns and single weights alike.  Of a group they score the slices that read it: what
a channel carries, and what becomes of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .criteria import criteria
from .grams import Function


@criteria.register(of="readers", within="row")
def wanda(rows: Tensor, *, input_norm: Tensor) -> Tensor:
    r"""Weights times the norm of what they multiply: :math:`\sum_j |w_j| \|x_j\|`.

    Single weights are compared among those of one output.

    Args:
        rows: weights, ``(units, elements)``.
        input_norm: of the same shape, root mean squares.

    >>> wanda(torch.tensor([[1.0, -3.0]]), input_norm=torch.tensor([[2.0, 1.0]]))
    tensor([5.])

    Sun et al., 2024, arXiv:2306.11695
    """
    return (rows.abs() * input_norm).sum(1)


@criteria.register(of="readers", error="root")
def activation(rows: Tensor, *, input_norm: Tensor) -> Tensor:
    r"""What a unit adds to its readers' outputs: :math:`\sqrt{\sum_j w_j^2 \|x_j\|^2}`.

    Of a channel this is the norm of its activations times the norm of its readers' columns.

    Args:
        rows: weights, ``(units, elements)``.
        input_norm: of the same shape, root mean squares.

    >>> activation(torch.tensor([[3.0, 4.0]]), input_norm=torch.tensor([[2.0, 2.0]]))
    tensor([10.])
    """
    return torch.linalg.vector_norm(rows * input_norm, dim=1)


@criteria.register(of="readers", error="root")
def energy(rows: Tensor, *, input_moments: Function) -> Tensor:
    r"""Root mean square of what a unit adds to outputs: :math:`\sqrt{w_U G_{UU} w_U^T}`.

    As ``activation``, with what a unit's features have in common: the columns of a head, the taps
    of a kernel.

    Args:
        rows: weights, ``(units, elements)``.
        input_moments: rows times second moments, within each unit.

    >>> energy(torch.tensor([[1.0, -1.0]]), input_moments=lambda rows: rows * 4)
    tensor([2.8284])
    """
    return (rows * input_moments(rows)).sum(1).clamp(min=0).sqrt()


@criteria.register(of="readers", error="root")
def obs(rows: Tensor, *, input_inverse: Function) -> Tensor:
    r"""Root mean square error that is left when a unit goes and all others are refitted.

    :math:`\sqrt{w_U ((G^{-1})_{UU})^{-1} w_U^T}`: what ``repair="least_squares"`` cannot make up
    for.

    Args:
        rows: weights, ``(units, elements)``.
        input_inverse: rows times the inverses of the units' blocks of the inverse.

    >>> obs(torch.tensor([[1.0, -1.0]]), input_inverse=lambda rows: rows * 2)
    tensor([2.])

    Hassibi and Stork, 1993; Kurtic et al., 2023, arXiv:2302.04089
    """
    return (rows * input_inverse(rows)).sum(1).clamp(min=0).sqrt()


@criteria.register(of="readers", error="root")
def elimination(rows: Tensor, *, input_elimination: Function) -> Tensor:
    """Root mean square error that a unit adds when its turn comes, the cheapest first.

    As ``obs``, with all that stay refitted after each turn: of two channels that say the same, the
    first costs nothing, and then the other costs much.

    Args:
        rows: weights, ``(units, elements)``.
        input_elimination: from rows to the mean square error of each.

    >>> elimination(torch.ones(2, 1), input_elimination=lambda rows: torch.tensor([0.0, 4.0]))
    tensor([0., 2.])

    Kurtic et al., 2023, arXiv:2302.04089 (ZipLM)
    """
    return input_elimination(rows).clamp(min=0).sqrt()


@criteria.register(of="readers", error="square")
def fluctuation(rows: Tensor, *, input_variance: Tensor) -> Tensor:
    r"""How much outputs vary with a unit: :math:`\sum_j \mathrm{var}(x_j) w_j^2`.

    What does not vary can be put into a bias: it goes with ``repair="bias"``.

    Args:
        rows: weights, ``(units, elements)``.
        input_variance: of the same shape.

    >>> fluctuation(torch.tensor([[3.0, 1.0]]), input_variance=torch.tensor([[2.0, 0.0]]))
    tensor([18.])

    An et al., 2024, arXiv:2312.11983
    """
    return (rows.square() * input_variance).sum(1)


@criteria.register(of="readers")
def apoz(rows: Tensor, *, input_zeros: Tensor) -> Tensor:
    """Share of the activations that are not zero, where they are read.

    Args:
        rows: shape ``(units, elements)``; weights do not matter.
        input_zeros: of the same shape, in [0, 1].

    >>> apoz(torch.ones(1, 2), input_zeros=torch.tensor([[0.25, 0.75]]))
    tensor([0.5000])

    Hu et al., 2016, arXiv:1607.03250
    """
    return (1 - input_zeros).mean(1)


@criteria.register(of="readers")
def mean_activation(rows: Tensor, *, input_mean: Tensor) -> Tensor:
    """Size of the mean activation, where it is read.

    Args:
        rows: shape ``(units, elements)``; weights do not matter.
        input_mean: of the same shape.

    >>> mean_activation(torch.ones(1, 2), input_mean=torch.tensor([[0.25, 0.75]]))
    tensor([0.5000])

    Molchanov et al., 2017, arXiv:1611.06440
    """
    return input_mean.mean(1).abs()
