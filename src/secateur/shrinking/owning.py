"""Let a model have objects of its own where a cut changes what they say.

Two models are often built of one config.  What is cut in place says its new sizes there, and the
other one is to go on saying its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from secateur.graph.attributes import holders

Put = Callable[[dict[str, Any], str, Any], None]


def own(model: nn.Module, target: Any, put: Put) -> list[Any]:
    """Replace an object, and what holds it, by copies that no other model knows.

    Args:
        model: whose modules, and plain objects of these, are to hold the copies.
        target: the object, one of those.
        put: called with attributes, a name and what belongs there now.

    Returns:
        The copies.

    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(width=8)
    >>> one, other = nn.Module(), nn.Module()
    >>> one.config = other.config = config
    >>> (copied,) = own(one, config, dict.__setitem__)
    >>> one.config is copied, other.config is config, copied.width
    (True, True, 8)
    """
    copies = dict(_copies(target, [attributes for _, _, attributes in holders(model)]))
    held_by: list[Any] = [*model.modules(), *copies.values()]
    for attributes in [each.__dict__ for each in held_by]:
        for name, value in list(attributes.items()):
            if id(value) in copies:
                put(attributes, name, copies[id(value)])
    return list(copies.values())


def _copies(target: Any, held: list[dict[str, Any]]) -> Iterator[tuple[int, Any]]:
    """Yield the identity and a copy of an object, and of each object that holds one of these."""
    of = {id(attributes): attributes for attributes in held}
    objects = [v for attributes in held for v in attributes.values() if _own_of(v) in of]
    todo, seen = [target], set[int]()
    while todo:
        value = todo.pop()
        if id(value) not in seen:
            seen.add(id(value))
            yield id(value), copy.copy(value)
            todo += [o for o in objects if any(v is value for v in vars(o).values())]


def _own_of(value: Any) -> int | None:
    """Return the identity of an object's attributes, or None: it is a module, or has none."""
    held = None if isinstance(value, nn.Module) else getattr(value, "__dict__", None)
    return id(held) if isinstance(held, dict) else None
