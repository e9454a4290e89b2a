"""The axis algebra: what a tensor's dimension is made of, and when two dimensions are the same.

An axis is an ``Atom`` (positions that can be kept or removed one by one), a ``Product`` (a
flattened grid, outer to inner), a ``Concat`` (pieces laid end to end) or ``Ragged`` (another axis
in each band of a tensor's rows).  ``unify`` says that two
axes are the same axis and refines both until they are; ``cut`` and ``factor`` refine one.  An atom
that has been refined links to its definition, as in the union-find of any type inference, so every
axis that mentions it follows, and the work is linear in the number of statements made.

>>> channels, heads, width = Atom(768), Atom(12), Atom(64)
>>> unify(channels, product(heads, width))
>>> left, right = cut(channels, 192)         # three of the twelve heads
>>> [atom.size for atom in atoms(channels)]
[3, 9, 64]
>>> left.size, right.size
(192, 576)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product as cartesian
from typing import Any

from secateur.errors import AxisError


class Axis:
    """A number of positions; see the four subclasses."""

    __slots__ = ("size",)
    size: int


class Atom(Axis):
    """Positions that can be kept or removed one by one, until a definition refines them.

    ``frozen`` holds the reason why no position may be removed, or None.
    """

    __slots__ = ("frozen", "link")

    def __init__(self, size: int, frozen: Any = None):
        self.size = size
        self.link: Axis | None = None
        self.frozen = frozen

    def __repr__(self) -> str:
        return f"{self.size}" if self.link is None else repr(find(self))


class Product(Axis):
    """A flattened grid, outermost factor first.  Build it with ``product``."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Axis, ...]):
        self.parts = parts
        self.size = 1
        for part in parts:
            self.size *= part.size

    def __repr__(self) -> str:
        return f"({' '.join(map(repr, _flat(Product, self.parts)))})"


class Concat(Axis):
    """Pieces laid end to end.  Build it with ``concat``."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Axis, ...]):
        self.parts = parts
        self.size = sum(part.size for part in parts)

    def __repr__(self) -> str:
        return f"[{' + '.join(map(repr, _flat(Concat, self.parts)))}]"


class Ragged(Axis):
    """Equally long axes, each in its own band of a tensor's dimension 0.

    The input channels of a grouped convolution's weight: band i of its rows reads the i-th part.
    It is a leaf to the algebra: it meets another axis of its kind, and is neither cut nor a grid.
    """

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Axis, ...]):
        self.parts = parts
        self.size = parts[0].size

    def __repr__(self) -> str:
        return f"{{{' | '.join(map(repr, self.parts))}}}"


def find(axis: Axis) -> Axis:
    """Return what an axis stands for now: a free atom, or how it is made of others."""
    seen: list[Atom] = []
    while isinstance(axis, Atom) and axis.link is not None:
        seen.append(axis)
        axis = axis.link
    for atom in seen[:-1]:  # the next look-up takes one step
        atom.link = axis
    return axis


def _flat(kind: type[Product] | type[Concat], parts: Sequence[Axis]) -> list[Axis]:
    """Resolve parts and lift those of the same kind (a product in a product is one product)."""
    flat: list[Axis] = []
    stack = list(reversed(parts))
    while stack:  # an axis that was cut at every position is as deep as it is long
        part = find(stack.pop())
        if isinstance(part, kind):
            stack.extend(reversed(part.parts))
        else:
            flat.append(part)
    return flat


def pieces(axis: Axis) -> list[Axis]:
    """Return the pieces that an axis is laid end to end of; itself, if it is no concatenation."""
    return _flat(Concat, [axis])


def parts_of(axis: Axis) -> list[Axis]:
    """Return what an axis is made of now, none of it of the axis's own kind; of an atom, nothing.

    Whoever goes down an axis goes by these: ``parts`` nest as deep as an axis was cut often.

    >>> channels = Atom(4)
    >>> for _ in range(3):
    ...     _, last = cut(channels if channels.link is None else last, 1)
    >>> parts_of(channels)
    [1, 1, 1, 1]
    """
    axis = find(axis)
    if isinstance(axis, (Product, Concat)):
        return _flat(type(axis), axis.parts)
    return [find(part) for part in axis.parts] if isinstance(axis, Ragged) else []


def product(*parts: Axis) -> Axis:
    """Return the flattened grid of the parts, outermost first."""
    flat = _flat(Product, parts)
    # A frozen single position changes nothing; a free one decides over all the grid, so it stays.
    real = [p for p in flat if p.size != 1 or not (isinstance(p, Atom) and p.frozen)]
    if not real:
        return flat[0] if flat else Atom(1, frozen="a grid of nothing is one position")
    return real[0] if len(real) == 1 else Product(tuple(real))


def concat(*parts: Axis) -> Axis:
    """Return the parts laid end to end; empty ones vanish."""
    flat = [p for p in _flat(Concat, parts) if p.size]
    if not flat:
        return Atom(0, frozen="it is empty")
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def freeze(axis: Axis, reason: Any) -> None:
    """Forbid the removal of any position; the first reason given to an atom stays."""
    for atom in atoms(axis):
        if atom.frozen is None:
            atom.frozen = reason


def atoms(axis: Axis) -> Iterator[Atom]:
    """Yield the free atoms of an axis in order; one that occurs twice is yielded twice."""
    stack = [axis]
    while stack:
        axis = find(stack.pop())
        if isinstance(axis, Atom):
            yield axis
        elif isinstance(axis, (Product, Concat, Ragged)):
            stack.extend(reversed(axis.parts))


def contains(axis: Axis, atom: Atom) -> bool:
    """Tell whether an axis mentions an atom."""
    return any(found is atom for found in atoms(axis))


def _define(atom: Atom, meaning: Axis) -> None:
    atom.link = meaning
    if atom.frozen is not None:
        freeze(meaning, atom.frozen)


def cut(axis: Axis, at: int) -> tuple[Axis, Axis]:
    """Return the first ``at`` positions and the rest, refining what lies across the cut.

    Raises:
        AxisError: ``at`` is not strictly inside the axis.

    >>> cut(concat(Atom(3), Atom(5)), 4)
    ([3 + 1], 4)
    """
    axis = find(axis)
    if not 0 < at < axis.size:
        raise AxisError(f"cannot cut {axis!r} at {at}: it has {axis.size} positions")
    if isinstance(axis, Ragged):
        raise AxisError(f"{axis!r} is another axis in every band and cannot be cut at {at}")
    if isinstance(axis, Atom):
        first_piece, second_piece = Atom(at), Atom(axis.size - at)
        _define(axis, Concat((first_piece, second_piece)))
        return first_piece, second_piece
    if isinstance(axis, Concat):
        return _cut_concat(axis, at)
    assert isinstance(axis, Product)
    outer, inner = axis.parts[0], product(*axis.parts[1:])
    row, column = divmod(at, inner.size)
    if not column:
        above, below = cut(outer, row)
        return product(above, inner), product(below, inner)
    before, rest = cut(outer, row) if row else (None, outer)
    single, after = cut(rest, 1) if rest.size > 1 else (rest, None)
    left, right = cut(inner, column)
    first = [product(before, inner)] if before else []
    last = [product(after, inner)] if after else []
    return concat(*first, product(single, left)), concat(product(single, right), *last)


def _cut_concat(axis: Concat, at: int) -> tuple[Axis, Axis]:
    parts = pieces(axis)
    whole = 0  # parts that lie before the cut
    while parts[whole].size <= at:
        at -= parts[whole].size
        whole += 1
    before, rest = parts[:whole], parts[whole:]
    if not at:
        return concat(*before), concat(*rest)
    left, right = cut(rest[0], at)
    return concat(*before, left), concat(right, *rest[1:])


def factor(axis: Axis, inner: int) -> tuple[Axis, Axis]:
    """Return ``(outer, inner)`` such that the axis is their product, the inner of the size given.

    Raises:
        AxisError: the axis is no grid with rows of that size.

    >>> factor(product(Atom(2), Atom(6)), 3)
    ((2 2), 3)
    """
    axis = find(axis)
    if inner < 1 or axis.size % inner:
        raise AxisError(f"{axis!r} of {axis.size} positions has no rows of {inner}")
    if inner == 1:
        return axis, Atom(1, frozen="a single column")
    if isinstance(axis, Ragged):
        raise AxisError(f"{axis!r} is another axis in every band, and no grid")
    if isinstance(axis, Atom):
        column, row = Atom(axis.size // inner), Atom(inner)
        _define(axis, Product((column, row)))
        return column, row
    if isinstance(axis, Concat):
        halves = [factor(part, inner) for part in pieces(axis)]
        for _, other in halves[1:]:
            unify(halves[0][1], other)
        return concat(*(outer for outer, _ in halves)), halves[0][1]
    assert isinstance(axis, Product)
    rest, last = axis.parts[:-1], axis.parts[-1]
    if inner == last.size:
        return product(*rest), last
    if inner % last.size == 0:
        outer, middle = factor(product(*rest), inner // last.size)
        return outer, product(middle, last)
    if last.size % inner == 0:
        outer, tail = factor(last, inner)
        return product(*rest, outer), tail
    raise AxisError(f"{axis!r} is a grid with rows of {last.size}, and not of {inner}")


def unify(a: Axis, b: Axis) -> None:
    """Make two axes the same axis, refining both.

    Raises:
        AxisError: their sizes differ, or no refinement makes them equal (a grid of 4 rows of 6 and
            one of 6 rows of 4).  What was already found equal stays so: that is only a
            constraint more, never one less.
    """
    meetings = [iter([(a, b)])]
    try:
        while meetings:
            pair = next(meetings[-1], None)
            if pair is None:
                meetings.pop()
            else:
                meetings.append(_meet(find(pair[0]), find(pair[1])))
    except AxisError as error:
        raise AxisError(f"{a!r} and {b!r} are not the same axis: {error}") from None


def _meet(a: Axis, b: Axis) -> Iterator[tuple[Axis, Axis]]:
    """Make two axes the same one, but for the pairs of their parts that are yielded."""
    if a is b:
        return
    if a.size != b.size:
        raise AxisError(f"{a!r} has {a.size} positions and {b!r} has {b.size}")
    if isinstance(b, Atom) and not isinstance(a, Atom):
        a, b = b, a
    if isinstance(a, Atom):
        _bind(a, b)
    elif isinstance(a, Ragged) or isinstance(b, Ragged):
        if not isinstance(a, Ragged) or not isinstance(b, Ragged) or len(a.parts) != len(b.parts):
            raise AxisError("only one of them is another axis in every band")
        yield from zip(a.parts, b.parts, strict=True)
    elif isinstance(a, Concat) or isinstance(b, Concat):
        shifted = _shifted(pieces(a), pieces(b))
        yield from _around(a, b, *shifted) if shifted else _common_pieces(a, b)
    else:
        yield from _meet_products(a, b)  # type: ignore[arg-type]


def _common_pieces(a: Axis, b: Axis) -> Iterator[tuple[Axis, Axis]]:
    """Cut two axes wherever one of them is; yield the pieces, from the first to the last."""
    ours, theirs = [a], [b]
    while ours:
        mine, other = _next_piece(ours), _next_piece(theirs)
        if mine.size > other.size:
            mine, rest = cut(mine, other.size)
            ours.append(rest)
        elif mine.size < other.size:
            other, rest = cut(other, mine.size)
            theirs.append(rest)
        yield mine, other


def _next_piece(stack: list[Axis]) -> Axis:
    while isinstance(axis := find(stack.pop()), Concat):  # it may have been cut since
        stack.extend(reversed(axis.parts))
    return axis


def _shifted(ours: list[Axis], theirs: list[Axis]) -> tuple[int, int, Any] | None:
    """Return from where to where a frozen atom meets itself further on, and why it is frozen."""
    starts: dict[Axis, int] = {}
    at = 0
    for piece in ours:
        starts[piece] = at
        at += piece.size
    at = 0
    for piece in theirs:
        start = starts.get(piece, at)
        if 0 < abs(start - at) < piece.size and isinstance(piece, Atom) and piece.frozen:
            return min(start, at), max(start, at) + piece.size, piece.frozen
        at += piece.size
    return None


def _around(a: Axis, b: Axis, start: int, stop: int, reason: Any) -> Iterator[tuple[Axis, Axis]]:
    """Yield what lies before and behind an atom that meets itself, and freeze what meets it.

    ``x[1:] - x[:-1]`` says that each position is the next one.  As they all stay, it is enough
    that what they meet stays too, where to say which is which takes as many pieces as positions.
    """
    if stop < a.size:
        (a, behind), (b, other) = cut(a, stop), cut(b, stop)
        yield behind, other
    if start:
        (before, a), (other, b) = cut(a, start), cut(b, start)
        yield before, other
    for axis in (a, b):
        freeze(axis, reason)


def _bind(atom: Atom, axis: Axis) -> None:
    parts = _flat(Product, [axis])
    if any(isinstance(part, Ragged) and atom in atoms(part) for part in parts):
        raise AxisError("one is the axis of a band of the other")
    if atom not in parts:
        _define(atom, axis)
        return
    # One grid is a single row of the other: the extra single positions must stay.
    for part in parts:
        if part is not atom:
            freeze(part, "a grid of one row is the row itself")


def _meet_products(a: Product, b: Product) -> Iterator[tuple[Axis, Axis]]:
    parts_a, parts_b = _flat(Product, [a]), _flat(Product, [b])
    for parts, others in ((parts_a, parts_b), (parts_b, parts_a)):
        if len(parts) != len(others):  # a free single position without a partner must stay
            for part in [p for p in parts if p.size == 1]:
                freeze(part, "a grid of one row is the row itself")
                parts.remove(part)
    if not parts_a or not parts_b:
        return
    last_a, last_b = parts_a[-1], parts_b[-1]
    if last_a.size > last_b.size:
        parts_a, parts_b, last_a, last_b = parts_b, parts_a, last_b, last_a
    outer, row = factor(product(*parts_b), last_a.size)
    yield last_a, row
    if len(parts_a) > 1:
        yield product(*parts_a[:-1]), outer


def positions(axis: Axis, kept: Callable[[Atom], Sequence[int]]) -> list[int]:
    """Return the positions of an axis that are left when each atom keeps those that ``kept`` names.

    A ``Ragged`` axis has no positions of its own; ask for those of its parts.

    >>> rows, columns = Atom(2), Atom(3)
    >>> positions(product(rows, columns), {rows: [0, 1], columns: [0, 2]}.__getitem__)
    [0, 2, 3, 5]
    """
    axis = find(axis)
    if isinstance(axis, Atom):
        return list(kept(axis))
    if isinstance(axis, Concat):
        found: list[int] = []
        start = 0
        for part in pieces(axis):
            found += [start + p for p in positions(part, kept)]
            start += part.size
        return found
    assert isinstance(axis, Product)
    grid = [positions(part, kept) for part in parts_of(axis)]
    steps = [1]
    for part in reversed(parts_of(axis)[1:]):
        steps.insert(0, steps[0] * part.size)
    return [sum(map(int.__mul__, index, steps)) for index in cartesian(*grid)]
