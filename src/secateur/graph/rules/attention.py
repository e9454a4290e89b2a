"""Fused attention."""

from __future__ import annotations

from typing import Any

from secateur.graph.conditions import Never, every
from secateur.graph.typing import Dim, Typed, Typing

from .table import rule


@rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_attention_math",
    "scaled_dot_product_attention",
)
def attention(t: Typing, q: Typed, k: Typed, v: Typed, *rest: Any, **options: Any) -> Any:
    """softmax(q·kᵀ/√width) v on (…, heads, length, width).

    Whatever the queries and keys of a masked head are, its output is zero when its values are.
    """
    batch = [_head(t, q[i], k[i], v[i]) for i in range(len(q) - 2)]
    t.same(k[-2], v[-2])
    t.contract(q[-1], k[-1])
    if options.get("scale") is None:
        t.reduce(q[-1], "scales by the width of a head")
    t.reduce(k[-2], "takes a softmax over the axis")
    for mask in [a for a in (*rest, *options.values()) if isinstance(a, Typed)]:
        for place in range(-min(len(mask), len(q)), 0):
            if mask[place].size != 1:
                t.same(mask[place], k[-2] if place == -1 else q[place])
    length, width = t.never_zero(q[-2], False), Dim(v[-1].axis, v[-1].zero, v[-1].zero)
    out = Typed((*batch, length, width))
    return (out, *(_statistic(t, q, shape) for shape in t.out[1:])) if len(t.out) > 1 else out


def _head(t: Typing, q: Dim, k: Dim, v: Dim) -> Dim:
    """Heads of queries are those of keys and values, or a grid: (key heads, queries for each)."""
    t.same(k, v)
    if q.size == k.size:
        t.same(q, k)
        return Dim(q.axis, v.zero, v.zero)
    several = q if k.size == 1 else None
    if several is None:
        halves = t.split(q, q.size // k.size)
        if halves is None:
            t.freeze(k, "its heads are shared by a grid that cannot be split")
            return t.never_zero(q, False)
        t.same(halves[0], k)
        several = halves[1]
    t.name(several.axis, t.decided(several.size))
    zero = every(v.zero, Never(several.axis))
    return Dim(q.axis, zero, zero)


def _statistic(t: Typing, q: Typed, shape: tuple[int, ...]) -> Typed:
    """One number for each query of each head, or something of no model's business."""
    if shape == q.shape[:-1]:
        return Typed(tuple(t.never_zero(d, False) for d in q.dims[:-1]))
    return t.opaque(shape)
