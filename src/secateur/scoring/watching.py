"""Watch a forward: which operations read a parameter, and what they multiply it by.

Module classes play no part: what counts is the memory that an operation reads.  A copy that was
made of a parameter (in another dtype, or multiplied by its mask) stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from .arrangement import View, spans_of
from .deliveries import Deliveries, Delivery
from .readings import Reading, Routed, Rows, reading

aten = torch.ops.aten
SAME = (aten._to_copy, aten.clone)
COPIES = (*SAME, aten.mul)
CHOICES = (aten.index, aten.index_select)
FLAT = (aten.view, aten._unsafe_view, aten.reshape, aten.clone)


class Parameters:
    """The parameters of a model, found by the memory of what an operation reads."""

    def __init__(self, named: Iterable[tuple[str, Tensor]]):
        self._bases: dict[int, list[tuple[str, Any, bool]]] = {}
        for name, parameter in named:
            tensor = parameter.detach()
            self._bases.setdefault(_memory(tensor), []).append((name, partial(_held, tensor), True))

    def find(self, x: Any) -> View | None:
        """Return which part of a parameter a tensor shows, or None."""
        if not isinstance(x, Tensor) or not x.numel():
            return None
        for name, held, original in self._bases.get(_memory(x), ()):
            base = held()
            if base is None:  # a copy that is no more, whose memory is another tensor's now
                continue
            offset = x.storage_offset() - base.storage_offset()
            if not 0 <= offset < max(base.numel(), 1):
                continue
            found = spans_of(base.shape, base.stride(), x, offset)
            if found is not None:
                whole = all(s.size == n for s, n in zip(found[1], base.shape, strict=True))
                return View(name, found[0], found[1], whole, original)
        return None

    def copied(self, source: Tensor, made: Tensor, *, same: bool) -> None:
        """Let a copy of all of a parameter stand for it, as long as it lives.

        Args:
            same: it holds the parameter's numbers, in another type at most.
        """
        view = self.find(source)
        if view is None or not view.whole or made.shape != source.shape:
            return
        if view.dims != tuple((s,) if s.size > 1 else () for s in view.spans):
            return  # transposed: its dimensions are others
        held = self._bases.setdefault(_memory(made), [])
        held[:] = [entry for entry in held if entry[1]() is not None]
        held.append((view.name, ref(made), same and view.original))


def _held(tensor: Tensor) -> Tensor:
    return tensor


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@dataclass(frozen=True)
class Origin:
    """Where the rows of a tensor come from: which are data, and what chose them."""

    lead: tuple[int, ...] = ()  # the dimensions that they were before they were flattened
    valid: Tensor | None = None
    routes: tuple[Tensor, ...] = ()
    chosen_of: float | None = None


class Watch(TorchDispatchMode):
    """Within it each reading of a parameter is shown, after its operation ran.

    Args:
        named: the parameters to look for, by name.
        seen: called with each reading and what came out of it.
        due: called with each reading before its operation runs; it may change the parameter.
        delivered: called with each reading that nothing else reads, and what became of its output
            by the time that it joins what others make.
        program: the operations that the forward is known to run, in their order.
        wanted: by their number among those, what is called with what an operation makes.
        beside: tensors whose operations are none of those: masks that are on.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, Tensor]],
        seen: Callable[[Reading, Tensor], None],
        due: Callable[[Reading], None] | None = None,
        *,
        delivered: Callable[[Delivery], None] | None = None,
        program: Sequence[Any] = (),
        wanted: Mapping[int, Callable[[Tensor], None]] | None = None,
        beside: Iterable[Tensor] = (),
    ):
        super().__init__()
        self.parameters = Parameters(named)
        self.seen = seen
        self.due = due
        self.deliveries = Deliveries(delivered) if delivered else None
        self.program = program
        self.wanted = wanted or {}
        self.beside = [*beside]
        self._beside = {*map(id, self.beside)}
        self.step = 0
        """How many operations ran; beyond ``program`` once one was another than there."""
        self.padding: Sequence[Tensor] = ()
        """Bool ``(batch, length)``: which positions of this forward's inputs are data."""
        self._origins: Mapping[Tensor, Origin] = WeakTensorKeyDictionary()
        self._chosen = False

    def start(self, padding: Sequence[Tensor] = ()) -> None:
        """Say that another forward begins, and which positions of its inputs are data."""
        self.padding = padding
        self.step = 0
        self._origins = WeakTensorKeyDictionary()
        self._chosen = False
        if self.deliveries is not None:
            self.deliveries.start()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = reading(func, args, kwargs, self.parameters.find)
        if found is not None:
            found = self._placed(found)
            if self.due is not None:
                self.due(found)
        out = func(*args, **kwargs)
        if self.wanted and func.namespace != "prim" and self._beside.isdisjoint(map(id, args)):
            self._count(func, out)
        if self.deliveries is not None:
            self.deliveries.follow(func, args, kwargs, out, found)
        for made in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(made, Tensor):
                self._follow(func.overloadpacket, args, made)
        if found is not None:
            self.seen(found, out)
        return out

    def _count(self, func: Any, out: Any) -> None:
        """Show what a wanted operation made, as long as the forward runs as it is known to."""
        if self.step < len(self.program) and self.program[self.step] == func:
            made = (
                out[0] if isinstance(out, (tuple, list)) and out else out
            )  # of a norm: its result
            if self.step in self.wanted and isinstance(made, Tensor):
                self.wanted[self.step](made)
            self.step += 1
        else:  # it went another way, and what comes now may be anything
            self.step = len(self.program)

    def _follow(self, packet: Any, args: tuple[Any, ...], out: Tensor) -> None:
        """Remember what an operation makes that stands for a parameter, or has chosen rows."""
        tensors = [x for x in args if isinstance(x, Tensor)]
        if packet in COPIES:
            for x in tensors:
                same = packet in SAME and out.is_floating_point() and x.is_floating_point()
                self.parameters.copied(x, out, same=same)
        if not tensors:
            return
        first = tensors[0]
        if packet in CHOICES and self._choose(packet, args, out):
            return
        if self.padding and packet in FLAT and out.ndim == 2 and first.ndim > 2:
            if first.shape[-1] == out.shape[-1]:
                lead = self._origin(first).lead or tuple(first.shape[:-1])
                self._origins[out] = replace(self._origin(first), lead=lead)  # type: ignore[index]
        elif self._chosen and out.ndim:
            kept = [
                o for x in tensors if x.shape[:1] == out.shape[:1] and (o := self._origin(x)).routes
            ]
            if kept:
                self._origins[out] = kept[0]  # type: ignore[index]

    def _choose(self, packet: Any, args: tuple[Any, ...], out: Tensor) -> bool:
        """Remember by what rows were chosen; tell whether they were."""
        x, chosen = args[0], args[1]
        if packet is aten.index_select:
            index = args[2] if args[1] == 0 else None
        else:
            index = chosen[0] if len(chosen) == 1 else None
        if index is None or x.ndim < 2 or not x.is_floating_point() or self.parameters.find(x):
            return False
        before = self._origin(x)
        valid = self._valid(before, len(x)) if x.ndim == 2 else None
        if index.ndim > 1:
            return False
        many = before.chosen_of or float(len(x) if valid is None else valid.sum())
        chosen = None if valid is None else valid[index]
        self._origins[out] = Origin((), chosen, (*before.routes, index), many)  # type: ignore[index]
        self._chosen = True
        return True

    def data_rows(self, x: Tensor) -> Tensor | None:
        """Return which rows ``(…, features)`` of a tensor are no padding, flattened, or None."""
        origin = self._origin(x)
        return self._valid(replace(origin, lead=origin.lead or tuple(x.shape[:-1])), 0)

    def _origin(self, x: Tensor) -> Origin:
        return self._origins.get(x) or Origin()

    def _placed(self, found: Reading) -> Reading:
        """Return a reading that knows which of its rows are data."""
        origin = self._origin(found.source)
        found.routes, found.chosen_of = origin.routes, origin.chosen_of
        if isinstance(found, Rows) and len(found.x) == 1:
            source = found.source
            lead = origin.lead or tuple(source.shape[:-1])
            found.valid = self._valid(replace(origin, lead=lead), found.x.shape[1])
        elif isinstance(found, Routed):
            found.valid = self._valid(origin, len(found.x))
        return found

    def _valid(self, origin: Origin, rows: int) -> Tensor | None:
        """Return which of so many rows are data, ``(rows,)``, or None where all are."""
        if origin.valid is not None or origin.routes:
            return origin.valid
        lead = origin.lead or (rows,)
        masks = [m for each in self.padding if (m := _spread(each, lead)) is not None]
        if not masks:
            return None
        return torch.stack(masks).all(0)  # where two masks have one shape, neither's padding counts


def _spread(mask: Tensor, lead: tuple[int, ...]) -> Tensor | None:
    """Return a mask ``(batch, length)`` for rows that were ``lead`` before they were flattened.

    >>> mask = torch.tensor([[True, False, True], [True, True, False]])
    >>> _spread(mask, (3, 2)).tolist()
    [True, True, False, True, True, False]
    >>> _spread(mask, (4,)) is None
    True
    """
    batch, length = mask.shape
    if lead == (batch * length,):
        return mask.flatten()
    if len(lead) < 2:
        return None
    if lead[0] == batch and length in lead[1:]:
        place = lead.index(length, 1)
        shape = [batch, *(length if i == place else 1 for i in range(1, len(lead)))]
        return mask.reshape(shape).expand(lead).flatten()
    if lead[:2] == (length, batch):
        shape = [length, batch, *[1] * (len(lead) - 2)]
        return mask.t().reshape(shape).expand(lead).flatten()
    return None
