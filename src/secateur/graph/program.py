"""A recorded forward: the operations that ran, and the tensors that they made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .origins import Attribute, Origin
from .typing import Provenance


@dataclass(frozen=True)
class Ref:
    """A recorded tensor, by its number."""

    value: int


@dataclass(frozen=True)
class Op:
    """One executed operation."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Ref, ...]
    module: str
    line: str
    call: Provenance
    updates: tuple[int, int] | None = None  # in place: (value before, value after)

    @property
    def name(self) -> str:
        """As in ``aten.view.default``."""
        return str(self.func)

    @property
    def reads(self) -> list[int]:
        """The values of all tensors among its arguments, also in lists."""
        return list(_values_in([*self.args, *self.kwargs.values()]))


@dataclass(frozen=True)
class Number:
    """A number that the code computed from a size: it changes when the size does."""

    origin: Origin
    module: str
    line: str


@dataclass(frozen=True)
class Compared:
    """Two integers that the code compared: if the answer changes, it goes another way."""

    one: Origin
    other: Origin
    equal: bool
    module: str
    line: str


@dataclass(frozen=True)
class Whole:
    """All of a dimension was asked for, by a bound: torch then runs no operation."""

    value: int
    dim: int
    bound: int
    origin: Origin
    module: str
    line: str


@dataclass(frozen=True)
class ModuleCall:
    """One forward of one module: which operations it ran, on what, and what it returned.

    ``inputs`` maps each argument's position or keyword to its value; ``output`` is a Ref, or a
    tuple or dict of Refs, None and "other" for what is neither.
    """

    path: str
    inputs: dict[int | str, int]
    output: Any
    ops: range


@dataclass
class Recording:
    """All operations of one forward, and what the tensors are."""

    ops: list[Op] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    itemsize: list[int] = field(default_factory=list)
    integers: set[int] = field(default_factory=set)  # values of an integer or bool type
    owner: list[int] = field(default_factory=list)  # the value whose memory this one is
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)  # canonical names
    buffers: dict[str, int] = field(default_factory=dict)
    aside: bool = False  # it leaves results that it does not return
    read_out: dict[int, str] = field(default_factory=dict)  # values whose numbers code has: by what
    numbers: list[Number] = field(default_factory=list)
    compared: list[Compared] = field(default_factory=list)
    whole: list[Whole] = field(default_factory=list)
    lengths: list[Origin] = field(default_factory=list)  # that ``len`` took out of sight
    given: set[int] = field(default_factory=set)  # numbers among the inputs, or read from tensors
    given_floats: Sequence[Provenance] = ()  # calls, of all forwards
    spent: set[Attribute] = field(default_factory=set)  # floats that the code computes with
    decisions: dict[str, set[Attribute]] = field(default_factory=dict)  # compared, by module
    names: dict[str, str] = field(default_factory=dict)  # every name → the canonical one
    said: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """What layers say of their sizes: (path, attribute) → the tensor's value and its dimension."""
    stateful: bool = False  # it changed what the model holds, which another call reads
    training: Recording | None = None  # a second forward, for what this one does not read
    failed: str = ""  # why that one ended early

    @cached_property
    def readers(self) -> dict[int, list[Op]]:
        """The operations that read each value, once the recording is whole."""
        found: dict[int, list[Op]] = {}
        for op in self.ops:
            for value in set(op.reads):
                found.setdefault(value, []).append(op)
        return found

    @property
    def forwards(self) -> tuple[Recording, ...]:
        """This forward, and the one in training mode, if there is one."""
        return (self, self.training) if self.training else (self,)

    @property
    def state(self) -> tuple[int, ...]:
        """The values of all parameters and buffers."""
        return (*self.parameters.values(), *self.buffers.values())

    def beside(self) -> Recording:
        """Return an empty recording of another forward, whose tensors are numbered along."""
        return Recording(
            shapes=self.shapes,
            itemsize=self.itemsize,
            integers=self.integers,
            owner=self.owner,
            inputs=self.inputs,
            parameters=self.parameters,
            buffers=self.buffers,
            given=self.given,
            spent=self.spent,
            names=self.names,
        )

    @property
    def reads(self) -> set[int]:
        """The values that the operations of this forward read."""
        return {value for op in self.ops for value in op.reads}

    def unread(self) -> tuple[str, ...]:
        """Return the parameters that no operation of any forward reads."""
        read = set[int]().union(*(forward.reads for forward in self.forwards))
        return tuple(name for name, value in self.parameters.items() if value not in read)

    def asked(self) -> set[str]:
        """Return the parameters whose numbers alone, whatever the input, code asks for.

        An operation that makes no tensor (``item``, ``bool``) hands numbers to the code.
        """
        of = {self.owner[value]: {name} for name, value in self.parameters.items()}
        varies = {self.owner[value] for value in self.inputs}
        found = set[str]()
        for op in self.ops:
            owners = {self.owner[value] for value in op.reads}
            made = {self.owner[ref.value] for ref in op.outputs}
            if not varies.isdisjoint(owners):
                varies |= made
                continue
            names = set[str]().union(*(of.get(owner, ()) for owner in owners))
            of |= {owner: of.get(owner, set()) | names for owner in made}
            found |= set() if made else names
        told = (of.get(self.owner[value], set()) for value in self.read_out)
        return found.union(*told)

    def used(self) -> list[bool]:
        """Return for each operation whether anything that the model returns or keeps needs it."""
        needed = {self.owner[v] for v in (*self.outputs, *self.buffers.values(), *self.inputs)}
        found = []
        for op in reversed(self.ops):
            made = {self.owner[ref.value] for ref in op.outputs}
            made |= {self.owner[value] for value in op.updates or ()}
            found.append(not made or not made.isdisjoint(needed))  # nothing made: it was read
            if found[-1]:
                needed |= {self.owner[v] for v in op.reads}
        return found[::-1]


def _values_in(x: Any) -> Iterator[int]:
    if isinstance(x, Ref):
        yield x.value
    elif isinstance(x, (list, tuple)):
        for part in x:
            yield from _values_in(part)
