"""Where the outputs of a product are added to something else: a residual stream, found in a record.

What a reader gives is often one summand of many.  How large its error is can only be said beside
the sum, and an error that the other summand brings along can be made up for here.
"""

from __future__ import annotations

from typing import NamedTuple

from .macs import contracts
from .program import Op, Recording, Ref

KEEPING = frozenset(["view", "_unsafe_view", "reshape", "clone", "alias", "detach", "contiguous"])
"""Operations after which the same numbers lie in the same order."""


class Summed(NamedTuple):
    """A sum that a product's outputs go into.

    Attributes:
        at: the operation that adds, by its number in the record.
        other: the operation that makes the other summand, or None if it is made later than the
            product or is an input.
        norm: the buffer that holds the variance of a batch norm in between, or None.
    """

    at: int
    other: int | None
    norm: str | None


def products(recording: Recording) -> dict[str, Op]:
    """Return the operation that multiplies by each weight, by any of its names.

    A weight that several operations multiply by, or none, is left out.
    """
    found: dict[int, list[Op]] = {}
    for op in recording.ops:
        if contracts(getattr(op.func, "overloadpacket", None)):
            for value in {recording.owner[v] for v in op.reads}:
                found.setdefault(value, []).append(op)
    values = {n: recording.parameters.get(name) for n, name in recording.names.items()}
    return {
        n: found[v][0] for n, v in values.items() if v is not None and len(found.get(v, ())) == 1
    }


def sum_behind(recording: Recording, product: Op) -> Summed | None:
    """Return the sum that the outputs of an operation go into, or None if they go elsewhere too.

    On the way there may be changes of shape, a bias, and a batch norm.
    """
    made, norm = product.outputs[0].value, None
    while True:
        users = recording.readers.get(made, [])
        if len(users) != 1 or made in recording.outputs:
            return None
        (user,) = users
        kind = user.name.split(".")[1]
        others = [x.value for x in user.args[:2] if isinstance(x, Ref) and x.value != made]
        if kind in KEEPING:
            if recording.shapes[made] == ():
                return None
        elif "batch_norm" in kind and norm is None and isinstance(user.args[4], Ref):
            variance = user.args[4].value
            norm = next((n for n, value in recording.buffers.items() if value == variance), None)
            if norm is None:
                return None
        elif kind in ("add", "add_") and len(others) == 1 and not user.kwargs:
            if recording.owner[others[0]] not in recording.parameters.values():
                return _summed(recording, product, user, others[0], made, norm)
        else:
            return None
        made = user.updates[1] if user.updates else user.outputs[0].value


def _summed(
    recording: Recording,
    product: Op,
    user: Op,
    other: int,
    made: int,
    norm: str | None,
) -> Summed | None:
    if recording.shapes[other] != recording.shapes[made]:
        return None  # it is broadcast
    numbers = {id(op): i for i, op in enumerate(recording.ops)}
    makers = [i for i, op in enumerate(recording.ops) if Ref(other) in op.outputs]
    first = numbers[id(product)]
    at = makers[0] if makers and makers[0] < first else None
    return Summed(numbers[id(user)], at, norm)
