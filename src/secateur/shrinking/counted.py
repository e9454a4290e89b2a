"""Which numbers of a config say how many layers there are?  Found by building models from it.

A model that was built from a ``config`` is built again on ``torch.device("meta")`` with a number of
it changed: one that was the length of the list, alone or in a list of such numbers.  Lists with a
value for each layer lose those of the layers that went.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from torch import nn

from secateur.graph.origins import Attribute

from .configured import built, changed, configs_in, is_config
from .history import Change, Changes, Taken
from .overrides import follow, remembered

MOST_BUILDS = 24
"""For each list of modules."""


def counted(model: nn.Module, taken: Mapping[str, Taken]) -> Changes | None:
    """Return what a model's config must say of the lists that lost modules; None if it cannot.

    Args:
        model: without the modules already; its config still counts them.
        taken: list of modules → how many it had, and which are left.
    """
    if not is_config(getattr(model, "config", None)):
        return None
    wanted = [name for name, _ in model.named_parameters()]
    config, changes = copy.deepcopy(model.config), Changes()
    for path, how in taken.items():
        own = {name for name in wanted if name.startswith(f"{path}.")}
        for found in islice(_candidates(config, how), MOST_BUILDS):
            tried = changed(config, found)
            try:
                follow(tried, remembered(config), [how])
            except Exception:  # a class may refuse any number; then these are none of its
                continue
            other = built(type(model), tried)
            names = {n for n, _ in other.named_parameters()} if other is not None else set()
            if {name for name in names if name.startswith(f"{path}.")} == own:
                config, changes = tried, changes | found
                break
        else:
            return None
    return changes


def _candidates(config: Any, taken: Taken) -> Iterator[Changes]:
    """Yield what may say the new length: all lists of values shorter first, then none of them."""
    size, kept = taken
    for prefix, held in configs_in("config", config):
        lists = dict(_lists(prefix, held, size, kept))
        for attribute, value in _numbers(prefix, held):
            if value == size:
                number: Changes = {str(attribute): (size, len(kept))}
                yield number | lists
                if lists:
                    yield from (number | {k: v for k, v in lists.items() if k != n} for n in lists)
                    yield number


def _numbers(prefix: str, config: Any) -> Iterator[tuple[Attribute, int]]:
    for key, value in vars(config).items():
        if key.startswith("_"):
            continue
        if type(value) is int:
            yield Attribute("", f"{prefix}.{key}"), value
        elif isinstance(value, (list, tuple)):
            for i, each in enumerate(value):
                if type(each) is int:
                    yield Attribute("", f"{prefix}.{key}", i), each


def _lists(
    prefix: str, config: Any, size: int, kept: tuple[int, ...]
) -> Iterator[tuple[str, Change]]:
    """Yield the lists that have a plain value for each place."""
    for key, value in vars(config).items():
        if key.startswith("_") or not isinstance(value, (list, tuple)) or len(value) != size:
            continue
        if all(each is None or isinstance(each, (str, int, float)) for each in value):
            yield f"{prefix}.{key}", (tuple(value), tuple(value[i] for i in kept))
