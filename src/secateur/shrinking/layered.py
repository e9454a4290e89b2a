"""A config with numbers for single layers, where the class honours transformers' per_layer_config.

Nothing is known of which classes do.  A model is built with another number in every layer; what
that moves, and how far, says which number each layer needs, and building again whether it was so.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any

from .config_search import Search, Seen
from .configured import configs_in
from .overrides import Overrides, overrides_of, say


def layered(search: Search) -> Any:
    """Return a config with numbers for single layers, of whose model all is as wanted; or None."""
    for place, held in configs_in("config", search.model.config):
        if overrides_of(held) is None:
            continue
        for anyway in (False, True):
            found = _Layers(search, place, anyway=anyway).found()
            if found is not None:
                return found
    return None


class _Layers:
    """Looks for the numbers of each layer in one of the configs of a model."""

    def __init__(self, search: Search, place: str, *, anyway: bool):
        self.search, self.place, self.anyway = search, place, anyway
        self.config = copy.deepcopy(search.model.config)
        self.said = overrides_of(self._held(self.config)) or {}

    def _held(self, config: Any) -> Any:
        return dict(configs_in("config", config))[self.place]

    def found(self) -> Any:
        seen = self.search.look(self.config)
        if seen is None:
            return None
        fits: dict[str, dict[int, int]] = {}
        for name, values in self._numbers():
            if fit := self._fit(seen, name, values):
                fits[name] = fit
        several = (names for n in (len(fits), 1, 2) for names in combinations(fits, n))
        for names in several:
            tried = self._with(self._merged({name: fits[name] for name in names}))
            other = self.search.look(tried) if tried is not None else None
            if other is not None and not self.search.wrong(other):
                return tried
        return None

    def _numbers(self) -> Iterator[tuple[str, list[int]]]:
        """Yield the numbers that layers may have of their own, with what each layer has now."""
        held = self._held(self.config)
        try:
            layers = [held.per_layer_config[i] for i in range(len(held.per_layer_config))]
        except (AttributeError, TypeError):  # it has no layers
            return
        for name, value in vars(held).items():
            if type(value) is int and value > 1 and not name.startswith("_"):
                values = [vars(layer)[name] for layer in layers]
                if all(type(each) is int and each > 1 for each in values):
                    yield name, values

    def _fit(self, seen: Seen, name: str, values: Sequence[int]) -> dict[int, int]:
        """Return the number that each layer needs, as far as the sizes that it moves say one."""
        probe = [value // 2 if value % 2 == 0 else 2 * value for value in values]
        tried = self._with(self._merged({name: dict(enumerate(probe))}))
        other = self.search.look(tried) if tried is not None else None
        if other is None:
            return {}
        needed: dict[int, set[Fraction]] = {}
        for key in seen.keys() & other.keys():
            if seen[key] == other[key] or not isinstance(key, tuple):
                continue
            layer, wanted = layer_of(key), self.search.wanted.get(key)
            if layer is None or layer >= len(values) or wanted is None:
                return {}
            step = Fraction(other[key] - seen[key], probe[layer] - values[layer])
            needed.setdefault(layer, set()).add(values[layer] + (wanted - seen[key]) / step)
        if any(len(found) > 1 or min(found).denominator > 1 for found in needed.values()):
            return {}
        new = {layer: int(min(found)) for layer, found in needed.items()}
        return {layer: n for layer, n in new.items() if n != values[layer] and n > 0}

    def _merged(self, fits: Mapping[str, Mapping[int, int]]) -> Overrides:
        layers = {layer: dict(numbers) for layer, numbers in self.said.items()}
        for name, fit in fits.items():
            for layer, number in fit.items():
                layers.setdefault(layer, {})[name] = number
        return layers

    def _with(self, overrides: Overrides) -> Any:
        config = copy.deepcopy(self.config)
        try:
            say(self._held(config), overrides, anyway=self.anyway)
        except Exception:  # a class may refuse any number; then these are none of its
            return None
        return config


def layer_of(key: Hashable) -> int | None:
    """Return the layer that a parameter is of: the first number in its name.

    >>> layer_of(("model.layers.3.experts.0.up.weight", 1)), layer_of(("head.weight", 0))
    (3, None)
    """
    found = re.search(r"(?:^|\.)(\d+)\.", key[0]) if isinstance(key, tuple) else None
    return int(found[1]) if found else None
