"""Convolutions: plain, grouped, depthwise, transposed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.rules.harness import FC, GROUPED, Case, check, features, layer, numbers, over
from tests.graph.rules.laws import Law


def pointwise_and_sum(m: nn.Module, x: Tensor) -> Tensor:
    y = m.mid(x.unsqueeze(1)).squeeze(1)
    return y + y.sum(-1, keepdim=True)


CASES = {
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
    "over-features": features(  # channels of size 1, so that features are its space
        pointwise_and_sum, mid=nn.Conv1d(1, 1, 1, bias=False)
    ),
    "over-features-biased": features(  # the bias, which no mask removes, is in the sum
        pointwise_and_sum, mid=nn.Conv1d(1, 1, 1), exact={}, inexact={"first": "summed over"}
    ),
    "over-features-strided": features(
        lambda m, x: m.mid(x.unsqueeze(1)).squeeze(1),
        mid=nn.Conv1d(1, 1, 1, stride=2),
        after=4,
        exact={},
        frozen={"first": "a spatial dimension"},
    ),
    "transposed-and-longer": layer(  # a position more, of which no input knows
        nn.ConvTranspose2d(8, 6, 1, dilation=2, output_padding=1),
        after=6,
        exact={"first": 8, "mid:1": 6},
    ),
    "unbatched": Case(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)), numbers(3, 6, 6), {"0": 8}
    ),
}


@over(CASES)
def test_convolution_when_half_is_cut_then_the_groups_are_these_and_behave_as_they_say(case):
    check(case)


# The law: cutting the inputs of one call is cutting its outputs.

LAWS = {
    **{
        f"conv{d}d": Law(
            lambda m, f=f: f(m.x, m.w, m.b), x="n i" + " 5" * d, w="o i" + " 3" * d, b="o"
        )
        for d, f in enumerate((F.conv1d, F.conv2d, F.conv3d), 1)
    },
    **{
        f"conv_transpose{d}d": Law(
            lambda m, f=f: f(m.x, m.w, m.b, 2),
            x="n i" + " 3" * d,
            w="i o" + " 3" * d,
            b="o",
        )
        for d, f in enumerate((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), 1)
    },
    **{
        f"grouped-{d}d": Law(
            lambda m, f=f: f(m.x, m.w, m.b, groups=m.g),
            x="n (g i)" + " 3" * d,
            w="(g o) i" + " 2" * d,
            b="(g o)",
        )
        for d, f in enumerate((F.conv1d, F.conv2d, F.conv3d), 1)
    },
    **{
        f"grouped-transposed-{d}d": Law(
            lambda m, f=f: f(m.x, m.w, m.b, groups=m.g),
            x="n (g i)" + " 2" * d,
            w="(g i) o" + " 2" * d,
            b="(g o)",
        )
        for d, f in enumerate((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), 1)
    },
    **{
        f"{kind}-without-bias": Law(lambda m, f=f: f(m.x, m.w, groups=m.g), x=x, w=w)
        for kind, f, x, w in (
            ("grouped", F.conv2d, "n (g i) 3 3", "(g o) i 2 2"),
            ("depthwise", F.conv2d, "n g 4 4", "g 1 3 3"),
            ("multiplied", F.conv2d, "n g 4 4", "(g o) 1 3 3"),
            ("to-one-each", F.conv2d, "n (g i) 3 3", "g i 2 2"),
            ("transposed-grouped", F.conv_transpose2d, "n (g i) 3 3", "(g i) o 3 3"),
            ("transposed-depthwise", F.conv_transpose2d, "n g 3 3", "g 1 3 3"),
            ("transposed-multiplied", F.conv_transpose2d, "n g 3 3", "g o 3 3"),
            ("transposed-to-one-each", F.conv_transpose2d, "n (g i) 3 3", "(g i) 1 3 3"),
        )
    },
}


@over(LAWS)
def test_convolution_when_inputs_are_cut_then_outputs_are_cut_alike(case):
    case.check()
