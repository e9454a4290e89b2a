"""Integers that remember where they came from.

``TracedInt`` is an ``int`` that keeps its origin through arithmetic, and tells where it becomes a
float (``head_dim ** -0.5``) or is compared with another number.  It equals its number, so that
``{16: a, 32: b}[self.width]`` works, but what one part of a model keeps under a size of its own is
not found under an equal size of another's.
"""

from __future__ import annotations

import dis
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from fractions import Fraction
from functools import partial, wraps
from types import FunctionType
from typing import Any, Protocol

from secateur.runtime.undo import Undo

from .origins import Origin


class Notes(Protocol):
    """Is told what the code does with an integer besides passing it as a size."""

    def number(self, origin: Origin) -> None: ...

    def decision(self, origin: Origin, other: Origin, equal: bool) -> None: ...

    def length(self, tensor: Any) -> None: ...

    def read_out(self, tensor: Any, by: str) -> None: ...

    def whole(self, tensor: Any, dim: int, bound: int) -> None: ...

    def hashed(self, integer: TracedInt) -> None: ...

    def outlived(self, key: TracedInt) -> bool: ...


class TracedInt(int):
    """An integer with an origin; ``note`` is told where it becomes a float or is compared."""

    origin: Origin
    note: Notes
    call: int | None = None  # of a module, in which it was last hashed, as a key is

    def __new__(
        cls, value: Any = 0, origin: Origin | None = None, note: Notes | None = None
    ) -> TracedInt:
        if origin is None or note is None:  # somebody converts to the type of a number that he has
            return int(value)  # type: ignore[return-value]
        self = super().__new__(cls, value)
        self.origin = origin
        self.note = note
        return self

    def __mul__(self, other: Any) -> Any:
        if not _is_integer(other):
            return self._as_number(super().__mul__(other), other)
        return self._now(super().__mul__(other), self.origin.times(origin_of(other)))

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        result = super().__floordiv__(other)
        return self._divided(result, self, other) if _is_integer(other) else result

    def __rfloordiv__(self, other: Any) -> Any:
        result = super().__rfloordiv__(other)
        return self._divided(result, other, self) if _is_integer(other) else result

    def _divided(self, result: int, above: int, below: int) -> TracedInt:
        exact = None if int(above) % int(below) else origin_of(above).over(origin_of(below))
        return self._now(result, exact or _mixed(result, above, below))

    def __mod__(self, other: Any) -> Any:
        result = super().__mod__(other)
        return self._now(result, _mixed(result, self, other)) if _is_integer(other) else result

    def __rmod__(self, other: Any) -> Any:
        result = super().__rmod__(other)
        return self._now(result, _mixed(result, self, other)) if _is_integer(other) else result

    def __add__(self, other: Any) -> Any:
        if not _is_integer(other):
            return self._as_number(super().__add__(other), other)
        return self._now(super().__add__(other), self.origin.plus(origin_of(other)))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        if not _is_integer(other):
            return self._as_number(super().__sub__(other), other)
        return self._now(super().__sub__(other), self.origin.plus(origin_of(other), -1))

    def __rsub__(self, other: Any) -> Any:
        if not _is_integer(other):
            return self._as_number(super().__rsub__(other), other)
        return self._now(super().__rsub__(other), origin_of(other).plus(self.origin, -1))

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __lshift__(self, other: Any) -> Any:
        return self * 2 ** int(other) if type(other) is int else self._bits("__lshift__", other)

    def __rshift__(self, other: Any) -> Any:
        return self // 2 ** int(other) if type(other) is int else self._bits("__rshift__", other)

    def __rlshift__(self, other: Any) -> Any:
        return self._bits("__rlshift__", other)

    def __rrshift__(self, other: Any) -> Any:
        return self._bits("__rrshift__", other)

    def __and__(self, other: Any) -> Any:
        return self._bits("__and__", other)

    def __or__(self, other: Any) -> Any:
        return self._bits("__or__", other)

    def __xor__(self, other: Any) -> Any:
        return self._bits("__xor__", other)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def _bits(self, name: str, other: Any) -> Any:
        """Return what an operation on bits makes: no sum of terms can say it."""
        result = getattr(int, name)(self, other)
        return self._now(result, _mixed(result, self, other)) if _is_integer(other) else result

    def __invert__(self) -> TracedInt:
        return -self - 1

    def __abs__(self) -> TracedInt:
        return -self if int(self) < 0 else self

    def __neg__(self) -> TracedInt:
        return self._now(super().__neg__(), self.origin.times(Origin.of(-1)))

    def __pos__(self) -> TracedInt:
        return self

    __floor__ = __ceil__ = __trunc__ = __pos__

    def __round__(self, digits: Any = None) -> Any:
        return self if digits is None or digits >= 0 else self._as_number(round(int(self), digits))

    @property
    def numerator(self) -> int:  # a fraction asks for it
        return self._as_number(int(self))

    def bit_length(self) -> int:
        return self._as_number(super().bit_length())

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Let NumPy compute with the number, and tell that it does."""
        for each in inputs:
            if isinstance(each, TracedInt):
                each._as_number(None)
        plain = [int(x) if isinstance(x, TracedInt) else x for x in inputs]
        return getattr(function, method)(*plain, **options)

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        result = super().__pow__(other, modulus)
        if not _is_integer(other) or other < 0 or modulus is not None:
            return self._as_number(result, other)
        origin = Origin.of(1)
        for _ in range(int(other)):
            origin = origin.times(self.origin)
        return self._now(result, origin)

    def __truediv__(self, other: Any) -> Any:
        return self._as_number(super().__truediv__(other), other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._as_number(super().__rtruediv__(other), other)

    def __float__(self) -> float:  # math.sqrt asks for it, too
        self.note.number(self.origin)
        return super().__float__()

    def __gt__(self, other: Any) -> bool:
        self._compared(other)
        return super().__gt__(other)

    def __lt__(self, other: Any) -> bool:
        self._compared(other)
        return super().__lt__(other)

    def __ge__(self, other: Any) -> bool:
        self._compared(other)
        return super().__ge__(other)

    def __le__(self, other: Any) -> bool:
        self._compared(other)
        return super().__le__(other)

    def __ne__(self, other: object) -> bool:
        self._compared(other)
        return super().__ne__(other)

    def __eq__(self, other: object) -> bool:
        equal = super().__eq__(other)
        if equal is True and isinstance(other, TracedInt):
            if self.origin == other.origin:
                return True
            if self.call is not None and _looks_up() and self.note.outlived(self):
                return False
        self._compared(other)
        return equal

    def __hash__(self) -> int:
        _hashed_at[:] = _place()
        self.note.hashed(self)
        return super().__hash__()

    def _compared(self, other: object) -> None:
        if isinstance(other, int):
            equal = int(self) == int(other)
            self.note.decision(self.origin, origin_of(other), equal)
        elif isinstance(other, float) and math.isfinite(other):
            equal = int(self) == other
            self.note.decision(self.origin, Origin.of(Fraction(other)), equal)

    def _now(self, value: int, origin: Origin) -> TracedInt:
        return TracedInt(value, origin, self.note)

    def _as_number(self, result: Any, other: Any = 0) -> Any:
        """Note that a number, and no size, is computed; a tensor's own rule sees it."""
        if result is not NotImplemented or isinstance(other, (float, list, tuple, str, bytes)):
            for each in (self, other):
                if isinstance(each, TracedInt):
                    self.note.number(each.origin)
        return result

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)

    def __copy__(self) -> int:
        return int(self)

    def __reduce__(self) -> Any:
        return int, (int(self),)


_hashed_at = [0, 0]
_EXPLICIT = {dis.opmap["COMPARE_OP"], dis.opmap["CONTAINS_OP"]}  # as in ``a == b``, ``a in (b, c)``


def _looks_up() -> bool:
    """Tell whether a comparison is one of a dict or set, which looks for a key."""
    frame = _caller(2)
    place = [id(frame), frame.f_lasti]
    return place == _hashed_at or frame.f_code.co_code[frame.f_lasti] not in _EXPLICIT


def _place() -> tuple[int, int]:
    frame = _caller(2)
    return id(frame), frame.f_lasti


def _caller(depth: int) -> Any:
    """Return the frame that hashes or compares, outside of the class of a key."""
    frame: Any = sys._getframe(depth + 1)
    while frame.f_code.co_name in ("__eq__", "__hash__") and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def origin_of(integer: int) -> Origin:
    """Return where an integer came from; it is a literal when nobody knows."""
    return integer.origin if isinstance(integer, TracedInt) else Origin.of(int(integer))


def _mixed(result: int, a: int, b: int) -> Origin:
    """Return the origin of what no sum of terms can say: its factors must stay."""
    factors = (*origin_of(a).factors, *origin_of(b).factors)
    return Origin.of(int(result)).pinned_to(factors)


@contextmanager
def watched_functions() -> Iterator[None]:
    """Let ``math``'s functions tell that they are given a traced integer.

    Those of one float ask it for ``__float__``; the others read an integer as it is.
    """
    # torch imports it at the first operation in a mode: it keeps math's functions by what they are
    import torch._dynamo  # noqa: F401

    made = {_telling(function): function for function in (getattr(math, name) for name in _READ)}
    with Undo() as undo:
        undo(partial(_put_back, set(sys.modules), made))
        for telling, function in made.items():
            undo(partial(setattr, math, function.__name__, function))
            setattr(math, function.__name__, telling)
        yield


def _put_back(known: Set[str], made: Mapping[Any, Any]) -> None:
    """Give modules that were first imported meanwhile (``from math import log``) the real ones."""
    for name, module in list(sys.modules.items()):
        held = {} if name in known else getattr(module, "__dict__", {})
        for key, value in list(held.items()):
            if isinstance(value, FunctionType) and value in made:
                held[key] = made[value]


_READ = ("comb", "factorial", "gcd", "isqrt", "lcm", "log", "log10", "log2", "perm")


def _telling(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for each in args:
            if isinstance(each, TracedInt):
                each._as_number(None)
        return function(*args, **kwargs)

    return call
