"""Equations on lengths: what code passes as a size stays true after any cut that is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.graph.axes import Atom, Axis, atoms, concat, product
from secateur.graph.equations import Named, solve
from secateur.graph.lengths import Sizing, add, multiply, now
from secateur.graph.origins import Attribute, Origin, Size

HEADS, WIDTH, OTHER = (Attribute("attention", name) for name in ("heads", "width", "other"))
quick = settings(max_examples=100)


def origin(*factors: Attribute | Size | int | Fraction, over: Attribute | None = None) -> Origin:
    """Return the product of factors, divided by one attribute."""
    result = Origin.of(1)
    for factor in factors:
        result = result.times(Origin.of(factor))
    if over is None:
        return result
    quotient = result.over(Origin.of(over))
    assert quotient is not None
    return quotient


class Equations:
    """The equations of one trace, and what solving them found."""

    def __init__(
        self,
        *names: tuple[Axis, Origin],
        equal: Sequence[tuple[Axis, Axis]] = (),
        sizes: Sequence[Axis] = (),
    ):
        self.names = [Named(axis, expression, f"written at {axis}") for axis, expression in names]
        self.sizes = sizes
        self.sizing = Sizing()
        pairs = [(a, b, "they are chunks") for a, b in equal]
        self.bindings = solve(self.names, pairs, self.axis_of, self.sizing)

    def axis_of(self, size: Size) -> Axis:
        return self.sizes[size.dim]

    @property
    def tied(self) -> list[set[Atom]]:
        return [set(found) for found in self.sizing.classes()]


# attributes


def test_attribute_when_it_names_an_axis_alone_then_it_follows_and_the_axis_is_free():
    axis = Atom(8)
    solved = Equations((axis, origin(WIDTH)))
    assert solved.bindings == {WIDTH: (axis, 1)}
    assert axis.frozen is None


def test_attribute_when_code_passes_a_multiple_then_it_is_set_to_the_length_divided():
    axis = Atom(12)
    _, factor = Equations((axis, origin(3, WIDTH))).bindings[WIDTH]
    assert now(axis, lambda _: 6) / factor == 2


def test_attribute_when_it_names_two_axes_then_they_keep_equally_many_positions():
    first, second = Atom(8), Atom(8)
    solved = Equations((first, origin(WIDTH)), (second, origin(WIDTH)))
    assert solved.tied == [{first, second}]
    assert first.frozen is second.frozen is None


def test_attribute_when_it_names_one_axis_and_its_double_then_the_double_is_two_equal_pieces():
    narrow, wide = Atom(4), Atom(8)
    solved = Equations((narrow, origin(WIDTH)), (wide, origin(2, WIDTH)))
    assert solved.tied == [{narrow, *atoms(wide)}]
    assert [piece.size for piece in atoms(wide)] == [4, 4]


def test_attribute_when_it_names_half_and_a_third_then_pieces_of_one_size_are_tied():
    half, third = Atom(6), Atom(4)  # 2 · 6 = 3 · 4
    solved = Equations(
        (half, origin(WIDTH, Fraction(1, 2))), (third, origin(WIDTH, Fraction(1, 3)))
    )
    assert solved.tied == [{*atoms(half), *atoms(third)}]
    assert {piece.size for piece in (*atoms(half), *atoms(third))} == {2}


def test_attribute_when_code_adds_it_to_another_then_the_sum_is_the_two_axes_in_length():
    first, second, both = Atom(8), Atom(4), Atom(12)
    total = origin(WIDTH).plus(origin(OTHER))
    Equations((first, origin(WIDTH)), (second, origin(OTHER)), (concat(first, second), total))
    assert first.frozen is second.frozen is None
    solved = Equations((first, origin(WIDTH)), (second, origin(OTHER)), (both, total))
    one, other = atoms(both)  # whose pieces follow them
    assert {frozenset(tied) for tied in solved.tied} == {
        frozenset({first, one}),
        frozenset({second, other}),
    }


def test_attribute_when_code_passes_what_it_leaves_of_another_then_it_is_their_sum():
    first, rest = Atom(4), Atom(8)
    left = Origin.of(OTHER).plus(Origin.of(WIDTH), -1)  # split(x, [width, other - width])
    solved = Equations((first, origin(WIDTH)), (rest, left))
    assert first.frozen is rest.frozen is None
    assert now(solved.bindings[OTHER][0], {first: 3, rest: 5}.__getitem__) == 8


def test_attribute_when_code_adds_a_literal_then_as_many_positions_stay():
    inner, padded = Atom(8), Atom(10)
    solved = Equations((inner, origin(WIDTH)), (padded, origin(WIDTH).plus(origin(2))))
    free, fixed = atoms(padded)
    assert solved.tied == [{inner, free}]
    assert (fixed.size, fixed.frozen) == (2, "written at 10")


def test_attribute_when_both_sides_have_a_factor_in_common_then_the_rest_is_compared():
    heads, width, other = Atom(4), Atom(8), Atom(8)
    solved = Equations(
        (product(heads, width), origin(WIDTH)), (product(heads, other), origin(WIDTH))
    )
    assert solved.tied == [{width, other}]
    assert heads.frozen is None


def test_attribute_when_one_of_its_axes_is_frozen_then_the_other_is_for_the_same_equation():
    fixed, free = Atom(8, frozen="it is the model's input"), Atom(8)
    Equations((fixed, origin(WIDTH)), (free, origin(WIDTH)))
    assert free.frozen == "written at 8"


def test_product_of_attributes_when_each_names_its_factor_then_all_stay_free():
    heads, width = Atom(4), Atom(16)
    solved = Equations(
        (heads, origin(HEADS)),
        (width, origin(WIDTH)),
        (product(heads, width), origin(HEADS, WIDTH)),
    )
    assert set(solved.bindings) == {HEADS, WIDTH}
    assert heads.frozen is width.frozen is None


def test_quotient_of_attributes_when_the_product_is_named_then_the_factor_follows():
    heads, width = Atom(4), Atom(16)
    solved = Equations(
        (product(heads, width), origin(WIDTH)),
        (heads, origin(HEADS)),
        (width, origin(WIDTH, over=HEADS)),
    )
    assert heads.frozen is width.frozen is None
    assert now(solved.bindings[WIDTH][0], {heads: 2, width: 16}.__getitem__) == 32


def test_product_of_attributes_when_no_axis_names_them_then_the_axis_is_frozen():
    axis = Atom(8)
    solved = Equations((axis, origin(HEADS, WIDTH)))
    assert solved.bindings == {}
    assert axis.frozen == "written at 8"


# sizes of tensors


def test_size_when_code_passes_the_length_of_another_axis_then_the_two_are_tied():
    axis, other = Atom(8), Atom(8)
    assert Equations((axis, origin(Size(0, 0))), sizes=[other]).tied == [{axis, other}]


def test_size_when_code_divides_it_by_a_named_factor_then_nothing_is_frozen():
    heads, width = Atom(4), Atom(16)
    Equations(
        (heads, origin(HEADS)),
        (width, origin(Size(0, 0), over=HEADS)),
        sizes=[product(heads, width)],
    )
    assert heads.frozen is width.frozen is None


def test_size_when_code_passes_half_of_it_then_the_halves_are_tied():
    left, right = Atom(4), Atom(4)
    half = origin(Size(0, 0), Fraction(1, 2))
    assert Equations((left, half), sizes=[concat(left, right)]).tied == [{left, right}]


@pytest.mark.parametrize(("heads", "width"), [(3, 16), (16, 3)])
def test_size_when_it_is_a_product_then_the_larger_factor_is_left_and_pieces_follow_it(
    heads, width
):
    factors, channels = [Atom(heads), Atom(width)], Atom(heads * width)
    solved = Equations((product(*factors), origin(Size(0, 0))), sizes=[channels])
    smaller, larger = sorted(factors, key=lambda atom: atom.size)
    assert smaller.frozen == f"written at {product(*factors)}"
    assert solved.tied == [{larger, *atoms(channels)}]
    assert [piece.size for piece in atoms(channels)] == [16, 16, 16]


def test_size_when_both_sides_are_products_of_like_factors_then_like_follows_like():
    heads, width, others, widths = Atom(4), Atom(6), Atom(4), Atom(6)
    solved = Equations((product(heads, width), origin(Size(0, 0))), sizes=[product(others, widths)])
    assert sorted(solved.tied, key=lambda s: max(a.size for a in s)) == [
        {heads, others},
        {width, widths},
    ]
    assert heads.frozen is width.frozen is None


def test_size_when_it_is_a_product_of_other_sizes_then_nothing_of_it_is_free():
    parts, sizes = [Atom(4), Atom(9)], [Atom(6), Atom(6)]
    Equations((product(*parts), origin(Size(0, 0))), sizes=[product(*sizes)])
    assert all(atom.frozen for atom in [*parts, *sizes])


# literals and chunks


@pytest.mark.parametrize(
    "join", [lambda *a: a[0], product, concat], ids=["atom", "product", "concat"]
)
def test_literal_when_it_is_passed_as_a_length_then_every_atom_is_frozen_for_it(join):
    parts = [Atom(2), Atom(3)]
    axis = join(*parts)
    Equations((axis, origin(axis.size)))
    assert {atom.frozen for atom in atoms(axis)} == {f"written at {axis}"}


def test_literal_when_it_names_one_factor_then_the_other_stays_free():
    heads, width = Atom(4), Atom(16)
    Equations((width, origin(16)), (product(heads, width), origin(16, HEADS)))
    assert heads.frozen is None
    assert width.frozen


def test_literal_when_it_freezes_an_atom_then_those_sized_with_it_are_frozen_too():
    chunks = [Atom(4) for _ in range(3)]
    Equations((chunks[2], origin(4)), equal=list(zip(chunks, chunks[1:], strict=False)))
    assert all(chunk.frozen for chunk in chunks)


def test_chunks_when_nothing_else_is_said_then_they_are_sized_together():
    chunks = [Atom(4) for _ in range(3)]
    solved = Equations(equal=[(chunks[0], chunk) for chunk in chunks[1:]])
    assert solved.tied == [set(chunks)]
    assert not any(chunk.frozen for chunk in chunks)


def test_chunks_when_they_are_grids_with_one_factor_in_common_then_the_other_factors_are_tied():
    width, first, second = Atom(16), Atom(4), Atom(4)
    solved = Equations(equal=[(product(first, width), product(second, width))])
    assert solved.tied == [{first, second}]
    assert width.frozen is None


def test_chunks_when_their_sizes_differ_then_both_are_frozen():
    a, b = Atom(5), Atom(4)
    Equations(equal=[(a, b)])
    assert a.frozen == b.frozen == "they are chunks"


# what is promised of any set of equations

AXES = st.recursive(
    st.integers(0, 4),  # the number of an atom
    lambda inner: st.tuples(
        st.sampled_from([product, concat]), st.lists(inner, min_size=2, max_size=3)
    ),
    max_leaves=4,
)
ATOMS = st.lists(st.integers(1, 6), min_size=5, max_size=5)


def build(tree: object, made: Sequence[Atom]) -> Axis:
    if isinstance(tree, int):
        return made[tree]
    join, parts = tree
    return join(*(build(part, made) for part in parts))


@quick
@given(sizes=ATOMS, tree=AXES, other=AXES, seed=st.integers(0, 2**32))
def test_polynomials_when_evaluated_then_they_agree_with_counting(sizes, tree, other, seed):
    made = [Atom(n) for n in sizes]
    counts = {atom: Random(seed + i).randint(1, atom.size) for i, atom in enumerate(made)}
    sizing = Sizing()
    a, b = build(tree, made), build(other, made)

    def value(polynomial: dict[tuple[int, ...], Fraction]) -> Fraction:
        total = Fraction(0)
        for term, coefficient in polynomial.items():
            for key in term:
                coefficient *= counts[sizing.members[key]]
            total += coefficient
        return total

    p, q = sizing.length(a), sizing.length(b)
    x, y = now(a, counts.__getitem__), now(b, counts.__getitem__)
    assert (value(p), value(q)) == (x, y)
    assert value(add(p, q)) == x + y
    assert value(add(p, q, -1)) == x - y
    assert value(multiply(p, q)) == x * y
    assert add(p, p, -1) == {}


FACTORS = st.lists(st.sampled_from([0, 1, 2]), max_size=2)  # numbers of attributes
NAMES = st.lists(st.tuples(AXES, FACTORS, st.booleans(), FACTORS), min_size=1, max_size=5)


@quick
@given(
    sizes=ATOMS,
    trees=NAMES,
    values=st.lists(st.integers(1, 6), min_size=3, max_size=3),
    equal=st.lists(st.tuples(AXES, AXES), max_size=2),
    seed=st.integers(0, 2**32),
)
def test_solve_when_a_cut_is_allowed_then_every_size_in_the_code_is_still_right(
    sizes, trees, values, equal, seed
):
    made = [Atom(n) for n in sizes]
    attributes = [Attribute("attention", f"n{i}", None, n) for i, n in enumerate(values)]
    value: dict[Attribute | Size, Fraction] = {a: Fraction(a.value) for a in attributes}

    def passed(expression: Origin) -> Fraction:
        total = Fraction(0)
        for term in expression.terms:
            product_of = term.coefficient
            for factor, power in term.powers:
                product_of *= value[factor] ** power
            total += product_of
        return total

    names = []
    for tree, factors, inverse, more in trees:
        axis = build(tree, made)
        expression = origin(*(attributes[i] for i in factors))
        if inverse and factors:  # a / b in place of a · b
            over = attributes[factors[-1]]
            expression = origin(*(attributes[i] for i in factors[:-1]), over=over)
        if more:  # a sum, and a literal that makes it right
            expression = expression.plus(origin(*(attributes[i] for i in more)))
            expression = expression.plus(origin(axis.size - passed(expression)))
        else:
            expression = expression.times(origin(axis.size / passed(expression)))
        names.append((axis, expression))
    pairs = [(build(a, made), build(b, made)) for a, b in equal]
    solved = Equations(*names, equal=[(a, b) for a, b in pairs if a.size == b.size])

    random, count = Random(seed), {}
    for atom in (piece for whole in made for piece in atoms(whole)):
        if atom.frozen is None:
            count.setdefault(solved.sizing.leader(atom), random.randint(1, atom.size))

    def kept(atom: Atom) -> int:
        return count[solved.sizing.leader(atom)]

    value |= {a: now(axis, kept) / c for a, (axis, c) in solved.bindings.items()}
    for axis, expression in names:
        assert passed(expression) == now(axis, kept), (axis, expression)
    for a, b in pairs:
        if a.size == b.size:
            assert now(a, kept) == now(b, kept)
