"""How chains of blocks are joined, and how one world leads to another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .draw import Does, Draw
from .layers import AVERAGE, CONV

Make = Callable[[int, int | None], tuple[nn.Module, int]]
"""(channels in, channels asked for, if any) → a chain, and the channels that come out."""


class Chain(nn.Module):
    """Blocks one after the other; each gets what the model was given besides x."""

    def __init__(self, blocks: list[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, *rest)
        return x


class Join:
    """A way to join chains: how many it takes, and what builds it."""

    def __init__(self, chains: int, builder: Callable[..., tuple[nn.Module, int]]):
        self.chains, self.builder = chains, builder

    def __call__(self, d: Draw, c: int, chains: list[Make]) -> tuple[nn.Module, int]:
        return self.builder(d, c, *chains)


JOINS: dict[str, Join] = {}


def join(chains: int) -> Callable[[Any], Any]:
    def register(builder: Any) -> Any:
        JOINS[builder.__name__] = Join(chains, builder)
        return builder

    return register


def project(d: Draw, c: int, o: int) -> nn.Module:
    kind = CONV[d.dims](c, o, 1) if d.channel == 1 else nn.Linear(c, o)
    return Does(lambda s, x, *rest: s.kind(x), kind=kind)


@join(1)
def residual(d: Draw, c: int, make: Make) -> tuple[nn.Module, int]:
    inner, _ = make(c, c)
    how = d.pick("plain", "plain", "scaled", "twice", "relu")

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        if how == "twice":  # one block, called again
            x = x + s.inner(x, *rest)
        y = s.inner(x, *rest)
        return x + y * s.gain if how == "scaled" else (x + y).relu() if how == "relu" else x + y

    return Does(forward, inner=inner, **_gain(how)), c


def _gain(how: str) -> dict[str, Any]:
    return {"gain": nn.Parameter(torch.empty(1))} if how == "scaled" else {}


@join(1)
def dense(d: Draw, c: int, make: Make) -> tuple[nn.Module, int]:
    """DenseNet's: what comes out is laid beside what went in."""
    inner, o = make(c, None)
    dim, before = d.channel, d.chance()

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        y = s.inner(x, *rest)
        return torch.cat([y, x] if before else [x, y], dim)

    return Does(forward, inner=inner), c + o


@join(2)
def both(d: Draw, c: int, one: Make, two: Make) -> tuple[nn.Module, int]:
    """Two chains side by side, and their sum, product, maximum, mixture or gate."""
    first, o = one(c, None)
    second, _ = two(c, o)
    how = d.pick("sum", "product", "maximum", "mixture", "gate", "difference")

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        a, b = s.first(x, *rest), s.second(x, *rest)
        if how == "mixture":
            return a * s.gain.sigmoid() + b * (1 - s.gain.sigmoid())
        table = {"sum": a + b, "product": a * b, "gate": a * b.sigmoid(), "difference": a - b}
        return torch.maximum(a, b) if how == "maximum" else table[how]

    gain = {"gain": nn.Parameter(torch.empty(1))} if how == "mixture" else {}
    return Does(forward, first=first, second=second, **gain), o


@join(2)
def beside(d: Draw, c: int, one: Make, two: Make) -> tuple[nn.Module, int]:
    """Inception's: two chains, and what they make laid end to end."""
    (first, a), (second, b) = one(c, None), two(c, None)
    dim = d.channel
    forward = lambda s, x, *rest: torch.cat([s.first(x, *rest), s.second(x, *rest)], dim)  # noqa: E731
    return Does(forward, first=first, second=second), a + b


@join(1)
def partial(d: Draw, c: int, make: Make) -> tuple[nn.Module, int]:
    """CSP's and ShuffleNet's: half of the channels pass, the others go through the chain."""
    if c < 4:
        return make(c, None)
    half, dim, how = c // 2, d.channel, d.pick("chunk", "split", "interleaved", "swapped")
    inner, o = make(c - half, None if d.chance() else half)

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        if how == "split":
            a, b = x.split([s.half, x.shape[dim] - s.half], dim)
        else:
            b, a = x.chunk(2, dim)  # of an odd number the first is larger
        y = s.inner(b, *rest)
        if how == "interleaved" and o == half:
            return torch.stack([a, y], dim if dim == -1 else 2).flatten(
                *((-2, -1) if dim == -1 else (1, 2))
            )
        return torch.cat([y, a] if how == "swapped" else [a, y], dim)

    return Does(forward, inner=inner, half=half), o + half


@join(1)
def gate(d: Draw, c: int, make: Make) -> tuple[nn.Module, int]:
    """The chain says how much of each channel passes."""
    inner, _ = make(c, c)
    how = d.pick("sigmoid", "tanh", "plain", "one plus")

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        y = s.inner(x, *rest)
        table = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "plain": lambda y: y}
        return x * (1 + y) if how == "one plus" else x * table[how](y)

    return Does(forward, inner=inner), c


BRIDGES: dict[tuple[str, str], Callable[[Draw, int], tuple[nn.Module, int]]] = {}


def leads(source: str, to: str) -> Callable[[Any], Any]:
    def register(builder: Any) -> Any:
        BRIDGES[source, to] = builder
        return builder

    return register


def bridge(d: Draw, source: str, to: str, c: int) -> tuple[nn.Module, int]:
    d.world = source
    return BRIDGES[source, to](d, c)


@leads("image", "image")
@leads("signal", "signal")
def smaller(d: Draw, c: int) -> tuple[nn.Module, int]:
    """Half as large: by a pool, a strided layer, or by moving places into channels."""
    dims = d.dims
    hows = ["average", "max", "strided", "pool"]
    how, o = d.pick(*hows, *["unshuffle", "merge"] * (dims == 2)), d.width()
    larger = {1: F.max_pool1d, 2: F.max_pool2d}[dims]
    if how == "strided":
        conv = CONV[dims](c, o, 3, stride=2, padding=1)
        return Does(lambda s, x, *rest: s.conv(x), conv=conv), o
    if how == "merge":  # Swin's

        def merged(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
            y = torch.cat([x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)], 1)
            return s.mix(y.movedim(1, -1)).movedim(-1, 1)

        return Does(merged, mix=nn.Linear(4 * c, o, bias=False)), o
    if how == "unshuffle":
        return Does(lambda s, x, *rest: F.pixel_unshuffle(x, 2)), 4 * c
    pool = AVERAGE[dims] if how == "average" else larger
    return Does(lambda s, x, *rest: pool(x, 2)), c


@leads("image", "sequence")
def patches(d: Draw, c: int) -> tuple[nn.Module, int]:
    how, o = d.pick("flatten", "patch", "view", "rows", "blocks"), d.width()

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        if how == "patch":
            x = s.conv(x)
        if how == "view":
            b, c, h, w = x.shape
            return x.view(b, c, h * w).permute(0, 2, 1)
        if how == "rows":  # a row is a token: channels and columns make its features
            return s.mix(x.permute(0, 2, 3, 1).mean(2))
        if how == "blocks":
            b, c, h, w = x.shape
            y = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1)
            return s.mix(y.reshape(b, (h // 2) * (w // 2), 4 * c))
        return x.flatten(2).transpose(1, 2)

    held: dict[str, nn.Module] = {}
    if how == "patch":
        held = {"conv": nn.Conv2d(c, o, 2, stride=2)}
    if how in ("rows", "blocks"):
        held = {"mix": nn.Linear(c if how == "rows" else 4 * c, o)}
    return Does(forward, **held), o if held else c


@leads("image", "vector")
@leads("signal", "vector")
def pooled(d: Draw, c: int) -> tuple[nn.Module, int]:
    how, dims = d.pick("mean", "adaptive", "max", "grid", "both"), d.dims
    adaptive = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d}[dims]
    times = {"grid": 2**dims, "both": 2}.get(how, 1)

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        over = tuple(range(2, x.ndim))
        if how == "mean":
            return x.mean(over)
        if how == "max":
            return x.amax(over)
        if how == "both":
            return torch.cat([x.mean(over), x.amax(over)], 1)
        y = adaptive(x, 1 if how == "adaptive" else 2)
        return y.flatten(1) if how == "adaptive" else y.reshape(y.size(0), -1)

    return Does(forward), c * times


@leads("sequence", "signal")
@leads("signal", "sequence")
def turned(d: Draw, c: int) -> tuple[nn.Module, int]:
    return Does(lambda s, x, *rest: x.transpose(1, 2)), c


@leads("sequence", "vector")
def summarised(d: Draw, c: int) -> tuple[nn.Module, int]:
    how = d.pick("mean", "first", "last", "max", "attended")

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        if how == "attended":
            return (s.score(x).softmax(1) * x).sum(1)
        if how == "max":
            return x.max(dim=1).values
        return x.mean(1) if how == "mean" else x[:, 0 if how == "first" else -1]

    return Does(forward, **({"score": nn.Linear(c, 1)} if how == "attended" else {})), c


@leads("graph", "vector")
def read_out(d: Draw, c: int) -> tuple[nn.Module, int]:
    """All nodes together, or as two graphs of one batch."""
    how = d.pick("mean", "batch")

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        if how == "mean":
            return x.mean(0, keepdim=True)
        batch = torch.arange(x.shape[0]) % 2
        return x.new_zeros(2, x.shape[1]).index_add(0, batch, x)

    return Does(forward), c
