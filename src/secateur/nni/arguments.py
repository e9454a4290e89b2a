"""How a call may give one of a module's inputs: by its position, or by its name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import Any

from torch import nn

BY_PLACE = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def key_of(target: str) -> tuple[str, int | str]:
    """Return the side of a target and which value there it is, a position or a name.

    >>> key_of("_input_1"), key_of("_output_logits")
    (('input', 1), ('output', 'logits'))
    """
    side, _, which = target.lstrip("_").partition("_")
    return side, int(which) if which.isdigit() else which or 0


def ways(module: nn.Module, key: int | str) -> tuple[int | str, ...]:
    """Return the positions and keywords by which a call may give one input of a module.

    >>> ways(nn.Linear(2, 2), 0), ways(nn.Linear(2, 2), "input"), ways(nn.Linear(2, 2), "scale")
    ((0, 'input'), ('input', 0), ('scale',))
    """
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # a forward that is no Python function has no names
        return (key,)
    names = [p.name for p in parameters if p.kind in BY_PLACE]
    if isinstance(key, int):
        return (key, names[key]) if key < len(names) else (key,)
    return (key, names.index(key)) if key in names else (key,)


def given(
    options: Sequence[int | str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> int | str | None:
    """Return which of several ways a call takes: a position, a keyword, or None if none."""
    for way in options:
        if way in kwargs if isinstance(way, str) else way < len(args):
            return way
    return None
