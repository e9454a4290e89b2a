"""Can an ordinary configuration of the model's class express the smaller shapes?

Then the smaller model is built by its own constructor, and loads wherever the class does.  The
numbers are found by trying: a model that was built from a ``config`` is built again on
``torch.device("meta")`` with an integer of it changed, and its shapes are compared.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from secateur.graph.origins import Attribute
from secateur.runtime.forward import random_kept

from .history import Shape

MOST_BUILDS = 60
MOST_BYTES = 2**31  # of a model that is built again with its weights, to see that it is the same

Changes = dict[str, tuple[int, int]]


def expressed(
    model: nn.Module,
    shapes: Mapping[str, tuple[Shape, Shape]],
    now: Mapping[str, tuple[Shape, Shape]],
    read: Iterable[Attribute],
) -> Changes | None:
    """Return which integers of ``model.config`` must change, or None where none can say it.

    Args:
        model: the smaller model; its config still says the old sizes.
        shapes: what was cut → shape in the dense model and after.
        now: likewise, of the last cut alone: the config may know of those before it.
        read: the integers that the forward reads; all must be the same in both.
    """
    if not shapes or not _is_config(getattr(model, "config", None)) or not _uniform(shapes):
        return None
    search = _Search(model, [*shapes.values(), *now.values()])
    config = copy.deepcopy(model.config)
    wrong = search.mismatches(config)
    while wrong:
        tried = [
            (left, key, value)
            for key, value in search.candidates(config)
            if (left := search.mismatches(config, key, value)) is not None
        ]
        best = min(tried, default=None)
        if best is None or best[0] >= wrong:
            return None
        wrong = best[0]
        setattr(config, best[1], best[2])
    if wrong is None or not search.same_integers(config, read):
        return None
    old, new = vars(model.config), vars(config)
    changed = (key for key, value in old.items() if type(value) is int and new[key] != value)
    return {key: (old[key], new[key]) for key in changed}


def rebuilt(model: nn.Module, changes: Changes) -> nn.Module | None:
    """Return what the class's constructor makes of the changed config, with the model's weights."""
    if sum(p.numel() * p.element_size() for p in model.parameters()) > MOST_BYTES:
        return None
    config: Any = copy.deepcopy(model.config)
    for key, (_, after) in changes.items():
        setattr(config, key, after)
    with random_kept():
        new = type(model)(config)
    first = next(model.parameters())
    new.to(device=first.device, dtype=first.dtype).load_state_dict(model.state_dict())
    return new.train(model.training)


class _Search:
    def __init__(self, model: nn.Module, changes: Iterable[tuple[Shape, Shape]]):
        self.model = model
        self.wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self.builds = 0
        pairs = {
            (old, new)
            for before, after in changes
            for old, new in zip(before, after, strict=True)
            if old != new
        }
        self.ratios = {Fraction(new, old) for old, new in pairs}
        self.sizes = {old for old, _ in pairs}

    def build(self, config: Any) -> nn.Module | None:
        self.builds += 1
        try:
            with torch.device("meta"):
                return type(self.model)(config)
        except Exception:  # a constructor may refuse anything; then this is no config of its class
            return None

    def mismatches(self, config: Any, key: str = "", value: int = 0) -> int | None:
        """Return how many parameters have other shapes, or None where it cannot be built."""
        if self.builds >= MOST_BUILDS:
            return None
        config = copy.deepcopy(config)
        if key:
            setattr(config, key, value)
        built = self.build(config)
        if built is None:
            return None
        found = {name: tuple(p.shape) for name, p in built.named_parameters()}
        names = found.keys() | self.wanted.keys()
        return sum(found.get(name) != self.wanted.get(name) for name in names)

    def candidates(self, config: Any) -> Iterator[tuple[str, int]]:
        """Yield integers of the config that may name a size that was cut, with new values."""
        for key, value in vars(config).items():
            if type(value) is not int or value < 2 or key.startswith("_"):
                continue
            if any(size % value == 0 for size in self.sizes):
                for new in sorted({value * ratio for ratio in self.ratios}):
                    if new.denominator == 1:
                        yield key, int(new)

    def same_integers(self, config: Any, read: Iterable[Attribute]) -> bool:
        """Tell whether the model that a config makes also holds the integers that are read."""
        built = self.build(copy.deepcopy(config))
        if built is None:
            return False
        here, there = dict(self.model.named_modules()), dict(built.named_modules())
        return all(
            attribute.path in there
            and attribute.held_by(here[attribute.path]) == attribute.held_by(there[attribute.path])
            for attribute in read
            if not attribute.name.startswith("config.")
        )


def _is_config(config: Any) -> bool:
    plain = isinstance(getattr(config, "__dict__", None), dict)
    return plain and not isinstance(config, (type, nn.Module))


def _uniform(shapes: Mapping[str, tuple[Shape, Shape]]) -> bool:
    """Tell whether layers of one kind have one shape: a config has no number for each."""
    kinds: dict[str, set[tuple[Shape, Shape]]] = {}
    for name, change in shapes.items():
        kinds.setdefault(re.sub(r"\d+", "#", name), set()).add(change)
    return all(len(found) == 1 for found in kinds.values())
