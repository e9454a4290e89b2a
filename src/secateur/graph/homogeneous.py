"""What each operation does to factors: one function for each family, in one table.

A function gets the walk (``gains``), the factor of the average that this operation itself is, and
the operation's own arguments.  It returns the factor of what is made, or the parameter that it
still is.  An operation that is not here may meet no factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import isinf
from typing import Any, Protocol, TypeVar

from .program import Ref


@dataclass(frozen=True)
class Gain:
    """A factor: a product of powers of ratios, by their numbers.  ``means``: where it came from.

    >>> half = Gain(frozenset({(0, Fraction(1, 2))}), frozenset({7}))
    >>> half.times(half) == Gain(frozenset({(0, Fraction(1))}))
    True
    >>> half.times(half, Fraction(-1))
    Gain(powers=frozenset(), means=frozenset())
    """

    powers: frozenset[tuple[int, Fraction]] = frozenset()
    means: frozenset[int] = field(default=frozenset(), compare=False)

    def times(self, other: Gain, power: Fraction | int = 1) -> Gain:
        """Return the product with a power of another."""
        total = dict(self.powers)
        for key, exponent in other.powers:
            total[key] = total.get(key, Fraction(0)) + power * exponent
        powers = frozenset((key, p) for key, p in total.items() if p)
        return Gain(powers, self.means | other.means) if powers else NONE

    def to(self, power: Fraction | int) -> Gain:
        """Return a power of this factor."""
        return NONE.times(self, power)


NONE = Gain()


@dataclass(frozen=True)
class Held:
    """A parameter plus a number, perhaps of another type or shape, or multiplied (``closed``)."""

    name: str
    shift: float = 0.0
    closed: bool = False


class Stuck(Exception):
    """A factor meets what is not proportional to it."""


class Walk(Protocol):
    """What the functions may ask."""

    name: str  # of the operation

    def gain(self, x: Any) -> Gain: ...

    def leaf(self, x: Any) -> Held | None: ...

    def take(self, held: Held, gain: Gain) -> None: ...

    def take_epsilon(self, number: Any, gain: Gain) -> None: ...


Made = Gain | Held | Sequence[Gain]
How = Callable[..., Made]
H = TypeVar("H", bound=How)

HOW: dict[str, How] = {}


def how(names: str) -> Callable[[H], H]:
    """Register a function for the named operations, and for those of them in place."""

    def register(function: H) -> H:
        HOW.update(dict.fromkeys(names.split(), function))
        return function

    return register


@how(
    """view _unsafe_view reshape _reshape_alias expand permute transpose t unsqueeze squeeze slice
    select split split_with_sizes chunk unbind alias detach clone _to_copy to contiguous
    lift_fresh as_strided movedim narrow view_as_real"""
)
def moves(w: Walk, mean: Gain, x: Any, *others: Any, **_: Any) -> Made:
    """The same numbers elsewhere, or of another type."""
    return w.leaf(x) or _alone(w, x, others)


@how(
    """neg abs relu leaky_relu sum amax amin cumsum linalg_vector_norm native_dropout dropout
    max_pool2d_with_indices max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest2d
    upsample_bilinear2d reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d index
    index_select gather take embedding repeat repeat_interleave flip roll tril triu diagonal unfold
    im2col col2im pixel_shuffle pixel_unshuffle"""
)
def scales(w: Walk, mean: Gain, x: Any, *others: Any, **_: Any) -> Made:
    """f(c · x) = c · f(x) for every c > 0."""
    return _alone(w, x, others)


@how("constant_pad_nd")
def padded(w: Walk, mean: Gain, x: Any, _: Any, value: Any = 0) -> Made:
    return _summed(w, [x, value])


@how("mean")
def average(w: Walk, mean: Gain, x: Any, *_: Any, **__: Any) -> Made:
    return w.gain(x).times(mean)


@how("sqrt")
def root(w: Walk, mean: Gain, x: Any) -> Made:
    return w.gain(x).to(Fraction(1, 2))


@how("rsqrt")
def inverse_root(w: Walk, mean: Gain, x: Any) -> Made:
    return w.gain(x).to(Fraction(-1, 2))


@how("reciprocal")
def inverse(w: Walk, mean: Gain, x: Any) -> Made:
    return w.gain(x).to(-1)


@how("square")
def square(w: Walk, mean: Gain, x: Any) -> Made:
    return w.gain(x).to(2)


@how("pow")
def power(w: Walk, mean: Gain, x: Any, exponent: Any) -> Made:
    gain = _alone(w, x, [exponent])
    if gain.powers and isinstance(exponent, Ref):
        raise Stuck("its exponent is computed")
    return gain.to(Fraction(exponent)) if gain.powers else gain


@how("add sub")
def add(w: Walk, mean: Gain, x: Any, y: Any, *, alpha: Any = 1) -> Made:
    """A number beside a factor is an epsilon; beside a parameter it belongs to it: 1 + weight."""
    leaf = w.leaf(x)
    if leaf and not leaf.closed and isinstance(y, (int, float)) and w.name == "add":
        return replace(leaf, shift=leaf.shift + y * alpha)
    if alpha != 1 and not isinstance(y, Ref) and w.gain(x).powers:
        raise Stuck("a multiple of a number is added")
    return _summed(w, [x, y])


@how("rsub maximum minimum fmax fmin")
def together(w: Walk, mean: Gain, x: Any, y: Any, *_: Any) -> Made:
    return _summed(w, [x, y])


@how("clamp clip clamp_min clamp_max")
def bounded(w: Walk, mean: Gain, x: Any, *bounds: Any, **named: Any) -> Made:
    return _summed(w, [x, *(b for b in (*bounds, *named.values()) if b is not None)])


@how("cat stack")
def joined(w: Walk, mean: Gain, parts: Sequence[Any], *_: Any) -> Made:
    return _summed(w, parts)


@how("where")
def chosen(w: Walk, mean: Gain, condition: Any, *either: Any) -> Made:
    _alone(w, condition, [condition])
    return _summed(w, either)


@how("masked_fill")
def filled(w: Walk, mean: Gain, x: Any, mask: Any, value: Any) -> Made:
    return _summed(w, [x, value])


@how("copy")
def copied(w: Walk, mean: Gain, x: Any, source: Any, *_: Any) -> Made:
    return w.gain(source)


@how("mul")
def times(w: Walk, mean: Gain, x: Any, y: Any) -> Made:
    for one, other in ((x, y), (y, x)):
        if (leaf := w.leaf(one)) and not isinstance(other, Ref) and other:
            return replace(leaf, closed=True)
    return _product(w, (x, 1), (y, 1))


@how("div")
def quotient(w: Walk, mean: Gain, x: Any, y: Any, *, rounding_mode: Any = None) -> Made:
    if rounding_mode is not None and _alone(w, x, [y]).powers:
        raise Stuck("its quotient is rounded")
    return _product(w, (x, 1), (y, -1))


@how("mm bmm mv dot matmul")
def matrices(w: Walk, mean: Gain, x: Any, y: Any) -> Made:
    return _product(w, (x, 1), (y, 1))


@how("linear convolution _convolution")
def layer(w: Walk, mean: Gain, x: Any, weight: Any, bias: Any = None, *_: Any) -> Made:
    return _affine(w, bias, (x, 1), (weight, 1))


@how("addmm baddbmm addmv addbmm addcmul")
def added_product(w: Walk, mean: Gain, bias: Any, x: Any, y: Any, **_: Any) -> Made:
    return _affine(w, bias, (x, 1), (y, 1))


@how("addcdiv")
def added_quotient(w: Walk, mean: Gain, bias: Any, x: Any, y: Any, **_: Any) -> Made:
    return _affine(w, bias, (x, 1), (y, -1))


@how("_grouped_mm")
def grouped(w: Walk, mean: Gain, x: Any, y: Any, offsets: Any = None, bias: Any = None) -> Made:
    return _affine(w, bias, (x, 1), (y, 1))


@how("rms_norm _fused_rms_norm")
def rms_norm(
    w: Walk, mean: Gain, x: Any, _: Any, weight: Any = None, eps: float | None = None
) -> Made:
    """All of it in one operation, which also returns the inverse of the root."""
    squares = w.gain(x).to(2).times(mean)
    if squares.powers:
        w.take_epsilon(eps, squares)
    over = squares.to(Fraction(-1, 2))
    out = w.gain(x).times(over)
    leaf = w.leaf(weight)
    if out.powers and leaf:
        w.take(leaf, out.to(-1))
        return NONE, over
    return out.times(w.gain(weight)), over


def _alone(w: Walk, x: Any, others: Iterable[Any]) -> Gain:
    """Return the factor of the one tensor that may have any."""
    for other in others:
        for part in other if isinstance(other, (list, tuple)) else [other]:
            if w.gain(part).powers:
                raise Stuck("what it goes by has a factor")
    return w.gain(x)


def _summed(w: Walk, operands: Sequence[Any]) -> Gain:
    """Return the one factor that all operands have, or take: numbers and parameters can."""
    leaves = [leaf for o in operands if (leaf := w.leaf(o))]
    gains = [w.gain(o) for o in operands if isinstance(o, Ref) and not w.leaf(o)]
    if not any(gain.powers for gain in gains):
        return NONE
    if len(set(gains)) > 1:
        raise Stuck("what it is added to has another factor")
    gain = Gain(gains[0].powers, frozenset().union(*(g.means for g in gains)))
    for number in operands:
        if not isinstance(number, Ref) and number and not isinf(number):
            w.take_epsilon(number, gain)
    for leaf in leaves:
        w.take(leaf, gain)
    return gain


def _product(w: Walk, *factors: tuple[Any, int]) -> Gain:
    """Return the factor of a product; a parameter in it takes all of it up."""
    total = NONE
    for operand, power in factors:
        total = total.times(w.gain(operand), power)
    for operand, power in factors if total.powers else ():
        if leaf := w.leaf(operand):
            w.take(leaf, total.to(-power))
            return NONE
    return total


def _affine(w: Walk, bias: Any, *factors: tuple[Any, int]) -> Gain:
    gain = _product(w, *factors)
    if not isinstance(bias, Ref) or w.gain(bias) == gain:
        return gain
    leaf = w.leaf(bias)
    if leaf is None:
        raise Stuck("what it is added to has another factor")
    w.take(leaf, gain)
    return gain
