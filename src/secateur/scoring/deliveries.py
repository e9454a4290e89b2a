"""Follow what a product makes until it joins what others make: scaled, gated, and then added.

An expert's output is multiplied by the weight of its router somewhere on the way, before or after
other functions and after its rows were put into another order.  What counts is what arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
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
SCALES = (aten.mul, aten.mul_, aten.div, aten.div_)
MOVES = (*TAKES, *PUTS, aten._to_copy, aten.clone, aten._unsafe_view)
"""Operations of which each result is one of the inputs, or zero."""


@dataclass(frozen=True)
class Delivery:
    """What became of a reading's outputs by the time that they join what others make.

    Attributes:
        reading: whose outputs they are.
        made: ``(rows, width)``, in the order of the reading's rows.
        gain: by what each output was multiplied, ``(rows,)``; None if that is not one number a row.
        tokens: int64, to which row of the sum each is added, ``(rows,)``; None if nobody knows.
        into: what holds the sum; it may be changed in place.
    """

    reading: Reading
    made: Tensor
    gain: Tensor | None
    tokens: Tensor | None
    into: Tensor

    def sums(self, rows: Tensor) -> Tensor:
        """Return the sums of ``(rows, *)`` over those of each token, in float32 at least."""
        assert self.tokens is not None
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        many = _rows(self.into)
        return wide.new_zeros(many, *rows.shape[1:]).index_add_(0, self.tokens, wide)


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

    def __init__(self, seen: Callable[[Delivery], None]):
        self.seen = seen
        self.start()

    def start(self) -> None:
        """Forget the last forward."""
        self._made: Mapping[Tensor, list[_At]] = WeakTensorKeyDictionary()
        self._gains: Mapping[Tensor, Tensor] = WeakTensorKeyDictionary()

    def follow(
        self, func: Any, args: Sequence[Any], kwargs: Any, out: Any, found: Reading | None
    ) -> None:
        """Look at an operation that ran: at what it was given, and what it made."""
        given = [*args, *kwargs.values()]
        tensors = [x for x in tree_leaves(list(given)) if isinstance(x, Tensor)]
        ours = [x for x in tensors if x in self._made]
        outs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if found is not None:
            self._end(ours)
            self._pass([_At(_Way(found))], outs)
            for made in outs:
                self._gains[made] = torch.ones_like(made)  # type: ignore[index]
        elif ours:
            gain = self._gained(func, args, kwargs, ours)
            self._next(func, given, tensors, ours, outs)
            for made in outs if gain is not None else ():
                self._gains[made] = gain  # type: ignore[index]

    def _gained(
        self, func: Any, args: Sequence[Any], kwargs: Any, ours: Sequence[Tensor]
    ) -> Tensor | None:
        """Return what an operation makes of the gains of its input, or None if nobody knows."""
        packet, (x, *more) = func.overloadpacket, ours
        if packet in PUTS:
            into, values = args[0], self._gains.get(args[2])
            before = self._gains.get(into, torch.zeros_like(into))
            return None if values is None else func(before, args[1], values, *args[3:])
        gain = self._gains.get(x)
        if gain is None or any(y is not x for y in more):
            return None
        if packet in SUMS:
            return gain
        if packet not in SCALES and packet not in MOVES and not func.is_view:
            return None
        if args[0] is not x:
            return None if packet is aten.div else func(args[0], gain)
        made: Tensor = func(gain, *args[1:], **kwargs)
        return made

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
            self._take(packet, given, ours[0], outs)
        elif packet in PUTS:
            self._put(packet, given, ours, outs)
        elif (
            packet in JOINS
            or (packet in SUMS and _joins(ours, tensors))
            or not all(_rows(x) == _rows(ours[0]) for x in outs)
        ):
            self._arrive(ours, packet, given, outs)
        else:
            shape = ours[0].shape
            self._pass(self._all(ours), [x for x in outs if func.is_view or x.shape == shape])

    def _take(self, packet: Any, given: Sequence[Any], x: Tensor, outs: Sequence[Tensor]) -> None:
        """Rows were put into another order: those of a part of them, or some twice, arrive."""
        index = _index(given[1] if len(given) < 3 else given[2] if given[1] == 0 else None)
        if x is not given[0] or index is None or not _permutes(index, len(x)):
            self._arrive([x], packet, given, outs)
            return
        back = index.argsort()
        moved = [_At(a.way, back if a.places is None else back[a.places]) for a in self._made[x]]
        self._pass(moved, outs)

    def _put(
        self, packet: Any, given: Sequence[Any], ours: Sequence[Tensor], outs: Sequence[Tensor]
    ) -> None:
        """Rows were written to places of another tensor."""
        into, index, x = given[0], _index(given[1]), given[2]
        added = len(given) > 3 and given[3]
        if added or index is None or x not in self._made or _rows(x) != len(index):
            self._arrive([y for y in ours if y is not into], packet, given, outs)
            return
        put = [_At(a.way, index if a.places is None else index[a.places]) for a in self._made[x]]
        self._pass([*self._made.get(into, ()), *put], outs)

    def _arrive(
        self, ours: Sequence[Tensor], packet: Any, given: Sequence[Any], outs: Sequence[Tensor]
    ) -> None:
        for x in ours:
            rows, gain = x.detach().reshape(-1, x.shape[-1]), self._gain(x)
            tokens = _tokens(packet, given, x)
            for at in self._made[x]:
                if not at.way.ended:
                    made = rows if at.places is None else rows[at.places]
                    known = _placed(gain, at.places), _placed(tokens, at.places)
                    self.seen(Delivery(at.way.reading, made, *known, outs[0]))
        self._end(ours)

    def _gain(self, x: Tensor) -> Tensor | None:
        """Return one number for each row, if each of its outputs was multiplied by that."""
        known = self._gains.get(x)
        if known is None or known.shape != x.shape:
            return None
        gain = known.reshape(-1, x.shape[-1])
        return gain[:, 0] if bool((gain == gain[:, :1]).all()) else None

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


def _placed(each: Tensor | None, places: Tensor | None) -> Tensor | None:
    return each if each is None or places is None else each[places]


def _tokens(packet: Any, given: Sequence[Any], x: Tensor) -> Tensor | None:
    """Return to which row of a sum each row of ``x`` is added, or None."""
    if packet in JOINS:
        index = given[2] if given[1] == 0 and given[3] is x else None
        return index if index is None or index.ndim == 1 else index[:, 0]
    if packet in SUMS:  # with biases that were chosen for each row, it may be: no token's sum
        return None
    dims = [d % x.ndim for d in given[1]] if packet is aten.sum and len(given) > 1 else [x.ndim - 1]
    if x.ndim - 1 in dims:
        return None
    kept = [1 if d in dims else n for d, n in enumerate(x.shape[:-1])]
    numbers = torch.arange(prod(kept), device=x.device).view(kept)
    return numbers.expand(x.shape[:-1]).reshape(-1)


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
