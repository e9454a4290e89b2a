"""Pooling, interpolation, padding, and pixels that become channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.rules.harness import (
    LITERAL,
    Case,
    Net,
    channels,
    check,
    cut_half,
    layer,
    numbers,
    over,
    structure_of,
)
from tests.graph.rules.laws import Law


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


CASES = {
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


@over(CASES)
def test_spatial_when_half_is_cut_then_the_groups_are_these_and_behave_as_they_say(case):
    check(case)


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


# The law: cutting the inputs of one call is cutting its outputs.

LAWS = {
    "max_unpool1d": Law(
        lambda m: F.max_unpool1d(*F.max_pool1d(m.x, 2, return_indices=True), 2), x="n c 4"
    ),
    "max_unpool2d": Law(
        lambda m: F.max_unpool2d(*F.max_pool2d(m.x, 2, return_indices=True), 2), x="n c 4 4"
    ),
    "max_unpool3d": Law(
        lambda m: F.max_unpool3d(*F.max_pool3d(m.x, 2, return_indices=True), 2), x="n c 4 4 4"
    ),
    "transformed": Law(
        lambda m: F.grid_sample(
            m.x, F.affine_grid(m.t, m.x.shape, align_corners=True), align_corners=True
        ),
        x="2 c 3 3",
        t="2 2 3",
    ),
    **{
        f"{name}{d}d": Law(lambda m, f=f: f(m.x, 2), x="n c" + " 4" * d)
        for name in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
        for d in (1, 2, 3)
        for f in [getattr(F, f"{name}{d}d")]
    },
    **{
        f"{mode}-pad{d}d": Law(
            lambda m, d=d, mode=mode: F.pad(m.x, (1, 1) * d, mode), x="n c" + " 4" * d
        )
        for mode in ("reflect", "replicate", "circular")
        for d in (1, 2, 3)
    },
    **{
        f"interpolate-{mode}-{d}d": Law(
            lambda m, mode=mode: F.interpolate(m.x, scale_factor=2, mode=mode),
            x="n c" + " 3" * d,
        )
        for d, modes in (
            (1, "nearest linear nearest-exact"),
            (2, "nearest bilinear bicubic"),
            (2, "nearest-exact"),
            (3, "nearest trilinear nearest-exact"),
        )
        for mode in modes.split()
    },
    **{
        f"antialiased-{mode}": Law(
            lambda m, mode=mode: F.interpolate(m.x, size=2, mode=mode, antialias=True),
            x="n c 4 4",
        )
        for mode in ("bilinear", "bicubic")
    },
    "max_pool-with-indices": Law(lambda m: F.max_pool2d(m.x, 2, return_indices=True), x="n c 4 4"),
    "pad": Law(lambda m: F.pad(m.x, (m.a, m.a, m.b, 0)), least={"a": 1, "b": 1}, x="n c l"),
    "pad-value": Law(lambda m: F.pad(m.x, (1, 1), value=2), x="n c l"),
    "pixel_shuffle": Law(lambda m: F.pixel_shuffle(m.x, 2), x="n (c 4) 3 3"),
    "pixel_unshuffle": Law(lambda m: F.pixel_unshuffle(m.x, 2), x="n c 4 4"),
    "channel_shuffle": Law(lambda m: F.channel_shuffle(m.x, m.g), x="n (g c) 3 3"),
    "unfold": Law(lambda m: F.unfold(m.x, 3), x="n c 4 4"),
    "unfold-read": Law(lambda m: F.unfold(m.x, 3).view(m.x.shape[0], -1, 9, 4), x="n c 4 4"),
    "fold": Law(lambda m: F.fold(m.x, (4, 4), 3), x="n (c 9) 4"),
    "grid_sample": Law(
        lambda m: F.grid_sample(m.x, m.g, align_corners=False), x="n c 4 4", g="n 3 3 2"
    ),
}


@over(LAWS)
def test_spatial_when_inputs_are_cut_then_outputs_are_cut_alike(case):
    case.check()
