"""How a pruned model came from the dense one of its class: what a file must say to repeat it.

Names are those of the model as it is now; where modules were taken out of a list, those behind them
have other numbers than in the dense model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

from torch import nn

from secateur.replacements.passing import Passing

from .implied import Implied
from .plan import Plan

Shape = tuple[int, ...]
Scalar: TypeAlias = str | float | bool | None
Number: TypeAlias = float | tuple[Scalar, ...]
Change: TypeAlias = tuple[Number | None, Number]
Changes: TypeAlias = dict[str, Change]
"""Attribute → the number that it was, None where a config did not have it, and that it is; of a
list with a value for each layer, all of them."""
Taken: TypeAlias = tuple[int, tuple[int, ...]]
"""Of a list of modules: how many there were, and the places of those that are left."""

T = TypeVar("T")

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
        taken: list of modules → how many it had in the dense model, and which are left.
        implied: attribute → what the steps make of it, of those that follow from what is kept;
            None in the history of a file of before it was written down.
    """

    steps: tuple[Plan, ...] = ()
    shapes: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)
    attributes: Mapping[str, Change] = field(default_factory=dict)
    dropped: Mapping[str, Passing] = field(default_factory=dict)
    taken: Mapping[str, Taken] = field(default_factory=dict)
    implied: Mapping[str, Implied] | None = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> History:
        """Return the history of a model; that of a dense one is empty."""
        return vars(model).get(HELD_AS, cls())

    def with_attributes(self, changes: Mapping[str, Change]) -> History:
        """Return this history with more attributes that changed on the way."""
        known = self.implied
        implied = known and {name: how for name, how in known.items() if name not in changes}
        return replace(self, attributes=_chain(self.attributes, changes), implied=implied)

    def then(
        self,
        plan: Plan,
        shapes: Mapping[str, tuple[Shape, Shape]],
        attributes: Mapping[str, Change],
        dropped: Mapping[str, Passing],
        implied: Mapping[str, Implied],
    ) -> History:
        """Return this history with one plan more, and what it changed."""
        gone = tuple(f"{path}." for path in dropped)
        chained = _chain(self.attributes, attributes)

        def left(changes: dict[str, Any]) -> dict[str, Any]:
            return {name: c for name, c in changes.items() if not name.startswith(gone)}

        return History(
            (*self.steps, plan),
            left(_chain(self.shapes, shapes)),
            left(chained),
            {**{p: how for p, how in self.dropped.items() if not p.startswith(gone)}, **dropped},
            {path: taken for path, taken in self.taken.items() if not f"{path}.".startswith(gone)},
            self._implied(left(chained), implied),
        )

    def _implied(
        self, attributes: Mapping[str, Change], now: Mapping[str, Implied]
    ) -> dict[str, Implied] | None:
        """Return what makes each number; a float is multiplied by the factors of each step."""
        if self.implied is None:
            return None
        found = {**self.implied, **now}
        for name in self.attributes.keys() & now.keys():
            if isinstance(self.attributes[name][1], float):
                found[name] = (*self.implied.get(name, ()), *now[name])
        return {name: how for name, how in found.items() if name in attributes}

    def without(self, path: str, names: Sequence[str], kept: Sequence[int]) -> History:
        """Return this history once a list of modules keeps some of them, which are renumbered.

        Args:
            path: of the list.
            names: of its modules before.
            kept: the places of those that stay.
        """
        renaming = Renaming(path, names, kept)
        size, places = self.taken.get(path, (len(names), tuple(range(len(names)))))
        taken = {**renaming.keys(self.taken), path: (size, tuple(places[i] for i in kept))}
        return History(
            self.steps,
            renaming.keys(self.shapes),
            renaming.keys(self.attributes),
            renaming.keys(self.dropped),
            taken,
            self.implied and renaming.keys(self.implied),
        )


class Renaming:
    """What paths become when a list of modules keeps some of them, and counts them anew.

    >>> renaming = Renaming("layers", ["0", "1", "2"], [0, 2])
    >>> renaming.of("layers.2.weight"), renaming.of("layers.1.weight"), renaming.of("head.weight")
    ('layers.1.weight', None, 'head.weight')
    """

    def __init__(self, path: str, names: Sequence[str], kept: Sequence[int]):
        counted = list(names) == [str(i) for i in range(len(names))]
        self.prefix = f"{path}." if path else ""
        self.known = set(names)
        self.new = {names[i]: str(n) if counted else names[i] for n, i in enumerate(kept)}

    def of(self, path: str) -> str | None:
        """Return what a path, or the name of a tensor or attribute, becomes; None if it goes."""
        child, dot, rest = path.removeprefix(self.prefix).partition(".")
        if not path.startswith(self.prefix) or child not in self.known:
            return path
        return f"{self.prefix}{self.new[child]}{dot}{rest}" if child in self.new else None

    def keys(self, named: Mapping[str, T]) -> dict[str, T]:
        """Return what is left of a mapping from paths."""
        found = ((self.of(name), value) for name, value in named.items())
        return {name: value for name, value in found if name is not None}


def _chain(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes of both: from what was before the first to what is after the second."""
    changes = dict(first)
    for name, (before, after) in second.items():
        changes[name] = (changes.get(name, (before,))[0], after)
    return {name: change for name, change in changes.items() if change[0] != change[1]}
