"""One recorded operation, run again on its own, with the sizes that a smaller model would have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.graph.axes import Atom, atoms
from secateur.graph.infer import Inferred
from secateur.graph.lengths import now
from secateur.graph.program import Op, Ref

Count = Callable[[Atom], int]
Shape = tuple[int, ...]

FREE = {"_unsafe_view", "detach", "alias", "lift_fresh"}
"""Operations that move nothing, though their schema does not say so."""

FAILURES = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError)
"""What torch raises of sizes that do not fit each other."""


@dataclass(frozen=True)
class Like:
    """A tensor that an operation reads: its type and shape."""

    dtype: torch.dtype
    shape: Shape

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{name}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Call:
    """An operation with its arguments, tensors as ``Like``; ``makes`` are the shapes of outputs."""

    func: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    makes: tuple[Shape, ...]

    def __str__(self) -> str:
        named = [f"{key}={_text(value)}" for key, value in self.kwargs]
        return f"{self.func}({', '.join([*map(_text, self.args), *named])})"

    def ready(self, device: torch.device) -> Callable[[], Any] | None:
        """Return a function that runs it on tensors of ones; None where these sizes do not run."""
        args = _made(self.args, device, self)
        kwargs = {key: _made(value, device, self) for key, value in self.kwargs}
        try:
            out = self.func(*args, **kwargs)
        except FAILURES:  # numbers among its arguments are of other sizes: see ``calls``
            return None
        outs = out if isinstance(out, (list, tuple)) else [out]
        shapes = tuple(tuple(x.shape) for x in outs if isinstance(x, Tensor))
        return (lambda: self.func(*args, **kwargs)) if shapes == self.makes else None


def moves(op: Op) -> bool:
    """Tell whether an operation computes or copies anything, and reads a tensor at all."""
    packet = getattr(op.func, "overloadpacket", None)
    if not op.reads or getattr(packet, "__name__", "") in FREE or not hasattr(op.func, "_schema"):
        return False
    returns = op.func._schema.returns
    return not returns or not all(r.alias_info and not r.alias_info.is_write for r in returns)


def axes_of(inferred: Inferred, op: Op) -> tuple[Atom, ...]:
    """Return the axes that the tensors of an operation have."""
    values = [*op.reads, *(ref.value for ref in op.outputs)]
    dims = [dim for value in values for dim in inferred.types[value].dims]
    found = {id(atom): atom for dim in dims for atom in atoms(dim.axis)}
    return tuple(found.values())


def calls(inferred: Inferred, op: Op, count: Count, floats: torch.dtype) -> Iterator[Call]:
    """Yield ways to call an operation at other sizes: its numbers as they are, or as sizes of such.

    The one that runs, and makes the shapes that it should, is it.
    """

    def like(value: int, counted: Count) -> Like:
        shape = tuple(now(dim.axis, counted) for dim in inferred.types[value].dims)
        return Like(_dtype(inferred, value, floats), shape)

    def given(x: Any, resized: Callable[[Any], Any]) -> Any:
        if isinstance(x, Ref):
            return like(x.value, count)
        x = resized(x)
        return tuple(given(y, resized) for y in x) if isinstance(x, (list, tuple)) else x

    makes = tuple(like(ref.value, count).shape for ref in op.outputs)
    whole = [like(v, lambda atom: atom.size).shape for v in op.reads]
    left = [like(v, count).shape for v in op.reads]
    outs = [like(ref.value, lambda atom: atom.size).shape for ref in op.outputs]
    pairs = [*zip(whole, left, strict=True), *zip(outs, makes, strict=True)]
    for resized in (_same, _lists(pairs), _numbers(pairs)):
        args = _grouped(op, [given(x, resized) for x in op.args], makes)
        kwargs = tuple((key, given(x, resized)) for key, x in op.kwargs.items())
        yield Call(op.func, tuple(args), kwargs, makes)


def _same(x: Any) -> Any:
    return x


def _lists(pairs: list[tuple[Shape, Shape]]) -> Callable[[Any], Any]:
    """Return what makes of a list that is a shape, or the end of one, what it is now."""

    def resized(x: Any) -> Any:
        if isinstance(x, (list, tuple)) and x and all(type(y) is int for y in x):
            for before, after in pairs:
                if before[-len(x) :] == tuple(x):
                    return after[-len(x) :]
        return x

    return resized


def _numbers(pairs: list[tuple[Shape, Shape]]) -> Callable[[Any], Any]:
    """Return what makes of a list, or of a number that is a changed size, what it is now."""
    lists = _lists(pairs)
    changed = {
        a: b for before, after in pairs for a, b in zip(before, after, strict=True) if a != b
    }

    def resized(x: Any) -> Any:
        return changed.get(x, x) if type(x) is int else lists(x)

    return resized


def _grouped(op: Op, args: list[Any], makes: tuple[Shape, ...]) -> list[Any]:
    """Return a convolution's arguments with as many groups as its channels now fall into."""
    packet = getattr(op.func, "overloadpacket", None)
    if packet is not torch.ops.aten.convolution or len(args) < 9 or args[8] == 1:
        return args
    channels = makes[0][1] if args[6] else args[0].shape[1]
    return [*args[:8], max(1, channels // args[1].shape[1])]


def _dtype(inferred: Inferred, value: int, floats: torch.dtype) -> torch.dtype:
    recording = inferred.recording
    size = recording.itemsize[value]
    if value in recording.integers:
        return {8: torch.int64, 4: torch.int32, 2: torch.int16}.get(size, torch.bool)
    if floats.itemsize == size:
        return floats
    return {8: torch.float64, 4: torch.float32, 2: torch.bfloat16}.get(size, floats)


def _text(x: Any) -> str:
    if isinstance(x, tuple):
        return f"({', '.join(map(_text, x))})"
    return str(x)


def _made(x: Any, device: torch.device, call: Call) -> Any:
    """Return an argument with a tensor for each ``Like``: of ones, and of indices, zeros."""
    if isinstance(x, Like):
        if x.dtype.is_floating_point or x.dtype is torch.bool:
            return torch.ones(x.shape, dtype=x.dtype, device=device)
        if "grouped_mm" in str(call.func):  # the ends of the experts' rows: equally many for each
            rows = call.makes[0][0]
            return torch.linspace(rows / x.shape[0], rows, x.shape[0]).to(x.dtype).to(device)
        return torch.zeros(x.shape, dtype=x.dtype, device=device)
    if isinstance(x, tuple):
        return [_made(y, device, call) for y in x]
    return device if isinstance(x, torch.device) else x
