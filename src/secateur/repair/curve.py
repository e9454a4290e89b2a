"""One point of an error curve: how far the output is off when a few positions go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from secateur.runtime.copying import copied
from secateur.structure import Structure
from secateur.types import Masks

from .quality import distance
from .report import Distance
from .run import masked, repair


def output_error(
    model: nn.Module, masks: Masks, structure: Structure, batches: Sequence[Any], how: str | None
) -> float:
    """Return how far a masked model's output is from the dense one's, after a repair if named.

    It is the divergence of predictions in nats where the outputs are logits, else the square of
    the outputs' error: both are zero, and flat, at the dense model, so that small ones add up.

    Args:
        model: the dense model; it is not touched.
        masks: parameter name → bool tensor of its shape.
        structure: of the dense model.
        batches: of inputs; a repair fits three of four, and the others are measured.
        how: a name in ``secateur.repairs``, or None.
    """
    if how:
        return _number(repair(model, masks, structure, batches, how)[1].after)
    return _number(distance(model, masked(copied(model), masks), batches))


def _number(found: Distance) -> float:
    return found.error**2 if found.kl is None else found.kl
