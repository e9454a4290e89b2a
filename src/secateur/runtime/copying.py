"""A deep copy of a model, or an error that says what of it cannot be copied and what to do."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any, TypeVar
from weakref import ReferenceType, WeakKeyDictionary

import torch
from torch import Tensor, nn

from secateur.errors import CopyError

from .rebinding import Rebinding
from .state import State

M = TypeVar("M", bound=nn.Module)
_originals: WeakKeyDictionary[nn.Module, ReferenceType[nn.Module]] = WeakKeyDictionary()
"""What each copy was made of, while both are there."""


def copied(model: M, *, borrowing: bool = False) -> M:
    """Return a deep copy of a model.

    Args:
        borrowing: its parameters are others, but look at the numbers of the model's, which saves
            the memory of those that are replaced; none may be written to before ``own``.

    Raises:
        CopyError: it holds what cannot be copied, such as a lock, an open file or a generator.

    >>> net = nn.Linear(2, 2)
    >>> copied(net).weight is net.weight
    False
    """
    lent = {id(p): _borrowed(p) for p in _plain(model)} if borrowing else {}
    try:
        made = _deep_copy(model, lent)
        _originals[made] = ReferenceType(model)
        return made
    except Exception as error:  # what a user's objects raise when they are copied is theirs
        name, held = _culprit(model)
        holds = f"its {name!r}, a {type(held).__name__}, " if name else "something that it holds "
        hint = ""
        if isinstance(held, Tensor):
            hint = " (a tensor with a graph behind it: detach() it before it is stored)"
        raise CopyError(
            f"this {type(model).__name__} cannot be copied: {holds}cannot{hint} "
            f"({type(error).__name__}: {error}). Cut the model itself with inplace=True, or give "
            "the object that holds it a __deepcopy__"
        ) from error


def original_parameters(model: nn.Module) -> dict[int, str]:
    """Return the names of the parameters that a model's original has, by their ids.

    Those of a model that is no copy, or whose original is gone, are none.
    """
    reference = _originals.get(model)
    original = None if reference is None else reference()
    if original is None:
        return {}
    return {id(parameter): name for name, parameter in original.named_parameters()}


def not_its_own(model: nn.Module, names: Collection[str]) -> CopyError:
    """Return the error that a model computes with parameters of another in place of its own."""
    first, *others = sorted(names)
    more = f" and {len(others)} more" if others else ""
    return CopyError(
        f"this {type(model).__name__} does not compute with its own {first!r}{more}: something in "
        "it, such as a function, a class or a cache, holds other layers, as those of the model "
        "that it is a copy of. Cut the model itself with inplace=True, or let its forward reach "
        "its layers through self"
    )


def own(model: nn.Module, lender: nn.Module) -> None:
    """Give a copy that borrowed a model's numbers those that it still looks at."""
    lent = {p.untyped_storage().data_ptr() for p in _plain(lender)}
    for parameter in _plain(model):
        if parameter.untyped_storage().data_ptr() in lent:
            parameter.data = parameter.data.clone(memory_format=torch.preserve_format)


def _plain(model: nn.Module) -> list[nn.Parameter]:
    every = (p for p in model.parameters() if type(p) is nn.Parameter and not p.is_inference())
    return [p for p in every if type(p.data) is Tensor]


def _borrowed(parameter: Tensor) -> Tensor:
    """Return another parameter with the same numbers, attributes and gradient."""
    made = nn.Parameter(parameter.data, parameter.requires_grad)
    vars(made).update(vars(parameter))
    if parameter.grad is not None:
        made.grad = parameter.grad.clone()
    return made


def _deep_copy(model: M, made: dict[int, Any]) -> M:
    """Return a deep copy; what a forward kept with a graph behind it is copied without.

    Args:
        made: copies that there are already, by the ids of their originals.
    """
    memo = dict(made)
    try:
        found = copy.deepcopy(model, memo)
    except RuntimeError:
        state = State()
        state.keep(model)
        memo = {id(t): t.detach().clone() for t in state.tensors() if not t.is_leaf} | made
        found = copy.deepcopy(model, memo)
    Rebinding(memo).everywhere()
    return found


def _culprit(model: nn.Module) -> tuple[str, object]:
    """Return the attribute that cannot be copied by itself, by its dotted name."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name == "_modules":
                continue
            tables = name in ("_parameters", "_buffers")
            for key, held in list(value.items()) if tables else [(name, value)]:
                try:
                    copy.deepcopy(held, {id(model): model})
                except Exception:  # as above: this is the one
                    return f"{path}.{key}" if path else key, held
    return "", None
