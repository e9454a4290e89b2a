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
from itertools import islice, product
from typing import Any

import torch
from torch import nn

from secateur.graph.origins import Attribute
from secateur.runtime.forward import random_kept

from .history import Changes, Shape

MOST_BUILDS = 60
MOST_COMBINED = 256
MOST_BYTES = 2**31  # of a model that is built again with its weights, to see that it is the same


def expressed(
    model: nn.Module,
    shapes: Mapping[str, tuple[Shape, Shape]],
    now: Mapping[str, tuple[Shape, Shape]],
    read: Iterable[Attribute],
    epsilons: Iterable[Attribute] = (),
    *,
    shallower: bool = False,
) -> Changes | None:
    """Return which numbers of ``model.config`` must change, or None where none can say it.

    Args:
        model: the smaller model; its config still says the old sizes.
        shapes: what was cut → shape in the dense model and after.
        now: likewise, of the last cut alone: the config may know of those before it.
        read: the integers that the forward reads; all must be the same in both.
        epsilons: likewise floats.
        shallower: layers were taken out, and the config says their number already.
    """
    if (
        not (shapes or shallower)
        or not is_config(getattr(model, "config", None))
        or not _uniform(shapes)
    ):
        return None
    search = _Search(model, [*shapes.values(), *now.values()], read, epsilons)
    config = search.found()
    config = config and search.with_epsilons(config)
    if config is None:
        return None
    old, new = vars(model.config), vars(config)
    numbers = (k for k, value in new.items() if type(value) in (int, float))
    changed = (k for k in numbers if old.get(k) != new[k])
    return {key: (old.get(key), new[key]) for key in changed}


def rebuilt(model: nn.Module, changes: Changes) -> nn.Module | None:
    """Return what the class's constructor makes of the changed config, with the model's weights."""
    if sum(p.numel() * p.element_size() for p in model.parameters()) > MOST_BYTES:
        return None
    config: Any = copy.deepcopy(model.config)
    for key, (_, after) in changes.items():
        setattr(config, key, after)
    with random_kept():
        new = type(model)(config)
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in (*new.named_parameters(), *new.named_buffers()):
        if name in held:  # some stay in float32: a table of frequencies
            tensor.data = tensor.data.to(device=held[name].device, dtype=held[name].dtype)
    new.load_state_dict(model.state_dict())
    return new.train(model.training)


def built(kind: type[nn.Module], config: Any) -> nn.Module | None:
    """Return what a class makes of a config, without weights; None where it makes nothing."""
    try:
        with torch.device("meta"):
            return kind(copy.deepcopy(config))
    except Exception:  # a constructor may refuse anything; then this is no config of its class
        return None


class _Search:
    """Looks for numbers of a config that make a model of the wanted shapes and integers."""

    def __init__(
        self,
        model: Any,
        changes: Iterable[tuple[Shape, Shape]],
        read: Iterable[Attribute],
        epsilons: Iterable[Attribute],
    ):
        self.model = model
        self.wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self.read = [a for a in read if not a.name.startswith("config.")]
        self.epsilons = [a for a in epsilons if not a.name.startswith("config.")]
        self.builds = 0
        pairs = {
            (old, new)
            for before, after in changes
            for old, new in zip(before, after, strict=True)
            if old != new
        }
        self.ratios = {Fraction(new, old) for old, new in pairs}
        self.sizes = {old for old, _ in pairs}

    def found(self) -> Any:
        """Return a config, or None.

        First numbers that may change together are tried together, all of them first: heads without
        their width, or one kind of heads without the other, often make no model at all.
        """
        config = self._pinned()
        shapes = self.shapes(config)
        if shapes is None:
            return None
        wrong = {
            n for n in shapes.keys() | self.wanted.keys() if shapes.get(n) != self.wanted.get(n)
        }
        if not wrong and self.same_integers(config):
            return self._trimmed(config)
        useful: dict[str, list[int | None]] = {}
        for key, value in self.candidates(config):
            other = self.shapes(self._with(config, {key: value}))
            if other is not None and other != shapes:
                moved = {n for n in shapes.keys() | other.keys() if shapes.get(n) != other.get(n)}
                if moved <= wrong:  # it changes nothing that is right
                    useful.setdefault(key, [None]).append(value)
        combined = [
            {k: v for k, v in zip(useful, values, strict=True) if v is not None}
            for values in islice(product(*useful.values()), MOST_COMBINED)
        ]
        for settings in sorted(combined, key=lambda settings: -len(settings)):
            tried = self._with(config, settings)
            if settings and self.shapes(tried) == self.wanted and self.same_integers(tried):
                return self._trimmed(tried)
        return None

    def _pinned(self) -> Any:
        """Return the config, which also says what layers compute from others, as a head's width.

        Some classes read such a number where it is given (``getattr(config, "head_dim", …)``).
        """
        config = copy.deepcopy(self.model.config)
        modules = dict(self.model.named_modules())
        values: dict[str, set[int | None]] = {}
        for attribute in self.read:
            held = attribute.held_by(modules[attribute.path])
            values.setdefault(attribute.name, set()).add(held)
        for name, found in values.items():
            (value, *others) = found
            if name.isidentifier() and not others and not hasattr(config, name):
                setattr(config, name, value)
        return config

    def _trimmed(self, config: Any) -> Any:
        """Take back what the class does not read, and what the others say already."""
        old, new = vars(self.model.config), vars(config)
        numbers = (k for k in new if k in old and type(new[k]) in (int, float) and new[k] != old[k])
        for name in [*(k for k in new if k not in old), *numbers]:
            without = copy.deepcopy(config)
            if name in old:
                setattr(without, name, old[name])
            else:
                delattr(without, name)
            if self.shapes(without) == self.wanted and self.same_integers(without):
                config = without
        return config

    def _with(self, config: Any, settings: Mapping[str, float | None]) -> Any:
        config = copy.deepcopy(config)
        for key, value in settings.items():
            setattr(config, key, value)
        return config

    def build(self, config: Any) -> nn.Module | None:
        if self.builds >= MOST_BUILDS:
            return None
        self.builds += 1
        return built(type(self.model), config)

    def shapes(self, config: Any) -> dict[str, Shape] | None:
        """Return the shapes of the model's parameters, or None where it cannot be built."""
        built = self.build(config)
        return None if built is None else {n: tuple(p.shape) for n, p in built.named_parameters()}

    def candidates(self, config: Any) -> Iterator[tuple[str, int]]:
        """Yield integers of the config that may name a size that was cut, with new values."""
        for key, value in vars(config).items():
            if type(value) is not int or value < 2 or key.startswith("_"):
                continue
            if any(size % value == 0 for size in self.sizes):
                for new in sorted({value * ratio for ratio in self.ratios}):
                    if new.denominator == 1:
                        yield key, int(new)

    def same_integers(self, config: Any) -> bool:
        """Tell whether the model that a config makes also holds the integers that are read."""
        built = self.build(config)
        return built is not None and not any(self._others(built, self.read))

    def with_epsilons(self, config: Any) -> Any:
        """Return a config of whose model the epsilons are this model's too, or None."""
        built = self.build(config)
        wanted = dict(self._others(built, self.epsilons)) if built is not None else {}
        settings = {
            key: wanted[value]
            for key, value in vars(config).items()
            if type(value) is float and value in wanted
        }
        for key in [None, *settings]:  # all of them; then without those that change nothing
            fewer = {k: value for k, value in settings.items() if k != key}
            built = self.build(self._with(config, fewer))
            if built is not None and not any(self._others(built, self.epsilons)):
                settings = fewer
            elif key is None:
                return None
        return self._with(config, settings)

    def _others(
        self, built: nn.Module, attributes: Iterable[Attribute]
    ) -> Iterator[tuple[Any, Any]]:
        """Yield numbers that another model holds, and those of this one, where they differ."""
        here, there = dict(self.model.named_modules()), dict(built.named_modules())
        for a in attributes:
            other, mine = a.held_by(there.get(a.path)), a.held_by(here[a.path])
            if other != mine or a.path not in there:
                yield other, mine


def is_config(config: Any) -> bool:
    """Tell whether something is an object of numbers, and no class or module."""
    plain = isinstance(getattr(config, "__dict__", None), dict)
    return plain and not isinstance(config, (type, nn.Module))


def _uniform(shapes: Mapping[str, tuple[Shape, Shape]]) -> bool:
    """Tell whether layers of one kind have one shape: a config has no number for each."""
    kinds: dict[str, set[tuple[Shape, Shape]]] = {}
    for name, change in shapes.items():
        kinds.setdefault(re.sub(r"\d+", "#", name), set()).add(change)
    return all(len(found) == 1 for found in kinds.values())
