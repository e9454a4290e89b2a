"""What is no model that can be looked at: said at once, before torch says it in other words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from secateur.errors import ModelError


def check_model(model: Any) -> None:
    """Look at what was given for a model.

    Raises:
        ModelError: it is no ``torch.nn.Module``, or one whose weights have no shapes yet.

    >>> check_model(nn.Linear)
    Traceback (most recent call last):
        ...
    secateur.errors.ModelError: a model is needed, not the class Linear: give Linear(...)
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model is needed, not {_said(model)}")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if lazy := [name for name, tensor in tensors if is_lazy(tensor)]:
        more = f" and {len(lazy) - 1} more" if len(lazy) > 1 else ""
        raise ModelError(
            f"{lazy[0]!r}{more} of this {type(model).__name__} has no shape yet, as lazy layers "
            "have none before their first forward: run the model once on an input"
        )


def _said(given: Any) -> str:
    """Say what was given, and what to give."""
    kind = type(given).__name__
    if isinstance(given, type):
        name = given.__name__
        return f"the class {name}: give {name}(...)"
    if isinstance(given, Mapping):
        return f"a {kind}: build the model, and let it load_state_dict() that"
    if callable(given):
        name = getattr(given, "__name__", kind)
        return (
            f"the callable {name!r}, whose weights nobody can find: give the torch.nn.Module that "
            "it calls, or make it the forward of one"
        )
    return f"{kind}: give a torch.nn.Module"
