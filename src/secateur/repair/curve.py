"""One point of an error curve: how far the output is off when a few positions go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from secateur.replacements.passing import Passing
from secateur.runtime.copying import copied
from secateur.runtime.forbidding import Forbidden
from secateur.structure import Structure
from secateur.types import Masks

from .quality import distance
from .report import Distance
from .run import masked, repair, without


def output_error(
    model: nn.Module,
    masks: Masks,
    structure: Structure,
    batches: Sequence[Any],
    how: str | None,
    *,
    also: frozenset[str] = frozenset(),
    skipped: Mapping[str, Passing] | None = None,
    forbidden: Sequence[Forbidden] = (),
    squares: bool = False,
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
        also, skipped, forbidden: as for ``repair``.
        squares: it is the square of the outputs' error also where these are logits.
    """
    skips = skipped or {}
    if how:
        options: dict[str, Any] = {"also": also, "skipped": skips, "forbidden": forbidden}
        after = repair(model, masks, structure, batches, how, **options)[1].after
        return _number(after, squares)
    pruned = masked(copied(model), masks)
    with without(pruned, skips, forbidden):
        return _number(distance(model, pruned, batches), squares)


def _number(found: Distance, squares: bool) -> float:
    return found.error**2 if squares or found.kl is None else found.kl
