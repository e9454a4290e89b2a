"""Convolutions of all kinds, for images and signals."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .draw import Does, Draw, Plain, maps

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
FUNCTION: dict[int, Any] = {1: F.conv1d, 2: F.conv2d}
BACK: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d}
AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d}


def pointwise(d: Draw, c: int, o: int) -> nn.Module:
    return CONV[d.dims](c, o, 1, bias=d.chance())


def activation(d: Draw) -> nn.Module:
    """Some give zero for zero, some do not."""
    kinds = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardswish, nn.ELU)
    return d.pick(*kinds, nn.LeakyReLU, nn.ReLU6, nn.PReLU, nn.Mish, nn.Identity)()


@maps("image", "signal")
def convolution(d: Draw, c: int, o: int) -> nn.Module:
    kernel, dilation = d.pick(1, 3, 3, 5), d.pick(1, 1, 2)
    padding = dilation * (kernel // 2)
    mode = d.pick("circular", "reflect", "replicate") if padding == 1 and d.chance(0.3) else "zeros"
    groups = d.pick(1, d.divisor(c, o))
    options = {"groups": groups, "bias": d.chance(0.6), "padding_mode": mode}
    conv = CONV[d.dims](c, o, kernel, padding=padding, dilation=dilation, **options)
    return Plain(nn.Sequential(conv, activation(d)) if d.chance() else conv)


@maps("image", "signal")
def transposed(d: Draw, c: int, o: int) -> nn.Module:
    options = {"groups": d.pick(1, d.divisor(c, o)), "bias": d.chance()}
    if d.chance(0.7):
        return Plain(TRANSPOSED[d.dims](c, o, 3, padding=1, **options))
    up = TRANSPOSED[d.dims](c, o, 2, stride=2, **options)
    return Does(lambda s, x, *rest: AVERAGE[d.dims](s.up(x), 2), up=up)


@maps("image", "signal")
def depthwise_separable(d: Draw, c: int, o: int) -> nn.Module:
    times = d.pick(1, 1, 2)
    if d.chance(0.3):
        first = TRANSPOSED[d.dims](c, c * times, 3, padding=1, groups=c, bias=d.chance())
    else:
        first = CONV[d.dims](c, c * times, 3, padding=1, groups=c, bias=d.chance())
    return Plain(nn.Sequential(first, activation(d), pointwise(d, c * times, o)))


@maps("image", "signal")
def two_grouped(d: Draw, c: int, o: int) -> nn.Module:
    """Two grouped layers in a row, whose groups may differ, maybe shuffled between."""
    m = d.pick(8, 12)
    kinds = d.pick(CONV, TRANSPOSED), d.pick(CONV, TRANSPOSED)
    first = kinds[0][d.dims](c, m, 3, padding=1, groups=d.divisor(c, m), bias=d.chance())
    last = kinds[1][d.dims](m, o, 3, padding=1, groups=d.divisor(m, o), bias=d.chance())
    middle = Shuffle(d.divisor(m), d.chance()) if d.chance() else activation(d)
    return Plain(nn.Sequential(first, middle, last))


class Shuffle(nn.Module):
    """ShuffleNet's, with the number of groups as an attribute."""

    def __init__(self, groups: int, named: bool):
        super().__init__()
        self.groups, self.named = groups, named

    def forward(self, x: Tensor) -> Tensor:
        each = x.shape[1] // self.groups if self.named else -1
        rest = x.shape[2:]
        y = x.view(x.shape[0], self.groups, each, *rest).transpose(1, 2)
        return y.reshape(x.shape[0], -1, *rest) if self.named else y.flatten(1, 2)


@maps("image", "signal")
def functional(d: Draw, c: int, o: int) -> nn.Module:
    """A weight of one's own; standardised, masked by a kernel, or as it is."""
    weight = nn.Parameter(torch.empty(o, c, *[3] * d.dims))
    how, dims = d.pick("plain", "standard", "normal", "causal"), d.dims
    kernel = torch.ones(3)
    kernel[2] = 0

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        w = s.weight
        over = tuple(range(1, w.ndim))
        if how == "standard":
            w = (w - w.mean(over, keepdim=True)) / (w.var(over, keepdim=True) + 1e-3).sqrt()
        if how == "normal":
            w = w / w.pow(2).sum(over, keepdim=True).sqrt()
        if how == "causal":
            w = w * s.kernel
        return FUNCTION[dims](x, w, s.bias, padding=1)

    return Does(forward, weight=weight, bias=nn.Parameter(torch.empty(o)), kernel=kernel)


@maps("image")
def unfolded(d: Draw, c: int, o: int) -> nn.Module:
    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        columns = F.unfold(x, 3, padding=1).transpose(1, 2)
        return s.mix(columns).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])

    return Does(forward, mix=nn.Linear(9 * c, o))


@maps("image", "signal")
def pieces_apart(d: Draw, c: int, o: int) -> nn.Module:
    """The channels in pieces, each with a layer of its own, joined again (Res2Net)."""
    n = d.divisor(c)
    chain, how, literal = d.chance(), d.pick("chunk", "split", "slices", "tensor_split"), c // n
    layers = nn.ModuleList(CONV[d.dims](c // n, c // n, 3, padding=1) for _ in range(n))

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        if how == "chunk":
            parts = x.chunk(s.n, 1)
        elif how == "split":
            parts = x.split(s.each, 1)
        elif how == "tensor_split":
            parts = x.tensor_split(s.n, 1)
        else:
            parts = [x[:, i * s.each : (i + 1) * s.each] for i in range(s.n)]
        done: list[Tensor] = []
        for part, layer in zip(parts, s.layers, strict=True):
            done.append(layer(part + done[-1] if chain and done else part))
        return s.mix(torch.cat(done, 1))

    return Does(forward, n=n, each=literal, layers=layers, mix=pointwise(d, c, o))


@maps("image", "signal")
def ghost(d: Draw, c: int, o: int) -> nn.Module:
    """Half of the channels are made cheaply from the other half; what is too much is cut off."""
    half = -(-o // 2)
    cheap = CONV[d.dims](half, half, 3, padding=1, groups=half)

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        first = s.first(x)
        return torch.cat([first, s.cheap(first)], 1)[:, : s.wide]

    return Does(forward, first=pointwise(d, c, half), cheap=cheap, wide=o)


@maps("image")
def pixel_shuffled(d: Draw, c: int, o: int) -> nn.Module:
    layers = nn.Conv2d(c, 4 * o, 1), nn.PixelShuffle(2), nn.AvgPool2d(2)
    return Plain(nn.Sequential(*layers))


@maps("image", "signal")
def channels_last(d: Draw, c: int, o: int) -> nn.Module:
    """A linear layer over the channels, which it moves to the end."""

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        return s.norm(s.mix(x.movedim(1, -1))).movedim(-1, 1)

    return Does(forward, mix=nn.Linear(c, o), norm=nn.LayerNorm(o) if d.chance() else nn.Identity())


@maps("image", "signal")
def mixed_by_equation(d: Draw, c: int, o: int) -> nn.Module:
    letters = "hw"[: d.dims]
    equation = f"bc{letters},oc->bo{letters}"
    weight = nn.Parameter(torch.empty(o, c))
    return Does(lambda s, x, *rest: torch.einsum(equation, x, s.weight), weight=weight)


@maps("image", "signal")
def there_and_back(d: Draw, c: int, o: int) -> nn.Module:
    """A convolution and its transpose share one weight."""
    function, back = FUNCTION[d.dims], BACK[d.dims]
    weight = nn.Parameter(torch.empty(d.width(), c, *[3] * d.dims))

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        y = function(x, s.weight, padding=1).relu()
        return s.mix(back(y, s.weight, padding=1))

    return Does(forward, weight=weight, mix=pointwise(d, c, o))


@maps("image", "signal")
def dynamic(d: Draw, c: int, o: int) -> nn.Module:
    """The kernels are mixed for each example from a bank of experts (CondConv)."""
    n, dims = 3, d.dims
    bank = nn.Parameter(torch.empty(n, o, c, *[3] * dims))

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        gate = s.gate(x.flatten(2).mean(2)).softmax(-1)
        kernels = torch.einsum("bn,n...->b...", gate, s.bank)
        batch = x.shape[0]
        joined = x.reshape(1, -1, *x.shape[2:])
        y = FUNCTION[dims](joined, kernels.flatten(0, 1), padding=1, groups=batch)
        return y.view(batch, -1, *x.shape[2:])

    return Does(forward, bank=bank, gate=nn.Linear(c, n))
