"""How far two tensors are apart: distances between rows, and losses."""

from __future__ import annotations

from typing import Any

from secateur.graph.conditions import every
from secateur.graph.typing import Dim, Typed, Typing

from .elementwise import broadcast
from .reduction import mean, norm
from .table import rule


@rule("_cdist_forward", "_euclidean_dist")
def distances(t: Typing, x: Typed, y: Typed, *_: Any) -> Typed:
    """Of each row of (…, P, M) to each of (…, R, M): what is zero in both adds nothing."""
    t.same(x[-1], y[-1])
    both = every(x[-1].zero, y[-1].zero)
    t.reduce(Dim(x[-1].axis, both, both))
    batch = broadcast(t, Typed(x.dims[:-2]), Typed(y.dims[:-2]), zero="all").dims
    return Typed((*batch, t.never_zero(x[-2], False), t.never_zero(y[-2], False)))


@rule("dist")
def distance(t: Typing, x: Typed, y: Typed, p: Any = 2) -> Typed:
    return norm(t, broadcast(t, x, y, zero="all"), p)


@rule("mse_loss", "smooth_l1_loss", "huber_loss")
def error(t: Typing, x: Typed, target: Typed, *_: Any, **__: Any) -> Typed:
    """Zero where both are; by default the mean over all."""
    return _reduced(t, broadcast(t, x, target, zero="all"))


@rule("binary_cross_entropy", "binary_cross_entropy_with_logits")
def cross_entropy(t: Typing, x: Typed, *others: Any, **_: Any) -> Typed:
    tensors = [y for y in others if isinstance(y, Typed)]
    return _reduced(t, broadcast(t, x, *tensors, zero="never"))


def _reduced(t: Typing, out: Typed) -> Typed:
    """All that torch says of a reduction is a number; the shape tells whether there was one."""
    return out if out.shape == t.out[0] else mean(t, out)
