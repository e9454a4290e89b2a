"""Where a constant that is added to a product can go: into its bias, or the mean of a norm behind.

Found from the operations of a recorded forward, whatever modules they are in.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from secateur.graph.program import Op, Ref
from secateur.graph.sums import products
from secateur.structure import Structure

BIAS = {"addmm": 0, "addmv": 0, "baddbmm": 0, "convolution": 2, "linear": 2}
"""Which argument of an operation is added to its product."""


class Intercept(NamedTuple):
    """A parameter or buffer that takes a constant over, with this sign."""

    tensor: str
    sign: int


class Intercepts:
    """The tensors of a model that can take constants over."""

    def __init__(self, structure: Structure):
        self._recording = r = structure.inferred.recording
        self._products = products(r)
        self._means = {value: name for name, value in r.buffers.items()}
        self._names = Counter(r.names.values())
        self._parameters = {value: name for name, value in r.parameters.items()}

    def of(self, weight: str) -> Intercept | None:
        """Return what can take over a constant that a product with a weight adds to its outputs.

        None where nothing can, or where what can serves another product too.
        """
        op = self._products.get(weight)
        if op is None:
            return None
        return self._bias(op) if _bias_of(op) else self._mean(op)

    def _bias(self, op: Op) -> Intercept | None:
        added = _bias_of(op)
        assert added is not None
        owner = self._recording.owner[added.value]
        name = self._parameters.get(owner)
        readers = [o for o in self._recording.ops if owner in map(self._owner, o.reads)]
        if name is None or self._names[name] != 1 or readers != [op]:
            return None
        return Intercept(name, 1)

    def _mean(self, op: Op) -> Intercept | None:
        made = op.outputs[0].value
        users = self._recording.readers.get(made, [])
        if len(users) != 1 or "batch_norm" not in users[0].name:
            return None
        if made in self._recording.outputs:
            return None
        read = users[0].args[3]
        name = self._means.get(read.value) if isinstance(read, Ref) else None
        return Intercept(name, -1) if name is not None and self._alone(read.value) else None

    def _alone(self, value: int) -> bool:
        return len(self._recording.readers.get(value, ())) == 1

    def _owner(self, value: int) -> int:
        return self._recording.owner[value]


def _bias_of(op: Op) -> Ref | None:
    place = BIAS.get(op.name.split(".")[1])
    found = op.args[place] if place is not None and len(op.args) > place else None
    return found if isinstance(found, Ref) else None
