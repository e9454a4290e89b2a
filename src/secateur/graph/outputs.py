"""What a forward hands out: the tensors in containers and objects of any class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from functools import partial
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from secateur.runtime.reach import is_foreign
from secateur.runtime.state import slots_of

LENGTH = 1_000
"""Of what comes from a generator, so many parts are looked at."""
PLAIN = (
    *(str, bytes, bool, type(None), type, Enum, ModuleType, nn.Module, torch.dtype, torch.device),
)
"""What holds nothing that was computed."""
CODE = (FunctionType, MethodType, BuiltinFunctionType, partial)
HELD = (Mapping, list, tuple, set, frozenset)
CONTAINERS = (Iterator, *HELD)


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


def hides(model: nn.Module, out: Any) -> bool:
    """Tell whether an output holds what is no tensor any more, or cannot be opened: a number, code.

    >>> [hides(nn.ReLU(), out) for out in (torch.zeros(1), {"a": None, "b": "text"}, 0.5, print)]
    [False, False, True, True]
    """
    return any(
        not isinstance(leaf, (Tensor, *CONTAINERS, *PLAIN)) and not _is_object(leaf)
        for leaf in _leaves(_own(model, out))
    )


def numbers_of(out: Any) -> Iterator[int]:
    """Yield the integers of an output.

    >>> list(numbers_of((torch.zeros(1), {"height": 3}, [4, True])))
    [3, 4]
    """
    kinds = (leaf for leaf in _leaves(out) if isinstance(leaf, int))
    return (leaf for leaf in kinds if not isinstance(leaf, bool))


def left_in(new: Iterable[Any]) -> tuple[list[Tensor], bool]:
    """Return the tensors among what a forward left behind, and whether there are arrays.

    Streams are not read, and objects of other packages are not looked into.

    >>> left_in([{"a": torch.zeros(2)}, 3, iter([torch.zeros(1)])])
    ([tensor([0., 0.])], False)
    """
    leaves = [*_leaves(list(new), opened=_is_own)]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], any(map(_is_array, leaves))


def _own(model: nn.Module, out: Any) -> Any:
    """Return an output without what the model takes back."""
    fields = _fields(out)
    if fields is None:
        return out
    takes = inspect.signature(model.forward).parameters
    return [x for name, x in fields if name not in takes or not _is_object(x)]


def _fields(out: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(out, Mapping):
        return list(out.items())
    return list(_attributes(out).items()) if is_dataclass(out) and _is_object(out) else None


def _is_object(x: Any) -> bool:
    if isinstance(x, (Tensor, int, float, Mapping, list, tuple, *CODE, *PLAIN)):
        return False
    return hasattr(x, "__dict__") or bool(slots_of(type(x)))


def _is_own(x: Any) -> bool:
    return _is_object(x) and not isinstance(x, Iterator) and not is_foreign(type(x).__module__)


def _attributes(x: Any) -> dict[str, Any]:
    """Return what an object holds by name."""
    slots = {name: getattr(x, name) for name in slots_of(type(x)) if hasattr(x, name)}
    return {**slots, **getattr(x, "__dict__", {})}


def _is_array(leaf: Any) -> bool:
    kind = getattr(getattr(leaf, "dtype", None), "kind", "")
    return kind in ("f", "c") and hasattr(leaf, "__array__")


def _leaves(out: Any, opened: Callable[[Any], bool] | None = None) -> Iterator[Any]:
    """Yield all that an output holds, to its depth, containers and objects beside their parts.

    Args:
        opened: which objects are looked into; by default all, and iterators are read.
    """
    seen: dict[int, Any] = {}  # objects may hold each other; kept, so that an id stays its own

    def inside(x: Any) -> Iterator[Any]:
        for leaf in tree_flatten(x)[0]:
            if isinstance(leaf, (Tensor, int, float, complex)):
                yield leaf
            elif id(leaf) not in seen:
                seen[id(leaf)] = leaf
                yield leaf
                if opened is None or isinstance(leaf, HELD) or opened(leaf):
                    yield from inside(_parts(leaf))

    return inside(out)


def _parts(leaf: Any) -> list[Any]:
    """Return what is in an object, or in a container of a class that torch does not know."""
    if isinstance(leaf, Mapping):
        return list(leaf.values())
    if isinstance(leaf, Iterator):
        return list(islice(leaf, LENGTH))
    if isinstance(leaf, HELD):
        return list(leaf)
    return list(_attributes(leaf).values()) if _is_object(leaf) else []
