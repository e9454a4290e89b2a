"""How a pruned model came from the dense one of its class: what a file must say to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from .plan import Plan

Shape = tuple[int, ...]
Changes = dict[str, tuple[float | None, float]]
"""Attribute → the number that it was, None where a config did not have it, and that it is."""
Passing = tuple[int | str, tuple[bool, ...] | None]  # argument, and parts of a tuple (see Block)

HELD_AS = "_pruning_history"  # an attribute of the model, which survives a deep copy


@dataclass(frozen=True)
class History:
    """Everything that pruning changed in a model but for the values of its tensors.

    A pruned model carries its own, so that it can be trained on, copied, pruned again and saved.

    Attributes:
        steps: the plans that were applied, one after the other.
        shapes: parameter or buffer → its shape in the dense model, and now.
        dropped: block → the argument that it returns now, and in which form.
        attributes: attribute, as in ``block.heads`` or ``block.sizes[1]`` → its value, likewise;
            None where a config did not have it.
    """

    steps: tuple[Plan, ...] = ()
    shapes: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)
    attributes: Mapping[str, tuple[float | None, float]] = field(default_factory=dict)
    dropped: Mapping[str, Passing] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> History:
        """Return the history of a model; that of a dense one is empty."""
        return vars(model).get(HELD_AS, cls())

    def with_attributes(self, changes: Mapping[str, tuple[float | None, float]]) -> History:
        """Return this history with more attributes that changed on the way."""
        return replace(self, attributes=_chain(self.attributes, changes))

    def then(
        self,
        plan: Plan,
        shapes: Mapping[str, tuple[Shape, Shape]],
        attributes: Mapping[str, tuple[float | None, float]],
        dropped: Mapping[str, Passing],
    ) -> History:
        """Return this history with one plan more, and what it changed."""
        gone = tuple(f"{path}." for path in dropped)

        def left(changes: dict[str, Any]) -> dict[str, Any]:
            return {name: c for name, c in changes.items() if not name.startswith(gone)}

        return History(
            (*self.steps, plan),
            left(_chain(self.shapes, shapes)),
            left(_chain(self.attributes, attributes)),
            {**{p: how for p, how in self.dropped.items() if not p.startswith(gone)}, **dropped},
        )


def _chain(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes of both: from what was before the first to what is after the second."""
    changes = dict(first)
    for name, (before, after) in second.items():
        changes[name] = (changes.get(name, (before,))[0], after)
    return {name: change for name, change in changes.items() if change[0] != change[1]}
