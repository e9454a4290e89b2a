"""Sums over the forwards of calibration batches, of what weights multiply."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.masks import masking
from secateur.replacements import in_plain_operations
from secateur.runtime.batches import call, checked, padding
from secateur.runtime.distributed import summed
from secateur.runtime.forward import evaluating, undisturbed
from secateur.runtime.no_batch import check_iterable
from secateur.runtime.progress import shown
from secateur.scoring.arrangement import Arrangement
from secateur.scoring.criteria import criteria
from secateur.scoring.deliveries import Delivery
from secateur.scoring.experts import FEW, PerExpert
from secateur.scoring.readings import Reading
from secateur.scoring.statistics import STATISTICS
from secateur.scoring.watching import Watch
from secateur.structure import Structure

from .outputs import Outputs, add
from .targets import Part, Selectable

Loss = Callable[[nn.Module, Any], Tensor]
Sums = dict[str, Tensor]
Key = tuple[str, Arrangement]
"""A statistic, and how a part of a parameter is read."""


class Calibration:
    """What the criteria of a run need to know of forwards.

    Everything is a sum: batches may come in any number of calls, and on any rank.

    Attributes:
        asking: what is scored by statistics of forwards.
        batches: how many were seen.
    """

    def __init__(self, asking: Sequence[Selectable] = ()) -> None:
        self.asking = asking
        self.wanted = {n for each in asking for n in criteria.asks(each.criterion, "forward")}
        self.batches = 0
        self.outputs = Outputs()
        self._sums: dict[Key, Sums] = {}
        self._new: dict[Key, Sums] = {}
        self._outdated = False
        self._spared: set[str] = set()
        self._shared: tuple[Any, Tensor, dict[str, Sums]] | None = None

    def watching(self, model: nn.Module, structure: Structure | None) -> Watch:
        """Return what collects the sums of a forward that runs within it."""
        if self._outdated:  # the model has other masks than when these were collected
            self._sums, self.batches, self._outdated = {}, 0, False
            self.outputs = Outputs(self.outputs.summing)
        self._new, self.outputs.new, self._shared = {}, {}, None  # what a failed call has left
        self._spared = set()
        every = dict(model.named_parameters(remove_duplicate=False))
        asked = {id(every[part.tensor]) for each in self.asking for part in each.parts}
        named = {n: p for n, p in model.named_parameters() if p.ndim > 1 and id(p) in asked}
        wanted = self.outputs.wanted(model, structure, set(named))
        program = [op.func for op in structure.inferred.recording.ops] if structure else []
        delivered = any(STATISTICS[name].delivers for name in self.wanted)
        watch = Watch(
            named.items(),
            self._observe,
            delivered=self._deliver if delivered else None,
            program=program,
            wanted=wanted,
            beside=masking.held(model),
        )
        self.outputs.rows = watch.data_rows
        return watch

    def spare(self) -> None:
        """Look no longer at what only scores where nothing better was read, after a batch or more.

        So the makers of a channel, once a reader of it was seen: that halves what there is to sum.
        """
        read = self._read()
        wanted = {part.tensor for each in self.asking for part in each.scoring}
        for each in self.asking:
            if not any(part.tensor in read for part in each.scoring):
                wanted |= {part.tensor for part in each.parts}
        self._spared = read - wanted
        self._new = {key: sums for key, sums in self._new.items() if key[1].name in wanted}

    def _read(self) -> set[str]:
        return {arrangement.name for _, arrangement in (*self._sums, *self._new)}

    @torch.no_grad()
    def _observe(self, reading: Reading, out: Tensor) -> None:
        if reading.arrangement.name in self._spared:
            return
        self.outputs.observe(reading, out)
        shared = reading.shared
        if self._shared is None or self._shared[0] != shared:  # queries, keys, values: one input
            self._shared = shared, reading.source, {}
        found = self._shared[2]
        for name in self.wanted:
            if STATISTICS[name].delivers:
                continue
            if name not in found:
                found[name] = STATISTICS[name].observe(reading)
            add(self._new.setdefault((name, reading.arrangement), {}), found[name])

    @torch.no_grad()
    def _deliver(self, found: Delivery) -> None:
        for name in self.wanted:
            if STATISTICS[name].delivers:
                sums = STATISTICS[name].deliver(found.reading, found.made)
                add(self._new.setdefault((name, found.reading.arrangement), {}), sums)

    def finish(self, batches: int) -> None:
        """Add what all ranks have seen of so many batches each."""
        self._shared = None
        inputs, outputs = summed(self._new), summed(self.outputs.new)
        for key, sums in inputs.items():
            add(self._sums.setdefault(key, {}), sums)
        for output, sums in outputs.items():
            add(self.outputs.sums.setdefault(output, {}), sums)
        self._new, self.outputs.new = {}, {}
        self.batches += batches

    def outdate(self) -> None:
        """Say that the model has changed: the next batches begin anew."""
        self._outdated = True

    def check(self, criterion: str) -> None:
        """Raise a ConfigError if a criterion needs what was never collected."""
        if not self.batches:
            names = ", ".join(criteria.asks(criterion, "forward"))
            raise ConfigError(
                f"criterion {criterion!r} needs {names} of forwards, and none was watched: give "
                "prune(..., data=batches of inputs), or call calibrate(batches) before step()"
            )

    def known(self, each: Selectable) -> list[Part]:
        """Return the parts of a selectable that an operation multiplied, those that score first."""
        names = criteria.asks(each.criterion, "forward")
        parts = [p for p in each.parts if all(self._seen(name, p) for name in names)]
        return [part for part in parts if part.scores] or parts

    def values(self, each: Selectable, part: Part, weight: Tensor) -> dict[str, Any]:
        """Return what a criterion asks for, for the rows of a part of its tensor."""
        return {
            name: STATISTICS[name].value(self._seen(name, part), part.granularity, weight)
            for name in criteria.asks(each.criterion, "forward")
        }

    def starved(self, each: Selectable, part: Part, weight: Tensor) -> Iterator[str]:
        """Yield a note on the experts that too few tokens reached for a mean to say much."""
        for name in criteria.asks(each.criterion, "forward"):
            kind = STATISTICS[name]
            if isinstance(kind, PerExpert):
                asked, of = kind.asked(self._seen(name, part), part.granularity, weight)
                few = {i: int(n) for i, n in enumerate(asked.tolist()) if n < FEW}
                if few:
                    yield (
                        f"{each.name}: of {of} tokens, experts {', '.join(map(str, few))} saw "
                        f"{', '.join(map(str, few.values()))}, fewer than {FEW}: what they are "
                        "worth is a guess, and other data may tell"
                    )

    def _seen(self, name: str, part: Part) -> dict[Arrangement, Sums]:
        """Return the sums of a statistic that say something of a part."""
        known = STATISTICS[name].knows
        some = ((a, sums) for (n, a), sums in self._of(part.tensor) if n == name)
        return {a: sums for a, sums in some if known(a, part.granularity)}

    def _of(self, tensor: str) -> Iterator[tuple[Key, Sums]]:
        return (item for item in self._sums.items() if item[0][1].name == tensor)

    def state_dict(self) -> dict[str, Any]:
        return {
            "batches": self.batches,
            "outdated": self._outdated,
            "outputs": self.outputs.state_dict(),
            "sums": [
                {"statistic": name, "arrangement": arrangement.to_dict(), "sums": dict(sums)}
                for (name, arrangement), sums in self._sums.items()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.batches = int(state.get("batches", 0))
        self._outdated = bool(state.get("outdated", False))
        self.outputs.load_state_dict(state.get("outputs", {}))
        self._sums = {
            (each["statistic"], Arrangement.from_dict(each["arrangement"])): dict(each["sums"])
            for each in state.get("sums", ())
        }


def observe_forwards(
    model: nn.Module,
    batches: Iterable[Any],
    calibration: Calibration,
    loss: Loss | None = None,
    differentiated: Callable[[], None] | None = None,
    structure: Structure | None = None,
) -> None:
    """Run the model on batches in eval mode and add what its weights multiply; it stays as it is.

    Args:
        model: any module, with or without masks on.
        batches: of inputs, as ``secateur.runtime.batches`` has them; with ``loss`` of anything.
        calibration: what is added to.
        loss: ``(model, batch) → scalar``, which calls the model itself.
        differentiated: called after each backward of the loss, while the gradients are there.
        structure: of the model; then it is known what outputs are added to.

    Raises:
        ConfigError: there are no batches, one is none, the model refuses it, or a loss is none.
    """
    check_iterable(batches)
    seen = 0
    parameters = [p for p in model.parameters() if p.requires_grad]
    with undisturbed(model), evaluating(model), in_plain_operations(model):
        watch = calibration.watching(model, structure)
        for batch in shown(batches if loss else checked(batches), "calibrating"):
            watch.start(padding(model, batch))
            with torch.set_grad_enabled(differentiated is not None):
                if loss is None:
                    out = call(model, batch, seen, within=watch)
                else:
                    with watch:
                        out = loss(model, batch)
            if differentiated is not None:
                for parameter in parameters:
                    parameter.grad = None
                _scalar(model, out).backward()
                differentiated()
            seen += 1
            calibration.spare()
        if not seen:
            raise ConfigError("data: there are no batches in it")
        calibration.finish(seen)


def _scalar(model: nn.Module, value: Any) -> Tensor:
    """Return what a loss returned, if gradients of it can be had."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = (
            f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        )
        raise ConfigError(f"loss=… must return a tensor of one number (mean() one), not {shape}")
    if not value.requires_grad:
        why = "it was computed under no_grad or inference_mode, or detached"
        if not any(parameter.requires_grad for parameter in model.parameters()):
            why = "every parameter is frozen: model.requires_grad_(True) before"
        raise ConfigError(f"the criterion needs gradients, and the loss has none: {why}")
    return value
