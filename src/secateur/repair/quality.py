"""How far a model's outputs are from the dense model's: quality, which is not exactness."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def distance(dense: nn.Module, other: nn.Module, batches: Iterable[Any]) -> Distance:
    """Return how far a model's outputs are from the dense model's on batches, in eval mode.

    The outputs' spread is that over all batches, however many samples each has, on all ranks.
    Positions that are padding do not count.  Predictions are what the model returns as ``logits``,
    or a lone matrix ``(samples, classes)``.

    >>> net = nn.Linear(4, 2)
    >>> distance(net, net, [torch.randn(8, 4)])
    Distance(error=0.0, kl=0.0)
    """
    gap = 0.0
    spread: dict[tuple[int, int], Tensor] = {}  # output, features → rows, sums, sums of squares
    divergence = predictions = 0.0
    for batch in batches:
        found = _outputs(dense, batch), _outputs(other, batch)
        masks = padding(dense, batch)
        for i, ((name, y), (_, z)) in enumerate(zip(*found, strict=True)):
            a, b = rows_of(y, masks), rows_of(z, masks)
            gap += float((a - b).square().sum())
            count = torch.full_like(a[0], len(a)) if len(a) else a.sum(0)
            sums = torch.stack([count, a.sum(0), a.square().sum(0)])
            spread[i, a.shape[-1]] = spread.get((i, a.shape[-1]), 0) + sums
            if name == "logits" and a.shape[-1] > 1:
                log, other_log = F.log_softmax(a, -1), F.log_softmax(b, -1)
                divergence += float((log.exp() * (log - other_log)).sum())
                predictions += len(a)
    scalars = torch.tensor([gap, divergence, predictions], dtype=torch.float64)
    gap, divergence, predictions = reduced(scalars, "sum").tolist()
    everywhere = summed({key: {"all": found} for key, found in spread.items()})
    spread = {key: found["all"] for key, found in everywhere.items()}
    each = (q - total.square() / rows.clamp(min=1) for rows, total, q in spread.values())
    whole = sum(float(varied.clamp(min=0).sum()) for varied in each)
    error = sqrt(gap / whole) if whole > 0 else (0.0 if gap == 0 else nan)
    return Distance(error, divergence / predictions if predictions else None)


@torch.no_grad()
def _outputs(model: nn.Module, batch: Any) -> list[tuple[str, Tensor]]:
    with undisturbed(model), evaluating(model):
        out = call(model, batch)
    logits = getattr(out, "logits", None)
    if isinstance(logits, Tensor):
        return [("logits", logits.detach().clone())]
    leaves = [x.detach().clone() for x in tree_leaves(out) if _has_numbers(x)]
    lone = len(leaves) == 1 and leaves[0].ndim == 2
    return [("logits" if lone else "", leaf) for leaf in leaves]


def _has_numbers(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.numel() > 0


def rows_of(x: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Return an output as ``(rows, features)`` in float64, without rows that are padding."""
    for mask in masks:
        if x.ndim > 2 and x.shape[:2] == mask.shape:
            return x[mask.to(x.device)].double()
    return x.reshape(-1, x.shape[-1] if x.ndim > 1 else 1).double()
