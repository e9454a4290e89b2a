"""What keeps the shape of tokens, vectors, nodes: norms, square weights, features by place."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .draw import Does, Draw, Plain, sames
from .tokens import FLAT


@sames(*FLAT)
def norm(d: Draw, c: int, o: int) -> nn.Module:
    how = d.pick("layer", "rms", "root", "hand", "unit", "batch", "group")
    if how == "layer":
        return Plain(nn.LayerNorm(c, elementwise_affine=d.chance(0.7)))
    if how == "root":
        return Plain(nn.RMSNorm(c))
    groups = next((n for n in (2, 3) if c % n == 0 and c > n), 1)

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        if how == "rms":
            return s.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))
        if how == "hand":
            gap = x - x.mean(-1, keepdim=True)
            return s.weight * gap / (x.std(-1, keepdim=True) + 1e-3) + s.bias
        if how == "unit":
            return F.normalize(x, dim=-1) * s.weight
        if how == "group":
            return F.group_norm(x.flatten(0, -2), s.groups, s.weight, s.bias).view_as(x)
        return s.batch(x.flatten(0, -2)).reshape(x.shape)

    one = torch.empty(c)
    held = {"weight": nn.Parameter(one.clone()), "bias": nn.Parameter(one.clone())}
    held = {"batch": nn.BatchNorm1d(c)} if how == "batch" else held
    return Does(forward, **held, groups=groups)


@sames(*FLAT)
def square(d: Draw, c: int, o: int) -> nn.Module:
    """A weight, or something computed, of as many rows as columns."""
    hows = ["plain", "symmetric", "skew", "product", "triangle", "exponential", "eye"]
    how = d.pick(*hows, *["gram", "gram of weight"])
    weight = nn.Parameter(torch.empty(c, c))

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        w = s.weight
        if how == "gram":
            flat = x.flatten(0, -2)
            return x @ (flat.T @ flat) * 0.02
        table = {
            "plain": lambda: w,
            "symmetric": lambda: w + w.T,
            "skew": lambda: w - w.T,
            "product": lambda: w @ w.T,
            "gram of weight": lambda: w.T @ w,
            "triangle": lambda: w.tril(),
            "exponential": lambda: torch.matrix_exp(w * 0.3),
            "eye": lambda: torch.eye(s.c, dtype=w.dtype) + 0.1 * w,
        }
        return x @ table[how]()

    return Does(forward, weight=weight, c=c)


@sames(*FLAT)
def pointwise(d: Draw, c: int, o: int) -> nn.Module:
    """Something for each feature by itself, or by its place among the others."""
    how = d.pick(
        "scale",
        "bias",
        "power",
        "where",
        "softmax",
        "over",
        "sort",
        "flip",
        "cumsum",
        "index",
        "max",
        "gate",
    )
    order = torch.randperm(c)

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        w = s.weight
        if how == "where":
            return torch.where(x > w, x, w)
        if how == "max":
            return x - x.max(-1, keepdim=True)[0]
        if how == "sort":
            return x.sort(-1)[0]
        if how == "cumsum":
            return x.cumsum(-1)
        if how == "index":
            return x[..., s.order]
        table = {
            "scale": lambda: x * w,
            "bias": lambda: x + w,
            "power": lambda: x.sigmoid() ** w.exp(),
            "softmax": lambda: x.softmax(-1),
            "over": lambda: x / (w * w + 0.5),
            "flip": lambda: x.flip(-1),
            "gate": lambda: torch.lerp(x, x.tanh(), w.sigmoid()),
        }
        return table[how]()

    return Does(forward, weight=nn.Parameter(torch.empty(c)), order=order)
