"""The rules, family by family, on real tensors: cut, run, and compare with the masked model.

Each case is a small model around one operation, with the groups that it must have.  Models are in
float64 and every parameter and statistic is random, so that a wrong rule shows in the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import TraceError
from secateur.graph.groups import Group
from secateur.shrink import Plan, Result, cut_and_verify, group_masks
from secateur.structure import Structure, analyze


class Net(nn.Module):
    """A model from a function of itself and its inputs, and what it holds."""

    def __init__(self, function: Callable[..., Any], **held: Any):
        super().__init__()
        self._function = function
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(self, *args, **kwargs)


@dataclass
class Case:
    """A model, an input, and its groups: name → size, or name → words of the reason."""

    model: nn.Module
    example: Any
    exact: dict[str, int] = field(default_factory=lambda: {"first": 8})
    inexact: dict[str, str] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)
    bug: str = ""  # why cutting it is known to fail


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                tensor.normal_(generator=generator)
            if "running_var" in name:
                tensor.abs_().add_(0.5)
    return model.double().eval()


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def chain(first: nn.Module, op: Any, last: nn.Module, example: Any, held: dict[str, Any]) -> Case:
    groups = {k: held.pop(k) for k in ("exact", "inexact", "frozen", "bug") if k in held}
    model = Net(lambda m, x: m.last(op(m, m.first(x))), first=first, **held, last=last)
    return Case(model, example, **groups)


def channels(op: Any, space: int = 2, width: int = 8, after: int = 8, **held: Any) -> Case:
    """A convolution, the operation ``op(model, x)``, and a convolution that reads it."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[space - 1]
    example = numbers(2, 3, *[6] * space)
    return chain(conv(3, width, 1), op, conv(after, 2, 1), example, held)


def features(op: Any, width: int = 8, after: int = 8, **held: Any) -> Case:
    """A linear layer, the operation ``op(model, x)``, and a linear layer that reads it."""
    return chain(nn.Linear(3, width), op, nn.Linear(after, 2), numbers(4, 3), held)


def layer(module: nn.Module, space: int = 2, **more: Any) -> Case:
    """The same with a layer of its own between two convolutions."""
    return channels(lambda m, x: m.mid(x), space, mid=module, **more)


def attend(op: Any, width: int = 8, **held: Any) -> Case:
    """Queries, keys and values from three linear layers; ``op(model, q, k, v)``; one that reads."""
    groups = {k: held.pop(k) for k in ("exact", "inexact", "frozen") if k in held}
    layers = {name: nn.Linear(3, width) for name in "qkv"}
    model = Net(
        lambda m, x: m.out(op(m, m.q(x), m.k(x), m.v(x))), **layers, **held, out=nn.Linear(width, 2)
    )
    return Case(model, numbers(2, 5, 3), **groups)


def two(op: Any, a: int = 8, b: int = 8, after: int = 8, **groups: Any) -> Case:
    """Two linear layers of one input, ``op(a(x), b(x))``, and a linear layer that reads it."""
    model = Net(
        lambda m, x: m.c(op(m.a(x), m.b(x))),
        a=nn.Linear(3, a),
        b=nn.Linear(3, b),
        c=nn.Linear(after, 2),
    )
    return Case(model, numbers(4, 3), **groups)


def heads(x: Tensor, *grid: int) -> Tensor:
    return x.view(2, 5, *grid).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(2, 5, -1)


def halves_shuffled(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, m.g, c // m.g, h, w).transpose(1, 2).reshape(n, c, h, w)


def option_a(pad: Callable[[Any], int], **held: Any) -> Case:
    """The shortcut of a CIFAR ResNet: every second pixel, zeros as new channels."""
    groups = {k: held.pop(k) for k in ("exact", "frozen") if k in held}
    model = Net(
        lambda m, x: m.c(F.pad(m.a(x)[:, :, ::2, ::2], (0, 0, 0, 0, pad(m), pad(m))) + m.b(x)),
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(3, 16, 3, stride=2, padding=1),
        c=nn.Conv2d(16, 2, 1),
        **held,
    )
    return Case(model, numbers(2, 3, 6, 6), **groups)


def functions(module: Any, names: str) -> dict[str, Callable[[Tensor], Tensor]]:
    return {name: getattr(module, name) for name in names.split()}


FC = {"first": 8, "mid": 6}
GROUPED = {"first": 4, "first[1]": 2, "mid": 3}
HALVES = {"first": 4, "first[1]": 4}
LITERAL = "written in the code"

CONVOLUTIONS = {
    "conv1d": layer(nn.Conv1d(8, 6, 3), 1, after=6, exact=FC),
    "conv2d": layer(nn.Conv2d(8, 6, 3, bias=False), after=6, exact=FC),
    "conv3d": layer(nn.Conv3d(8, 6, 3), 3, after=6, exact=FC),
    "strided": layer(nn.Conv2d(8, 6, 3, stride=2, padding=1), after=6, exact=FC),
    "dilated": layer(nn.Conv2d(8, 6, 3, dilation=2), after=6, exact=FC),
    "reflected": layer(nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), after=6, exact=FC),
    "grouped": layer(nn.Conv2d(8, 12, 3, groups=4), after=12, exact=GROUPED),
    "depthwise": layer(nn.Conv2d(8, 8, 3, groups=8)),
    "depthwise-1d": layer(nn.Conv1d(8, 8, 3, groups=8), 1),
    "depth-multiplier": layer(
        nn.Conv2d(8, 16, 3, groups=8), after=16, exact={"first": 8, "mid": 2}
    ),
    "transposed-1d": layer(
        nn.ConvTranspose1d(8, 6, 3, stride=2), 1, after=6, exact={"first": 8, "mid:1": 6}
    ),
    "transposed": layer(
        nn.ConvTranspose2d(8, 6, 3, stride=2), after=6, exact={"first": 8, "mid:1": 6}
    ),
    "transposed-grouped": layer(
        nn.ConvTranspose2d(8, 12, 3, groups=4),
        after=12,
        exact={"first": 4, "first[1]": 2, "mid:1": 3},
    ),
    "transposed-depthwise": layer(nn.ConvTranspose2d(8, 8, 3, groups=8)),
    "unbatched": Case(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)), numbers(3, 6, 6), {"0": 8}
    ),
}

CONTRACTIONS = {
    "linear": features(lambda m, x: m.mid(x), after=6, mid=nn.Linear(8, 6, bias=False), exact=FC),
    "linear-3d": Case(
        nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), numbers(2, 5, 3), {"0": 8}
    ),
    "matmul": attend(lambda m, q, k, v: q @ k.mT @ v, exact={"q": 8, "v": 8}),
    "bmm": attend(lambda m, q, k, v: torch.bmm(torch.bmm(q, k.mT), v), exact={"q": 8, "v": 8}),
    "baddbmm": attend(
        lambda m, q, k, v: torch.baddbmm(m.bias, q, k.mT) @ v,
        bias=nn.Parameter(torch.ones(2, 5, 5)),
        exact={"q": 8, "v": 8},
    ),
    "einsum": attend(
        lambda m, q, k, v: torch.einsum("bic,bjc,bjd->bid", q, k, v), exact={"q": 8, "v": 8}
    ),
    "softmax-attention": attend(
        lambda m, q, k, v: (q @ k.mT * 0.5).softmax(-1) @ v, exact={"q": 8, "v": 8}
    ),
    "sdpa-own-scale": attend(
        lambda m, q, k, v: merged(
            F.scaled_dot_product_attention(*(heads(x, m.h, -1) for x in (q, k, v)), scale=0.5)
        ),
        h=2,
        exact={"q": 2, "q[1]": 4, "v": 4},
    ),
    "sdpa-default-scale": attend(
        lambda m, q, k, v: merged(
            F.scaled_dot_product_attention(*(heads(x, m.h, -1) for x in (q, k, v)))
        ),
        h=2,
        exact={"q": 2, "v": 4},
        inexact={"q[1]": "scales by the width of a head"},
    ),
    "sdpa-literal-width": attend(
        lambda m, q, k, v: merged(
            F.scaled_dot_product_attention(*(heads(x, -1, 4) for x in (q, k, v)))
        ),
        exact={"q": 2},
        frozen={"q[1]": LITERAL, "v": LITERAL},
    ),
    "grouped-queries": Case(
        Net(
            lambda m, x: m.out(
                merged(
                    heads(m.q(x), m.h, m.d)
                    @ heads(m.k(x), m.kv, m.d).repeat_interleave(m.h // m.kv, 1).mT
                    @ heads(m.v(x), m.kv, m.d).repeat_interleave(m.h // m.kv, 1)
                )
            ),
            q=nn.Linear(3, 16),
            k=nn.Linear(3, 8),
            v=nn.Linear(3, 8),
            out=nn.Linear(16, 2),
            h=4,
            kv=2,
            d=4,
        ),
        numbers(2, 5, 3),
        {"q": 2, "q[1]": 2, "q[2]": 4, "v": 4},
    ),
    "outer-product": two(
        lambda a, b: (a[:, :, None] * b[:, None, :]).flatten(1), 4, 6, 24, exact={"a": 4, "b": 6}
    ),
    "dot": two(lambda a, b: (a * b).sum(1, keepdim=True), after=1, exact={"a": 8}),
}

NORMS = {
    "batch_norm": layer(nn.BatchNorm2d(8)),
    "batch_norm-plain": layer(nn.BatchNorm2d(8, affine=False)),
    "batch_norm-no-statistics": layer(nn.BatchNorm2d(8, track_running_stats=False)),
    "batch_norm-1d": features(lambda m, x: m.mid(x), mid=nn.BatchNorm1d(8)),
    "layer_norm": features(
        lambda m, x: m.mid(x), mid=nn.LayerNorm(8), exact={}, inexact={"first": "mean and variance"}
    ),
    "rms_norm": features(
        lambda m, x: m.mid(x),
        mid=nn.RMSNorm(8),
        exact={},
        inexact={"first": "averages"},
        bug="normalized_shape does not follow: torch decomposes rms_norm",
    ),
    "group_norm": layer(
        nn.GroupNorm(4, 8), exact={"first": 4}, inexact={"first[1]": "the channels of a group"}
    ),
    "group_norm-of-single-channels": layer(nn.GroupNorm(8, 8)),
    "group_norm-of-all-channels": layer(
        nn.GroupNorm(1, 8), exact={"first": 1}, inexact={"first[1]": "the channels of a group"}
    ),
    "instance_norm": layer(nn.InstanceNorm2d(8, affine=True)),
    "instance_norm-statistics": layer(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
    "instance_norm-plain": layer(
        nn.InstanceNorm2d(8), bug="num_features does not follow, and torch warns"
    ),
    "weight_norm": Case(
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 8)), nn.Linear(8, 2)),
        numbers(4, 3),
        {"0.parametrizations.weight.original1": 8},
    ),
    "normalize": features(lambda m, x: F.normalize(x, dim=1)),
}

POOLS = {
    **{
        f"{name}{space}d": layer(Net(lambda m, x: m.pool(x, 2), pool=pool), space)
        for name in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
        for space in (1, 2, 3)
        for pool in [getattr(F, f"{name}{space}d")]
    },
    "global_avg_pool": channels(lambda m, x: F.adaptive_avg_pool2d(x, 1)),
    **{
        f"interpolate-{mode}": channels(
            lambda m, x, mode=mode: F.interpolate(x, scale_factor=2, mode=mode)
        )
        for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area")
    },
    **{
        f"pad-{mode}": channels(lambda m, x, mode=mode: F.pad(x, (1, 1, 1, 1), mode=mode))
        for mode in ("constant", "reflect", "replicate")
    },
    "pad-channels-literal": channels(
        lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 2)),
        after=12,
        frozen={"last:1": LITERAL, "last:1[1]": LITERAL},
    ),
    "pixel_shuffle": channels(
        lambda m, x: F.pixel_shuffle(x, 2),
        width=16,
        after=4,
        exact={"first": 4},
        frozen={"first[1]": "becomes space"},
    ),
    "pixel_unshuffle": channels(
        lambda m, x: F.pixel_unshuffle(x, 2), after=32, frozen={"last:1": "comes from space"}
    ),
    "channel_shuffle": layer(nn.ChannelShuffle(2), exact={"first": 2, "first[1]": 4}),
    "channel_shuffle-by-hand": channels(halves_shuffled, g=2, exact={"first": 2, "first[1]": 4}),
    "squeeze_excite": channels(
        lambda m, x: x * torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1))))),
        down=nn.Conv2d(8, 4, 1),
        up=nn.Conv2d(4, 8, 1),
        exact={"first": 8, "down": 4},
    ),
    "option_a-attribute": option_a(lambda m: m.p, p=4, exact={"a": 8, "b": 4, "b[1]": 4}),
    "option_a-literal": option_a(
        lambda m: 4, exact={"a": 8}, frozen={"b": LITERAL, "b[1]": LITERAL}
    ),
}

SHAPES = {
    "cat": Case(
        Net(
            lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)),
            a=nn.Conv2d(3, 4, 1),
            b=nn.Conv2d(3, 6, 1),
            c=nn.Conv2d(10, 2, 1),
        ),
        numbers(2, 3, 6, 6),
        {"a": 4, "b": 6},
    ),
    "stack": two(lambda a, b: torch.stack([a, b], 1).sum(1), exact={"a": 8}),
    "split-attributes": features(
        lambda m, x: torch.cat(x.split([m.left, m.right], 1)[::-1], 1),
        left=4,
        right=4,
        exact=HALVES,
    ),
    "split-literal": features(
        lambda m, x: torch.cat(x.split([3, 5], 1), 1),
        exact={},
        frozen={"first": LITERAL, "first[1]": LITERAL},
    ),
    "split-literal-size": features(
        lambda m, x: sum(x.split(4, 1)), after=4, exact={}, frozen={"first": LITERAL}
    ),
    "chunk-sized": features(lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1), exact=HALVES),
    "chunk-gated": features(
        lambda m, x: x.chunk(2, 1)[0] * torch.tanh(x.chunk(2, 1)[1]), after=4, exact={"first": 4}
    ),
    "tensor_split": features(
        lambda m, x: torch.cat(x.tensor_split(2, 1)[::-1], 1),
        exact={},
        frozen={"first": "where an operation computes"},
    ),
    "slice-attribute": features(lambda m, x: x[:, : m.k], k=4, after=4, exact=HALVES),
    "slice-literal": features(
        lambda m, x: x[:, 2:], after=6, exact={"first[1]": 6}, frozen={"first": LITERAL}
    ),
    "slice-half-of-size": features(
        lambda m, x: torch.cat([-x[:, x.size(1) // 2 :], x[:, : x.size(1) // 2]], 1), exact=HALVES
    ),
    "slice-stepped": features(
        lambda m, x: x[:, ::2],
        after=4,
        exact={"first": 4},
        frozen={"first[1]": "every n-th position is read"},
    ),
    "narrow-attribute": features(
        lambda m, x: x.narrow(1, 2, m.k),
        k=4,
        after=4,
        exact={"first[1]": 4, "first[2]": 2},
        frozen={"first": LITERAL},
    ),
    "narrow-literal": features(
        lambda m, x: x.narrow(1, 2, 4),
        after=4,
        exact={"first[2]": 2},
        frozen={"first": LITERAL, "first[1]": LITERAL},
    ),
    "select": features(
        lambda m, x: x * x[:, 2, None], exact={}, frozen={"first": "one position is read"}
    ),
    "unbind": features(
        lambda m, x: torch.stack(x.unbind(1), 1), exact={}, frozen={"first": "one by one"}
    ),
    "flatten": Case(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 2)),
        numbers(2, 3, 6, 6),
        {"0": 8},
        frozen={"2:1": "a spatial dimension"},
    ),
    "view-attributes": features(
        lambda m, x: x.view(4, m.h, m.d).transpose(1, 2).reshape(4, -1),
        h=4,
        d=2,
        exact={"first": 4, "first[1]": 2},
    ),
    "view-product-of-attributes": features(
        lambda m, x: x.view(4, m.h, m.d).transpose(1, 2).reshape(4, m.h * m.d),
        h=4,
        d=2,
        exact={"first": 4, "first[1]": 2},
    ),
    "view-literal": features(
        lambda m, x: x.view(4, -1, 2).transpose(1, 2).reshape(4, -1),
        exact={"first": 4},
        frozen={"first[1]": LITERAL},
    ),
    "unflatten-attributes": features(
        lambda m, x: x.unflatten(1, (m.h, m.d)).transpose(1, 2).flatten(1),
        h=4,
        d=2,
        exact={"first": 4, "first[1]": 2},
    ),
    "unflatten-module": features(
        lambda m, x: m.mid(x).transpose(1, 2).flatten(1),
        mid=nn.Unflatten(1, (4, 2)),
        exact={"first": 4, "first[1]": 2},
    ),
    "permute": channels(lambda m, x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)),
    "expand-attribute": features(
        lambda m, x: x[:, None].expand(-1, m.n, -1).reshape(4, -1),
        n=3,
        after=24,
        exact={"first": 8, "last:1": 3},
    ),
    "expand-literal": features(
        lambda m, x: x[:, None].expand(-1, 3, -1).reshape(4, -1),
        after=24,
        frozen={"last:1": LITERAL},
    ),
    "repeat": features(
        lambda m, x: x.repeat(1, m.n), n=3, after=24, exact={"first": 8, "last:1": 3}
    ),
    "repeat_interleave": features(
        lambda m, x: x.repeat_interleave(m.n, 1), n=3, after=24, exact={"first": 8, "last:1": 3}
    ),
    "flip": features(lambda m, x: x.flip(1), exact={}, frozen={"first": "change places"}),
    "flip-space": channels(lambda m, x: x.flip(2)),
    "roll": features(lambda m, x: x.roll(3), exact={}, frozen={"first": "change places"}),
    "roll-space": channels(lambda m, x: x.roll((1, 1), (2, 3))),
    "triangle": features(lambda m, x: x.tril(), exact={}, frozen={"first": "triangle"}),
    "glu": features(lambda m, x: F.glu(x, 1), after=4, exact={"first": 4}),
    "glu-channels": channels(lambda m, x: F.glu(x, 1), after=4, exact={"first": 4}),
}

INDEXING = {
    "embedding": Case(
        nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 2)),
        torch.arange(6).view(2, 3),
        {"0:1": 8},
        frozen={"0": "a vocabulary"},
    ),
    "index": features(
        lambda m, x: x[:, [0, 2]], after=2, exact={}, frozen={"first": "looked up by number"}
    ),
    "index_select": features(
        lambda m, x: x.index_select(1, torch.tensor([0, 2])),
        after=2,
        exact={},
        frozen={"first": "looked up by number"},
    ),
    "gather": features(
        lambda m, x: x.gather(1, torch.zeros(4, 8, dtype=torch.int64)),
        exact={},
        frozen={"first": "looked up by number"},
    ),
    "sort": features(lambda m, x: x.sort(1)[0], exact={}, frozen={"first": "ordered by value"}),
    "argmax": features(
        lambda m, x: x * x.argmax(1, keepdim=True), exact={}, frozen={"first": "selected by value"}
    ),
}

# Along the axis itself; the product with x makes the result matter.
REDUCTIONS = {
    "sum": features(lambda m, x: x * x.sum(1, keepdim=True)),
    "norm": features(lambda m, x: x * x.norm(dim=1, keepdim=True)),
    "norm-infinite": features(lambda m, x: x * x.norm(p=float("inf"), dim=1, keepdim=True)),
    **{
        name: features(lambda m, x, f=f: x * f(x), exact={}, inexact={"first": why})
        for name, f, why in (
            ("mean", lambda x: x.mean(1, keepdim=True), "averages"),
            ("var", lambda x: x.var(1, keepdim=True), "variance"),
            ("std", lambda x: x.std(1, keepdim=True), "variance"),
            ("amin", lambda x: x.abs().amin(1, keepdim=True), "extreme"),
            ("prod", lambda x: x.prod(1, keepdim=True), "extreme"),
            ("norm-negative", lambda x: x.norm(p=-float("inf"), dim=1, keepdim=True), "extreme"),
            ("logsumexp", lambda x: x.logsumexp(1, keepdim=True), "exponentials"),
            ("softmax", lambda x: x.softmax(1), "softmax"),
            ("log_softmax", lambda x: x.log_softmax(1), "softmax"),
        )
    },
    "mean-of-space": channels(lambda m, x: x * x.mean((2, 3), keepdim=True)),
    "softmax-of-space": channels(lambda m, x: x * x.softmax(2)),
    "cumsum": features(lambda m, x: x.cumsum(1)),
}

BINARY = {
    "add": two(lambda a, b: a + b, exact={"a": 8}),
    "mul": two(lambda a, b: a * torch.sigmoid(b), exact={"a": 8}),
    "where": two(lambda a, b: torch.where(a > 0, b, a), exact={"a": 8}),
    "maximum": two(torch.maximum, exact={"a": 8}),
    "div-by-positive": two(lambda a, b: a / (1 + b.abs()), exact={"a": 8}),
    "div-by-zero": two(lambda a, b: a / b, exact={}, inexact={"a": "divides by masked positions"}),
    "addcdiv-by-zero": two(
        lambda a, b: torch.addcdiv(a, a, b), exact={}, inexact={"a": "divides by masked positions"}
    ),
    "scale-parameter": features(lambda m, x: x * m.s, s=nn.Parameter(torch.ones(8))),
    "prelu": layer(nn.PReLU(8)),
    "in-place": features(lambda m, x: x.add_(1).relu_()),
}

FAMILIES = {
    "convolution": CONVOLUTIONS,
    "contraction": CONTRACTIONS,
    "normalization": NORMS,
    "spatial": POOLS,
    "shape": SHAPES,
    "indexing": INDEXING,
    "reduction": REDUCTIONS,
    "elementwise": BINARY,
}
CASES = {f"{family}-{name}": c for family, cases in FAMILIES.items() for name, c in cases.items()}


def cutting(names: Iterable[str]) -> Any:
    """Parametrise a test over cases that it cuts; those with a known bug may fail."""
    params = [
        pytest.param(
            CASES[n],
            id=n,
            marks=pytest.mark.xfail(reason=CASES[n].bug, strict=False) if CASES[n].bug else (),
        )
        for n in names
    ]
    return pytest.mark.parametrize("case", params)


def structure_of(case: Case) -> Structure:
    return analyze(randomised(case.model), case.example)


def cut_half(case: Case, structure: Structure, groups: Iterable[Group]) -> Result:
    """Cut a random half of each group, and of those that must keep as many, and verify."""
    generator = torch.Generator().manual_seed(0)
    names = {name for g in groups for name in (g.name, *g.sized)}
    keeps = {}
    for name in sorted(names):
        size = structure[name].size
        order = torch.randperm(size, generator=generator)
        keeps[name] = torch.zeros(size, dtype=torch.bool)
        keeps[name][order[: (size + 1) // 2]] = True
    return cut_and_verify(
        case.model,
        structure,
        Plan.from_keeps(structure, keeps),
        group_masks(structure, keeps),
        case.example,
        notes=[],
        inplace=False,
        verify=True,
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_analyze_when_an_operation_has_a_rule_then_its_groups_are_these(case):
    structure = structure_of(case)
    assert {g.name: g.size for g in structure.exact} == case.exact
    assert {g.name for g in structure.groups if not g.exact} == set(case.inexact)
    for name, words in case.inexact.items():
        assert words in structure[name].inexact.why
    for name, words in case.frozen.items():
        assert words in structure[name].frozen.why
    assert not structure.unknown


@cutting(n for n in CASES if CASES[n].exact)
def test_cut_when_groups_are_exact_then_the_smaller_model_is_the_masked_one(case):
    structure = structure_of(case)
    for groups in (structure.exact, *([g] for g in structure.exact)):
        result = cut_half(case, structure, groups)
        assert result.verification.exact
        assert result.verification.passed
        assert result.verification.difference < 1e-10
        if any(g.size > 1 for g in groups):
            left = sum(p.numel() for p in result.model.parameters())
            assert left == result.after.params < result.before.params


@cutting(n for n in CASES if CASES[n].inexact)
def test_cut_when_a_group_is_inexact_then_the_difference_is_real_and_reported(case):
    structure = structure_of(case)
    for name in case.inexact:
        result = cut_half(case, structure, [structure[name]])
        assert not result.verification.exact
        assert result.verification.difference > 1e-6
        assert any(name in note and "inexact" in note for note in result.notes)


def test_shape_when_code_computes_with_it_then_it_is_traced_as_size_is():
    case = features(lambda m, x: torch.cat([x[:, x.shape[1] // 2 :], x[:, : x.shape[1] // 2]], 1))
    structure = structure_of(case)
    assert {g.name: g.size for g in structure.exact} == HALVES
    assert cut_half(case, structure, structure.exact).verification.difference < 1e-10


# Element-wise functions: exact where f(0) = 0, or where a weight that is masked too reads it.

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **functions(
        F,
        """relu relu6 gelu silu mish tanh hardswish leaky_relu elu celu selu tanhshrink softsign
        hardshrink softshrink hardtanh logsigmoid softplus sigmoid hardsigmoid""",
    ),
    **functions(
        torch,
        """abs neg sign sgn sin tan atan sinh asinh square erf expm1 floor ceil round trunc
        nan_to_num frac cos cosh exp exp2 erfc deg2rad""",
    ),
    "sqrt": lambda x: x.abs().sqrt(),
    "log": lambda x: (x.abs() + 2).log(),
    "rsqrt": lambda x: (x * x + 1).rsqrt(),
    "clamp-around-zero": lambda x: x.clamp(-1, 1),
    "clamp-above-zero": lambda x: x.clamp(0.5, 1),
    "clamp_min-zero": lambda x: x.clamp(min=0),
    "clamp_min-above-zero": lambda x: torch.clamp_min(x, 0.5),
    "hardtanh-above-zero": lambda x: F.hardtanh(x, 0.5, 1),
    "threshold": lambda x: F.threshold(x, 0.1, 5),
    "add-number": lambda x: x + 1,
    "add-zero": lambda x: x + 0,
    "add-itself": lambda x: x + x,
    "subtract-from": lambda x: 1 - x,
    "mul-number": lambda x: 3 * x,
    "div-number": lambda x: x / 3,
    "remainder-number": lambda x: x % 2,
    "power-2": lambda x: x**2,
    "power-0": lambda x: x**0,
    "power-negative": lambda x: (x * x + 1) ** -1,
    "base-2": lambda x: 2**x,
    "where-scaled": lambda x: torch.where(x > 0, x, 2 * x),
    "where-moved": lambda x: torch.where(x > 0, x, x + 1),
    "masked_fill-zero": lambda x: x.masked_fill(x > 1, 0.0),
    "masked_fill-one": lambda x: x.masked_fill(x < 1, 1.0),
    "equals": lambda x: (x == 0).to(x),
    "zeros_like": torch.zeros_like,
    "ones_like": torch.ones_like,
    "full_like": lambda x: torch.full_like(x, 2),
    "copy": lambda x: torch.empty_like(x).copy_(x + 1),
    "fill": lambda x: x.clone().fill_(2),
    "add-in-place": lambda x: x.clone().add_(1),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_function_when_its_values_are_summed_then_it_is_exact_if_it_maps_zero_to_zero(function):
    case = features(lambda m, x: x * function(x).sum(1, keepdim=True))
    structure = structure_of(case)
    maps_zero = bool(function(torch.zeros(1, dtype=torch.float64)) == 0)
    assert structure["first"].exact == maps_zero
    difference = cut_half(case, structure, [structure["first"]]).verification.difference
    assert (difference < 1e-10) == maps_zero


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_function_when_a_weight_reads_its_values_then_it_is_exact(function):
    case = features(lambda m, x: function(x))
    structure = structure_of(case)
    result = cut_half(case, structure, structure.exact)
    assert [g.name for g in structure.exact] == ["first"]
    assert result.verification.difference < 1e-10


# The same over space: what a channel of zeros becomes, seen through a sum over channels.

SPACE = {
    "max_pool": (lambda x: F.max_pool2d(x, 2), True),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2), True),
    "mean": (lambda x: x.mean((2, 3), keepdim=True), True),
    "variance": (lambda x: x.var((2, 3), keepdim=True), True),
    "pad-zero": (lambda x: F.pad(x, (1, 1, 1, 1)), True),
    "pad-value": (lambda x: F.pad(x, (1, 1, 1, 1), value=2), False),
    "logsumexp": (lambda x: x.logsumexp((2, 3), keepdim=True), False),
    "softmax": (lambda x: x.softmax(2), False),
    "batch_norm-plain": (
        lambda x: F.batch_norm(x, torch.ones_like(x[0, :, 0, 0]), torch.ones_like(x[0, :, 0, 0])),
        False,
    ),
}


@pytest.mark.parametrize(("function", "zero"), SPACE.values(), ids=SPACE)
def test_channel_when_it_is_zero_then_it_is_exact_only_if_it_stays_zero(function, zero):
    case = channels(lambda m, x: x * function(x).sum((1, 2, 3), keepdim=True).square())
    structure = structure_of(case)
    result = cut_half(case, structure, structure.groups)
    assert structure["first"].exact == zero
    assert (result.verification.difference < 1e-10) == zero


# What is watched, and what stays as it was.

_operators = torch.library.Library("secateur_tests", "DEF")
_operators.define("mystery(Tensor x) -> Tensor")
_operators.impl("mystery", lambda x: x.flip(-1), "CompositeExplicitAutograd")


def test_analyze_when_an_operation_is_unknown_then_what_it_touches_is_frozen_by_its_name():
    case = features(
        lambda m, x: torch.ops.secateur_tests.mystery(m.mid(x).relu()),
        mid=nn.Linear(8, 6),
        after=6,
    )
    structure = structure_of(case)
    assert [g.name for g in structure.groups] == ["first"]
    assert list(structure.unknown) == ["secateur_tests.mystery.default"]
    for name in ("mid", "last:1"):
        assert structure[name].frozen.why == "secateur_tests.mystery.default has no rule"
    assert cut_half(case, structure, structure.exact).verification.difference < 1e-10


class Watched(nn.Module):
    """Holds integers in every way that is traced, and can fail at the end of its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 12), nn.Linear(12, 2)
        self.heads, self.sizes, self.pair, self.flag = 3, [3, 4], (3, 4), True
        self.norm = nn.BatchNorm1d(12)
        self.fail = False
        self.seen: Any = None
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.layer(x)).view(-1, self.heads, self.sizes[1]).flatten(1)
        self.seen = self.heads
        if self.fail:
            raise ValueError("at the end")
        return self.last(x)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return every attribute of every module, by type and value."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_") and name != "seen":
                kinds = [type(v) for v in value] if isinstance(value, (list, tuple)) else None
                found[f"{path}.{name}"] = (type(value), kinds, value)
        found[f"{path} hooks"] = len(module._forward_hooks), len(module._forward_pre_hooks)
    return found


@pytest.mark.parametrize("fails", [False, True], ids=["works", "fails"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_analyze_when_it_is_done_then_the_model_is_as_before(fails, training):
    model = Watched().train(training)
    model.norm.eval()  # a module may have a mode of its own
    model.fail = fails
    before = snapshot(model)
    state = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    random = torch.get_rng_state()
    if fails:
        with pytest.raises(TraceError, match="ValueError: at the end"):
            analyze(model, torch.zeros(2, 4))
    else:
        assert analyze(model, torch.zeros(2, 4)).groups
    assert snapshot(model) == before
    assert type(model.seen) is int
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == state[name][0]
        assert torch.equal(tensor, state[name][1])
    assert torch.equal(torch.get_rng_state(), random)
    assert model(torch.zeros(2, 4)) is not None if not fails else True


def test_analyze_when_the_forward_fails_then_the_error_says_where_and_on_what():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(6, 2))
    with pytest.raises(TraceError) as raised:
        analyze(model, torch.zeros(2, 4))
    message = str(raised.value)
    assert "Sequential failed on the example inputs ((2, 4))" in message


def test_analyze_when_a_module_fails_then_the_error_names_it():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(6, 2))
    with pytest.raises(TraceError, match=r"in '1'"):
        analyze(model, torch.zeros(2, 4))


def test_analyze_when_the_model_is_on_meta_then_the_groups_are_those_of_the_real_one():
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))

    real = analyze(build(), torch.zeros(2, 3, 6, 6))
    with torch.device("meta"):
        model = build()
    found = analyze(model, torch.zeros(2, 3, 6, 6))
    assert [str(g) for g in found.groups] == [str(g) for g in real.groups]
    assert found.cost() == real.cost()
    assert all(p.is_meta for p in [*model.parameters(), *model.buffers()])


def test_shared_module_when_it_is_called_twice_then_its_axes_are_those_of_both_calls():
    case = features(lambda m, x: m.mid(F.relu(m.mid(x))), mid=nn.Linear(8, 8), exact={"first": 8})
    structure = structure_of(case)
    assert {g.name: g.size for g in structure.exact} == {"first": 8}
    members = {(m.tensor, m.dim) for m in structure["first"].members}
    assert {("mid.weight", 0), ("mid.weight", 1), ("mid.bias", 0)} <= members
    assert cut_half(case, structure, structure.exact).verification.difference < 1e-10


def test_tied_weights_when_they_are_cut_then_they_stay_tied():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 10, bias=False))
    model[2].weight = model[0].weight
    case = Case(model, torch.arange(6).view(2, 3))
    structure = structure_of(case)
    assert {g.name: g.size for g in structure.exact} == {"0:1": 8}
    result = cut_half(case, structure, structure.exact)
    assert result.model[2].weight is result.model[0].weight
    assert result.verification.difference < 1e-10
    assert result.after.params == sum(p.numel() for p in result.model.parameters())


def test_containers_when_inputs_and_outputs_are_nested_then_all_their_axes_are_frozen():
    model = Net(
        lambda m, x, more: {"y": [m.b(m.a(x)), {"hidden": m.c(more["z"][0])}], "n": 3},
        a=nn.Linear(3, 8),
        b=nn.Linear(8, 2),
        c=nn.Linear(3, 5),
    )
    case = Case(model, {"x": numbers(4, 3), "more": {"z": [numbers(4, 3)]}})
    structure = structure_of(case)
    assert [g.name for g in structure.groups] == ["a"]
    assert structure["c"].frozen.why == "it is the model's output"
    assert structure["a:1"].frozen.why == "it is the model's input"
    assert cut_half(case, structure, structure.exact).verification.difference < 1e-10


def test_constant_when_the_code_holds_a_tensor_then_its_axes_are_frozen():
    constant = numbers(8)
    structure = structure_of(features(lambda m, x: x * constant))
    assert structure["first"].frozen.why == "a constant that is no parameter or buffer"
