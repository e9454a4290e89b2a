"""Habits of code in every world: sizes in numbers, state that is written, layers for training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from .draw import CHANNELS, Does, Draw, maps, sames


def beside(x: Tensor, vector: Tensor, channel: int) -> Tensor:
    """Return one number for each channel, as it broadcasts against x."""
    return vector if channel == -1 else vector.view(-1, *[1] * (x.ndim - 2))


@sames(*CHANNELS)
def numbers(d: Draw, c: int, o: int) -> nn.Module:
    """The number of channels in a number, in a decision or in a loop."""
    dim = d.channel
    table = {
        "sqrt": lambda s, x: x / math.sqrt(x.shape[dim]),
        "scale": lambda s, x: x * s.scale,
        "power": lambda s, x: x * s.dim**-0.5,
        "over": lambda s, x: x * (1.0 / s.dim),
        "if": lambda s, x: x * 2 if x.shape[dim] > s.most else x * 0.5,
        "numpy": lambda s, x: x * float(1 / np.sqrt(s.dim)),
        "prod": lambda s, x: x / float(np.prod(x.shape[1:])) * 30,
        "log": lambda s, x: x * math.log2(s.dim) * 0.3,
        "shift": lambda s, x: x * (s.dim >> 1) * 0.3,
        "divmod": lambda s, x: x * (divmod(s.dim, 2)[0] + 1) * 0.2,
        "float": lambda s, x: x / float(s.dim) * 8,
        "numel": lambda s, x: x * (x.numel() / x.shape[0]) * 0.02,
        "tensor": lambda s, x: x / torch.sqrt(torch.tensor(float(x.size(dim)))).to(x),
        "loop": lambda s, x: torch.stack(
            [x.select(dim, i) * (1 + i % 2) for i in range(s.dim)], dim
        ),
        "arange": lambda s, x: x * beside(x, torch.arange(1, x.shape[dim] + 1).to(x).rsqrt(), dim),
        "mask": lambda s, x: x * beside(x, torch.arange(s.dim) % 2 == 0, dim),
        "line": lambda s, x: x + beside(x, torch.linspace(0, 1, s.dim, dtype=x.dtype), dim),
        "new": lambda s, x: x + beside(x, x.new_full((x.shape[dim],), 0.3), dim),
        "len": lambda s, x: x * len(x[0]) * 0.1,
        "noise": lambda s, x: x + 0.1 * torch.randn_like(x.contiguous()),
        "abs": lambda s, x: x * abs(s.dim) ** -0.5,
        "min": lambda s, x: x * (min(s.dim, 64) / 8),
    }
    how = table[d.choice(list(table))]
    return Does(lambda s, x, *rest: how(s, x), dim=c, scale=c**-0.5, most=c - 2)


@sames(*CHANNELS)
def remembered(d: Draw, c: int, o: int) -> nn.Module:
    """State that the forward writes: averages, lists, dicts, shapes, a bank, a counter."""
    hows = ["assigned", "in place", "data", "copy", "attribute", "list", "dict", "shape", "bank"]
    how, dim = d.pick(*hows, "counter", "grown"), d.channel

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        flat = x.movedim(dim, -1).flatten(0, -2)
        now, seen = flat.mean(0).detach(), s.running_mean
        y = x - beside(x, seen, dim)
        if how == "assigned":
            s.running_mean = 0.9 * seen + 0.1 * now
        elif how == "in place":
            s.running_mean.mul_(0.9).add_(now, alpha=0.1)
        elif how == "data":
            s.running_mean.data = 0.9 * seen + 0.1 * now
        elif how == "copy":
            s.running_mean.copy_(now)
        elif how == "attribute":
            s.last = x
        elif how == "list":
            s.seen.append(x.detach())
            return x + 0.1 * s.seen[0].mean()
        elif how == "dict":
            s.held["x"] = x
        elif how == "shape":
            s.shape = x.shape
            return x.reshape(s.shape)
        elif how == "bank":
            score = (flat @ s.running_bank.T * 0.3).softmax(-1)
            read = (score @ s.running_bank).mean(0)
            s.running_bank[0] = now
            return x + beside(x, read, dim)
        elif how == "grown":
            if not hasattr(s, "late"):
                s.register_buffer("late", torch.linspace(0, 1, x.shape[dim]).to(x))
            return x + beside(x, s.late, dim)
        else:
            s.calls = s.calls + 1
        return y

    state = {"running_mean": torch.empty(c), "running_bank": torch.empty(5, c)}
    return Does(forward, **state, seen=[], held={}, calls=0)


@sames(*CHANNELS)
def for_training(d: Draw, c: int, o: int) -> nn.Module:
    """An auxiliary head that only training reaches; or noise, or another path."""
    how, dim, m = d.pick("auxiliary", "other path", "dropped"), d.channel, d.width()

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        if not s.training:
            return x
        y = s.last(s.first(x.movedim(dim, -1)).relu())
        if how == "auxiliary":
            return x + 0.0 * y.sum()
        return x + y.movedim(-1, dim) if how == "other path" else F.dropout(x, 0.2)

    return Does(forward, first=nn.Linear(c, m), last=nn.Linear(m, c))


@maps(*CHANNELS)
def reparametrised(d: Draw, c: int, o: int) -> nn.Module:
    """A weight that is computed from others at each forward."""
    layer, dim = nn.Linear(c, o), d.channel
    layer = parametrizations.weight_norm(layer, dim=d.pick(0, 1))
    return Does(lambda s, x, *rest: s.layer(x.movedim(dim, -1)).movedim(-1, dim), layer=layer)


@maps(*CHANNELS)
def configured(d: Draw, c: int, o: int) -> nn.Module:
    """Sizes in an object that several modules share, some of them computed from others."""
    dim, how = d.channel, d.pick("object", "property", "tuple")
    sizes = Sizes(d.pick(2, 3), d.pick(2, 4))
    inner = sizes.heads * sizes.width

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        y = s.up(x.movedim(dim, -1))
        shape = {
            "object": (s.sizes.heads, s.sizes.width),
            "property": (s.sizes.heads, s.sizes.inner // s.sizes.heads),
            "tuple": s.pair,
        }[how]
        y = y.reshape(*y.shape[:-1], *shape)
        gate = y.sum(-1, keepdim=True).sigmoid()
        last = s.sizes.inner if how == "property" else -1
        return s.down((y * gate).reshape(*y.shape[:-2], last)).movedim(-1, dim)

    layers = {"up": nn.Linear(c, inner), "down": nn.Linear(inner, o)}
    return Does(forward, **layers, sizes=sizes, pair=(sizes.heads, sizes.width))


class Sizes:
    def __init__(self, heads: int, width: int):
        self.heads, self.width, self.inner = heads, width, heads * width

    def __repr__(self) -> str:
        return f"Sizes({self.heads}, {self.width}, {self.inner})"
