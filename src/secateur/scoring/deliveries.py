"""Follow what a product makes until it joins what others make: scaled, gated, and then added.

An expert's output is multiplied by the weight of its router somewhere on the way, before or after
other functions and after its rows were put into another order.  What counts is what arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from .readings import Reading

aten = torch.ops.aten
SUMS = (aten.add, aten.add_, aten.sub, aten.sub_)
TAKES = (aten.index, aten.index_select)
PUTS = (aten.index_put, aten.index_put_, aten._index_put_impl_)
JOINS = (aten.index_add, aten.index_add_, aten.scatter_add, aten.scatter_add_)
UNKNOWN = (aten.cat, aten.stack, aten.gather, aten.scatter, aten.flip, aten.roll, aten.sort)
"""After these nobody knows any more whose rows they are."""


@dataclass
class _Way:
    """What becomes of one reading."""

    reading: Reading
    ended: bool = False


@dataclass(frozen=True)
class _At:
    """Where the rows of a way are in a tensor: at these places of its first dimension, or all."""

    way: _Way
    places: Tensor | None = None


class Deliveries:
    """Shows each reading together with what became of its output, when that is added to others.

    What another parameter multiplies is no delivery: it is an expert's inner part.
    """

    def __init__(self, seen: Callable[[Reading, Tensor], None]):
        self.seen = seen
        self.start()

    def start(self) -> None:
        """Forget the last forward."""
        self._made: Mapping[Tensor, list[_At]] = WeakTensorKeyDictionary()

    def follow(self, func: Any, given: Sequence[Any], out: Any, found: Reading | None) -> None:
        """Look at an operation that ran: at what it was given, and what it made."""
        tensors = [x for x in tree_leaves(list(given)) if isinstance(x, Tensor)]
        ours = [x for x in tensors if x in self._made]
        outs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if found is not None:
            self._end(ours)
            self._pass([_At(_Way(found))], outs)
        elif ours:
            self._next(func, given, tensors, ours, outs)

    def _next(
        self,
        func: Any,
        given: Sequence[Any],
        tensors: Sequence[Tensor],
        ours: Sequence[Tensor],
        outs: Sequence[Tensor],
    ) -> None:
        packet = func.overloadpacket
        if packet in UNKNOWN:
            self._end(ours)
        elif packet in TAKES:
            self._take(given, ours[0], outs)
        elif packet in PUTS:
            self._put(given, ours, outs)
        elif (
            packet in JOINS
            or (packet in SUMS and _joins(ours, tensors))
            or not all(_rows(x) == _rows(ours[0]) for x in outs)
        ):
            self._arrive(ours)
        else:
            shape = ours[0].shape
            self._pass(self._all(ours), [x for x in outs if func.is_view or x.shape == shape])

    def _take(self, given: Sequence[Any], x: Tensor, outs: Sequence[Tensor]) -> None:
        """Rows were put into another order: those of a part of them, or some twice, arrive."""
        index = _index(given[1] if len(given) < 3 else given[2] if given[1] == 0 else None)
        if x is not given[0] or index is None or not _permutes(index, len(x)):
            self._arrive([x])
            return
        back = index.argsort()
        moved = [_At(a.way, back if a.places is None else back[a.places]) for a in self._made[x]]
        self._pass(moved, outs)

    def _put(self, given: Sequence[Any], ours: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
        """Rows were written to places of another tensor."""
        into, index, x = given[0], _index(given[1]), given[2]
        added = len(given) > 3 and given[3]
        if added or index is None or x not in self._made or _rows(x) != len(index):
            self._arrive([y for y in ours if y is not into])
            return
        put = [_At(a.way, index if a.places is None else index[a.places]) for a in self._made[x]]
        self._pass([*self._made.get(into, ()), *put], outs)

    def _arrive(self, ours: Sequence[Tensor]) -> None:
        for x in ours:
            for at in self._made[x]:
                if not at.way.ended:
                    rows = x.detach().reshape(-1, x.shape[-1])
                    self.seen(at.way.reading, rows if at.places is None else rows[at.places])
        self._end(ours)

    def _end(self, ours: Sequence[Tensor]) -> None:
        for x in ours:
            for at in self._made[x]:
                at.way.ended = True

    def _all(self, ours: Sequence[Tensor]) -> list[_At]:
        every = (at for x in ours for at in self._made[x] if not at.way.ended)
        return list({id(at.way): at for at in every}.values())

    def _pass(self, ways: list[_At], outs: Sequence[Tensor]) -> None:
        for made in outs:
            self._made[made] = ways  # type: ignore[index]


def _joins(ours: Sequence[Tensor], tensors: Sequence[Tensor]) -> bool:
    """Tell whether a sum is one with something else of the same size, and no bias."""
    size = max(x.numel() for x in ours)
    return any(x.numel() >= size and all(x is not y for y in ours) for x in tensors)


def _index(given: Any) -> Tensor | None:
    """Return the numbers of the rows that are meant, if the first dimension alone is indexed."""
    if isinstance(given, (list, tuple)):
        given = given[0] if len(given) == 1 else None
    if not isinstance(given, Tensor) or given.ndim != 1:
        return None
    return given.nonzero()[:, 0] if given.dtype == torch.bool else given


def _permutes(index: Tensor, rows: int) -> bool:
    return len(index) == rows and torch.equal(
        index.sort().values, torch.arange(rows, dtype=index.dtype, device=index.device)
    )


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1] if x.ndim and x.shape[-1] else 0
