"""What the inputs that stay can say about the outputs of all: one linear solve per reader.

Luo et al., 2017, arXiv:1707.06342 (ThiNet); He et al., 2017, arXiv:1707.06168
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cholesky import damped_factor, exact
from .polish import polish
from .system import System
from .table import repairs


@repairs.register
def least_squares(system: System, *, damping: float = 1e-2) -> Tensor:
    r"""Return the weight on the kept inputs whose outputs are nearest to the dense model's.

    It is the least of :math:`\|XV^T - Y\|^2 / n + \lambda \|V - W\|^2`, with ``damping`` times the
    inputs' mean second moment for :math:`\lambda`: what the data does not determine keeps its old
    weight, and so does an input that was always zero.

    Inputs that are removed for all outputs alike are solved for at once, in float64.  Where the
    outputs keep different inputs, each has its own system: then this is ``polish``.

    >>> x = torch.tensor([[1.0, 1.0], [2.0, 2.0], [-1.0, -1.0]])  # one input, twice
    >>> system = System.of(torch.tensor([[3.0, 4.0]]), torch.tensor([[True, False]]), x)
    >>> least_squares(system, damping=0.0).round(decimals=3)
    tensor([[7., 0.]])

    Args:
        system: the reader, its moments and its mask.
        damping: at least 0, in shares of the inputs' mean second moment.

    Returns:
        Shape ``(out, features)``, in the dtype of the system's weight; zero off the mask.
    """
    live = system.mask.any(1)
    if not bool(live.any()):
        return torch.zeros_like(system.weight)
    kept = system.mask[live.nonzero()[0, 0]]
    if not torch.equal(system.mask, live[:, None] & kept):
        return polish(system, system.weight * system.mask, damping=damping)
    columns = kept.nonzero()[:, 0]
    weight = exact(system.weight[live][:, columns]).T
    gram = exact(system.gram[columns][:, columns])
    missed = exact(system.cross[columns][:, live]) - gram @ weight
    factor = damped_factor(gram, exact(system.ridge(damping)))
    solved = weight + torch.cholesky_solve(missed, factor)
    new = torch.zeros_like(system.weight)
    new[live.nonzero(), columns] = solved.T.to(new.dtype)
    return new
