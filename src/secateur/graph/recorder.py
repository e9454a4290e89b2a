"""Write down every operation that runs while it is on, and what the tensors are."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from secateur.runtime.caches import keys_of
from secateur.runtime.forward import Apart

from .calls import CallWatcher
from .fakes import shape_only
from .integers import TracedInt, origin_of
from .origins import Attribute, Origin, Size
from .program import Compared, Number, Op, Recording, Ref, Whole

HERE = f"{Path(__file__).parent}{os.sep}"


class Recorder(TorchDispatchMode):
    def __init__(self, recording: Recording, fake: bool, apart: Apart, others: dict[int, str]):
        super().__init__()
        self.recording = recording
        self.fake = fake
        self.others = others  # names of parameters that a copy must not read, by their ids
        self.read: set[str] = set()  # of those
        self.apart = apart
        self.running: dict[int, nn.Module | None] = {0: None}  # calls of modules, by their number
        self.values: Any = WeakTensorKeyDictionary()
        self.memory: dict[int, StorageWeakRef | TensorWeakRef] = {}  # of values that own some
        self.dispatching = False
        self.modules: list[str] = [""]
        self.calls = CallWatcher(lambda tensor: self.values.get(tensor), self)

    def new(self, tensor: Tensor, owner: int | None = None) -> int:
        """Give a tensor its number (a new one when it was written to in place)."""
        r = self.recording
        value = len(r.shapes)
        r.shapes.append(tuple(map(int, tensor.shape)))
        r.itemsize.append(tensor.element_size())
        if not tensor.dtype.is_floating_point and not tensor.dtype.is_complex:
            r.integers.add(value)
        r.owner.append(value if owner is None else r.owner[owner])
        if owner is None:
            self.memory[value] = _memory_of(tensor)
        self.values[tensor] = value
        return value

    def held(self, owners: Iterable[int]) -> set[int]:
        """Return those of some values whose memory somebody holds, by whatever name."""
        found = {value for value in owners if not _gone(self.memory[value])}
        if found:  # or nobody does, and it is in a circle of objects
            gc.collect()
        return {value for value in found if not _gone(self.memory[value])}

    def placed(self, owners: Iterable[int]) -> dict[int, int]:
        """Return of some values the parameter or buffer whose ``data`` they are by now."""
        memory = {self.memory[value]: value for value in owners}
        state = {*self.recording.state}
        now = {_memory_of(t): value for t, value in self.values.items() if value in state}
        return {memory[held]: value for held, value in now.items() if held in memory}

    def decision(self, origin: Origin, other: Origin, equal: bool) -> None:
        """Write down that the running module compares an integer with another."""
        term = origin.single
        if term and len(term.powers) == 1 and isinstance(term.powers[0][0], Attribute):
            self.recording.decisions.setdefault(self.modules[-1], set()).add(term.powers[0][0])
        if origin.factors and origin != other and (other.factors or (equal and _tells(other))):
            found = Compared(origin, other, equal, self.modules[-1], _line())
            self.recording.compared.append(found)

    def number(self, origin: Origin) -> None:
        """Write down that the code computes a number, and no size, from an integer."""
        if origin.factors:
            self.recording.numbers.append(Number(origin, self.modules[-1], _line()))

    def spent(self, attribute: Attribute) -> None:
        """Write down that the code computes a number from a float, which must stay."""
        self.recording.spent.add(attribute)

    def whole(self, tensor: Tensor, dim: int, bound: int) -> None:
        """Write down that all of a dimension is asked for, by a bound."""
        if (value := self.values.get(tensor)) is not None:
            found = Whole(value, dim, int(bound), origin_of(bound), self.modules[-1], _line())
            self.recording.whole.append(found)

    def length(self, tensor: Tensor) -> None:
        """Write down that ``len`` was asked, whose answer tells no more where it is from."""
        if (value := self.values.get(tensor)) is not None:
            self.recording.lengths.append(Origin.of(Size(value, 0)))

    def read_out(self, tensor: Tensor, by: str) -> None:
        """Write down that the code has a tensor's numbers, of which no operation tells more."""
        if not self.dispatching and (value := self.values.get(tensor)) is not None:
            self.recording.read_out[value] = by.strip("_")

    def hashed(self, integer: TracedInt) -> None:
        """Remember which call of a module may store a key."""
        integer.call = next(reversed(self.running))

    def outlived(self, key: TracedInt) -> bool:
        """Tell whether a key was stored by a call that is over, or in what is there for longer.

        A container that a call makes for itself may compare the sizes of several tensors; a cache
        would hand what one layer computed to the next.
        """
        if key.call not in self.running:
            return True
        owned = (held for m in self.running.values() if m for held in (vars(m), vars(type(m))))
        found = (v for held in owned for v in held.values() if isinstance(v, (dict, set)))
        return any(key is part for part in keys_of((*self.apart.caches, *found)))

    def ref(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            if (value := self.values.get(x)) is None:
                self.read |= {self.others[id(x)]} if id(x) in self.others else set()
                value = self.new(x)
            return Ref(value)
        if isinstance(x, (list, tuple)):
            return type(x)([self.ref(part) for part in x])
        return x

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        before, self.dispatching = self.dispatching, True
        try:
            return self._run(func, args, kwargs or {})
        finally:
            self.dispatching = before

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stand_in = shape_only(func) if self.fake else None
        out = self.apart.writes.run(func, stand_in or func, args, kwargs)
        if func.namespace == "prim":
            return out
        if type(out) is int:  # read from a tensor
            self.recording.given.add(out)
        seen = tuple(self.ref(a) for a in args)
        options = {k: self.ref(v) for k, v in kwargs.items()}
        tensors = (
            [out] if isinstance(out, Tensor) else out if isinstance(out, (list, tuple)) else []
        )
        outputs, updates = [], None
        for i, tensor in enumerate(t for t in tensors if isinstance(t, Tensor)):
            mine, written = _aliases(func, i, seen)
            value = self.new(tensor, mine)
            if written and mine is not None:
                updates = (mine, value)
            outputs.append(Ref(value))
        line = _line()
        call = self.calls.current
        self.recording.ops.append(
            Op(func, seen, options, tuple(outputs), self.modules[-1], line, call, updates)
        )
        return out


def _memory_of(tensor: Tensor) -> StorageWeakRef | TensorWeakRef:
    """Return what tells whether a tensor's memory is there still, and does not keep it."""
    try:
        return StorageWeakRef(tensor.untyped_storage())
    except (NotImplementedError, RuntimeError):  # a sparse tensor, a wrapper
        return TensorWeakRef(tensor)


def _gone(memory: StorageWeakRef | TensorWeakRef) -> bool:
    return memory.expired() if isinstance(memory, StorageWeakRef) else memory() is None


def _tells(literal: Origin) -> bool:
    """Tell whether to find a size equal to a number says something of it.

    Code that asks for 0 or 1 takes a shorter way to the same result.  What was found to be larger
    may well stay so; whether it does is seen when the smaller model runs.
    """
    return any(term.coefficient not in (-1, 0, 1) for term in literal.terms)


def _aliases(func: Any, i: int, seen: tuple[Any, ...]) -> tuple[int | None, bool]:
    """Return the value that output i shares memory with, and whether it was written to."""
    if func.is_view and seen and isinstance(seen[0], Ref):  # of split, the schema tells nothing
        return seen[0].value, False
    returns = func._schema.returns
    info = returns[min(i, len(returns) - 1)].alias_info if returns else None
    if info is None:
        return None, False
    for argument, given in zip(func._schema.arguments, seen, strict=False):
        if argument.alias_info is not None and isinstance(given, Ref):
            shared = argument.alias_info.before_set & info.before_set
            if shared or argument.alias_info.before_set == info.before_set:
                return given.value, argument.alias_info.is_write
    return None, False


def _line() -> str:
    """Return ``file:line`` of the nearest frame outside of torch and of this folder."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/torch/" not in file and not file.startswith(HERE):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
