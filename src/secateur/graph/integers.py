"""Integers that remember where they came from.

``TracedInt`` is an ``int`` that keeps its origin through arithmetic, and tells where it becomes a
float (``head_dim ** -0.5``) or is compared with another number.
"""

from __future__ import annotations

from typing import Any, Protocol

from .origins import Origin


class Notes(Protocol):
    """Is told what the code does with an integer besides passing it as a size."""

    def number(self, origin: Origin) -> None: ...

    def decision(self, origin: Origin, other: Origin, equal: bool) -> None: ...

    def length(self, tensor: Any) -> None: ...

    def whole(self, tensor: Any, dim: int, origin: Origin) -> None: ...


class TracedInt(int):
    """An integer with an origin; ``note`` is told where it becomes a float or is compared."""

    origin: Origin
    note: Notes

    def __new__(cls, value: int, origin: Origin, note: Notes) -> TracedInt:
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

    def __neg__(self) -> TracedInt:
        return self._now(super().__neg__(), self.origin.times(Origin.of(-1)))

    def __pos__(self) -> TracedInt:
        return self

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

    def __ne__(self, other: object) -> bool:
        self._compared(other)
        return super().__ne__(other)

    def __eq__(self, other: object) -> bool:
        self._compared(other)
        return super().__eq__(other)

    __hash__ = int.__hash__

    def _compared(self, other: object) -> None:
        if isinstance(other, int):
            equal = int(self) == int(other)
            self.note.decision(self.origin, origin_of(other), equal)

    def _now(self, value: int, origin: Origin) -> TracedInt:
        return TracedInt(value, origin, self.note)

    def _as_number(self, result: Any, other: Any) -> Any:
        """Note that a float is computed from this integer; a tensor's own rule sees it."""
        if result is not NotImplemented or isinstance(other, float):
            self.note.number(self.origin)
        return result

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)

    def __copy__(self) -> int:
        return int(self)

    def __reduce__(self) -> Any:
        return int, (int(self),)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def origin_of(integer: int) -> Origin:
    """Return where an integer came from; it is a literal when nobody knows."""
    return integer.origin if isinstance(integer, TracedInt) else Origin.of(int(integer))


def _mixed(result: int, a: int, b: int) -> Origin:
    """Return the origin of what no sum of terms can say: its factors must stay."""
    factors = (*origin_of(a).factors, *origin_of(b).factors)
    return Origin.of(int(result)).pinned_to(factors)
