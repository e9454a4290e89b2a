"""A tensor's type, and the verbs that rules are written in.

A rule receives each tensor as a ``Typed`` (one ``Dim`` per dimension) and returns the types of the
outputs.  What it learns on the way it says with a verb of ``Typing``: ``same``, ``contract``,
``name``, ``freeze``, ``reduce``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from secateur.errors import AxisError

from .axes import Atom, Axis, atoms, concat, cut, factor, freeze, product, unify
from .conditions import ALWAYS, Condition, Never, either, every
from .equations import Named
from .origins import Attribute, Origin
from .tables import READ_IN_PART, Tables, refined

COMPUTES = "the code computes a number from its size"


@dataclass(frozen=True)
class Reason:
    """Why something is so: the operation, the module that ran it, and the source line."""

    why: str
    op: str = ""
    module: str = ""
    line: str = ""

    def __str__(self) -> str:
        at = f" ({self.op} in {self.module or 'the model'!r})" if self.op else ""
        return self.why + at


@dataclass(frozen=True)
class Dim:
    """One dimension: its axis, when its positions are zero or constant, and whose it is."""

    axis: Axis
    zero: Condition = ALWAYS
    const: Condition = ALWAYS
    source: tuple[str, int] | None = None  # (parameter, dimension) that this one *is*

    @property
    def size(self) -> int:
        return self.axis.size


@dataclass(frozen=True)
class Typed:
    """The type of one tensor.  ``static`` tensors do not depend on the model's inputs."""

    dims: tuple[Dim, ...]
    static: bool = False
    counts: Axis | None = None  # whose positions the numbers in this tensor are

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(d.axis.size for d in self.dims)

    def __getitem__(self, dim: int) -> Dim:
        return self.dims[dim]

    def __len__(self) -> int:
        return len(self.dims)

    def but(self, dim: int, new: Dim | None) -> Typed:
        """Return this type with one dimension replaced, or dropped when ``new`` is None."""
        dim %= len(self.dims)
        middle = () if new is None else (new,)
        return Typed(self.dims[:dim] + middle + self.dims[dim + 1 :], self.static)


@dataclass(frozen=True)
class Site:
    """A place where an axis is summed away: whatever a position does, it does it here.

    Removing a position is exact when ``zero`` holds for it at every site of its atom, unless
    ``harm`` says what else the operation does with the number of positions.
    """

    axis: Axis
    zero: Condition
    const: Condition
    reason: Reason
    harm: str | None = None
    weight: tuple[str, int] | None = None  # the consumer, where a constant could be folded
    steady: Condition | None = None  # where it harms: when the position is constant
    average: bool = False  # the harm is a factor, which something after it may take up
    product: bool = False  # of two activations, which both have the axis


@dataclass(frozen=True)
class Limit:
    """So many positions of an axis must stay, or a multiple of a number."""

    axis: Axis
    least: int
    step: int


class Provenance(Protocol):
    """Where the numbers of the call being typed came from (see ``attributes``)."""

    @property
    def name(self) -> str: ...

    @property
    def floats(self) -> tuple[Attribute, ...]: ...

    def float_of(self, number: float) -> Attribute | None: ...

    def one(self, size: int) -> Origin | None: ...

    def argument(self, keyword: str, place: int) -> Origin | None: ...

    def every(self, size: int) -> list[Origin]: ...

    def several(self, sizes: Sequence[int]) -> list[Origin | None]: ...


@dataclass
class Typing:
    """What one trace has taught; the verbs of the rules append to it.

    With ``ragged`` every group of a grouped convolution has channels of its own to keep.
    """

    ragged: bool = False
    training: bool = False  # nothing is compared then
    names: list[Named] = field(default_factory=list)
    pairs: list[tuple[Axis, Axis, Reason]] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    choices: list[Axis] = field(default_factory=list)  # looked up by numbers of their own
    tables: Tables = field(default_factory=Tables)
    sites: list[Site] = field(default_factory=list)
    decisions: Mapping[str, Collection[Attribute]] = field(default_factory=dict)
    numbers: list[tuple[Origin, Reason]] = field(default_factory=list)
    consumed: set[tuple[str, int]] = field(default_factory=set)  # parameter dims that are inputs
    spared: set[tuple[str, int]] = field(default_factory=set)  # that divide: they are not masked
    # The operation being typed:
    reason: Reason = field(default_factory=lambda: Reason("not yet"))
    out: tuple[tuple[int, ...], ...] = ()
    base: Typed | None = None  # the tensor that the first argument is a view of
    calls: Provenance | None = None

    def because(self, why: str) -> Reason:
        """Return the reason ``why`` with the place of the operation being typed."""
        return replace(self.reason, why=why)

    # -- verbs ---------------------------------------------------------------------------------

    def fresh(self, size: int, frozen: str | None = None, zero: bool = True) -> Dim:
        """Return a new dimension; of a single position it is frozen, since it may broadcast."""
        if size == 1:
            frozen = "a dimension of size 1 broadcasts"
        axis = Atom(size, self.because(frozen) if frozen else None)
        if frozen and size != 1:
            self.tables.varying.append(axis)
        condition = ALWAYS if zero or frozen else Never(axis)
        return Dim(axis, condition, condition)

    def freeze(self, dims: Dim | Typed | Iterable[Dim], why: str) -> None:
        """Forbid the removal of any position of these dimensions."""
        many = [dims] if isinstance(dims, Dim) else dims.dims if isinstance(dims, Typed) else dims
        for dim in many:
            freeze(dim.axis, self.because(why))

    def same(self, a: Dim, b: Dim) -> None:
        """Say that two dimensions are one axis; where the algebra cannot express it, freeze."""
        try:
            unify(a.axis, b.axis)
        except AxisError as error:
            self.freeze([a, b], f"{error}")

    def split(self, dim: Dim, inner: int) -> tuple[Dim, Dim] | None:
        """Return ``(outer, inner)`` of a dimension that is a grid, or freeze it and return None."""
        try:
            axes = factor(dim.axis, inner)
        except AxisError as error:
            self.freeze(dim, f"{error}")
            return None
        return replace(dim, axis=axes[0], source=None), replace(dim, axis=axes[1], source=None)

    def pieces(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """Return consecutive pieces of a dimension, refining its axis."""
        found, rest = [], dim.axis
        for size in sizes[:-1]:
            if size == 0 or size == rest.size:
                piece, rest = (Atom(0, "empty"), rest) if size == 0 else (rest, Atom(0, "empty"))
            else:
                piece, rest = cut(rest, size)
            found.append(piece)
        return [self.alone(replace(dim, axis=axis, source=None)) for axis in [*found, rest]]

    @staticmethod
    def join(*dims: Dim) -> Dim:
        """Return pieces laid end to end."""
        axis = concat(*(d.axis for d in dims))
        return Dim(axis, every(*(d.zero for d in dims)), every(*(d.const for d in dims)))

    def equal(self, a: Dim, b: Dim) -> None:
        """Say that two dimensions keep equally many positions, though not the same ones."""
        self.pairs.append((a.axis, b.axis, self.because("it keeps the length of another axis")))

    def alone(self, dim: Dim) -> Dim:
        """Freeze a dimension of one position that was part of a larger one: it may broadcast."""
        if dim.size == 1:
            self.freeze(dim, "a dimension of size 1 broadcasts")
        return dim

    def grid(self, *dims: Dim) -> Dim:
        """Return the flattened grid of several dimensions."""
        if len(dims) == 1:
            return dims[0]
        axis = product(*(d.axis for d in dims))
        return Dim(axis, every(*(d.zero for d in dims)), every(*(d.const for d in dims)))

    def contract(self, x: Dim, weight: Dim) -> None:
        """Say that two dimensions are one axis and are multiplied and summed over."""
        self.same(x, weight)
        for dim in (x, weight):
            if dim.source:
                self.consumed.add(dim.source)
        zero = either(x.zero, weight.zero)
        # A steady position adds a constant when it is read through a parameter.
        steady = [x.const] if weight.source else [weight.const] if x.source else []
        const = either(zero, *steady)
        both = x.source is None and weight.source is None
        site = Site(x.axis, zero, const, self.reason, weight=weight.source, product=both)
        self.sites.append(site)

    def reduce(self, dim: Dim, harm: str | None = None, *, average: bool = False) -> None:
        """Say that a dimension is summed away; ``harm`` says what its size changes besides.

        For an ``average`` that is a factor, and no harm where ``gains`` finds what takes it up.
        """
        steady = dim.const if harm else None
        site = Site(dim.axis, dim.zero, dim.zero, self.reason, harm, steady=steady, average=average)
        self.sites.append(site)

    def limit(self, dim: Dim, least: int = 1, step: int = 1) -> None:
        """Say that a dimension keeps at least so many positions, or a multiple of ``step``."""
        if dim.size % step == 0:  # it is no rule for what runs without
            self.limits.append(Limit(dim.axis, least, step))

    @contextmanager
    def cut_at(self, x: Typed, dim: Dim, *numbers: int | Origin | None) -> Iterator[None]:
        """Say that a dimension of ``x`` is cut meanwhile, at these numbers.

        A piece of an activation that was one before (a concatenation's) is as long as what it is
        made of; a parameter's is as long as the numbers say.
        """
        before = list(atoms(dim.axis))
        yield
        if x.static or refined(before):
            for number in numbers:
                counted = isinstance(number, Origin)  # torch was given a grid, or how many pieces
                self.table(x, dim, self.origins_like(number), counted=counted)

    def read_whole(self, x: Typed, dim: Dim, number: int, origins: Sequence[Origin]) -> None:
        """Say that all positions are read up to a number: another may read a part of them."""
        self.table(x, dim, origins)
        for origin in origins if x.static else ():
            if not origin.factors:
                self.freeze(dim, READ_IN_PART)
            elif abs(number) == dim.size:
                self.name(dim.axis, origin)

    def table(
        self, x: Typed, dim: Dim, origins: Iterable[Origin], *, counted: bool = False
    ) -> None:
        """Say that a dimension is cut, and stays whole where one of these is an input's length."""
        why = self.because(READ_IN_PART)
        for origin in origins:
            self.tables.cut(dim.axis, origin, why, static=x.static, counted=counted)

    def origins_like(self, number: int | Origin | None) -> list[Origin]:
        """Return where a number of this operation may come from."""
        if isinstance(number, Origin):
            return [number]
        return self.calls.every(number) if self.calls and number is not None else []

    def name(self, axis: Axis, origin: Origin | None) -> None:
        """Say that the code passes ``origin`` as the length of an axis; None says nothing."""
        if origin is not None:
            why = "its size is computed" if origin.factors else "its size is written in the code"
            self.names.append(Named(axis, origin, self.because(why)))

    def number(self, value: Any) -> None:
        """Say that an operation computes with a number, which may be the size of an axis."""
        origin = self.origin_of(value) if type(value) is int else None
        if origin is not None and origin.factors:
            self.numbers.append((origin, self.because(COMPUTES)))

    def look_up(self, dim: Dim, index: Typed | None) -> None:
        """Say that positions are looked up by number: the axis's own, or it freezes."""
        if index is not None and index.counts is not None:
            self.same(dim, Dim(index.counts))
            self.choices.append(index.counts)
        else:
            self.freeze(dim, "its positions are looked up by number")

    def origin_of(self, size: int) -> Origin | None:
        """Return what the code passed for one size of this operation, or None if torch made it."""
        return self.calls.one(size) if self.calls else None

    def decided(self, size: int) -> Origin:
        """Return the only attribute of this size that the running module compared with a number.

        Code that has asked ``num_key_value_groups > 1`` means it when it then lets torch find out
        how many queries share a key.  Otherwise the size is a literal to us.
        """
        found = {a for a in self.decisions.get(self.reason.module, ()) if a.value == size}
        return Origin.of(found.pop() if len(found) == 1 else size)

    @property
    def called(self) -> str:
        """The name of the torch function that ran this operation; torch may have composed it."""
        return self.calls.name if self.calls else ""

    def argument_of(self, functions: str, keyword: str, place: int, size: int) -> Origin | None:
        """Return what was passed as one argument of one of these functions, by its place.

        Where another function ran the operation, it is what was passed as that size.
        """
        if self.calls and self.called in functions.split():
            return self.calls.argument(keyword, place)
        return self.origin_of(size)

    def origins_of(self, sizes: Sequence[int]) -> list[Origin | None]:
        """Return what the code passed for each of several sizes of this operation."""
        return self.calls.several(sizes) if self.calls else [None] * len(sizes)

    def opaque(self, shape: Sequence[int], why: str = "made by an operation that mixes") -> Typed:
        """Return the type of a tensor of which no position may be removed."""
        return Typed(tuple(self.fresh(size, why) for size in shape))

    # -- conditions ----------------------------------------------------------------------------

    @staticmethod
    def never_zero(dim: Dim, keep_const: bool = True) -> Dim:
        """Return the dimension after a function that maps 0 to something else."""
        never = Never(dim.axis)
        return replace(dim, zero=never, const=dim.const if keep_const else never, source=None)
