"""How much goes, and which: ratios, granularities, thresholds and their bounds."""

from __future__ import annotations

import pytest

from secateur.errors import ConfigError
from secateur.masks.masking import dense
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

# sparse_ratio and granularity


@every_pruner
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("layer", ["conv", "wide", "bn", "fc1"])
def test_compress_when_given_a_ratio_then_the_floor_of_it_goes_smallest_first(
    model, kind, layer, ratio
):
    weight = model.get_submodule(layer).weight.detach().clone()
    masks = compressed(kind, model, {"op_names": [layer], "sparse_ratio": ratio})
    scores = scores_of(kind, weight, default(kind))
    gone = lowest(scores, share(len(scores), ratio))
    assert_same(masks, f"{layer}.weight", mask_without(gone, weight.shape, default(kind)))


@every_pruner
@pytest.mark.parametrize(
    ("layer", "granularity"),
    [
        ("conv", "out_channel"),
        ("conv", "in_channel"),
        ("fc1", "in_channel"),
        ("conv", [1, -1, -1, -1]),
        ("conv", [2, -1, -1, -1]),
        ("conv", [-1, -1]),
        ("conv", [3, 2, -1, -1]),  # blocks hang over both ends
        ("fc1", [2, 2]),
        ("fc1", [1, -1]),
        ("fc1", [-1, 1]),
        ("fc1", [4]),
    ],
)
def test_compress_when_given_a_granularity_then_whole_blocks_go(model, kind, layer, granularity):
    weight = model.get_submodule(layer).weight.detach().clone()
    masks = compressed(
        kind, model, {"op_names": [layer], "sparse_ratio": 0.5, "granularity": granularity}
    )
    scores = scores_of(kind, weight, granularity)
    gone = lowest(scores, share(len(scores), 0.5))
    assert_same(masks, f"{layer}.weight", mask_without(gone, weight.shape, granularity))


@every_pruner
@pytest.mark.parametrize(("granularity", "dim"), [("out_channel", 1), ("in_channel", 0)])
def test_compress_when_a_convolution_is_transposed_then_channels_are_the_other_dimension(
    model, kind, granularity, dim
):
    weight = model.up.weight.detach().transpose(0, 1).clone()
    masks = compressed(
        kind, model, {"op_names": ["up"], "sparse_ratio": 0.5, "granularity": granularity}
    )
    scores = scores_of(kind, weight, granularity)
    gone = lowest(scores, len(scores) // 2)
    expected = mask_without(gone, weight.shape, granularity).transpose(0, 1)
    assert_same(masks, "up.weight", expected)
    assert int((masks["up"]["weight"].transpose(0, dim).flatten(1).sum(1) == 0).sum()) == len(gone)


@every_pruner
def test_compress_when_all_should_go_then_one_block_stays_and_the_notes_say_so(model, kind):
    pruner = kind(model, [{"op_names": ["conv"], "sparse_ratio": 1.0}])
    _, masks = pruner.compress()
    scores = scores_of(kind, dense(model.conv, "weight"), default(kind))
    gone = lowest(scores, len(scores) - 1)
    assert_same(masks, "conv.weight", mask_without(gone, model.conv.weight.shape, default(kind)))
    assert any("conv.weight" in note for note in pruner.notes)


# thresholds and bounds


@every_pruner
@pytest.mark.parametrize("share_below", [0.0, 0.25, 0.6])
@pytest.mark.parametrize(("low", "high"), [(None, None), (0.4, None), (None, 0.3), (0.1, 0.5)])
def test_compress_when_given_a_threshold_then_lower_scores_go_within_the_bounds(
    model, kind, share_below, low, high
):
    weight = model.conv.weight.detach().clone()
    scores = scores_of(kind, weight, "out_channel")
    below = int(share_below * len(scores))
    ranked = sorted(scores)
    threshold = (ranked[below] + (ranked[below - 1] if below else 0)) / 2
    if kind is LevelPruner:  # its score of a block is the mean
        threshold /= weight[0].numel()
    config = {
        "op_names": ["conv"],
        "sparse_threshold": threshold,
        "min_sparse_ratio": low,
        "max_sparse_ratio": high,
        "granularity": "out_channel",
    }
    masks = compressed(kind, model, config)
    count = below
    if low is not None and below / len(scores) < low:
        count = share(len(scores), low)
    if high is not None and below / len(scores) > high:
        count = share(len(scores), high)
    gone = lowest(scores, count)
    assert_same(masks, "conv.weight", mask_without(gone, weight.shape, "out_channel"))


@every_pruner
@pytest.mark.parametrize(
    ("ratio", "bounds", "expected"),
    [
        (0.1, {"min_sparse_ratio": 0.5}, 0.5),
        (0.9, {"max_sparse_ratio": 0.25}, 0.25),
        (0.5, {"min_sparse_ratio": 0.25, "max_sparse_ratio": 0.75}, 0.5),
    ],
)
def test_compress_when_a_ratio_is_out_of_bounds_then_the_bound_holds(
    model, kind, ratio, bounds, expected
):
    weight = model.conv.weight.detach().clone()
    masks = compressed(kind, model, {"op_names": ["conv"], "sparse_ratio": ratio, **bounds})
    scores = scores_of(kind, weight, default(kind))
    gone = lowest(scores, share(len(scores), expected))
    assert_same(masks, "conv.weight", mask_without(gone, weight.shape, default(kind)))


@every_pruner
@pytest.mark.parametrize("goal", [{}, {"min_sparse_ratio": 0.2}, {"max_sparse_ratio": 0.2}])
def test_init_when_an_entry_has_no_goal_then_says_which_target_lacks_it(model, kind, goal):
    with pytest.raises(ConfigError, match=r"entry 1: 'conv.weight' has no goal; give sparse_ratio"):
        kind(model, [{"op_names": ["conv"], **goal}])
