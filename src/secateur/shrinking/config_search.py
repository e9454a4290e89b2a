"""Which numbers of a config make a model of the wanted shapes?  Found by building models from it.

A model that was built from a ``config`` is built again on ``torch.device("meta")`` with a number of
it changed, and its shapes, and the numbers that its forward reads, are compared.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import islice, product
from typing import Any, TypeAlias

from torch import nn

from secateur.graph.origins import Attribute

from .configured import built, changed, configs_in, held_in
from .history import Shape

MOST_BUILDS = 120
MOST_COMBINED = 256

Seen: TypeAlias = dict[Hashable, Any]
"""What a model is like: (parameter, dimension) → its size, attribute → the number that it holds."""
Settings: TypeAlias = Mapping[str, int | float | None]
"""Numbers of a config, by dotted names that start with "config"."""


class Search:
    """Looks for numbers of a config that make a model of the wanted shapes and integers."""

    def __init__(
        self,
        model: Any,
        changes: Iterable[tuple[Shape, Shape]],
        read: Iterable[Attribute],
        epsilons: Iterable[Attribute],
    ):
        self.model = model
        self.read = [a for a in read if not a.name.startswith("config.")]
        self.epsilons = [a for a in epsilons if not a.name.startswith("config.")]
        self.builds = 0
        self.wanted = self._seen(model)
        self.pairs = {
            (old, new)
            for before, after in changes
            for old, new in zip(before, after, strict=True)
            if old != new
        }

    def found(self) -> Any:
        """Return a config, or None.

        What makes something right, and nothing wrong, is taken at once.  Of the rest, numbers that
        may change together are tried together, all of them first: heads without their width, or one
        kind of heads without the other, often make no model at all.
        """
        config = self._pinned()
        seen = self.look(config)
        if seen is None:
            return None
        useful: dict[str, list[int | None]] = {}
        for name, value in self._candidates(config):
            wrong = self.wrong(seen)
            if not wrong:
                break
            tried = self.with_numbers(config, {name: value})
            other = self.look(tried)
            if other is None or other == seen:
                continue
            if self.wrong(other) < wrong:
                config, seen = tried, other
                useful.pop(name, None)
            elif _tensors(k for k in seen.keys() | other.keys() if seen.get(k) != other.get(k)) <= (
                _tensors(wrong)
            ):  # it changes nothing that is right
                useful.setdefault(name, [None]).append(value)
        return self._combined(config, useful) if self.wrong(seen) else self._trimmed(config)

    def _combined(self, config: Any, useful: Mapping[str, list[int | None]]) -> Any:
        combined = [
            {k: v for k, v in zip(useful, values, strict=True) if v is not None}
            for values in islice(product(*useful.values()), MOST_COMBINED)
        ]
        for settings in sorted(combined, key=lambda settings: -len(settings)):
            tried = self.with_numbers(config, settings)
            if settings and self.right(tried):
                return self._trimmed(tried)
        return None

    def _pinned(self) -> Any:
        """Return the config, which also says what layers compute from others, as a head's width.

        Some classes read such a number where it is given (``getattr(config, "head_dim", …)``).
        """
        modules = dict(self.model.named_modules())
        places = {id(held): path for path, held in configs_in("config", self.model.config)}
        values: dict[tuple[str, str], set[int | None]] = {}
        for attribute in self.read:
            place = _config_of(attribute.path, modules, places)
            held = attribute.held_by(modules[attribute.path])
            values.setdefault((place, attribute.name), set()).add(held)
        config = copy.deepcopy(self.model.config)
        inner = dict(configs_in("config", config))
        for (place, name), found in values.items():
            (value, *others) = found
            if name.isidentifier() and not others and not _says(inner[place], name):
                held_in(config, place)[name] = value
        return config

    def _trimmed(self, config: Any) -> Any:
        """Take back what the class does not read, and what the others say already."""
        for place, old in configs_in("config", self.model.config):
            new = held_in(config, place)
            added = [k for k in new if k not in vars(old)]
            numbers = (k for k in new if k in vars(old) and type(new[k]) in (int, float))
            for name in [*added, *(k for k in numbers if new[k] != vars(old)[k])]:
                without = copy.deepcopy(config)
                if name in vars(old):
                    held_in(without, place)[name] = vars(old)[name]
                else:
                    del held_in(without, place)[name]
                if self.right(without):
                    config = without
        return config

    def with_numbers(self, config: Any, settings: Settings) -> Any:
        """Return a copy of a config that says other numbers."""
        return changed(config, {name: (None, value) for name, value in settings.items()})

    def build(self, config: Any) -> nn.Module | None:
        """Return what the class makes of a config; None where it makes nothing, or too many."""
        if self.builds >= MOST_BUILDS:
            return None
        self.builds += 1
        return built(type(self.model), config)

    def look(self, config: Any) -> Seen | None:
        """Return what the model that a config makes is like, or None where there is none."""
        model = self.build(config)
        return None if model is None else self._seen(model)

    def right(self, config: Any) -> bool:
        """Tell whether a config makes a model of the wanted shapes and integers."""
        seen = self.look(config)
        return seen is not None and not self.wrong(seen)

    def wrong(self, seen: Seen) -> set[Hashable]:
        """Return what of a model is not as wanted."""
        return {k for k in seen.keys() | self.wanted.keys() if seen.get(k) != self.wanted.get(k)}

    def _seen(self, model: nn.Module) -> Seen:
        modules = dict(model.named_modules())
        seen: Seen = {(n, i): s for n, p in model.named_parameters() for i, s in _sizes(p.shape)}
        return seen | {str(a): a.held_by(modules.get(a.path)) for a in self.read}

    def _candidates(self, config: Any) -> Iterator[tuple[str, int]]:
        """Yield integers of the config that may name a size that was cut, with new values.

        Those first that are such a size, and not a part of one.
        """
        sizes, ratios = {old for old, _ in self.pairs}, {Fraction(*reversed(p)) for p in self.pairs}
        found: list[tuple[bool, str, int]] = []
        for place, held in configs_in("config", config):
            for name, value in vars(held).items():
                if type(value) is not int or value < 2 or name.startswith("_"):
                    continue
                if any(size % value == 0 for size in sizes):
                    news = sorted({value * ratio for ratio in ratios})
                    whole = (int(new) for new in news if new.denominator == 1)
                    found += (((value, n) not in self.pairs, f"{place}.{name}", n) for n in whole)
        yield from ((name, new) for _, name, new in sorted(found, key=lambda each: each[0]))
        unsaid = [
            f"{place}.{name}"
            for place, held in configs_in("config", config)
            for name, value in vars(held).items()
            if value is None and not name.startswith("_") and not name.endswith(("_id", "_ids"))
        ]  # a width that follows from another, until it is said
        yield from product(unsaid, sorted({new for _, new in self.pairs}))

    def with_epsilons(self, config: Any) -> Any:
        """Return a config of whose model the epsilons are this model's too, or None."""
        model = self.build(config)
        wanted = dict(self._others(model)) if model is not None else {}
        settings: dict[str, float] = {
            f"{place}.{key}": wanted[value]
            for place, held in configs_in("config", config)
            for key, value in vars(held).items()
            if type(value) is float and value in wanted
        }
        for key in [None, *settings]:  # all of them; then without those that change nothing
            fewer = {k: value for k, value in settings.items() if k != key}
            model = self.build(self.with_numbers(config, fewer))
            if model is not None and not any(self._others(model)):
                settings = fewer
            elif key is None:
                return None
        return self.with_numbers(config, settings)

    def _others(self, model: nn.Module) -> Iterator[tuple[Any, Any]]:
        """Yield epsilons that another model holds, and those of this one, where they differ."""
        here, there = dict(self.model.named_modules()), dict(model.named_modules())
        for a in self.epsilons:
            other, mine = a.held_by(there.get(a.path)), a.held_by(here[a.path])
            if other != mine:
                yield other, mine


def _sizes(shape: Shape) -> Iterable[tuple[int, int]]:
    return enumerate(shape) if shape else [(0, 1)]


def _tensors(keys: Iterable[Hashable]) -> set[Hashable]:
    """Return the parameters among what a model is like."""
    return {key[0] for key in keys if isinstance(key, tuple)}


def _config_of(path: str, modules: Mapping[str, Any], places: Mapping[int, str]) -> str:
    """Return the place of the config that a module, or the nearest around it, was built from."""
    words = path.split(".")
    for end in range(len(words), -1, -1):
        held = modules.get(".".join(words[:end]))
        place = places.get(id(getattr(held, "config", None)))
        if place is not None:
            return place
    return "config"


def _says(config: Any, name: str) -> bool:
    try:
        return getattr(config, name, None) is not None
    except RuntimeError:  # it says one for each layer
        return True
