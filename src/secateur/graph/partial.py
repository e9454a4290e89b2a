"""What one forward in eval mode tells only a part of: what only training reads, or longer inputs.

Everything here only freezes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from .axes import Atom, Axis, atoms, freeze
from .origins import Attribute, Size
from .program import Recording
from .tables import Tables
from .typing import Reason, Typed

Types = Mapping[int, Typed]


def freeze_trained(recording: Recording, types: Types) -> None:
    """Freeze what only training reads, as nothing is compared there.

    What the first forward reads as well stays free.
    """
    first, *rest = (forward.reads for forward in recording.forwards)
    read = {value: list(_atoms_of(types[value])) for value in recording.state}
    compared = {id(atom) for value in first & read.keys() for atom in read[value]}
    for value in set[int]().union(*rest) & read.keys() - first:
        for atom in read[value]:
            if id(atom) not in compared:
                freeze(atom, Reason("only training reads it, where nothing is compared"))


def freeze_tables(recording: Recording, types: Types, tables: Tables, read: list[Axis]) -> None:
    """Freeze tables that the code does not cut at a size: it branches, or has plain numbers.

    Args:
        recording: of the example.
        types: of its tensors.
        tables: what the rules said of them.
        read: all axes that are summed somewhere.
    """
    _freeze_compared(recording, types, tables)
    tables.freeze_doubtful(read, (_axis_of(types, size) for size in _out_of_sight(recording)))


def _freeze_compared(recording: Recording, types: Types, tables: Tables) -> None:
    """Freeze a table that is cut only if the input is shorter, which the example is not.

    The code compares the input's length with the table's own size, or with an attribute that is as
    large: then it is a dimension of one tensor that no other shares.
    """
    compared = [found for forward in recording.forwards for found in forward.compared]
    pairs = [(a, b, c) for c in compared for a, b in ((c.one, c.other), (c.other, c.one))]
    sizes = {factor for one, _, _ in pairs for factor in one.factors if isinstance(factor, Size)}
    varying = {size for size in sizes if tables.varies(_axis_of(types, size))}
    others = {b.factor: c for a, b, c in pairs if b.factor and not varying.isdisjoint(a.factors)}
    if not others:
        return
    lengths = {f.value: found for f, found in others.items() if isinstance(f, Attribute)}
    owners = Counter(id(a) for v in recording.state for a in {*_atoms_of(types[v])})
    for value in recording.state:
        for i, dim in enumerate(types[value].dims):
            alone = all(owners[id(atom)] == 1 for atom in atoms(dim.axis))
            named = others.get(Size(value, i)) or (lengths.get(dim.size) if alone else None)
            if named:
                why = "the code compares it with the length of an input"
                freeze(dim.axis, Reason(why, "if", named.module, named.line))


def _out_of_sight(recording: Recording) -> Iterator[Size]:
    """Yield the sizes that the code has as numbers which do not tell where they are from."""
    for forward in recording.forwards:
        for origin in (*(number.origin for number in forward.numbers), *forward.lengths):
            yield from (factor for factor in origin.factors if isinstance(factor, Size))


def _axis_of(types: Types, size: Size) -> Axis:
    return types[size.value].dims[size.dim].axis


def _atoms_of(typed: Typed) -> Iterator[Atom]:
    return (atom for dim in typed.dims for atom in atoms(dim.axis))
