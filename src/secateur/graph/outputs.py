"""What a forward hands out: the tensors in containers and objects of any class."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from functools import partial
from itertools import count, islice
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from secateur.runtime.state import slots_of

LENGTH = 1_000
"""Of what comes from a generator, so many parts are looked at."""
PLAIN = (
    *(str, bytes, bool, type(None), type, Enum, ModuleType, nn.Module, torch.dtype, torch.device),
)
"""What holds nothing that was computed."""
CODE = (FunctionType, MethodType, BuiltinFunctionType, partial)


def results_of(model: nn.Module, out: Any, *, numbers: bool = False) -> Iterator[Tensor]:
    """Yield the tensors that a forward computed for its caller.

    An object that goes out under the name of an argument of forward is none of them: it is the
    model's own memory (a cache of keys and values), which it takes back, and changes with it.

    Args:
        model: whose forward it was.
        out: what it returned; a generator in it runs to its end.
        numbers: also what is no tensor any more: arrays, and all floats together.
    """
    floats: list[float | complex] = []
    for leaf in _leaves(_own(model, out)):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, (float, complex)):
            floats.append(leaf)
        elif numbers and _is_array(leaf):
            yield torch.as_tensor(leaf)
    if numbers and floats:
        yield torch.tensor(floats)


def tensors_of(out: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output: nested containers, or an object's attributes.

    >>> [len(found) for found in tensors_of({"a": [torch.zeros(2)], "b": {torch.zeros(3)}})]
    [2, 3]
    """
    return (leaf for leaf in _leaves(out) if isinstance(leaf, Tensor))


def numbers_of(out: Any) -> Iterator[int]:
    """Yield the integers of an output.

    >>> list(numbers_of((torch.zeros(1), {"height": 3}, [4, True])))
    [3, 4]
    """
    kinds = (leaf for leaf in _leaves(out) if isinstance(leaf, int))
    return (leaf for leaf in kinds if not isinstance(leaf, bool))


def taken_back(model: nn.Module, out: Any) -> Iterator[Tensor]:
    """Yield the tensors of what an output holds under the names of arguments: see ``results_of``.

    >>> from types import SimpleNamespace
    >>> len(list(taken_back(nn.Identity(), {"input": SimpleNamespace(held=torch.zeros(1))})))
    1
    """
    fields = _fields(out) or ()
    return tensors_of([x for name, x in fields if _is_taken(model, name, x)])


def _own(model: nn.Module, out: Any) -> Any:
    """Return an output without what the model takes back."""
    fields = _fields(out)
    return out if fields is None else [x for name, x in fields if not _is_taken(model, name, x)]


def _is_taken(model: nn.Module, name: Any, x: Any) -> bool:
    return name in _taken(model) and _is_object(x)


def _taken(model: nn.Module) -> set[str]:
    """Return the names of what forward takes, also where it hands all on to what it wraps."""
    parameters = inspect.signature(model.forward).parameters
    inner = list(model.children())
    wraps = any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and len(inner) == 1
    return {*parameters, *(_taken(inner[0]) if wraps else ())}


def _fields(out: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(out, Mapping):
        return list(out.items())
    return list(_attributes(out).items()) if is_dataclass(out) and _is_object(out) else None


def _is_object(x: Any) -> bool:
    if isinstance(x, (Tensor, int, float, Mapping, list, tuple, *CODE, *PLAIN)):
        return False
    return hasattr(x, "__dict__") or bool(slots_of(type(x)))


def _attributes(x: Any) -> dict[str, Any]:
    """Return what an object holds by name."""
    slots = {name: getattr(x, name) for name in slots_of(type(x)) if hasattr(x, name)}
    return {**slots, **getattr(x, "__dict__", {})}


def _is_array(leaf: Any) -> bool:
    kind = getattr(getattr(leaf, "dtype", None), "kind", "")
    return kind in ("f", "c") and hasattr(leaf, "__array__")


def _leaves(out: Any) -> Iterator[Any]:
    """Yield all that an output holds, to its depth, containers and objects before their parts.

    Each once but for tensors and numbers: what holds itself ends, and depth has no limit.
    """
    seen: dict[int, Any] = {}  # the objects too, so that an id stays its own
    within = [iter([out])]
    while within:
        for leaf in within[-1]:
            if isinstance(leaf, (Tensor, int, float, complex)):
                yield leaf
            elif id(leaf) not in seen:
                seen[id(leaf)] = leaf
                yield leaf
                within.append(iter(_parts(leaf)))
                break
        else:
            within.pop()


def _parts(leaf: Any) -> list[Any]:
    """Return what is right in a container, or in an object."""
    if isinstance(leaf, Iterator):
        return list(islice(leaf, LENGTH))
    asked = count()
    parts = tree_flatten(leaf, is_leaf=lambda _: next(asked) > 0)[0]  # what torch opens, once
    if len(parts) != 1 or parts[0] is not leaf:
        return parts
    if isinstance(leaf, Mapping):
        return list(leaf.values())
    if isinstance(leaf, (set, frozenset, list, tuple)):
        return list(leaf)
    return list(_attributes(leaf).values()) if _is_object(leaf) else []
