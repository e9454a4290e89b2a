"""What a forward hands out: the tensors in containers and objects of any class."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten


def results_of(model: nn.Module, out: Any) -> Iterator[Tensor]:
    """Yield the tensors that a forward computed for its caller.

    An object that goes out under the name of an argument of forward is none of them: it is the
    model's own memory (a cache of keys and values), which it takes back, and changes with it.
    """
    fields = _fields(out)
    if fields is None:
        return tensors_of(out)
    takes = inspect.signature(model.forward).parameters
    kept = [x for name, x in fields if name not in takes or not _is_object(x)]
    return tensors_of(kept)


def _fields(out: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(out, Mapping):
        return list(out.items())
    return list(vars(out).items()) if is_dataclass(out) and _is_object(out) else None


def _is_object(x: Any) -> bool:
    no_object = (Tensor, nn.Module, type, int, Mapping, list, tuple)
    return hasattr(x, "__dict__") and not isinstance(x, no_object)


def tensors_of(out: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output: nested containers, or an object's attributes."""
    seen: set[int] = set()  # objects may hold each other

    def inside(x: Any) -> Iterator[Tensor]:
        for leaf in tree_flatten(x)[0]:
            if isinstance(leaf, Tensor):
                yield leaf
            elif id(leaf) not in seen:
                seen.add(id(leaf))
                yield from inside(_parts(leaf))

    return inside(out)


def _parts(leaf: Any) -> list[Any]:
    """Return what is in an object, or in a container of a class that torch does not know."""
    if isinstance(leaf, Mapping):
        return list(leaf.values())
    if isinstance(leaf, (list, tuple)):
        return list(leaf)
    return list(vars(leaf).values()) if _is_object(leaf) else []
