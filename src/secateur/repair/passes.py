"""Calibration batches run through the dense and the pruned model, side by side.

Both stop at each reader: the pruned model before it, with the inputs that it has by then, the dense
one behind it, with the outputs that it should have.  ``in_step`` lets all batches come to one
reader, refits it, and goes on: one pass for the whole model, and one reader's moments at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.runtime.batches import call, padding
from secateur.runtime.distributed import reduced
from secateur.runtime.in_step import Turns
from secateur.scoring.arrangement import Arrangement
from secateur.scoring.deliveries import Delivery
from secateur.scoring.readings import Reading
from secateur.scoring.watching import Watch

from .joining import correct, joined
from .moments import per_system
from .readers import Reader, named_weights

Readers = Mapping[Arrangement, Reader]
Seen = tuple[Reading, Any, Tensor | None]
"""A reading of the dense model, what came out of it, and the other summand if that is known.

Of a reader that joins others, what came out is its delivery.
"""
LAST = 1 << 30
"""The order of what comes after every reader."""


@dataclass
class Batch:
    """Calibration inputs, and whether they fit or judge; they are read when they are asked for.

    Args:
        data: batches of inputs of the dense model.
        place: of this one.
        held: it judges.
        given: what the pruned model gets in their place, where that is something else.
    """

    data: Sequence[Any]
    place: int
    held: bool
    given: Sequence[Any] | None = None

    @property
    def inputs(self) -> Any:
        """What the dense model gets."""
        return self.data[self.place]

    @property
    def pruned(self) -> Any:
        """What the pruned model gets."""
        return self.inputs if self.given is None else self.given[self.place]


def one_by_one(
    dense: nn.Module, pruned: nn.Module, batches: Sequence[Batch], readers: Readers
) -> None:
    """Sum the moments of readers over all batches, one batch after the other."""
    for batch in batches:
        with _Pair(dense, pruned, batch, readers) as pair:
            while pair.advance() is not None:
                pass


def in_step(
    dense: nn.Module,
    pruned: nn.Module,
    batches: Sequence[Batch],
    readers: Readers,
    solve: Callable[[Reader], None],
) -> None:
    """Sum the moments of each reader over all batches, and solve it before any goes on.

    Args:
        readers: each is read once in a forward.
        solve: changes the pruned model's weight.
    """
    with ExitStack() as stack:
        pairs = [stack.enter_context(_Pair(dense, pruned, b, readers)) for b in batches]
        waiting = {pair: pair.advance() for pair in pairs}
        while True:
            orders = [LAST if found is None else found.order for found in waiting.values()]
            least = torch.tensor(-min(orders, default=LAST), dtype=torch.float64)
            order = -int(reduced(least, "max"))  # the same reader on all ranks
            if order == LAST:
                return
            solved = next(reader for reader in readers.values() if reader.order == order)
            solve(solved)
            for pair, found in waiting.items():
                if found is not None and found.order == order:
                    waiting[pair] = pair.advance()
            solved.change = None


class _Pair:
    """One batch in both models: its pruned forward leads, and its dense one follows."""

    def __init__(self, dense: nn.Module, pruned: nn.Module, batch: Batch, readers: Readers):
        self.readers = readers
        self.batch = batch
        self.pruned = Turns(lambda meet: self._forward(pruned, meet, before=True))
        self.dense = Turns(lambda meet: self._forward(dense, meet, before=False))
        self.weights = dict(named_weights(dense))  # in a forward names may stand for others
        self.now = dict(named_weights(pruned))
        self._others: dict[int, Tensor] = {}  # of the pruned forward: the latest other summands
        self._behind: Seen | None = None

    def __enter__(self) -> _Pair:
        self.pruned.__enter__()
        self.dense.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.pruned.__exit__(*error)
        self.dense.__exit__(*error)

    def advance(self) -> Reader | None:
        """Go on to the next reader, add its moments, and return it; None at the end."""
        found = self.pruned.next()
        if found is None:
            return None
        joining = isinstance(found, Delivery)
        reader = self.readers[(found.reading if joining else found).arrangement]
        target = self._target(reader)
        with torch.no_grad():
            if joining:
                parts = reader.held if self.batch.held else reader.fit
                weight = reader.arrangement.of(self.now[reader.tensor].detach())
                known = target is not None and joined(parts, weight, found, target[1])
                reader.unlike |= not known
            else:
                self._add(reader, found, target)
        return reader

    def _target(self, reader: Reader) -> Seen | None:
        """Return what the dense model does at a reader, or None if it does not come there."""
        while not self.dense.over:
            if self._behind is None:
                self._behind = self.dense.next()
                continue
            order = self.readers[self._behind[0].arrangement].order
            if order > reader.order:
                return None
            found, self._behind = self._behind, None
            if order == reader.order:
                return found
        return None

    def _add(self, reader: Reader, reading: Reading, target: Any) -> None:
        parts = reader.held if self.batch.held else reader.fit
        if target is not None and _same_rows(reading, target[0]):
            output = target[1] + self._missed(reader, target)
            pairs = zip(reading.chunks(), target[0].chunks(output), strict=True)
            for (where, x, _), (_, _, y) in pairs:
                per_system(parts, x, y, where)
            return
        reader.unlike = True
        weight = reader.arrangement.of(self.weights[reader.tensor].detach())
        for where, x, _ in reading.chunks():
            per_system(parts, x, torch.matmul(x, weight[where].mT.to(x.dtype)), where)

    def _missed(self, reader: Reader, target: Seen) -> Tensor | float:
        """Return what the other summand lacks, which the reader's outputs can bring as well."""
        dense, pruned = target[2], self._others.get(reader.order)
        if dense is None or pruned is None or dense.shape != pruned.shape:
            return 0.0
        missed = (dense - pruned) * reader.scale_of(pruned)
        return missed.reshape(target[1].shape)

    def _forward(self, model: nn.Module, meet: Callable[[Any], None], *, before: bool) -> None:
        def asked(reading: Reading, *, joins: bool) -> bool:
            reader = self.readers.get(reading.arrangement)
            return reader is not None and reader.joins == joins

        def due(reading: Reading) -> None:
            if before and asked(reading, joins=False):
                meet(reading)

        def seen(reading: Reading, output: Tensor) -> None:
            if not before and asked(reading, joins=False):
                order = self.readers[reading.arrangement].order
                meet((reading, output, others.pop(order, None)))

        def delivered(found: Delivery) -> None:
            if not asked(found.reading, joins=True):
                return
            if not before:
                meet((found.reading, found, None))
                return
            meet(found)
            change = self.readers[found.reading.arrangement].change
            if change is not None:
                with torch.no_grad():
                    correct(found, change)

        others = self._others if before else {}
        orders: dict[int, list[int]] = {}
        for reader in self.readers.values():
            at = reader.other_pruned if before else reader.other
            if at is not None:
                orders.setdefault(at, []).append(reader.order)

        def noted(those: Sequence[int], made: Tensor) -> None:
            others.update(dict.fromkeys(those, made))

        wanted = {at: partial(noted, those) for at, those in orders.items()}
        program = next((r.program for r in self.readers.values() if r.program), ())
        asks: dict[str, Any] = {"program": program, "wanted": wanted}
        if any(reader.joins for reader in self.readers.values()):
            asks["delivered"] = delivered
        watch = Watch(named_weights(model), seen, due, **asks)
        inputs = self.batch.pruned if before else self.batch.inputs
        watch.start(padding(model, inputs))
        with torch.no_grad():
            call(model, inputs, within=watch)


def _same_rows(one: Reading, other: Reading) -> bool:
    """Tell whether rows of two forwards are of the same tokens."""
    if type(one) is not type(other) or len(one.routes) != len(other.routes):
        return False
    if one.source.shape != other.source.shape or one.ends != other.ends:
        return False
    return all(torch.equal(a, b) for a, b in zip(one.routes, other.routes, strict=True))
