"""The readers of what was pruned: found in one forward, in the order in which they run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph.program import Recording, Ref
from secateur.graph.sums import products, sum_behind
from secateur.replacements.passing import Passing
from secateur.runtime.batches import call, padding
from secateur.runtime.model import scale_of_norm
from secateur.runtime.state import State
from secateur.scoring.arrangement import Arrangement
from secateur.scoring.deliveries import Delivery
from secateur.scoring.readings import Reading, Routed, Rows
from secateur.scoring.watching import Watch
from secateur.structure import Structure
from secateur.types import Masks

from .moments import Means, Moments, Sums, kept_features

NO_BLOCKS: Mapping[str, Passing] = {}
SMALLEST = 1e-3
"""A norm that multiplies by less hides what its inputs would have to bring."""


@dataclass
class Reader:
    """A part of a parameter that loses inputs, and what is summed of it.

    ``times`` is how often one forward reads it: of one that is read again and again, such as a
    recurrent layer's, nothing can be solved before the forward is over.  ``chosen`` tells whether
    its rows are chosen by the forward itself, as an expert's are.
    """

    arrangement: Arrangement
    order: int
    times: int
    chosen: bool
    original: bool
    mask: Tensor  # bool (systems, out, features)
    fit: Sequence[Sums] = ()
    held: Sequence[Sums] = ()
    unsteady: bool = False
    """The forward holds something else there than before and after it: a swapped weight, a note of
    the input.  Another forward must not come in between."""
    unlike: bool = False
    """The dense model's rows were others."""
    other: int | None = None
    """The operation that makes what its outputs are added to, by its number in ``program``."""
    other_pruned: int | None = None
    """The same in the pruned model, where blocks may be skipped."""
    scale: Tensor | None = None
    """What a norm between multiplies each output by, ``(outputs,)``."""
    program: Sequence[Any] = ()
    besides: bool = False
    """It loses nothing, but its inputs are others: where it cannot be fitted, nothing is lost."""
    joins: bool = False
    """Its systems make up together for others that went: experts, for those never chosen."""
    change: Tensor | None = None
    """What was added to its weights, ``(systems, out, features)``, until all forwards know it."""

    def begin(self, means_of: Tensor | None = None) -> None:
        """Get ready to sum: second moments, or means only, of this dense parameter's readings."""
        kept, outputs = list(kept_features(self.mask)), self.mask.shape[1]

        def sums() -> Sequence[Sums]:
            if means_of is None:
                return [Moments(each, outputs) for each in kept]
            weights = (partial(self._masked, means_of, i) for i in range(len(kept)))
            return [Means(each, outputs, weight=w) for each, w in zip(kept, weights, strict=True)]

        self.fit, self.held = sums(), sums()

    def _masked(self, parameter: Tensor, system: int) -> Tensor:
        return self.arrangement.of(parameter)[system] * self.mask[system].to(parameter.device)

    def scale_of(self, summand: Tensor) -> Tensor | float:
        """Return what brings a summand to the scale of the outputs."""
        if self.scale is None:
            return 1.0
        return (1 / self.scale).reshape(1, -1, *[1] * (summand.ndim - 2)).to(summand)

    @property
    def tensor(self) -> str:
        return self.arrangement.name


def named_weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the parameters that may multiply something, by name."""
    return [(name, p) for name, p in model.named_parameters() if p.ndim > 1]


def scout(
    model: nn.Module,
    batches: Iterable[Any],
    masks: Masks,
    also: frozenset[str] = frozenset(),
    *,
    besides: frozenset[str] = frozenset(),
    lost: bool = False,
    joining: bool = False,
) -> list[Reader]:
    """Return the readers of a forward that lose inputs of outputs that they keep, and others.

    Those are the ones in ``also``; the ones in ``besides`` that come behind the first of all (or,
    where something was ``lost`` before, all of them); and, where ``joining``, those whose outputs
    join those of systems that went.

    Where the first batch leaves a masked weight unread (an expert that got no token), the next ones
    are looked at until every such weight was read, or there are no more.
    """
    delivered: dict[Arrangement, bool] | None = {} if joining else None
    seen, times, unsteady = _seen(model, batches, masks, delivered)
    found: list[Reader] = []
    for arrangement, reading in seen.items():
        name = arrangement.name
        if name not in masks and name not in also and name not in besides:
            continue
        whole = torch.ones(model.get_parameter(name).shape, dtype=torch.bool)
        mask = arrangement.of(masks.get(name, whole))
        live = mask.any(2, keepdim=True)
        loses = name in also or bool((live & ~mask).any())
        known = (delivered or {}).get(arrangement)  # of what loses inputs, other targets are known
        joins = (known or (known is not None and not loses)) and _some_went(mask)
        chosen = bool(reading.routes or reading.ends)
        plain = not chosen and times[arrangement] == 1 and arrangement not in unsteady
        behind = lost and plain and name in besides and reading.view.original
        lost = lost or loses or joins
        if loses or joins or behind:
            made = Reader(
                arrangement,
                len(found),
                times[arrangement],
                chosen,
                reading.view.original,
                mask,
                unsteady=arrangement in unsteady,
                besides=not (loses or joins),
                joins=joins,
            )
            found.append(made)
    return found


def _seen(
    model: nn.Module,
    batches: Iterable[Any],
    masks: Masks,
    delivered: dict[Arrangement, bool] | None,
) -> tuple[dict[Arrangement, Reading], Counter[Arrangement], set[Arrangement]]:
    """Return what was read, how often one forward did, and where it held something else meanwhile.

    Batches are looked at until every masked weight was read, or there are no more.
    """
    seen: dict[Arrangement, Reading] = {}
    times: Counter[Arrangement] = Counter()
    unsteady: set[Arrangement] = set()
    weights = {name for name, p in named_weights(model) if name in masks}
    for batch in batches:
        for arrangement, count in _read(model, batch, seen, unsteady, delivered).items():
            times[arrangement] = max(times[arrangement], count)
        if weights <= {arrangement.name for arrangement in seen}:
            break
    return seen, times, unsteady


def _some_went(mask: Tensor) -> bool:
    """Tell whether whole systems are masked, and others are not."""
    kept = mask.any((1, 2))
    return bool(kept.any()) and not bool(kept.all())


def _read(
    model: nn.Module,
    batch: Any,
    seen: dict[Arrangement, Reading],
    unsteady: set[Arrangement],
    delivered: dict[Arrangement, bool] | None,
) -> Counter[Arrangement]:
    """Add a batch's readings to those seen, without their inputs; return how many there were."""
    times: Counter[Arrangement] = Counter()
    before = State()
    before.keep(model)

    def look(reading: Reading, _: Tensor) -> None:
        times[reading.arrangement] += 1
        if before.changed():
            unsteady.add(reading.arrangement)
        if reading.arrangement not in seen:
            seen[reading.arrangement] = reading
            reading.source = torch.empty(0)

    def arrived(found: Delivery) -> None:
        if delivered is not None and isinstance(found.reading, (Routed, Rows)):
            known = found.gain is not None and found.tokens is not None
            delivered[found.reading.arrangement] = known

    watch = Watch(named_weights(model), look, delivered=arrived if delivered is not None else None)
    watch.start(padding(model, batch))
    with torch.no_grad():
        call(model, batch, within=watch)
    return times


def beside(
    model: nn.Module,
    recording: Recording,
    readers: list[Reader],
    skipped: Mapping[str, Passing] = NO_BLOCKS,
) -> None:
    """Tell readers what their outputs are added to, where that is made before them.

    Behind a block that the pruned model skips, it is what the block was given there.

    Args:
        model: the dense one.
        recording: of it, on what it is repaired with.
        readers: that are told.
        skipped: blocks that return their input in the pruned model.
    """
    before = _before(recording, skipped)
    program = [op.func for op in recording.ops]
    multiplied = products(recording)
    for reader in readers:
        product = multiplied.get(reader.tensor)
        summed = sum_behind(recording, product) if product is not None else None
        if summed is None or summed.other is None or reader.times > 1 or reader.joins:
            continue
        scale = None if summed.norm is None else scale_of_norm(model, summed.norm)
        if scale is not None and not bool((scale.abs() > SMALLEST).all()):
            continue
        reader.other, reader.scale, reader.program = summed.other, scale, program
        reader.other_pruned = summed.other
        while reader.other_pruned in before:
            reader.other_pruned = before[reader.other_pruned]


def _before(recording: Recording, skipped: Mapping[str, Passing]) -> dict[int | None, int | None]:
    """Return for the operations that make what blocks return, those that make what they are given.

    None where that is an input of the model.
    """
    makers = {ref.value: i for i, op in enumerate(recording.ops) for ref in op.outputs}
    found: dict[int | None, int | None] = {}
    for block in recording.calls:
        if block.path in skipped:
            given = block.inputs[skipped[block.path][0]]
            outputs = block.output if isinstance(block.output, tuple) else (block.output,)
            made = (makers[part.value] for part in outputs if isinstance(part, Ref))
            found |= dict.fromkeys(made, makers.get(given))
    return found


def postponed(structure: Structure, readers: list[Reader]) -> tuple[set[str], set[str]]:
    """Return parameters whose masks can wait until the end, and the readers that need that.

    What experts should give is only known from what their own tokens carry, removed features too:
    the dense model may route other tokens to them.  A group that only parameters read can be masked
    in the columns of those as well as where it is made.
    """
    chosen = {reader.tensor for reader in readers if reader.chosen}
    makers: set[str] = set()
    able: set[str] = set()
    for group in structure.groups:
        reading = {m.tensor for m in group.members if m.role == "in"}
        if not (reading & chosen) or not group.exact:
            continue
        if all(site.weight is not None for site in structure.inferred.sites_of(group.atom)):
            makers |= {m.tensor for m in group.members if m.role == "out"}
            able |= reading
    return makers, able
