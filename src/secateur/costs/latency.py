"""Seconds of one forward: by a table of what each operation takes at its shapes, then measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.errors import ConfigError
from secateur.graph.axes import Atom
from secateur.graph.program import Op
from secateur.runtime.distributed import sharded
from secateur.runtime.forward import in_eval_mode, undisturbed
from secateur.runtime.measure import Latency, clock_of, figure
from secateur.runtime.measure import latency as measured
from secateur.runtime.ranks import of_first, rank
from secateur.runtime.undo import in_mode
from secateur.types import call_arguments

from .cost import Count, Subject, Timed, cost
from .latencies import Latencies
from .replay import Call, axes_of, calls, moves

Place = tuple[int, tuple[int, ...]]
"""An operation, and how long its axes are."""
TOGETHER = 8
"""Operations that are measured in turns: each holds its tensors that long."""


@cost
class latency(Timed):
    """The time of one forward on the example, in eval mode, on the device that the model is on.

    A table says what each operation takes at its shapes; what is missing is measured, nothing is
    interpolated.  A model's time is ``scale · sum + rest``: first in the dense model's ratio, then
    through what a really cut model took.  On a CPU with one thread it is processor time.

    An operation that runs alone in the dense model, and not at smaller sizes, counts as there; one
    that runs neither way, or whose shapes are not followed, is left to the line.  ``told`` names
    both.
    """

    words = ("s",)
    prefixes = {"m": 1e-3, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "n": 1e-9, "": 1.0}

    def __init__(self, subject: Subject):
        super().__init__(subject)
        parameter = next(subject.model.parameters(), torch.zeros(()))
        self.device, self.floats = parameter.device, parameter.dtype
        self.clock, self.clock_name = clock_of(self.device)
        if any(map(sharded, subject.model.parameters())):
            raise ConfigError(
                "a latency is measured by one rank alone, and a sharded model runs on all of them "
                "together: give the budget to the model before fully_shard, or another cost"
            )
        self.table = of_first(lambda: self._table(subject.table), "the latencies")
        moving = [op for op in subject.inferred.recording.ops if moves(op)]
        self.ops = [op for op in moving if _typed(subject, op)]
        self.axes = [axes_of(subject.inferred, op) for op in self.ops]
        self._known: dict[Place, str] = {}
        self._as_dense: set[Place] = set()
        self._untyped = {op.name for op in moving if not _typed(subject, op)}
        whole = self.sum(_dense)
        self.dense = self.time({"dense": subject.model})["dense"]
        self.scale, self.rest = self.dense.median / max(whole, 1e-9), 0.0

    @classmethod
    def shown(cls, amount: float) -> str:
        return f"{figure(1000 * amount)} ms"

    def of(self, count: Count) -> float:
        """Return seconds."""
        return max(0.0, self.scale * self.sum(count) + self.rest) / 1000

    def sum(self, count: Count) -> float:
        """Return the milliseconds of all operations, measuring what is missing."""
        found = self.table.found
        return sum(found[key].median for key in self._keys(count) if key in found)

    def noise(self, count: Count) -> float:
        """Return how sure ``of`` is, in seconds: the operations' middle halves together."""
        found = [self.table.found.get(key) for key in self._keys(count)]
        squares = sum((x.high - x.low) ** 2 for x in found if x is not None)
        return self.scale * float(squares) ** 0.5 / 2000

    def time(self, models: Mapping[str, nn.Module]) -> dict[str, Latency]:
        """Measure whole models, in turns; on several ranks the first does, for all."""
        return of_first(lambda: self._time(models), "the time")

    def _time(self, models: Mapping[str, nn.Module]) -> dict[str, Latency]:
        example = self.subject.example
        args, kwargs = call_arguments(example)
        with ExitStack() as stack:
            for model in models.values():
                apart = stack.enter_context(undisturbed(model, example, watched=True))
                with in_eval_mode(model), torch.no_grad(), in_mode(apart.writes):
                    model(*args, **kwargs)  # what it writes to is kept; a mode takes time, too
            return measured(models, example, clock=self.clock)

    def against_dense(self, model: nn.Module) -> Latency:
        """Measure a model and the dense one in turns: what slows down both says nothing."""
        found = self.time({"dense": self.subject.model, "smaller": model})
        factor = self.dense.median / found["dense"].median
        seen = found["smaller"]
        scaled = (seen.median * factor, seen.low * factor, seen.high * factor)
        return Latency(*scaled, seen.runs, seen.threads)

    def correct(self, count: Count, seconds: float) -> None:
        """Let the line from sums to times go through the dense model and what was measured."""
        whole, part = self.sum(_dense), self.sum(count)
        if whole - part > 0.02 * whole and self.dense.median > 1000 * seconds:
            self.scale = (self.dense.median - 1000 * seconds) / (whole - part)
            self.rest = self.dense.median - self.scale * whole

    def told(self, found: Latency, count: Count) -> str:
        """Return how a measurement was made, its spread, and what the table lacks for it."""
        said = f"{self.clock_name}, middle half {found.middle_half} ms of {found.runs}"
        places, keys = self._places(count), self._keys(count)
        named = list(zip(self.ops, places, keys, strict=True))
        lacking = {op.name for op, _, key in named if key not in self.table.found} | self._untyped
        dense = {op.name for op, place, _ in named if place in self._as_dense} - lacking
        for what, names in (("not in the table", lacking), ("counted as when dense", dense)):
            said += f"; {what}: {', '.join(sorted(names))}" if names else ""
        return said

    def save(self) -> None:
        """Keep the table, where a file was named."""
        if self.subject.table is not None and rank() == 0:
            self.table.save(self.subject.table)

    def _table(self, path: str | None) -> Latencies:
        here = Latencies.here(self.device)
        if path is None or not Path(path).exists():
            return here
        table = Latencies.load(path)
        table.check(here, path)
        return table

    def _places(self, count: Count) -> list[Place]:
        return [(i, tuple(map(count, axes))) for i, axes in enumerate(self.axes)]

    def _keys(self, count: Count) -> list[str]:
        """Return each operation at its shapes, as text, and measure what is not known yet."""
        missing: dict[str, Callable[[], Any]] = {}
        places = self._places(count)
        for place in places:
            if place not in self._known:
                self._known[place], run = self._looked_up(place, count)
                if run is not None:
                    missing[self._known[place]] = run
            if len(missing) >= TOGETHER:
                self._measure(missing)
        self._measure(missing)
        return [self._known[place] for place in places]

    def _measure(self, missing: dict[str, Callable[[], Any]]) -> None:
        if missing:
            self.table.found |= of_first(lambda: self._rows(missing), "latencies of operations")
            missing.clear()
            self.save()

    def _rows(self, missing: Mapping[str, Callable[[], Any]]) -> dict[str, Latency]:
        with torch.inference_mode():
            self.table.add(missing, self.clock)
        return {key: self.table.found[key] for key in missing}

    def _looked_up(self, place: Place, count: Count) -> tuple[str, Callable[[], Any] | None]:
        """Return an operation at its shapes, and what runs it, if it is to be measured.

        Where it does not run with such sizes it is the dense model's, which was looked up first.
        """
        at, op = place[0], self.ops[place[0]]
        tries: list[Call] = list(calls(self.subject.inferred, op, count, self.floats))
        for call in tries:
            if (key := str(call)) in self.table.found:
                return key, None
        with torch.inference_mode():
            for call in tries:
                run = call.ready(self.device)
                if run is not None:
                    return str(call), run
        whole = at, tuple(map(_dense, self.axes[at]))
        if whole not in self._known:
            return str(tries[0]), None
        self._as_dense.add(place)
        return self._known[whole], None


def _dense(atom: Atom) -> int:
    return atom.size


def _typed(subject: Subject, op: Op) -> bool:
    values = [*op.reads, *(ref.value for ref in op.outputs)]
    return all(value in subject.inferred.types for value in values)
