"""The integers in Python code: where each one came from when it arrives as a size.

While a model is watched, the integers of its modules, and of the plain objects that these hold (a
config), are replaced by ``TracedInt``, an ``int`` that remembers its origin through arithmetic;
``x.shape`` hands out such integers too.  ``Call`` holds those of the torch function that is
running, so that a rule can ask where the ``64`` in ``view(2, 12, 64)`` came from.  Where one
becomes a float (``head_dim ** -0.5``), that is noted.  Afterwards every attribute is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from types import FunctionType, MethodType, ModuleType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .origins import Attribute, Origin, Size


class Notes(Protocol):
    """Is told what the code does with an integer besides passing it as a size."""

    def number(self, origin: Origin) -> None: ...

    def decision(self, origin: Origin, other: Origin, equal: bool) -> None: ...


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


class Call:
    """The name of the running torch function, and the integers that it was given, in order."""

    def __init__(
        self,
        name: str = "",
        arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ):
        self.name = name
        self.integers: list[int] = list(_integers((arguments, list((options or {}).values()))))
        self._places = dict(enumerate(arguments)) | (options or {})

    def argument(self, keyword: str, place: int) -> Origin | None:
        """Return the origin of one argument, or None if it is no integer or was not given."""
        value = self._places.get(keyword, self._places.get(place))
        return _absolute(value) if isinstance(value, int) else None

    def one(self, size: int) -> Origin | None:
        """Return the origin of one size: an expression, a literal, or None if not given."""
        same = [i for i in self.integers if int(i) == size]
        traced = next((i for i in same if isinstance(i, TracedInt)), None)
        return _absolute(traced if traced is not None else same[0]) if same else None

    def several(self, sizes: Sequence[int]) -> list[Origin | None]:
        """Return the origins of consecutive sizes; -1 on either side is "what is left"."""
        n, plain = len(sizes), list(map(int, self.integers))
        starts = range(len(self.integers) - n, -1, -1)
        for left_over in ((), (-1,)):  # in split((8, 8), -1) the last integer is a dimension
            for start in starts:
                pairs = zip(plain[start : start + n], sizes, strict=True)
                if all(a == b or a in left_over or b in left_over for a, b in pairs):
                    run = self.integers[start : start + n]
                    return [None if int(i) == -1 else _absolute(i) for i in run]
        return [None] * n


class _Closed(Call):
    """A function in Python that computes sizes where nobody sees it: they are literals to us."""

    def one(self, size: int) -> Origin | None:
        return Origin.of(size)

    def several(self, sizes: Sequence[int]) -> list[Origin | None]:
        return [Origin.of(abs(size)) for size in sizes]


def _absolute(integer: int) -> Origin:
    """Return the origin of |integer|: a negative bound counts from the end."""
    origin = origin_of(integer)
    return origin.times(Origin.of(-1)) if int(integer) < 0 else origin


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

    def __init__(self, value_of: Callable[[Tensor], int | None], note: Notes):
        super().__init__()
        self.value_of = value_of
        self.note = note
        self.current: Call = Call()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func == _SHAPE or func is Tensor.size:  # a method-wrapper is made anew at each look
            return self._shape(func(*args, **(kwargs or {})), args)
        if func in _COUNT:
            tensor = args[0] if args else (kwargs or {})["input"]
            return prod(self._shape(tensor.size(), (tensor,)))
        if func is F.scaled_dot_product_attention:
            self._scale(args, kwargs or {})
        elif func in _MAKE_VALUES:
            for integer in _integers(args[:1]):
                if isinstance(integer, TracedInt):
                    self.note.number(integer.origin)
        elif func is F.multi_head_attention_forward:
            self._checked(args, kwargs or {})
        before = self.current
        closed = func is F.multi_head_attention_forward
        name = getattr(func, "__name__", "")
        self.current = _Closed() if closed else Call(name, args, kwargs)
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
            return TracedInt(shape, Origin.of(Size(value, dim)), self.note)
        return torch.Size(
            TracedInt(s, Origin.of(Size(value, d)), self.note) for d, s in enumerate(shape)
        )

    def _scale(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Attention without a scale computes one from the width, where no operation shows it."""
        query = args[0] if args else kwargs["query"]
        value = self.value_of(query)
        if kwargs.get("scale") is None and len(args) < 7 and value is not None:
            self.note.number(Origin.of(Size(value, query.dim() - 1)))

    def _checked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """This function compares the width of its queries with the one that it is told."""
        query = args[0] if args else kwargs["query"]
        told = args[3] if len(args) > 3 else kwargs["embed_dim_to_check"]
        value = self.value_of(query)
        if value is not None:
            width = Origin.of(Size(value, query.dim() - 1))
            self.note.decision(width, origin_of(told), equal=True)


_MAKE_VALUES = {torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor}
_COUNT = {torch.numel, Tensor.numel, Tensor.nelement}
_SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]


@contextmanager
def traced_attributes(model: nn.Module, note: Notes) -> Iterator[None]:
    """Replace every integer that the model holds by a ``TracedInt``; put all back afterwards.

    Those of its modules, and of the objects that hang on them: of an object that several modules
    share, each integer is one attribute.
    """
    holders = list(_holders(model))
    before: list[tuple[dict[str, Any], str, Any, Any]] = []
    for path, prefix, held in holders:
        for name, value in list(held.items()):
            if name.startswith("_"):
                continue
            traced = _trace(value, Attribute(path, prefix + name), note)
            if traced is not value:
                before.append((held, name, value, traced))
                held[name] = traced
    try:
        yield
    finally:
        for held, name, value, traced in before:
            if held.get(name) is traced:
                held[name] = value
        for _, _, held in holders:  # what the forward itself stored
            for name, value in list(held.items()):
                plain = _plain(value)
                if plain is not value:
                    held[name] = plain


def _holders(model: nn.Module) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (path of the module, prefix of the names, attributes) of all that holds integers."""
    seen: set[int] = set()

    def objects(path: str, prefix: str, held: dict[str, Any]) -> Iterator[Any]:
        for name, value in list(held.items()):
            if id(value) in seen or name.startswith("_") or not _is_plain_object(value):
                continue
            seen.add(id(value))
            yield path, f"{prefix}{name}.", vars(value)
            yield from objects(path, f"{prefix}{name}.", vars(value))

    for path, module in model.named_modules():
        yield path, "", vars(module)
        yield from objects(path, "", vars(module))


def _is_plain_object(value: Any) -> bool:
    if isinstance(value, (type, nn.Module, Tensor, ModuleType, FunctionType, MethodType)):
        return False
    return isinstance(getattr(value, "__dict__", None), dict)


def _trace(value: Any, attribute: Attribute, note: Notes) -> Any:
    if type(value) is int:
        held = Attribute(attribute.path, attribute.name, attribute.index, value)
        return TracedInt(value, Origin.of(held), note)
    several = type(value) in (tuple, list) and attribute.index is None
    if not several or not any(type(v) is int for v in value):
        return value
    parts = [Attribute(attribute.path, attribute.name, i) for i in range(len(value))]
    return type(value)(_trace(v, part, note) for v, part in zip(value, parts, strict=True))


def _plain(value: Any) -> Any:
    if isinstance(value, TracedInt):
        return int(value)
    if type(value) in (tuple, list, torch.Size) and any(isinstance(v, TracedInt) for v in value):
        return type(value)(map(_plain, value))
    return value
