"""What keeps the shape of an image or signal: norms, gates, shuffles, tables."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .draw import Does, Draw, Plain, sames
from .layers import AVERAGE, CONV, FUNCTION, Shuffle, activation

BATCH: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
INSTANCE: dict[int, Any] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d}


def beside(x: Tensor, vector: Tensor) -> Tensor:
    """Return one number for each channel, as it broadcasts against ``(B, C, …)``."""
    return vector.view(-1, *[1] * (x.ndim - 2))


@sames("image", "signal")
def norm(d: Draw, c: int, o: int) -> nn.Module:
    kinds = [
        BATCH[d.dims](c),
        nn.GroupNorm(d.pick(1, d.divisor(c), c), c),
        INSTANCE[d.dims](c, affine=d.chance(), track_running_stats=d.chance(0.3)),
    ]
    return Plain(nn.Sequential(d.pick(*kinds[:1], *kinds), activation(d)))


@sames("image", "signal")
def norm_by_hand(d: Draw, c: int, o: int) -> nn.Module:
    how = d.pick("layer", "rms", "frozen", "functional", "group", "l2")
    groups = d.divisor(c)

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        weight, bias = beside(x, s.weight), beside(x, s.bias)
        if how == "layer":
            gap = x - x.mean(1, keepdim=True)
            return gap / (gap.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() * weight + bias
        if how == "rms":
            return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5) * weight
        if how == "l2":
            return F.normalize(x, dim=1) * weight
        if how == "group":
            y = x.reshape(x.shape[0], s.groups, -1, *x.shape[2:])
            over = tuple(range(2, y.ndim))
            y = (y - y.mean(over, keepdim=True)) / (y.var(over, keepdim=True) + 1e-5).sqrt()
            return y.view(x.shape) * weight + bias
        if how == "frozen":
            scale = s.weight * (s.running_var + 1e-5).rsqrt()
            return x * beside(x, scale) + beside(x, s.bias - s.running_mean * scale)
        return F.batch_norm(x, s.running_mean, s.running_var, s.weight, s.bias, False)

    one = torch.empty(c)
    held = {"weight": nn.Parameter(one.clone()), "bias": nn.Parameter(one.clone())}
    state = {"running_mean": one.clone(), "running_var": one.clone()}
    return Does(forward, **held, **state, groups=groups)


@sames("image", "signal")
def shuffle(d: Draw, c: int, o: int) -> nn.Module:
    return Plain(Shuffle(d.divisor(c), d.chance()))


@sames("image", "signal")
def excite(d: Draw, c: int, o: int) -> nn.Module:
    """Squeeze and excite, by linear layers or by convolutions, of one width or another."""
    m, linear, how = d.width(), d.chance(), d.pick("sigmoid", "hard", "softmax", "tanh")
    first, last = (nn.Linear(c, m), nn.Linear(m, c)) if linear else (None, None)
    if not linear:
        first, last = CONV[d.dims](c, m, 1), CONV[d.dims](m, c, 1)

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        y = x.flatten(2).mean(-1)
        y = s.last(s.first(y if linear else y.view(*y.shape, *[1] * (x.ndim - 2))).relu())
        y = y.view(x.shape[0], -1, *[1] * (x.ndim - 2))
        if how == "softmax":
            return x * y.softmax(1)
        return x * (
            y.sigmoid() if how == "sigmoid" else F.hardtanh(y) if how == "hard" else y.tanh()
        )

    return Does(forward, first=first, last=last)


@sames("image", "signal")
def attended_place(d: Draw, c: int, o: int) -> nn.Module:
    """CBAM's spatial half: maximum and mean over the channels; or only one of the two."""
    how = d.pick("both", "max", "amax", "sum", "norm")

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        largest = x.max(1, keepdim=True)[0] if how != "amax" else x.amax(1, keepdim=True)
        other = {"sum": x.sum(1, keepdim=True), "norm": x.norm(dim=1, keepdim=True)}
        other |= {"both": x.mean(1, keepdim=True), "max": largest, "amax": largest}
        maps = torch.cat([other[how], other[how] if how in ("sum", "norm") else largest], 1)
        return x * s.conv(maps).sigmoid()

    return Does(forward, conv=CONV[d.dims](2, 1, 3, padding=1))


@sames("image", "signal")
def neighbours(d: Draw, c: int, o: int) -> nn.Module:
    """A depthwise convolution, told its groups in one way or another."""
    how, dims = d.pick("module", "shape", "attribute", "blur", "repeat"), d.dims
    weight = nn.Parameter(torch.empty(c, 1, *[3] * dims))
    held: dict[str, Any] = {"weight": weight, "c": c}
    if how in ("blur", "repeat"):
        held = {"weight": torch.full((1, 1, *[3] * dims), 3.0**-dims), "c": c}
    if how == "module":
        return Plain(CONV[dims](c, c, 3, padding=d.pick(1, "same"), groups=c, bias=d.chance()))

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        w = s.weight
        if how == "blur":
            w = w.expand(x.shape[1], *w.shape[1:])
        if how == "repeat":
            w = w.repeat(s.c, *[1] * (w.ndim - 1))
        return FUNCTION[dims](x, w, padding=1, groups=s.c if how == "attribute" else x.size(1))

    return Does(forward, **held)


@sames("image", "signal")
def gram(d: Draw, c: int, o: int) -> nn.Module:
    """Attention between channels (XCA, DANet), or a Gram matrix."""
    how, one_head = d.pick("softmax", "plain", "normalised"), d.chance()

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        y = x.flatten(2)
        q, k = (s.q(y), s.k(y)) if not one_head else (y, y)
        if how == "normalised":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        score = q @ k.transpose(1, 2) * 0.1
        score = score.softmax(-1) if how == "softmax" else score
        return (score @ y).view_as(x)

    return Does(forward, q=nn.Conv1d(c, c, 1), k=nn.Conv1d(c, c, 1))


@sames("image", "signal")
def placed(d: Draw, c: int, o: int) -> nn.Module:
    """A learned table of places, of which a part is read: from the start, the end, an offset."""
    size, dims, how = (
        (20 if d.dims == 2 else 140),
        d.dims,
        d.pick("start", "end", "offset", "rows", "interpolated", "narrow"),
    )
    table = nn.Parameter(torch.empty(1, c, *[size] * dims))
    rows, columns = nn.Parameter(torch.empty(size, c)), nn.Parameter(torch.empty(size, c))

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        if how == "rows":
            y = x + s.rows[: x.shape[-1]].T.reshape(1, -1, *[1] * (dims - 1), x.shape[-1])
            return y if dims == 1 else y + s.columns[: x.shape[2]].T[None, :, :, None]
        t = s.table
        if how == "interpolated":
            mode = "linear" if dims == 1 else "bilinear"
            return x + F.interpolate(t, size=x.shape[2:], mode=mode, align_corners=False)
        for dim in range(2, x.ndim):
            n = x.shape[dim]
            first = {"end": t.shape[dim] - n, "offset": 1}.get(how, 0)
            t = t.narrow(dim, first, n)
        return x + t

    if how == "rows":
        return Does(forward, rows=rows, **({"columns": columns} if dims == 2 else {}))
    return Does(forward, table=table)


@sames("image", "signal")
def reordered(d: Draw, c: int, o: int) -> nn.Module:
    """Channels in another order, or some of them only."""
    how, order = d.pick("flip", "roll", "index", "select", "stride", "stack"), torch.randperm(c)
    half = c // 2

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        if how == "flip":
            return x.flip(1)
        if how == "roll":
            return torch.roll(x, 1, 1)
        if how == "index":
            return x[:, s.order]
        if how == "select":
            return x.index_select(1, s.order)
        if how == "stride":
            return torch.cat([x[:, ::2], x[:, 1::2]], 1)
        return torch.stack([x[:, : s.half], x[:, s.half :]], 2).flatten(1, 2)

    return Does(forward, order=order, half=half)


@sames("image", "signal")
def scaled(d: Draw, c: int, o: int) -> nn.Module:
    """A number of its own for each channel: multiplied, added, divided by, a power, a gate."""
    how = d.pick("scale", "shift", "both", "over", "prelu", "gate", "minimum", "alike")

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        weight = beside(x, s.weight)
        if how == "over":
            return x / (weight.abs() + 0.5)
        if how == "prelu":
            return F.prelu(x, s.weight)
        if how == "gate":
            return x * weight.sigmoid()
        if how == "minimum":
            return torch.minimum(x, weight)
        if how == "alike":
            return x * weight / s.weight.norm()
        return {"scale": x * weight, "shift": x + weight, "both": x * weight + weight}[how]

    return Does(forward, weight=nn.Parameter(torch.empty(c)))


@sames("image", "signal")
def pooled_and_back(d: Draw, c: int, o: int) -> nn.Module:
    """Local or global pools that come back to the size they started from."""
    how, dims = d.pick("average", "upsampled", "global", "max", "weighted", "lrn"), d.dims
    larger = {1: F.max_pool1d, 2: F.max_pool2d}[dims]

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        if how == "upsampled":
            return x + F.interpolate(AVERAGE[dims](x, 2), size=x.shape[2:], mode="nearest")
        if how == "global":
            return x - x.mean(tuple(range(2, x.ndim)), keepdim=True)
        if how == "max":
            return larger(x, 3, stride=1, padding=1)
        if how == "weighted":
            y = x.flatten(2)
            context = y @ s.key(y).softmax(-1).transpose(1, 2)
            return x + context.view(*context.shape[:2], *[1] * dims)
        if how == "lrn":
            return F.local_response_norm(x, 3)
        return AVERAGE[dims](x, 3, stride=1, padding=1)

    return Does(forward, key=nn.Conv1d(c, 1, 1))
