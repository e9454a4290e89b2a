"""How far two runs are apart, each number beside its own column, and what roundings explain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOOR = 1e-4
"""Of the largest number of an output: a column that is smaller counts as if it were so large."""
TINY = 1e-12  # likewise, of an output that is nothing but zeros
MARGIN = 32  # times as far as those move an output may two models be apart


def difference(
    before: Sequence[Sequence[Tensor]], after: Sequence[Sequence[Tensor]], floor: float = FLOOR
) -> float:
    """Return the largest relative difference of two runs; inf where shapes or NaNs differ.

    Each number is compared with the largest of its own slice along each dimension but the first:
    a probability with that of its class, and not with the box beside it.  What is smaller than
    ``floor`` times the largest of all is compared with that; with 1, everything is.

    >>> probabilities_beside_pixels = torch.tensor([[0.25, 512.0], [0.50, 640.0]])
    >>> difference([[probabilities_beside_pixels]], [[probabilities_beside_pixels + 0.125]])
    0.25
    """
    worst = 0.0
    for olds, news in zip(before, after, strict=True):
        if len(olds) != len(news):
            return float("inf")
        for old, new in zip(olds, news, strict=True):
            if old.shape != new.shape or not _finite_alike(old, new):
                return float("inf")
            if old.numel():
                worst = max(worst, float((_apart(old, new) / _scale(old, floor)).max()))
    return worst


def resolution(
    old: Sequence[Tensor],
    new: Sequence[Tensor],
    moved: Sequence[Sequence[Tensor]],
    tolerance: float,
    most: float,
) -> tuple[float, bool]:
    """Return how far, relatively, roundings move outputs, and whether two runs are no further.

    Args:
        old, new: the outputs of both.
        moved: the outputs of the second when each of its operations rounds in another way.
        tolerance: what is allowed anyway.
        most: what is allowed at most.
    """
    found, explained = 0.0, True
    for a, b, *others in zip(old, new, *moved, strict=True):
        if a.shape != b.shape or not _finite_alike(a, b):
            return 0.0, False
        if not a.numel():
            continue
        own = _scale(a)
        noise = torch.stack([_columns(_apart(b, other)) for other in others]).amax(0) * MARGIN
        noise = torch.minimum(noise, most * own)
        explained &= not bool((_apart(a, b) > torch.maximum(tolerance * own, noise)).any())
        found = max(found, float((noise / own).max()))
    return found, explained


def _finite_alike(a: Tensor, b: Tensor) -> bool:
    """Tell whether the same numbers are finite, and those that are not are of one kind."""
    a, b = _real(a), _real(b)
    finite = a.isfinite()
    return torch.equal(finite, b.isfinite()) and torch.allclose(
        a[~finite], b[~finite], equal_nan=True
    )


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Return |a − b|, and 0 where neither is finite."""
    return (_real(a) - _real(b)).abs().nan_to_num_(0.0, 0.0, 0.0)


def _scale(x: Tensor, floor: float = FLOOR) -> Tensor:
    """Return what each number of an output is compared with; it broadcasts to the output."""
    size = _real(x).nan_to_num(0.0, 0.0, 0.0).abs_()
    largest = float(size.max())
    return _columns(size).clamp(min=floor * largest if largest else TINY)


def _columns(size: Tensor) -> Tensor:
    """Return for each place the largest of the slices that it lies in, of that where it is least.

    >>> _columns(torch.tensor([[1.0, 5.0], [2.0, 3.0]]))
    tensor([[2., 5.]])
    """
    rank = size.dim()
    if rank == 0:
        return size
    least: Tensor | None = None
    for kept in range(min(1, rank - 1), rank):
        others = [d for d in range(rank) if d != kept]
        column = size.amax(others, keepdim=True) if others else size
        least = column if least is None else torch.minimum(least, column)
    assert least is not None
    return least


def _real(x: Tensor) -> Tensor:
    """Return float64 numbers; a complex one is two."""
    x = x.to_dense() if x.layout != torch.strided else x
    return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).double()
