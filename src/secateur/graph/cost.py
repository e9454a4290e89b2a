"""What a model costs, computed from its recorded forward without running it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from .axes import Atom
from .infer import Inferred
from .lengths import now
from .macs import contracts, macs_of
from .program import Op, Ref

Count = Callable[[Atom], int]


@dataclass(frozen=True)
class Cost:
    """Parameters, multiply-accumulates of one forward, and the peak bytes of its activations.

    >>> print(Cost(params=11_689_512, macs=1_814_073_856, peak_bytes=9_633_792))
    11.7 M params, 1.81 G MACs, 9.63 MB peak activations

    See also:
        ``Structure.cost``, which computes it for any plan without running the model.
    """

    params: int
    macs: int
    peak_bytes: int

    def __str__(self) -> str:
        return (
            f"{human(self.params)} params, {human(self.macs)} MACs, "
            f"{human(self.peak_bytes)}B peak activations"
        )


def human(number: float) -> str:
    """Return a number with three digits and a unit: 11.7 M.

    >>> human(11_689_512), human(512)
    ('11.7 M', '512')
    """
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def human_bytes(number: float) -> str:
    """Return a number of bytes with three digits and a unit: 9.63 MB.

    >>> human_bytes(9_633_792), human_bytes(512)
    ('9.63 MB', '512 B')
    """
    return f"{human(number)}B" if number >= 1000 else f"{number:.0f} B"


def params(inferred: Inferred, count: Count) -> int:
    """Return the number of parameters; tied ones count once."""
    return sum(params_of(inferred, name, count) for name in inferred.recording.parameters)


def params_of(inferred: Inferred, name: str, count: Count) -> int:
    """Return the number of elements of one parameter."""
    return prod(_shape(inferred, inferred.recording.parameters[name], count))


def macs(inferred: Inferred, count: Count, ops: Iterable[Op] | None = None) -> int:
    """Return the multiply-accumulates of one forward on the recorded inputs (half its FLOPs).

    Those of contractions: products of matrices, convolutions, attention.  What is not counted,
    though it multiplies, is named by ``Structure.uncounted``.
    """
    return sum(
        _macs(inferred, op, count) for op in (inferred.recording.ops if ops is None else ops)
    )


def peak_bytes(inferred: Inferred, count: Count) -> int:
    """Return the most bytes of activations that are alive at one moment of the forward."""
    r = inferred.recording
    last: dict[int, int] = {}
    born: dict[int, int] = {}
    state = {r.owner[v] for v in (*r.parameters.values(), *r.buffers.values(), *r.inputs)}
    for step, op in enumerate(r.ops):
        for value in (*op.reads, *(ref.value for ref in op.outputs)):
            last[r.owner[value]] = step
        for ref in op.outputs:
            born.setdefault(r.owner[ref.value], step)
    for value in r.outputs:
        last[r.owner[value]] = len(r.ops)
    changes = [0] * (len(r.ops) + 2)
    for owner, step in born.items():
        if owner in state or owner not in inferred.types:
            continue
        size = prod(_shape(inferred, owner, count)) * r.itemsize[owner]
        changes[step] += size
        changes[last[owner] + 1] -= size
    alive = peak = 0
    for change in changes:
        alive += change
        peak = max(peak, alive)
    return peak


def cost(inferred: Inferred, count: Count) -> Cost:
    """Return all costs when each atom keeps ``count(atom)`` positions."""
    return Cost(params(inferred, count), macs(inferred, count), peak_bytes(inferred, count))


def _shape(inferred: Inferred, value: int, count: Count) -> tuple[int, ...]:
    return tuple(now(d.axis, count) for d in inferred.types[value].dims)


def _macs(inferred: Inferred, op: Op, count: Count) -> int:
    packet = getattr(op.func, "overloadpacket", None)
    if not contracts(packet):
        return 0

    def shapes(x: Any) -> Any:
        if isinstance(x, Ref):
            return _shape(inferred, x.value, count)
        return tuple(map(shapes, x)) if isinstance(x, (list, tuple)) else x

    options = tuple((k, shapes(v)) for k, v in op.kwargs.items())
    return macs_of(packet, shapes(op.args), options, shapes(op.outputs))
