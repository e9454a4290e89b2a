"""Tensors as they were: what an operation writes to is copied before it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .drawing import Drawing
from .undo import Undo, in_mode

SMALL = 2**16  # bytes of a buffer that is copied at once, as numpy may write to it unseen
RUNNING = ("running_mean", "running_var")  # written, though the operation's schema does not say so


class Writes(TorchDispatchMode):
    """While it is on, tensors that were ``kept`` are copied when they are first written to.

    Nothing is copied otherwise, so that it costs as little for 70 billion parameters as for ten.
    ``restore`` puts contents, memory and gradients of all back.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[int, tuple[Any, ...]] = {}
        self._memory: dict[
            int, Any
        ] = {}  # of each kept tensor, alive, so that its id stays its own
        self._copies: dict[int, Any] = {}
        self.drawing = Drawing()

    def keep(self, tensor: Tensor) -> None:
        """Let a tensor be restored."""
        memory = _memory_of(tensor)
        if memory is None or id(tensor) in self._kept:
            return
        self._memory[memory._cdata] = memory
        gradient = tensor.grad if tensor.is_leaf else None
        form = tensor.data, tensor.shape, tensor.stride(), tensor.requires_grad
        self._kept[id(tensor)] = tensor, memory._cdata, *form, gradient
        if gradient is not None:
            self.keep(gradient)  # a backward adds to it
        elif memory.device.type == "cpu" and memory.nbytes() <= SMALL and not tensor.requires_grad:
            self._copies[memory._cdata] = memory.clone()

    def changed(self) -> bool:
        """Tell whether a tensor that was kept has other contents, or other memory, by now."""
        for identity, copy in self._copies.items():
            now = self._memory[identity]
            if now.nbytes() != copy.nbytes() or not torch.equal(_bytes(now), _bytes(copy)):
                return True
        memories = ((_memory_of(tensor), place) for tensor, place, *_ in self._kept.values())
        return any(now is None or now._cdata != place for now, place in memories)

    def restore(self) -> None:
        """Put all that was kept back."""
        for identity, copy in self._copies.items():
            self._memory[identity].copy_(copy)
        for tensor, place, data, shape, stride, requires, gradient in self._kept.values():
            now = _memory_of(tensor)
            moved = now is None or now._cdata != place
            if moved or tensor.shape != shape or tensor.stride() != stride:
                tensor.data = data
            if not tensor.is_leaf:
                continue
            if tensor.grad is not gradient:
                tensor.grad = gradient
            if tensor.requires_grad != requires:
                tensor.requires_grad_(requires)

    def forget(self) -> None:
        """Hold no tensor any more."""
        for held in (self._kept, self._memory, self._copies):
            held.clear()

    def before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Copy what an operation is about to write to."""
        for place, name in _written(func):
            given = args[place] if place < len(args) else kwargs.get(name)
            for tensor in _tensors(given):
                self._copy(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.run(func, func, args, kwargs or {})

    def run(
        self, func: Any, by: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run an operation, by itself or by what stands for it, on copies of what it writes to."""
        self.before(func, args, kwargs)
        return self.drawing.run(by, args, kwargs)

    def _copy(self, tensor: Tensor) -> None:
        memory = _memory_of(tensor)
        known = memory is not None and memory._cdata in self._memory
        if known and memory._cdata not in self._copies:
            self._copies[memory._cdata] = memory.clone()


class _Aside(Writes):
    """Draws from the process's own generators."""

    def run(
        self, func: Any, by: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.before(func, args, kwargs)
        return by(*args, **kwargs)


@contextmanager
def unwritten(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Let somebody's function do with tensors what it likes: they are put back afterwards.

    >>> weight = torch.tensor([-1.0, 2.0])
    >>> with unwritten([weight]):
    ...     size = weight.abs_().sum()
    >>> size, weight
    (tensor(3.), tensor([-1.,  2.]))
    """
    writes = _Aside()
    for tensor in tensors:
        writes.keep(tensor)
    with Undo() as undo:
        undo(writes.forget)
        undo(writes.restore)
        with in_mode(writes):
            yield


_known: dict[int, tuple[Any, tuple[tuple[int, str], ...]]] = {}  # by id: to hash one is slow


def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Return the places and names of the arguments that an operation writes to."""
    if id(func) not in _known:
        schema = getattr(func, "_schema", None)
        arguments = schema.arguments if schema is not None else ()
        _known[id(func)] = (
            func,
            tuple(
                (i, a.name)
                for i, a in enumerate(arguments)
                if (a.alias_info is not None and a.alias_info.is_write) or a.name in RUNNING
            ),
        )
    return _known[id(func)][1]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _bytes(memory: Any) -> Tensor:
    """Return a storage as the bytes in it, which compare even where they are no numbers."""
    return torch.empty(0, dtype=torch.uint8, device=memory.device).set_(memory)


def _memory_of(tensor: Tensor) -> Any:
    """Return a tensor's storage, or None where it has none of its own (sparse ones, wrappers)."""
    try:
        memory = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None
    return memory if not tensor.is_meta else None
