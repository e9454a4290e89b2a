"""A deep copy of a model, or an error that says what of it cannot be copied and what to do."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

from secateur.errors import CopyError

from .state import State

M = TypeVar("M", bound=nn.Module)


def copied(model: M) -> M:
    """Return a deep copy of a model.

    Raises:
        CopyError: it holds what cannot be copied, such as a lock, an open file or a generator.

    >>> net = nn.Linear(2, 2)
    >>> copied(net).weight is net.weight
    False
    """
    try:
        return _deep_copy(model)
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


def _deep_copy(model: M) -> M:
    """Return a deep copy; what a forward kept with a graph behind it is copied without."""
    try:
        return copy.deepcopy(model)
    except RuntimeError:
        state = State()
        state.keep(model)
        kept = {id(t): t.detach().clone() for t in state.tensors() if not t.is_leaf}
        return copy.deepcopy(model, kept)


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
