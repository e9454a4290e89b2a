"""The torch function that is running, and the numbers that it was given.

``Call`` holds them, so that a rule can ask where the ``64`` in ``view(2, 12, 64)`` came from;
``x.shape`` hands out integers that remember it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .floats import TracedFloat
from .integers import Notes, TracedInt, origin_of
from .origins import Attribute, Origin, Size


class Call:
    """The name of the running torch function, and the numbers that it was given, in order."""

    def __init__(
        self,
        name: str = "",
        arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ):
        self.name = name
        given = (arguments, list((options or {}).values()))
        self.integers: list[int] = list(_integers(given))
        self._floats = tuple(_floats(given))
        every = dict(enumerate(arguments)) | (options or {})
        self._places = {at: x for at, x in every.items() if isinstance(x, int)}  # and no tensor

    def argument(self, keyword: str, place: int) -> Origin | None:
        """Return the origin of one argument, or None if it is no integer or was not given."""
        value = self._places.get(keyword, self._places.get(place))
        return None if value is None else _absolute(value)

    @property
    def floats(self) -> tuple[Attribute, ...]:
        """The attributes that the function was given as floats."""
        return tuple(dict.fromkeys(x.attribute for x in self._floats))

    def float_of(self, number: float) -> Attribute | None:
        """Return the attribute that a number of an operation is, or None."""
        found = {x.attribute for x in self._floats if x.stands_for(number)}
        return found.pop() if len(found) == 1 else None

    def one(self, size: int) -> Origin | None:
        """Return the origin of one size: an expression, a literal, or None if not given."""
        same = [i for i in self.integers if int(i) == size]
        traced = next((i for i in same if isinstance(i, TracedInt)), None)
        return _absolute(traced if traced is not None else same[0]) if same else None

    def every(self, size: int) -> list[Origin]:
        """Return all that a number may be: the origin of each integer of that size."""
        return [_absolute(i) for i in self.integers if abs(int(i)) == abs(size)]

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

    def every(self, size: int) -> list[Origin]:
        return []

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


def _floats(value: Any) -> Iterator[TracedFloat]:
    if isinstance(value, TracedFloat):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _floats(part)


class CallWatcher(TorchFunctionMode):
    """Keeps ``current``, the running torch function's numbers, and makes shapes remember.

    ``given`` are the calls so far that were given a float of an attribute.
    """

    def __init__(self, value_of: Callable[[Tensor], int | None], note: Notes):
        super().__init__()
        self.value_of = value_of
        self.note = note
        self.current: Call = Call()
        self.given: list[Call] = []

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
        elif func is Tensor.__len__:
            self.note.length(args[0])
        elif func in _READ_OUT:
            self.note.read_out(args[0], func.__name__)
        elif func in _INDEX:
            for dim, bound in _whole(args[0], args[1]):
                self.note.whole(args[0], dim, bound)
        before = self.current
        closed = func is F.multi_head_attention_forward
        name = getattr(func, "__name__", "")
        self.current = _Closed() if closed else Call(name, self._given(func, args, kwargs), kwargs)
        if self.current.floats:
            self.given.append(self.current)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.current = before

    def _given(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, ...]:
        """Return the arguments; for one whose shape is taken, its lengths."""
        if func not in _LIKE:
            return args
        other = args[1] if len(args) > 1 else kwargs["other"]
        return args[0], self._shape(other.size(), (other,))

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


def _whole(tensor: Tensor, index: Any) -> Iterator[tuple[int, int]]:
    """Yield (dimension, bound) where an index asks for all of a dimension and gives a bound.

    Torch then takes no slice, though of another length it would.
    """
    parts = index if isinstance(index, tuple) else (index,)
    takes = [_dims_of(part) for part in parts]
    dim = 0
    for part, taken in zip(parts, takes, strict=True):
        if isinstance(part, slice) and dim < tensor.dim() and _is_all(part, tensor.size(dim)):
            yield from ((dim, bound) for bound in _bounds(part))
        dim += tensor.dim() - sum(takes) if part is Ellipsis else taken


def _is_all(part: slice, size: int) -> bool:
    """Tell whether a slice leaves nothing out."""
    given = [i for i in (part.start, part.stop, part.step) if i is not None]
    if not all(isinstance(i, int) for i in given):  # a tensor would have to be read
        return False
    plain = slice(*(i if i is None else int(i) for i in (part.start, part.stop, part.step)))
    return plain.indices(size) == (0, size, 1)


def _bounds(part: slice) -> Iterator[int]:
    """Yield the bounds that say something: before an end, a literal zero does not."""
    if part.start is not None and (isinstance(part.start, TracedInt) or part.stop is None):
        yield part.start
    if part.stop is not None:
        yield part.stop


def _dims_of(part: Any) -> int:
    """Return how many dimensions a part of an index takes."""
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    return part.dim() if isinstance(part, Tensor) and part.dtype == torch.bool else 1


_INDEX = {Tensor.__getitem__, Tensor.__setitem__}
_MAKE_VALUES = {torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor}
_COUNT = {torch.numel, Tensor.numel, Tensor.nelement}
_LIKE = {Tensor.view_as, Tensor.reshape_as, Tensor.expand_as}
_READ_OUT = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr}
_READ_OUT |= {Tensor.__repr__, Tensor.__format__, Tensor.__deepcopy__, Tensor.__reduce_ex__}
_READ_OUT |= {Tensor.storage, Tensor.untyped_storage, Tensor.share_memory_}
"""What reads a tensor's memory by no operation: the numbers may go anywhere: text, a file."""
_SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]
