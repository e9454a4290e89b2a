"""Complex numbers as pairs of real ones, as rotary position embeddings use them."""

from __future__ import annotations

from typing import Any

from secateur.graph.typing import Typed, Typing

from .elementwise import broadcast
from .table import rule

PAIR = "a real and an imaginary part"


@rule("view_as_complex")
def pairs_to_complex(t: Typing, x: Typed) -> Typed:
    t.freeze(x[-1], PAIR)
    if t.base and len(t.base):  # rows must begin at an even place
        t.limit(t.base[-1], step=2)
    return x.but(-1, None)


@rule("view_as_real")
def complex_to_pairs(t: Typing, x: Typed) -> Typed:
    return Typed((*x.dims, t.fresh(2, PAIR)), x.static)


@rule("polar")
def polar(t: Typing, length: Typed, angle: Typed) -> Typed:
    """Zero where the length is."""
    return broadcast(t, length, angle, zero="first")


@rule("complex")
def from_parts(t: Typing, real: Typed, imaginary: Typed) -> Typed:
    return broadcast(t, real, imaginary, zero="all")


@rule("angle", "imag")
def part(t: Typing, x: Typed, *_: Any) -> Typed:
    return x
