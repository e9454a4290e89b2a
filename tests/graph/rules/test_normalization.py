"""Batch, layer, group, instance and RMS normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.graph.rules.harness import Case, check, features, layer, numbers, over
from tests.graph.rules.laws import Law

CASES = {
    "batch_norm": layer(nn.BatchNorm2d(8)),
    "batch_norm-plain": layer(nn.BatchNorm2d(8, affine=False)),
    "batch_norm-no-statistics": layer(nn.BatchNorm2d(8, track_running_stats=False)),
    "batch_norm-1d": features(lambda m, x: m.mid(x), mid=nn.BatchNorm1d(8)),
    "layer_norm": features(
        lambda m, x: m.mid(x), mid=nn.LayerNorm(8), exact={}, inexact={"first": "mean and variance"}
    ),
    "rms_norm": features(
        lambda m, x: m.mid(x), mid=nn.RMSNorm(8), exact={}, inexact={"first": "no attribute"}
    ),
    "rms_norm-eps": features(lambda m, x: m.mid(x), mid=nn.RMSNorm(8, eps=0.1)),
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


@over(CASES)
def test_normalization_when_half_is_cut_then_the_groups_are_these_and_behave_as_they_say(case):
    check(case)


# The law: cutting the inputs of one call is cutting its outputs.

LAWS = {
    "batch_norm": Law(
        lambda m: F.batch_norm(m.x, m.mean, m.var.square(), m.w, m.b),
        x="n c l",
        mean="c",
        var="c",
        w="c",
        b="c",
    ),
    "batch_norm-of-batch": Law(
        lambda m: F.batch_norm(m.x, None, None, m.w, m.b, True), x="n c 5", w="c", b="c"
    ),
    "layer_norm": Law(
        lambda m: F.layer_norm(m.x, (m.d,), m.w, m.b), {"d": 3}, x="n l d", w="d", b="d"
    ),
    "layer_norm-of-two": Law(
        lambda m: F.layer_norm(m.x, (m.c, m.d), m.w, m.b), {"d": 3}, x="n c d", w="c d", b="c d"
    ),
    "rms_norm": Law(lambda m: F.rms_norm(m.x, (m.d,), m.w), x="n l d", w="d"),
    "group_norm": Law(
        lambda m: F.group_norm(m.x, m.g, m.w, m.b), x="n (g c) 4", w="(g c)", b="(g c)"
    ),
    "instance_norm": Law(
        lambda m: F.instance_norm(m.x, None, None, m.w, m.b), keep=2, x="n c 5", w="c", b="c"
    ),
    "local_response_norm": Law(lambda m: F.local_response_norm(m.x, 3), x="n c 5"),
    "weight_norm": Law(lambda m: torch._weight_norm(m.v, m.g, 0), v="o i", g="o 1"),
    "weight_norm_interface": Law(
        lambda m: torch._weight_norm_interface(m.v, m.g, 0), v="o i", g="o 1"
    ),
    "normalize": Law(lambda m: F.normalize(m.x, dim=1), x="n c l"),
}


@over(LAWS)
def test_normalization_when_inputs_are_cut_then_outputs_are_cut_alike(case):
    case.check()
