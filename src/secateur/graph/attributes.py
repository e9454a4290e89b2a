"""The integers in Python code: where each one came from when it arrives as a size.

While a model is watched, its modules' integers are replaced by ``TracedInt``, an ``int`` that
remembers its origin through multiplication and division, and ``x.shape`` hands out such integers
too.  ``Call`` holds those of the torch function that is running, so that a rule can ask where the
``64`` in ``view(2, 12, 64)`` came from.  Afterwards every attribute is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .lengths import Attribute, Origin, Size


class TracedInt(int):
    """An integer with an origin."""

    origin: Origin

    def __new__(cls, value: int, origin: Origin) -> TracedInt:
        self = super().__new__(cls, value)
        self.origin = origin
        return self

    def __mul__(self, other: Any) -> Any:
        return _combine(self, other, super().__mul__(other), 1)

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        result = super().__floordiv__(other)
        exact = isinstance(other, int) and other and int(self) % int(other) == 0
        return _combine(self, other, result, -1) if exact else result

    def __rfloordiv__(self, other: Any) -> Any:
        result = super().__rfloordiv__(other)
        exact = isinstance(other, int) and int(other) % int(self) == 0
        if not exact:
            return result
        return TracedInt(result, Origin(Fraction(int(other))).times(self.origin, -1))

    def __add__(self, other: Any) -> Any:
        return _pinned(self, other, super().__add__(other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return _pinned(self, other, super().__sub__(other))

    def __rsub__(self, other: Any) -> Any:
        return _pinned(self, other, super().__rsub__(other))

    def __neg__(self) -> TracedInt:
        return TracedInt(super().__neg__(), Origin(Fraction(-1)).times(self.origin))

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)

    def __reduce__(self) -> Any:
        return int, (int(self),)


def _combine(a: TracedInt, b: Any, result: Any, sign: int) -> Any:
    if not isinstance(b, int) or isinstance(b, bool) or result is NotImplemented:
        return result
    other = b.origin if isinstance(b, TracedInt) else Origin(Fraction(b))
    return TracedInt(result, a.origin.times(other, sign))


def _pinned(a: TracedInt, b: Any, result: Any) -> Any:
    """A sum is no product of factors: where it arrives as a size, its factors must stay."""
    if not isinstance(b, int) or isinstance(b, bool) or result is NotImplemented:
        return result
    other = b.origin if isinstance(b, TracedInt) else Origin(Fraction(b))
    pins = {*a.origin.factors, *other.factors}
    return TracedInt(result, Origin(Fraction(int(result)), (), tuple(pins)))


class Call:
    """The integers that the running torch function was given, in order."""

    def __init__(self, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None):
        self.integers: list[int] = list(_integers((arguments, list((options or {}).values()))))

    def one(self, size: int) -> Origin | None:
        """Return the origin of one size: an expression, a literal, or None if not given."""
        same = [i for i in self.integers if i == size]
        traced = next((i for i in same if isinstance(i, TracedInt)), None)
        if traced is not None:
            return _absolute(traced.origin)
        return Origin(Fraction(abs(size))) if same else None

    def several(self, sizes: Sequence[int]) -> list[Origin | None]:
        """Return the origins of consecutive sizes; -1 on either side is "what is left"."""
        n = len(sizes)
        starts = range(len(self.integers) - n, -1, -1)
        for left_over in ((), (-1,)):  # in split((8, 8), -1) the last integer is a dimension
            for start in starts:
                run = self.integers[start : start + n]
                pairs = zip(run, sizes, strict=True)
                if not all(a == b or a in left_over or b in left_over for a, b in pairs):
                    continue
                return [None if i == -1 else _origin(i) for i in run]
        return [None] * n


def _origin(integer: int) -> Origin:
    return _absolute(
        integer.origin if isinstance(integer, TracedInt) else Origin(Fraction(integer))
    )


def _absolute(origin: Origin) -> Origin:
    return Origin(abs(origin.coefficient), origin.powers, origin.pins)


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _integers(part)
    elif isinstance(value, slice):
        yield from _integers((value.start, value.stop, value.step))


class CallWatcher(TorchFunctionMode):
    """Keeps ``current``, the running torch function's integers, and makes shapes remember."""

    def __init__(self, value_of: Callable[[Tensor], int | None]):
        super().__init__()
        self.value_of = value_of
        self.current: Call = Call()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func == _SHAPE or func is Tensor.size:  # a method-wrapper is made anew at each look
            return self._shape(func(*args, **(kwargs or {})), args)
        before = self.current
        self.current = Call(args, kwargs)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.current = before

    def _shape(self, shape: Any, args: tuple[Any, ...]) -> Any:
        value = self.value_of(args[0])
        if value is None:
            return shape
        if isinstance(shape, int):
            dim = int(args[1]) % args[0].dim() if len(args) > 1 else 0
            return TracedInt(shape, Origin(Fraction(1), ((Size(value, dim), 1),)))
        return torch.Size(
            TracedInt(s, Origin(Fraction(1), ((Size(value, d), 1),))) for d, s in enumerate(shape)
        )


_SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]


@contextmanager
def traced_attributes(model: nn.Module) -> Iterator[None]:
    """Replace every integer that a module holds by a ``TracedInt``, and put all back afterwards."""
    before: list[tuple[dict[str, Any], str, Any, Any]] = []
    for path, module in model.named_modules():
        held = vars(module)
        for name, value in list(held.items()):
            if name.startswith("_"):
                continue
            traced = _trace(value, path, name)
            if traced is not value:
                before.append((held, name, value, traced))
                held[name] = traced
    try:
        yield
    finally:
        for held, name, value, traced in before:
            if held.get(name) is traced:
                held[name] = value
        for module in model.modules():  # what the forward itself stored
            for name, value in list(vars(module).items()):
                if isinstance(value, TracedInt):
                    vars(module)[name] = int(value)


def _trace(value: Any, path: str, name: str, index: int | None = None) -> Any:
    if type(value) is int:
        return TracedInt(value, Origin(Fraction(1), ((Attribute(path, name, index), 1),)))
    if type(value) in (tuple, list) and index is None and any(type(v) is int for v in value):
        return type(value)(_trace(v, path, name, i) for i, v in enumerate(value))
    return value
