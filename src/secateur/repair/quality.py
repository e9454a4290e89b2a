"""How far a model's outputs are from the dense model's: quality, which is not exactness."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import nan, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.runtime.batches import call, padding
from secateur.runtime.distributed import reduced, summed
from secateur.runtime.forward import evaluating, undisturbed

from .report import Distance


def distance(
    dense: nn.Module,
    other: nn.Module,
    batches: Iterable[Any],
    given: Iterable[Any] | None = None,
) -> Distance:
    """Return how far a model's outputs are from the dense model's on batches, in eval mode.

    The outputs' spread is that over all batches, however many samples each has, on all ranks.
    Positions that are padding do not count.  Predictions are what the model returns as ``logits``,
    or a lone matrix ``(samples, classes)``.  ``given`` is what the other model gets in place of the
    batches, where that is something else.

    >>> net = nn.Linear(4, 2)
    >>> distance(net, net, [torch.randn(8, 4)])
    Distance(error=0.0, kl=0.0)
    """
    return distances(dense, [lambda: nullcontext(other)], batches, given)[0]


def distances(
    dense: nn.Module,
    others: Sequence[Callable[[], AbstractContextManager[nn.Module]]],
    batches: Iterable[Any],
    given: Iterable[Any] | None = None,
) -> list[Distance]:
    """Return ``distance`` of several models; the dense one runs once on each batch.

    Args:
        others: each makes a context within which there is such a model.
        given: what these get in place of the batches, where that is something else.

    >>> net, other = nn.Linear(4, 2), nn.Linear(4, 2)
    >>> both = (lambda: nullcontext(other)), (lambda: nullcontext(net))
    >>> far, near = distances(net, both, [torch.ones(3, 4)])
    >>> far.kl > near.kl == 0
    True
    """
    gaps = [_Gap() for _ in others]
    for batch, theirs in _pairs(batches, given):
        masks = padding(dense, batch)
        wanted = [_Wanted(i, *each, masks) for i, each in enumerate(_outputs(dense, batch))]
        for gap, other in zip(gaps, others, strict=True):
            with other() as model:
                found = _outputs(model, theirs)
            for each, (_, z) in zip(wanted, found, strict=True):
                gap.add(each, rows_of(z, masks))
    return [gap.distance() for gap in gaps]


class _Wanted:
    """One output of the dense model on a batch: its rows, and the logarithms of its predictions."""

    def __init__(self, place: int, name: str, y: Tensor, masks: Sequence[Tensor]):
        self.rows = rows_of(y, masks)
        self.key = place, self.rows.shape[-1]
        self.log = F.log_softmax(self.rows, -1) if predicts(name, self.rows) else None


class Spread:
    """How far the dense model's outputs are from their means, summed over rows."""

    def __init__(self) -> None:
        self.sums: dict[tuple[int, int], Tensor] = {}
        """Output, features → rows, sums, sums of squares."""

    def add(self, key: tuple[int, int], rows: Tensor) -> None:
        """Add rows ``(rows, features)`` of an output."""
        count = torch.full_like(rows[0], len(rows)) if len(rows) else rows.sum(0)
        sums = torch.stack([count, rows.sum(0), rows.square().sum(0)])
        self.sums[key] = self.sums.get(key, 0) + sums

    def whole(self) -> float:
        """Return the sum of what all ranks have seen."""
        everywhere = summed({key: {"all": found} for key, found in self.sums.items()})
        spread = (found["all"] for found in everywhere.values())
        each = (q - total.square() / rows.clamp(min=1) for rows, total, q in spread)
        return sum(float(varied.clamp(min=0).sum()) for varied in each)


class _Gap:
    """Sums over batches of what one model's outputs miss."""

    def __init__(self) -> None:
        self.gap = self.divergence = self.predictions = 0.0
        self.spread = Spread()

    def add(self, wanted: _Wanted, found: Tensor) -> None:
        a = wanted.rows
        self.gap += float((a - found).square().sum())
        self.spread.add(wanted.key, a)
        if (log := wanted.log) is not None:
            missed = log - F.log_softmax(found, -1)
            self.divergence += float((log.exp() * missed).sum())
            self.predictions += len(a)

    def distance(self) -> Distance:
        """Return what the sums of all ranks say."""
        own = torch.tensor([self.gap, self.divergence, self.predictions], dtype=torch.float64)
        gap, divergence, predictions = reduced(own, "sum").tolist()
        whole = self.spread.whole()
        error = sqrt(gap / whole) if whole > 0 else (0.0 if gap == 0 else nan)
        return Distance(error, divergence / predictions if predictions else None)


def _pairs(batches: Iterable[Any], given: Iterable[Any] | None) -> Iterable[tuple[Any, Any]]:
    return ((b, b) for b in batches) if given is None else zip(batches, given, strict=True)


@torch.no_grad()
def _outputs(model: nn.Module, batch: Any) -> list[tuple[str, Tensor]]:
    with undisturbed(model), evaluating(model):
        out = call(model, batch)
    return [(name, x.detach().clone()) for name, x in outputs_in(out)]


def outputs_in(out: Any) -> list[tuple[str, Tensor]]:
    """Return the tensors of what a model returned; predictions are called "logits"."""
    logits = getattr(out, "logits", None)
    if isinstance(logits, Tensor):
        return [("logits", logits)]
    leaves = [x for x in tree_leaves(out) if _has_numbers(x)]
    lone = len(leaves) == 1 and leaves[0].ndim == 2
    return [("logits" if lone else "", leaf) for leaf in leaves]


def predicts(name: str, rows: Tensor) -> bool:
    """Tell whether rows of an output are logarithms of chances, to a constant."""
    return name == "logits" and rows.shape[-1] > 1


def _has_numbers(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.numel() > 0


def rows_of(x: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Return an output as ``(rows, features)`` in float64, without rows that are padding."""
    for mask in masks:
        if x.ndim > 2 and x.shape[:2] == mask.shape:
            return x[mask.to(x.device)].double()
    return x.reshape(-1, x.shape[-1] if x.ndim > 1 else 1).double()
