"""Fused attention."""

from __future__ import annotations

from typing import Any

from secateur.graph.conditions import either
from secateur.graph.typing import Dim, Typed, Typing

from . import rule


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
    """softmax(q·kᵀ/√width) v on (…, heads, length, width)."""
    for i in range(len(q) - 2):
        t.same(q[i], k[i])
        t.same(k[i], v[i])
    t.same(k[-2], v[-2])
    t.contract(q[-1], k[-1])
    if options.get("scale") is None:
        t.reduce(q[-1], "scales by the width of a head")
    t.reduce(k[-2], "takes a softmax over the axis")
    for mask in [a for a in (*rest, *options.values()) if isinstance(a, Typed)]:
        for place in range(-min(len(mask), 4), 0):
            if mask[place].size != 1:
                t.same(mask[place], k[-2] if place == -1 else q[place])
    batch = [Dim(d.axis, either(d.zero, v[i].zero), v[i].zero) for i, d in enumerate(q.dims[:-2])]
    length, width = t.never_zero(q[-2], False), Dim(v[-1].axis, v[-1].zero, v[-1].zero)
    out = Typed((*batch, length, width))
    return (out, *(_statistic(t, q, shape) for shape in t.out[1:])) if len(t.out) > 1 else out


def _statistic(t: Typing, q: Typed, shape: tuple[int, ...]) -> Typed:
    """One number for each query of each head, or something of no model's business."""
    if shape == q.shape[:-1]:
        return Typed(tuple(t.never_zero(d, False) for d in q.dims[:-1]))
    return t.opaque(shape)
