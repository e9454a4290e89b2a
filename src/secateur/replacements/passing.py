"""What is left of a residual block that was dropped: it returns its input."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


class PassThrough(nn.Module):
    """Returns one of its arguments, in the form in which the block returned its sum."""

    passes: tuple[int, str]  # position and name of the argument
    returns: tuple[bool, ...] | None  # for each part of a tuple, whether it is the argument

    def forward(self, *arguments: Any, **options: Any) -> Any:
        position, name = self.passes
        x = arguments[position] if position < len(arguments) else options[name]
        if self.returns is None:
            return x
        return tuple(x if passed else None for passed in self.returns)


def passing(kind: type[nn.Module]) -> type[PassThrough]:
    """Return the subclass of a block's class that passes its input through."""
    made: Any = type(kind.__name__, (PassThrough, kind), {})
    return made


def argument(kind: type[nn.Module], at: int | str) -> tuple[int, str]:
    """Return position and name of an argument of a module's forward; ValueError if there is none.

    >>> argument(nn.Linear, 0)
    (0, 'input')
    """
    names = list(inspect.signature(kind.forward).parameters)[1:]
    if isinstance(at, int):
        if not 0 <= at < 100:
            raise ValueError(f"{at} is no position of an argument")
        return at, names[at] if at < len(names) else ""
    return (names.index(at), at) if at in names else (1 << 16, at)  # among the **options
