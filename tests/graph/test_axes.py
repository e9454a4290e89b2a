"""The axis algebra against labels: one label per position, and which of them go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import AxisError
from secateur.graph.axes import (
    Atom,
    Axis,
    Ragged,
    atoms,
    concat,
    cut,
    factor,
    find,
    freeze,
    parts_of,
    positions,
    product,
    unify,
)
from secateur.graph.lengths import Sizing, now

LARGEST = 48  # positions of one dimension of a random program
STEPS = ("new", "cut", "concat", "product", "factor", "unify", "shift", "freeze")
PROGRAMS = st.lists(
    st.tuples(st.sampled_from(STEPS), *[st.integers(0, 2**16)] * 3), min_size=3, max_size=14
)
SEEDS = st.integers(0, 2**32)
SIZES = st.integers(1, 6)
quick = settings(max_examples=120)


@dataclass
class Dimension:
    """One dimension, as the algebra sees it and as labels: position → label."""

    axis: Axis
    labels: list[int]


class Model:
    """Brute force: labels of which some are the same, and grid cells that go with row or column."""

    def __init__(self, program: list[tuple[str, int, int, int]]):
        self.dims: list[Dimension] = []
        self.frozen: list[Dimension] = []
        self.grids: list[tuple[int, int, int]] = []  # labels (cell, row, column)
        self.same: list[int] = []  # union-find on labels
        for _ in range(2):
            self.new(5)
        for step, *choices in program:
            getattr(self, step)(*choices)

    def fresh(self, n: int) -> list[int]:
        start = len(self.same)
        self.same += range(start, start + n)
        return list(range(start, start + n))

    def leader(self, label: int) -> int:
        while self.same[label] != label:
            label = self.same[label]
        return label

    def merge(self, a: list[int], b: list[int]) -> None:
        for x, y in zip(a, b, strict=True):
            self.same[self.leader(x)] = self.leader(y)

    def grid(self, cells: list[int], rows: list[int], columns: list[int]) -> None:
        for i, cell in enumerate(cells):
            row, column = divmod(i, len(columns))
            self.grids.append((cell, rows[row], columns[column]))

    # -- the steps of a program; choices are numbers, taken modulo what there is to choose from

    def pick(self, choice: int) -> Dimension:
        return self.dims[choice % len(self.dims)]

    def add(self, axis: Axis, labels: list[int]) -> None:
        self.dims.append(Dimension(axis, labels))

    def new(self, size: int, *_: int) -> None:
        self.add(Atom(1 + size % 6), self.fresh(1 + size % 6))

    def cut(self, i: int, at: int, _: int) -> None:
        dim = self.pick(i)
        if dim.axis.size > 1:
            at = 1 + at % (dim.axis.size - 1)
            left, right = cut(dim.axis, at)
            self.add(left, dim.labels[:at])
            self.add(right, dim.labels[at:])

    def concat(self, i: int, j: int, _: int) -> None:
        a, b = self.pick(i), self.pick(j)
        if a.axis.size + b.axis.size <= LARGEST:
            self.add(concat(a.axis, b.axis), a.labels + b.labels)

    def product(self, i: int, j: int, _: int) -> None:
        a, b = self.pick(i), self.pick(j)
        if a.axis.size * b.axis.size <= LARGEST:
            cells = self.fresh(a.axis.size * b.axis.size)
            self.grid(cells, a.labels, b.labels)
            self.add(product(a.axis, b.axis), cells)

    def factor(self, i: int, inner: int, _: int) -> None:
        dim = self.pick(i)
        divisors = [d for d in range(1, dim.axis.size + 1) if dim.axis.size % d == 0]
        inner = divisors[inner % len(divisors)]
        try:
            outer, row = factor(dim.axis, inner)
        except AxisError:
            return
        rows, columns = self.fresh(dim.axis.size // inner), self.fresh(inner)
        self.grid(dim.labels, rows, columns)
        self.add(outer, rows)
        self.add(row, columns)

    def unify(self, i: int, j: int, _: int) -> None:
        a = self.pick(i)
        alike = [d for d in self.dims if d.axis.size == a.axis.size]
        b = alike[j % len(alike)]
        try:
            unify(a.axis, b.axis)
        except AxisError:
            return
        self.merge(a.labels, b.labels)

    def shift(self, i: int, by: int, _: int) -> None:
        """``x[by:] - x[:-by]``: each position is one further on."""
        dim = self.pick(i)
        if dim.axis.size > 1:
            by = 1 + by % (dim.axis.size - 1)
            _, tail = cut(dim.axis, by)
            head, _ = cut(dim.axis, dim.axis.size - by)
            try:
                unify(tail, head)
            except AxisError:
                return
            self.merge(dim.labels[by:], dim.labels[:-by])

    def freeze(self, i: int, sometimes: int, _: int) -> None:
        if sometimes % 4 == 0:
            freeze(self.pick(i).axis, "test")
            self.frozen.append(self.pick(i))


def random_keeps(seed: int) -> Callable[[Atom], list[int]]:
    """Return a choice of kept positions for every free atom; frozen ones keep all."""
    chosen: dict[int, list[int]] = {}
    random = Random(seed)

    def kept(atom: Atom) -> list[int]:
        if atom.frozen is not None:
            return list(range(atom.size))
        if id(atom) not in chosen:
            chosen[id(atom)] = [i for i in range(atom.size) if random.random() < 0.7]
        return chosen[id(atom)]

    return kept


@quick
@given(program=PROGRAMS)
def test_program_when_it_ran_then_every_axis_has_as_many_positions_as_labels(program):
    for dim in Model(program).dims:
        assert dim.axis.size == find(dim.axis).size == len(dim.labels)
        everything = positions(dim.axis, lambda atom: range(atom.size))
        assert everything == list(range(len(dim.labels)))


@quick
@given(program=PROGRAMS, seed=SEEDS)
def test_removal_when_a_position_goes_then_every_position_tied_to_it_goes_too(program, seed):
    model, kept = Model(program), random_keeps(seed)
    removed: dict[int, bool] = {}
    for dim in model.dims:
        left = set(positions(dim.axis, kept))
        for place, label in enumerate(dim.labels):
            gone = place not in left
            assert removed.setdefault(model.leader(label), gone) == gone, (dim.axis, place)
    for labels in model.grids:
        cell, row, column = (removed[model.leader(label)] for label in labels)
        assert cell == (row or column)


@quick
@given(program=PROGRAMS, seed=SEEDS)
def test_removal_when_a_dimension_is_frozen_then_it_loses_nothing(program, seed):
    model, kept = Model(program), random_keeps(seed)
    for dim in model.frozen:
        assert len(positions(dim.axis, kept)) == dim.axis.size


@quick
@given(sizes=st.lists(SIZES, min_size=1, max_size=4), at=st.integers(1, LARGEST), seed=SEEDS)
def test_cut_when_joined_again_then_it_is_the_same_axis(sizes, at, seed):
    axis = product(*map(Atom, sizes))
    if not 0 < at < axis.size:
        with pytest.raises(AxisError, match=f"has {axis.size} positions"):
            cut(axis, at)
        return
    left, right = cut(axis, at)
    assert (left.size, right.size) == (at, axis.size - at)
    kept = random_keeps(seed)
    assert positions(concat(left, right), kept) == positions(axis, kept)


@quick
@given(sizes=st.lists(SIZES, min_size=2, max_size=4), seed=SEEDS)
def test_cut_when_it_falls_between_pieces_then_they_come_back_whole(sizes, seed):
    pieces = [Atom(n) for n in sizes]
    left, right = cut(concat(*pieces), sizes[0])
    assert find(left) is pieces[0]
    assert list(atoms(right)) == pieces[1:]


@quick
@given(outer=SIZES, inner=SIZES)
def test_factor_when_the_axis_is_a_product_then_its_factors_come_back(outer, inner):
    rows, columns = Atom(outer), Atom(inner)
    found = factor(product(rows, columns), inner)
    assert [axis.size for axis in found] == [outer, inner]
    if outer > 1 and inner > 1:
        assert [find(axis) for axis in found] == [rows, columns]


@quick
@given(outer=SIZES, inner=SIZES, seed=SEEDS)
def test_factor_when_multiplied_again_then_it_is_the_same_axis(outer, inner, seed):
    axis, kept = Atom(outer * inner), random_keeps(seed)
    assert positions(product(*factor(axis, inner)), kept) == positions(axis, kept)


@quick
@given(sizes=st.lists(SIZES, max_size=4))
def test_product_and_concat_when_nested_then_they_are_flat(sizes):
    for join in (product, concat):
        parts = [Atom(n) for n in sizes]
        nested = join(join(*parts[:2]), join(*parts[2:])) if parts else join()
        assert repr(nested) == repr(join(*parts))


@pytest.mark.parametrize(
    ("make", "refined"),
    [
        (lambda: (Atom(12), product(Atom(3), Atom(4))), "(3 4)"),
        (lambda: (Atom(12), concat(Atom(3), Atom(9))), "[3 + 9]"),
        (lambda: (concat(Atom(3), Atom(9)), concat(Atom(5), Atom(7))), "[3 + 2 + 7]"),
        (lambda: (product(Atom(2), Atom(6)), product(Atom(4), Atom(3))), "(2 2 3)"),
        (lambda: (concat(Atom(4), Atom(8)), product(Atom(3), Atom(4))), "[(1 4) + (2 4)]"),
        (lambda: (product(Atom(1), Atom(4)), product(Atom(1), Atom(4))), "(1 4)"),
    ],
    ids=["atom-grid", "atom-pieces", "pieces-pieces", "grid-grid", "pieces-grid", "single-row"],
)
def test_unify_when_two_forms_meet_then_both_become_the_common_refinement(make, refined):
    a, b = make()
    unify(a, b)
    assert repr(find(a)) == refined
    assert set(atoms(a)) == set(atoms(b))


def test_unify_when_a_grid_is_one_row_then_the_row_stays_free_and_the_single_is_frozen():
    row, single = Atom(4), Atom(1)
    unify(row, product(single, row))
    assert row.frozen is None
    assert single.frozen == "a grid of one row is the row itself"


def test_freeze_when_an_atom_is_frozen_twice_then_the_first_reason_stays():
    atom = Atom(6)
    freeze(atom, "first")
    freeze(atom, "second")
    assert atom.frozen == "first"


def test_freeze_when_a_frozen_atom_is_refined_then_its_parts_are_frozen_for_the_same_reason():
    atom = Atom(6, frozen="why")
    for part in factor(atom, 3):
        assert [a.frozen for a in atoms(part)] == ["why"]
    free = Atom(6)
    unify(free, atom)
    assert [a.frozen for a in atoms(free)] == ["why", "why"]


@pytest.mark.parametrize(
    ("a", "b", "shown"),
    [
        (Atom(3), Atom(4), ("3", "4")),
        (product(Atom(4), Atom(6)), product(Atom(6), Atom(4)), ("(4 6)", "(6 4)")),
        (concat(Atom(5), Atom(7)), product(Atom(2), Atom(3)), ("[5 + 7]", "(2 3)")),
    ],
    ids=["sizes", "grids", "pieces-and-grid"],
)
def test_unify_when_it_cannot_be_then_the_error_shows_both_axes(a, b, shown):
    with pytest.raises(AxisError) as raised:
        unify(a, b)
    assert all(text in str(raised.value) for text in shown)


@pytest.mark.parametrize("inner", [0, 4, 5, 24])
def test_factor_when_rows_do_not_fit_then_the_error_shows_the_axis(inner):
    with pytest.raises(AxisError, match=r"\(2 3\)"):
        factor(product(Atom(2), Atom(3)), inner)


def test_unify_when_it_failed_half_way_then_what_was_found_equal_stays_so():
    first, second, left = Atom(3), product(Atom(4), Atom(6)), Atom(3)
    with pytest.raises(AxisError):
        unify(concat(first, second), concat(left, product(Atom(6), Atom(4))))
    assert find(first) is find(left)


def mentions_itself(axis: Axis) -> bool:
    """Tell whether an axis is part of itself, by a walk that remembers the way down."""
    walk, way = [iter([axis])], [Atom(0)]
    while walk:
        part = next(walk[-1], None)
        if part is None:
            walk.pop()
            way.pop()
        elif (found := find(part)) in way:
            return True
        else:
            walk.append(iter(getattr(found, "parts", ())))
            way.append(found)
    return False


class Mixed:
    """Axes of three sizes of every kind, of which any two may meet; nothing else is looked at."""

    def __init__(self, program: list[tuple[str, int, int, int]]):
        self.axes: list[Axis] = [Atom(n) for n in (1, 1, 4, 4, 4, 8)]
        for step, *choices in program:
            self.step(step, *choices)
            assert not any(map(mentions_itself, self.axes)), (step, choices)

    def step(self, step: str, i: int, j: int, at: int) -> None:
        a = self.axes[i % len(self.axes)]
        alike = [axis for axis in self.axes if axis.size == a.size]
        b = alike[j % len(alike)]
        single = [axis for axis in self.axes if axis.size == 1]
        try:
            if step == "unify":
                unify(a, b)
            elif step == "bands":
                self.axes.append(Ragged((a, b)))
            elif step == "row":
                self.axes.append(product(single[at % len(single)], a))
            elif step == "cut" and a.size > 1:
                self.axes += cut(a, 1 + at % (a.size - 1))
            elif step == "ends" and a.size < LARGEST:
                self.axes.append(concat(a, b))
            elif step == "freeze":
                freeze(a, "test")
        except AxisError:
            pass  # what was found equal until then stays, and is looked at


MIXED = st.lists(
    st.tuples(
        st.sampled_from(("unify", "unify", "bands", "row", "cut", "ends", "freeze")),
        *[st.integers(0, 2**16)] * 3,
    ),
    min_size=2,
    max_size=20,
)


@quick
@given(program=MIXED)
def test_unify_when_any_axes_meet_in_any_order_then_none_is_part_of_itself(program):
    Mixed(program)


@quick
@given(program=PROGRAMS)
def test_program_when_it_ran_then_no_axis_is_part_of_itself(program):
    assert not any(mentions_itself(dim.axis) for dim in Model(program).dims)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_unify_when_an_atom_is_a_band_of_the_other_then_they_do_not_meet(rows):
    atom = Atom(4)
    bands = Ragged((Atom(4), product(*[Atom(1)] * rows, atom)))
    with pytest.raises(AxisError, match="is the axis of a band of the other"):
        unify(atom, bands)
    assert find(atom) is atom


@pytest.mark.parametrize("reversed_", [False, True])
@pytest.mark.parametrize("size", [4000])
def test_axis_when_it_is_cut_at_every_position_then_nothing_goes_as_deep_as_it_is_long(
    size, reversed_
):
    axis, left = Atom(size), []
    rest: Axis = axis
    for n in range(size - 1, 0, -1):
        pair = cut(rest, n if reversed_ else 1)
        left, rest = [*left[-1:], pair[reversed_]], pair[not reversed_]
    assert len(parts_of(axis)) == size
    assert repr(axis).startswith("[1 + 1 + ")
    assert positions(axis, lambda atom: range(atom.size)) == list(range(size))
    assert now(axis, lambda atom: 1) == size
    assert sum(Sizing().length(axis).values()) == size
    assert [a.size for a in cut(axis, size - 1)] == [size - 1, 1]
    other = Atom(size)
    unify(other, axis)
    assert list(atoms(other)) == list(atoms(axis))
    assert [a.size for a in factor(product(Atom(2), axis), size)] == [2, size]


@pytest.mark.parametrize(("size", "by"), [(3000, 1), (3000, 7), (5, 3), (64, 16), (90, 60)])
def test_unify_when_a_free_axis_meets_itself_shifted_then_it_repeats(size, by):
    axis = Atom(size)
    unify(cut(axis, by)[1], cut(axis, size - by)[0])
    first = min(by, size)
    kept = positions(axis, lambda atom: [])
    assert kept == []
    free = list(dict.fromkeys(atoms(axis)))
    assert sum(atom.size for atom in free) == first
    gone = free[0]
    left = positions(axis, lambda atom: [] if atom is gone else range(atom.size))
    assert left == [p for p in range(size) if p % by >= gone.size]


@pytest.mark.parametrize(("size", "by"), [(4096, 1), (100_000, 1), (100_000, 17), (9, 4)])
def test_unify_when_a_frozen_axis_meets_itself_shifted_then_it_stays_in_few_pieces(size, by):
    axis, before, behind = Atom(size, frozen="why"), Atom(by), Atom(by)
    unify(concat(before, axis), concat(axis, behind))
    assert before.frozen == behind.frozen == "why"
    assert len(parts_of(concat(before, axis, behind))) == 3


def test_unify_when_a_frozen_axis_meets_itself_shifted_then_what_lies_outside_is_still_tied():
    tokens, (first, before, last) = Atom(8, frozen="why"), map(Atom, (5, 2, 4))
    other_first, behind, other_last = Atom(5), Atom(2), Atom(4)
    unify(concat(first, before, tokens, last), concat(other_first, tokens, behind, other_last))
    assert (find(first), find(last)) == (find(other_first), find(other_last))
    frozen = [axis.frozen for axis in (first, before, tokens, behind, last)]
    assert frozen == [None, "why", "why", "why", None]
