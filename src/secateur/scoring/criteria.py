"""How much each unit of weights matters: one pure function per criterion.

A criterion takes ``rows``, a matrix of shape ``(units, elements)`` in which one row holds the
weights that are removed together in one tensor, and returns one score per row.  A smaller score
matters less.  What else it needs to know it says by its keyword-only parameter names:

>>> def noisy(rows: Tensor, *, generator: torch.Generator) -> Tensor:
...     "Norms with a little noise, so that ties fall by chance."
...     return l2(rows) + 1e-6 * random(rows, generator=generator)
>>> needs(noisy)
('generator',)

``@criteria.register`` makes it known under its name, everywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor

from secateur.errors import UnknownNameError, did_you_mean
from secateur.registry import F, Registry

from .statistics import STATISTICS

TILE_ELEMENTS = 1 << 22
"""Elements of one float64 tile in ``fpgm``: 32 MiB."""


def needs(criterion: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the statistics that a criterion needs, in the order of its signature.

    >>> needs(random), needs(l1)
    (('generator',), ())
    """
    parameters = inspect.signature(criterion).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


Side = Literal["makers", "readers", "both"]


@dataclass(frozen=True)
class Facts:
    """What a criterion says of itself when it is registered.

    ``of``: which slices of a group have scores: those that make its positions, those that read
    them, or both; where a group has no such slices, the others.  ``within``: whether single weights
    are compared in a whole tensor, or among those of one output ("row").  ``error``: whether a
    score is the root of a mean square error of outputs, or the mean square, or neither (None): only
    the former can be a share of what the outputs are added to (``normalize="output"``).
    ``experts``: it ranks whole experts, and of nothing else it knows anything.
    """

    of: Side = "makers"
    within: Literal["tensor", "row"] = "tensor"
    error: Literal["root", "square"] | None = None
    experts: bool = False


class CriterionRegistry(Registry):
    """A registry that admits only functions of rows and known statistics."""

    def __init__(self, kind: str):
        super().__init__(kind)
        self.facts: dict[str, Facts] = {}

    @overload
    def register(self, function: F) -> F: ...

    @overload
    def register(self, **facts: Any) -> Callable[[F], F]: ...

    def register(self, function: Any = None, **facts: Any) -> Any:
        """Register a criterion under its own name; called with ``Facts`` it is a decorator.

        Raises:
            ValueError: its signature is not ``(rows, *, <statistics>)``, or the name is taken.
            UnknownNameError: it asks for a statistic that nobody collects.
        """
        if function is None:
            return partial(self.register, **facts)
        kinds = [p.kind for p in inspect.signature(function).parameters.values()]
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        if (
            not kinds
            or kinds[0] not in positional
            or any(kind is not inspect.Parameter.KEYWORD_ONLY for kind in kinds[1:])
        ):
            raise ValueError(
                f"criterion {function.__name__!r} must have the signature (rows, *, <statistics>),"
                f" got {inspect.signature(function)}"
            )
        for name in needs(function):
            if name not in STATISTICS:
                raise UnknownNameError(
                    f"criterion {function.__name__!r} needs the unknown statistic {name!r}."
                    f"{did_you_mean(name, STATISTICS)} Known: {', '.join(sorted(STATISTICS))}."
                )
        super().register(function)
        self.facts[function.__name__] = Facts(**facts)
        return function

    def asks(self, name: str, source: str) -> tuple[str, ...]:
        """Return the statistics that a criterion needs from "weights", "backward" or "forward"."""
        return tuple(each for each in needs(self[name]) if STATISTICS[each].source == source)


criteria = CriterionRegistry("criterion")


@criteria.register
def magnitude(rows: Tensor) -> Tensor:
    """Mean absolute weight of each unit; of a single element, its absolute value.

    Being a mean, it compares units of different sizes on one scale.

    >>> magnitude(torch.tensor([[1.0, -3.0], [0.0, 2.0]]))
    tensor([2., 1.])

    Han et al., 2015, arXiv:1506.02626
    """
    return l1(rows) / max(rows.shape[1], 1)


@criteria.register
def l1(rows: Tensor) -> Tensor:
    """Sum of absolute weights of each unit, summed in at least float32.

    >>> l1(torch.tensor([[1.0, -3.0], [0.0, 2.0]]))
    tensor([4., 2.])

    Li et al., 2017, arXiv:1608.08710
    """
    return _norm(rows, 1)


@criteria.register
def l2(rows: Tensor) -> Tensor:
    """Euclidean norm of each unit, summed in at least float32.

    >>> l2(torch.tensor([[3.0, -4.0], [0.0, 2.0]]))
    tensor([5., 2.])
    """
    return _norm(rows, 2)


@criteria.register
def fpgm(rows: Tensor) -> Tensor:
    r"""Sum of the distances from each unit to all units: :math:`\sum_j \|w_i - w_j\|_2`.

    A unit near the geometric median of all can be replaced by the others, whatever its norm.

    Distances come from matrix products, :math:`|a|^2 + |b|^2 - 2ab`, tile by tile: memory stays at
    a few tiles, whatever the size of ``rows``.  That formula cancels for rows that almost
    coincide, so it runs in float64, where the error of one distance stays below ``1e-6`` of the
    rows' norm (measured: ``2e-7`` for 30,000 elements; float32 would give ``1e-3``, and is used
    only on devices that have no float64).

    >>> fpgm(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]))
    tensor([6.0000, 9.2426, 5.2426])

    He et al., 2019, arXiv:1811.00250
    """
    exact = torch.float32 if rows.device.type == "mps" else torch.float64
    units, elements = rows.shape
    if elements == 1:  # on a line, sorting replaces the n x n distances: single weights are many
        return _line_distances(rows[:, 0].to(exact)).to(_score_dtype(rows))
    tile = max(1, min(TILE_ELEMENTS // max(elements, 1), 2048))
    starts = range(0, units, tile)
    total = torch.zeros(units, dtype=exact, device=rows.device)
    for i in starts:
        a = rows[i : i + tile].to(exact)
        within = torch.cdist(a, a, compute_mode="use_mm_for_euclid_dist")
        total[i : i + tile] += within.fill_diagonal_(0).sum(dim=1)
        for j in range(i + tile, units, tile):
            b = rows[j : j + tile].to(exact)
            between = torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist")
            total[i : i + tile] += between.sum(dim=1)
            total[j : j + tile] += between.sum(dim=0)
    return total.to(_score_dtype(rows))


@criteria.register
def taylor(rows: Tensor, *, grad: Tensor) -> Tensor:
    r"""First-order estimate of what the loss loses without a unit: :math:`\sum (w \cdot g)^2`.

    Args:
        rows: weights, ``(units, elements)``.
        grad: the loss's gradient for them, of the same shape.

    >>> taylor(torch.tensor([[1.0, -3.0], [0.0, 2.0]]), grad=torch.tensor([[1.0, 1.0], [9.0, 1.0]]))
    tensor([10.,  4.])

    Molchanov et al., 2019, arXiv:1906.10771
    """
    kind = _score_dtype(rows)
    return (rows.to(kind) * grad.to(kind)).square().sum(1)


@criteria.register
def random(rows: Tensor, *, generator: torch.Generator) -> Tensor:
    """Uniform random scores in [0, 1): the control that every other criterion should beat.

    Args:
        rows: shape ``(units, elements)``; only its length matters.
        generator: where the numbers come from.  One on the CPU gives the same scores for weights
            on every device.

    >>> random(torch.ones(2, 3), generator=torch.Generator().manual_seed(0))
    tensor([0.4963, 0.7682])
    """
    scores = torch.rand(len(rows), generator=generator, device=generator.device)
    return scores.to(rows.device)


def _norm(rows: Tensor, order: int) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(rows, ord=order, dim=1, dtype=_score_dtype(rows))
    return norm


def _score_dtype(rows: Tensor) -> torch.dtype:
    """Half precision is too coarse to rank sums; float64 weights keep their own."""
    return torch.promote_types(rows.dtype, torch.float32)


def _line_distances(points: Tensor) -> Tensor:
    """Return ``sum_j |x_i - x_j|`` for points of shape ``(n,)``, in n log n steps.

    In sorted order, point k has k points below it and n - k - 1 above, so that its sum is
    ``k x_k - (sum below) + (sum above) - (n - k - 1) x_k``.
    """
    x, order = points.sort(stable=True)
    below = x.cumsum(0) - x
    above = x.sum() - below - x
    k = torch.arange(len(x), dtype=x.dtype, device=x.device)
    sums = (2 * k + 1 - len(x)) * x - below + above
    return torch.empty_like(sums).scatter(0, order, sums)
