"""The numbers that a model holds: while it is watched, each remembers which attribute it is.

They are integers, and floats that may be an epsilon, of its modules and of the plain objects that
these hold (a config).  Afterwards every attribute is as it was.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, Protocol

from torch import Tensor, nn

from secateur.runtime.undo import Undo

from .floats import Spending, TracedFloat
from .integers import Notes, TracedInt
from .origins import Attribute, Origin

NAMESPACES = (SimpleNamespace, Namespace)


class Watcher(Notes, Spending, Protocol):
    """Is told what the code does with the numbers that the model holds."""


@contextmanager
def traced_attributes(model: nn.Module, note: Watcher) -> Iterator[None]:
    """Replace every number that the model holds by a traced one; put all back afterwards.

    Those of its modules, and of the objects that hang on them: of an object that several modules
    share, each number is one attribute.  What the forward itself stores is the caller's to undo.
    """
    with Undo() as undo:
        for path, prefix, held in list(holders(model)):
            for name, value in list(held.items()):
                if name.startswith("_"):
                    continue
                traced = _trace(value, Attribute(path, prefix + name), note)
                if traced is not value:
                    undo(partial(_own_again, held, name, value, traced))
                    held[name] = traced
        yield


def _own_again(held: dict[str, Any], name: str, value: Any, traced: Any) -> None:
    if held.get(name) is traced:
        held[name] = value


def holders(model: nn.Module) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (path of the module, prefix of the names, attributes) of all that holds integers."""
    seen: set[int] = set()

    def objects(path: str, prefix: str, held: dict[str, Any]) -> Iterator[Any]:
        for name, value in list(held.items()):
            if id(value) in seen or name.startswith("_") or not _is_plain_object(value):
                continue
            seen.add(id(value))
            yield path, f"{prefix}{name}.", vars(value)
            yield from objects(path, f"{prefix}{name}.", vars(value))

    for path, module in model.named_modules():
        yield path, "", vars(module)
        yield from objects(path, "", vars(module))


def followed_in(model: nn.Module) -> set[tuple[str, str]]:
    """Return whose numbers are followed: path of a module, and name of an object of it or ""."""
    return {(path, prefix.removesuffix(".")) for path, prefix, _ in holders(model)}


def _is_plain_object(value: Any) -> bool:
    if isinstance(value, (type, nn.Module, Tensor, ModuleType, FunctionType, MethodType)):
        return False
    home = type(value).__module__.partition(".")[0]
    if home == "torch" or (home in sys.stdlib_module_names and type(value) not in NAMESPACES):
        return False  # loggers, locks, optimizers: what these hold is nothing of the model's
    return isinstance(getattr(value, "__dict__", None), dict)


def _trace(value: Any, attribute: Attribute, note: Watcher) -> Any:
    if type(value) is int:
        held = Attribute(attribute.path, attribute.name, attribute.index, value)
        return TracedInt(value, Origin.of(held), note)
    if type(value) is float and 0 < value < 1 and attribute.index is None:
        return TracedFloat(value, attribute, note)
    if type(value) is dict and attribute.index is None:
        return _trace_dict(value, attribute, note)
    several = type(value) in (tuple, list) and attribute.index is None
    if not several or not any(type(v) is int for v in value):
        return value
    parts = [Attribute(attribute.path, attribute.name, i) for i in range(len(value))]
    return type(value)(_trace(v, part, note) for v, part in zip(value, parts, strict=True))


def _trace_dict(value: dict[Any, Any], attribute: Attribute, note: Watcher) -> Any:
    """Sizes by name, as in ``{"heads": 4}``: each is one attribute."""
    if not any(type(v) is int for v in value.values()):
        return value
    if not all(type(k) is str and k.isidentifier() for k in value):
        return value
    parts = {k: Attribute(attribute.path, attribute.name, k) for k in value}
    return {k: _trace(v, parts[k], note) if type(v) is int else v for k, v in value.items()}
