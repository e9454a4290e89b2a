"""Results that nobody returns, where models are compared: what a call leaves and nothing reads.

What the next call reads is the model's own memory, and no result (see ``graph/handed.py``).
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import TensorWeakRef


class Aside(TorchDispatchMode):
    """Sees what operations make of some tensors, and which of that is read.

    Args:
        given: the tensors: what is made of nothing else is a constant, and no result.

    >>> import torch
    >>> x = torch.ones(2)
    >>> with (aside := Aside([x])):
    ...     read = x + 1
    ...     left, out = read * 2, read * 3
    ...     aside.keep([out])
    >>> list(aside.results())
    [tensor([4., 4.])]
    """

    def __init__(self, given: Iterable[Tensor]):
        super().__init__()
        self._computed = {memory._cdata for memory in map(_memory, given) if memory is not None}
        self._made: dict[int, tuple[StorageWeakRef, list[TensorWeakRef]]] = {}
        self._read: set[int] = set()
        self._kept: dict[int, Tensor] = {}
        self._watches = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self._watches:  # its own
            return out
        taken = {memory._cdata for _, memory in _memories((args, kwargs or {}))}
        made = {memory._cdata: (tensor, memory) for tensor, memory in _memories(out)}
        self._read |= taken - made.keys()
        for key, (tensor, memory) in made.items():
            if key not in taken and not self._computed.isdisjoint(taken):
                self._computed.add(key)
                self._made[key] = StorageWeakRef(memory), []
                self._read.discard(key)  # of what was there before
            if key in self._made:
                self._made[key][1].append(TensorWeakRef(tensor))
        return out

    def keep(self, returned: Iterable[Tensor]) -> None:
        """Remember what is there now, besides what was returned, and nothing has read."""
        known = {memory._cdata for _, memory in _memories(list(returned))}
        if any(True for _ in self._left(known)):
            gc.collect(1)  # it may be in a circle of young objects alone
        self._watches = False
        self._kept = {key: tensor.detach().clone() for key, tensor in self._left(known)}
        self._watches = True

    def results(self) -> Iterator[Tensor]:
        """Yield what was remembered, and nothing has read since."""
        return (tensor for key, tensor in self._kept.items() if key not in self._read)

    def _left(self, known: set[int]) -> Iterator[tuple[int, Tensor]]:
        for key, (memory, names) in self._made.items():
            if key in self._read | known or memory.expired():
                continue
            alive = (tensor for name in names if (tensor := name()) is not None)
            if (tensor := next(alive, None)) is not None:
                yield key, tensor


def _memories(held: Any) -> Iterator[tuple[Tensor, Any]]:
    for leaf in tree_leaves(held):
        if isinstance(leaf, Tensor) and (memory := _memory(leaf)) is not None:
            yield leaf, memory


def _memory(tensor: Tensor) -> Any:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # a sparse tensor has none
        return None
