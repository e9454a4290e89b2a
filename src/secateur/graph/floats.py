"""Floats that remember which attribute they are.

An epsilon is a float of a module or of its config.  ``TracedFloat`` is a ``float`` that arrives in
the torch call that it is given to as what it is; any arithmetic on it makes a plain number of it,
and tells.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol

from .origins import Attribute


class Spending(Protocol):
    """Is told that the code computes a number from a float, so that it must stay as it is."""

    def spent(self, attribute: Attribute) -> None: ...


class TracedFloat(float):
    """A float of an attribute; ``note`` is told where code computes with it.

    >>> class Told:
    ...     def spent(self, attribute):
    ...         print("computes with", attribute)
    >>> eps = TracedFloat(1e-6, Attribute("norm", "eps"), Told())
    >>> doubled = 2 * eps
    computes with norm.eps
    >>> type(doubled) is float, eps > 0
    (True, True)
    """

    attribute: Attribute
    note: Spending

    def __new__(
        cls, value: Any = 0.0, attribute: Attribute | None = None, note: Spending | None = None
    ) -> TracedFloat:
        if attribute is None or note is None:  # somebody converts to the type of a number he has
            return float(value)  # type: ignore[return-value]
        self = super().__new__(cls, value)
        self.attribute = attribute
        self.note = note
        return self

    def stands_for(self, number: float) -> bool:
        """Tell whether an operation's number is this one; torch rounds some to single precision."""
        (single,) = struct.unpack("f", struct.pack("f", self.plain))
        return number in (self.plain, single)

    @property
    def plain(self) -> float:
        """The number itself, which nobody is told of."""
        return super().__pos__()

    def __float__(self) -> float:
        self.note.spent(self.attribute)
        return self.plain

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [float(x) if isinstance(x, TracedFloat) else x for x in inputs]
        return getattr(function, method)(*plain, **options)

    def __deepcopy__(self, memo: Any) -> float:
        return self.plain

    def __copy__(self) -> float:
        return self.plain

    def __reduce__(self) -> Any:
        return float, (self.plain,)


def _telling(name: str) -> Callable[..., Any]:
    plain = getattr(float, name)

    @wraps(plain)
    def method(self: TracedFloat, *others: Any) -> Any:
        result = plain(self, *others)
        asks_sign = name in _ORDER and others and isinstance(others[0], (int, float))
        if result is not NotImplemented and not (asks_sign and others[0] == 0):
            self.note.spent(self.attribute)
        return result

    return method


_ORDER = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
_UNARY = ("divmod", "neg", "pos", "abs", "int", "round", "trunc", "floor", "ceil")
_COMPUTES = (
    *(f"__{side}{name}__" for name in _BINARY for side in ("", "r")),
    *(f"__{name}__" for name in _UNARY),
)

for _name in (*_ORDER, *_COMPUTES):
    setattr(TracedFloat, _name, _telling(_name))
