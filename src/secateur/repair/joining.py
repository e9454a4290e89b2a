"""Experts that stay make up for those that went: what the sum behind them misses is shared out.

A token's output is the sum of what its experts make, each times its gain.  All experts together are
one least squares, of as many features as all have; instead each is fitted alone, to a bound of that
error.  With gains g of a token and r what its sum misses, each expert of the token aims at r / Σg
more than it gives, by a weight of g·Σg: that no error is larger afterwards than it was is Jensen's
inequality, and the gradient is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.scoring.deliveries import Delivery
from secateur.scoring.readings import Routed, Rows

from .moments import Sums

DAMPINGS = (1e-1, 0.3, 1.0, 3.0, 10.0)
"""What is missing is mostly no matter of the inputs: data asks for more damping than elsewhere."""


def joined(parts: Sequence[Sums], weight: Tensor, ours: Delivery, dense: Delivery) -> bool:
    """Add each system's inputs and what it should give, or tell that nobody knows that.

    Args:
        parts: the sums of each system.
        weight: as it is by now, ``(systems, out, features)``.
        ours: what the pruned model made of the outputs.
        dense: what the dense one did, by tokens of its own choice.
    """
    reading = ours.reading
    if ours.gain is None or ours.tokens is None or dense.tokens is None:
        return False
    if ours.into.shape != dense.into.shape or not isinstance(reading, (Routed, Rows)):
        return False
    gain = ours.gain.float().abs() * (reading.x != 0).any(-1).reshape(-1)
    total = ours.sums(gain)[ours.tokens]
    missed = (dense.sums(dense.made) - ours.sums(ours.made))[ours.tokens]
    share = torch.nan_to_num(ours.gain.float().sign()[:, None] * missed / total[:, None])
    chunks = zip(
        reading.chunks(),
        reading.parts(share),
        reading.parts((gain * total).sqrt()[:, None]),
        strict=True,
    )
    for (where, x, _), (_, more), (_, scale) in chunks:
        y = torch.matmul(x, weight[where].mT.to(x.dtype)) + more
        for i, part in enumerate(parts[where]):
            rows = scale[i, :, 0] > 0
            part.add((x[i] * scale[i])[rows], (y[i] * scale[i])[rows])
    return True


def correct(found: Delivery, change: Tensor) -> None:
    """Add to a sum what a change of the weights, ``(systems, out, features)``, adds to it."""
    reading = found.reading
    assert found.gain is not None
    assert isinstance(reading, (Routed, Rows))
    weight = change.to(reading.x)
    if isinstance(reading, Rows):
        made = torch.matmul(reading.x, weight.mT).flatten(0, 1)
    else:
        starts = [0, *reading.ends[:-1]]
        spans = zip(weight, starts, reading.ends, strict=True)
        made = torch.cat([reading.x[a:b] @ w.T for w, a, b in spans])
    rows = found.sums(made * found.gain[:, None])
    found.into.add_(rows.view(found.into.shape).to(found.into))
