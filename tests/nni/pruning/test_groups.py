"""Targets that are ranked, or masked, together."""

from __future__ import annotations

import copy

import pytest
import torch

from secateur.errors import ConfigError
from secateur.nni.pruning import LevelPruner
from tests.nni.pruning.rules import (
    RATIOS,
    assert_same,
    compressed,
    default,
    every_pruner,
    lowest,
    mask_without,
    scores_of,
    share,
)


def global_counts(members: list[tuple[list[float], float]], ratio: float) -> list[set[int]]:
    """The definition: take the smallest score of all while its elements fit into the share.

    The largest score of each member is not offered: one block of every layer stays.
    """
    ranked = sorted(
        (score, i, scores.index(score))
        for i, (scores, _) in enumerate(members)
        for score in sorted(scores)[:-1]
    )
    budget = ratio * sum(len(scores) * grain for scores, grain in members)
    gone: list[set[int]] = [set() for _ in members]
    spent = 0.0
    for _, i, j in ranked:
        spent += members[i][1]
        if spent > budget + 1e-9:
            break
        gone[i].add(j)
    return gone


@every_pruner
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.6])
def test_compress_when_layers_share_a_global_group_then_their_scores_are_ranked_together(
    model, kind, ratio
):
    layers = ["conv", "wide", "fc2"]
    weights = [model.get_submodule(name).weight.detach().clone() for name in layers]
    scores = [scores_of(kind, weight, default(kind)) for weight in weights]
    members = [(s, w.numel() / len(s)) for s, w in zip(scores, weights, strict=True)]
    masks = compressed(
        kind, model, {"op_names": layers, "sparse_ratio": ratio, "global_group_id": "g"}
    )
    for name, weight, gone in zip(layers, weights, global_counts(members, ratio), strict=True):
        assert_same(masks, f"{name}.weight", mask_without(gone, weight.shape, default(kind)))


@every_pruner
def test_compress_when_a_global_group_would_empty_a_layer_then_one_block_stays(model, kind):
    with torch.no_grad():
        model.fc2.weight *= 1e-6
        model.conv.weight *= 1e6
    pruner = kind(model, [{"op_names": ["conv", "fc2"], "sparse_ratio": 0.3, "global_group_id": 1}])
    _, masks = pruner.compress()
    assert masks["fc2"]["weight"].any()
    assert any("fc2.weight" in note for note in pruner.notes)


@every_pruner
def test_compress_when_a_global_group_has_bounds_then_each_member_keeps_them(model, kind):
    layers = ["conv", "wide", "fc1"]
    config = {
        "op_names": layers,
        "sparse_ratio": 0.5,
        "global_group_id": "g",
        "min_sparse_ratio": 0.25,
        "max_sparse_ratio": 0.75,
    }
    masks = compressed(kind, model, config)
    for name in layers:
        gone = 1 - float(masks[name]["weight"].mean())
        assert 0.25 <= gone <= 0.75, f"{name} lost {gone:.0%}"


@every_pruner
@pytest.mark.parametrize(
    ("ratio", "bound"), [(0.2, {"min_sparse_ratio": 0.5}), (0.8, {"max_sparse_ratio": 0.5})]
)
def test_compress_when_a_global_ratio_is_beyond_all_bounds_then_every_member_is_at_its_bound(
    model, kind, ratio, bound
):
    layers = ["conv", "wide", "fc1"]
    config = {"op_names": layers, "sparse_ratio": ratio, "global_group_id": "g", **bound}
    masks = compressed(kind, model, config)
    assert {name: float(masks[name]["weight"].mean()) for name in layers} == dict.fromkeys(
        layers, 0.5
    )


@every_pruner
@pytest.mark.parametrize("ratio", RATIOS)
def test_compress_when_layers_depend_then_scores_are_averaged_and_the_mask_is_one(
    model, kind, ratio
):
    layers = ["conv", "wide"]
    weights = [model.get_submodule(name).weight.detach().clone() for name in layers]
    config = {
        "op_names": layers,
        "sparse_ratio": ratio,
        "dependency_group_id": 7,
        "granularity": "out_channel",
    }
    masks = compressed(kind, model, config)
    scores = [scores_of(kind, weight, "out_channel") for weight in weights]
    if kind is LevelPruner:  # its score of a block is the mean
        scores = [[s / w[0].numel() for s in each] for each, w in zip(scores, weights, strict=True)]
    mean = [(a + b) / 2 for a, b in zip(*scores, strict=True)]
    gone = lowest(mean, share(8, ratio))
    for name, weight in zip(layers, weights, strict=True):
        assert_same(masks, f"{name}.weight", mask_without(gone, weight.shape, "out_channel"))


@every_pruner
def test_compress_when_a_target_is_in_both_kinds_of_group_then_the_dependency_decides(model, kind):
    both = {"op_names": ["conv", "wide"], "sparse_ratio": 0.5, "granularity": "out_channel"}
    alone = compressed(kind, copy.deepcopy(model), {**both, "dependency_group_id": 1})
    masks = compressed(
        kind,
        model,
        {**both, "dependency_group_id": 1, "global_group_id": 2},
        {"op_names": ["fc1"], "sparse_ratio": 0.5, "global_group_id": 2},
    )
    assert torch.equal(masks["conv"]["weight"], alone["conv"]["weight"])


@every_pruner
@pytest.mark.parametrize("ratio", RATIOS)
def test_compress_when_the_metric_is_in_blocks_then_each_block_loses_its_share(model, kind, ratio):
    config = {
        "op_names": ["wide"],
        "sparse_ratio": ratio,
        "internal_metric_block": 4,
        "granularity": "out_channel",
    }
    weight = model.wide.weight.detach().clone()
    masks = compressed(kind, model, config)
    gone = lowest(scores_of(kind, weight, "out_channel"), share(2, ratio), parts=4)
    assert_same(masks, "wide.weight", mask_without(gone, weight.shape, "out_channel"))


@every_pruner
def test_compress_when_members_have_different_metric_blocks_then_their_lcm_counts(model, kind):
    common = {"sparse_ratio": 0.5, "dependency_group_id": "d", "granularity": "out_channel"}
    with torch.no_grad():
        model.conv.weight.copy_(torch.arange(1.0, 9.0)[:, None, None, None].expand(8, 3, 3, 3))
        model.conv.weight += 0.01 * torch.randn(
            8, 3, 3, 3, generator=torch.Generator().manual_seed(2)
        )
    masks = compressed(
        kind,
        model,
        {"op_names": ["conv"], "internal_metric_block": 2, **common},
        {"op_names": ["wide"], "internal_metric_block": 4, **common},
    )
    kept = masks["conv"]["weight"].flatten(1)[:, 0]
    assert kept.reshape(4, 2).sum(1).tolist() == [1, 1, 1, 1]
    assert torch.equal(masks["wide"]["weight"].flatten(1)[:, 0], kept)


@every_pruner
@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ({"sparse_ratio": 0.5}, {"sparse_ratio": 0.25}, "sparse_ratio"),
        ({"sparse_threshold": 0.5}, {"sparse_threshold": 0.25}, "sparse_threshold"),
        (
            {"sparse_ratio": 0.5, "max_sparse_ratio": 0.5},
            {"sparse_ratio": 0.5, "max_sparse_ratio": 0.1},
            "max_sparse_ratio",
        ),
    ],
)
def test_init_when_members_of_a_dependency_group_want_different_things_then_says_what(
    model, kind, first, second, word
):
    group = {"dependency_group_id": "d", "granularity": "out_channel"}
    with pytest.raises(ConfigError, match=f"'d': its members must have one {word}"):
        kind(
            model,
            [{"op_names": ["conv"], **first, **group}, {"op_names": ["wide"], **second, **group}],
        )
