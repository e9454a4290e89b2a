"""From scores to what stays: one decision for all that a pruner selects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf

from torch import Tensor

from secateur.runtime.values import moved, numbers
from secateur.types import Factored, Masks

from .budget import Budget
from .proof import Cut
from .targets import Selectable, scored


@dataclass(frozen=True)
class Decision:
    """What stays, by name of selectable and as masks of parameters; by default nothing is decided.

    ``level`` is the largest score of what goes; ``drop`` names blocks that go as a whole.

    >>> import torch
    >>> Decision({"a": torch.tensor([True, False]), "b": torch.tensor([True, True])}).sparsity
    0.25
    """

    keeps: dict[str, Tensor] = field(default_factory=dict)
    masks: Masks = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    level: float = 0.0
    drop: tuple[str, ...] = ()

    @cached_property  # a logger asks at every step, and each answer would wait for a GPU
    def sparsity(self) -> float:
        """The share of positions that go."""
        total = sum(map(len, self.keeps.values()))
        stay = sum(numbers(keep.sum() for keep in self.keeps.values()))
        return 1 - stay / total if total else 0.0


def decide(
    selectables: Sequence[Selectable],
    scores: Sequence[Tensor],
    budget: Budget,
    tensors: Mapping[str, Tensor],
    share: float,
    cut: Cut | None = None,
) -> Decision:
    """Select what stays, for a share of the goal.

    Args:
        selectables: what is decided on.
        scores: of each, one number per position, wherever it was computed.
        budget: what the selectables are to meet together.
        tensors: parameters by name; each mask is on the device of its own.
        share: of the way to the goal, in [0, 1], as the config's schedule understands it.
        cut: makes the smaller model, where a goal is measured on it.

    Raises:
        ScoreError: a score is NaN or infinite.
    """
    scores = list(scores)
    few = [i for i, each in enumerate(selectables) if each.group is not None]
    for i, score in zip(few, moved([scores[i] for i in few], "cpu"), strict=True):
        scores[i] = score  # where a budget's search is faster
    pairs = zip(selectables, scores, strict=True)
    schedule = budget.config.schedule
    requests = [scored(each, score, share, schedule) for each, score in pairs]
    keeps, notes = budget.select(requests, share, cut)
    gone = [s.masked_fill(k, -inf).amax() for s, k in zip(scores, keeps, strict=True) if len(s)]
    level = max(numbers(gone), default=-inf)
    return Decision(
        keeps=dict(zip((s.name for s in selectables), keeps, strict=True)),
        masks=masks_of(selectables, keeps, tensors),
        notes=notes,
        level=level if level > -inf else 0.0,
    )


def sunk(scores: Tensor, alive: Tensor, low: float) -> Tensor:
    """Return scores in which what is gone already is below ``low``, and so goes first.

    >>> import torch
    >>> sunk(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([True, True, False]), 1.0)
    tensor([3., 1., 0.])
    """
    return scores.masked_fill(~alive.to(scores.device), low - max(1.0, abs(low)))


def masks_of(
    selectables: Sequence[Selectable], keeps: Sequence[Tensor], tensors: Mapping[str, Tensor]
) -> Masks:
    """Return the masks that decisions make: of each selectable one bool per position."""
    places = [tensors[each.parts[0].tensor].device for each in selectables]
    placed = {place: moved(keeps, place) for place in set(places)}
    return Factored(
        *(
            each.masks(placed[place][i], tensors)
            for i, (each, place) in enumerate(zip(selectables, places, strict=True))
        )
    )
