"""Biases, target_settings, exclude, later entries."""

from __future__ import annotations

import torch

from tests.nni.pruning.rules import (
    assert_same,
    compressed,
    every_pruner,
    lowest,
    mask_without,
    scores_of,
)


@every_pruner
def test_compress_when_a_channel_goes_then_its_bias_goes(model, kind):
    config = {"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5, "granularity": "out_channel"}
    masks = compressed(kind, model, config)
    for name in ("conv", "fc1", "fc2"):
        alive = [1.0 if channel.any() else 0.0 for channel in masks[name]["weight"]]
        assert masks[name]["bias"].tolist() == alive, name
        assert 0 in alive, name


@every_pruner
def test_compress_when_a_convolution_is_transposed_then_the_bias_follows_its_outputs(model, kind):
    masks = compressed(
        kind, model, {"op_names": ["up"], "sparse_ratio": 0.5, "granularity": "out_channel"}
    )
    alive = [1.0 if masks["up"]["weight"][:, i].any() else 0.0 for i in range(4)]
    assert masks["up"]["bias"].tolist() == alive
    assert sum(alive) == 2


@every_pruner
def test_compress_when_targets_are_named_then_only_those_are_masked(model, kind):
    masks = compressed(
        kind, model, {"op_names": ["conv"], "target_names": ["weight"], "sparse_ratio": 0.5}
    )
    assert {name: list(targets) for name, targets in masks.items()} == {"conv": ["weight"]}


@every_pruner
def test_compress_when_a_bias_has_its_own_setting_then_it_is_scored_by_itself(model, kind):
    bias = model.fc1.bias.detach().clone()
    config = {
        "op_names": ["fc1"],
        "sparse_ratio": 0.5,
        "target_settings": {"bias": {"sparse_ratio": 0.75, "granularity": "element"}},
    }
    masks = compressed(kind, model, config)
    gone = lowest(scores_of(kind, bias, "element"), 9)
    assert_same(masks, "fc1.bias", mask_without(gone, bias.shape, "element"))
    assert float(masks["fc1"]["weight"].mean()) == 0.5


@every_pruner
def test_compress_when_a_target_is_aligned_to_another_module_then_it_follows_its_mask(model, kind):
    masks = compressed(
        kind,
        model,
        {"op_names": ["conv"], "sparse_ratio": 0.5, "granularity": "out_channel"},
        {
            "op_names": ["bn"],
            "target_names": ["weight", "bias"],
            "target_settings": {
                "weight": {"align": {"module_name": "conv", "target_name": "weight", "dims": [0]}},
                "bias": {"align": {"module_name": "conv", "target_name": "bias"}},
            },
        },
    )
    alive = masks["conv"]["weight"].flatten(1).amax(1)
    assert torch.equal(masks["bn"]["weight"], alive)
    assert torch.equal(masks["bn"]["bias"], alive)


@every_pruner
def test_compress_when_modules_are_excluded_then_they_have_no_masks(model, kind):
    masks = compressed(
        kind,
        model,
        {"op_types": ["Conv2d", "Linear"], "exclude_op_names": ["fc2"], "sparse_ratio": 0.5},
        {"op_names_re": ["wid.*"], "exclude": True},
    )
    assert sorted(masks) == ["conv", "fc1"]


@every_pruner
def test_compress_when_a_later_entry_names_a_module_again_then_it_decides(model, kind):
    masks = compressed(
        kind,
        model,
        {"op_types": ["Linear"], "sparse_ratio": 0.25},
        {"op_names": ["fc1"], "sparse_ratio": 0.75},
    )
    assert float(masks["fc1"]["weight"].mean()) == 0.25
    assert float(masks["fc2"]["weight"].mean()) == 0.75
