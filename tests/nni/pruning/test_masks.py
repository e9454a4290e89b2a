"""Masks on the model: put on, changed, taken off, fused."""

from __future__ import annotations

import copy

import pytest
import torch

from secateur.errors import MaskError
from secateur.nni.pruning import FPGMPruner, L1NormPruner, LevelPruner
from tests.nni.pruning.rules import PRUNERS, compressed, every_pruner

# masks on the model


@every_pruner
def test_compress_then_returns_the_model_and_its_masks_are_on(model, kind, example):
    dense = copy.deepcopy(model)
    pruner = kind(model, [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5}])
    same, masks = pruner.compress()
    assert same is model
    assert pruner.bound_model is model
    with torch.no_grad():
        for name, targets in masks.items():
            for target, mask in targets.items():
                if mask is not None:
                    dense.get_submodule(name).get_parameter(target).mul_(mask)
        assert torch.equal(model(example), dense(example))


@every_pruner
def test_compress_when_a_layer_has_no_bias_then_its_mask_is_none(model, kind):
    masks = compressed(kind, model, {"op_types": ["Conv2d"], "sparse_ratio": 0.5})
    assert masks["wide"]["bias"] is None
    assert {name: set(targets) for name, targets in masks.items()} == {
        "conv": {"weight", "bias"},
        "wide": {"weight", "bias"},
    }


@every_pruner
def test_get_masks_when_called_before_compress_then_they_are_none(model, kind):
    pruner = kind(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    assert pruner.get_masks() == {"conv": {"weight": None, "bias": None}}


@every_pruner
def test_get_masks_when_changed_by_the_caller_then_the_pruner_keeps_its_own(model, kind):
    pruner = kind(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    masks["conv"]["weight"].zero_()
    assert pruner.get_masks()["conv"]["weight"].any()
    assert model.conv.weight.any()


@every_pruner
def test_generate_masks_then_nothing_is_on_until_wrap_model(model, kind, example):
    before = model(example)
    pruner = kind(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    masks = pruner.generate_masks()
    assert torch.equal(model(example), before)
    pruner.wrap_model()
    assert torch.equal(model.conv.weight == 0, masks["conv"]["weight"] == 0)


@every_pruner
def test_compress_when_called_twice_then_the_masks_are_the_same(model, kind):
    pruner = kind(model, [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5}])
    _, first = pruner.compress()
    _, second = pruner.compress(10, 1)
    assert torch.equal(first["conv"]["weight"], second["conv"]["weight"])


@every_pruner
def test_update_masks_when_masks_are_on_then_dense_weights_come_back(model, kind, example):
    dense = copy.deepcopy(model)
    pruner = kind(model, [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    assert not torch.equal(model(example), dense(example))
    pruner.update_masks(
        {
            m: {t: None if k is None else torch.ones_like(k) for t, k in ts.items()}
            for m, ts in masks.items()
        }
    )
    assert torch.equal(model(example), dense(example))


@every_pruner
def test_update_masks_when_given_what_get_masks_returned_then_nothing_changes(model, kind, example):
    first = kind(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    first.compress()
    pruner = LevelPruner.from_compressor(first, [{"op_names": ["fc1"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    before = model(example)
    pruner.update_masks(masks)
    assert torch.equal(model(example), before)
    assert torch.equal(pruner.get_masks()["conv"]["weight"], masks["conv"]["weight"])


@every_pruner
def test_update_masks_when_masks_are_off_then_they_wait_for_wrap_model(model, kind):
    pruner = kind(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    mask = torch.ones_like(model.conv.weight)
    mask[:3] = 0
    pruner.update_masks({"conv": {"weight": mask}})
    assert model.conv.weight[:3].all()
    pruner.wrap_model()
    assert not model.conv.weight[:3].any()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"cnv": {"weight": torch.ones(1)}}, r"'cnv.weight' is no target.*'conv.weight'"),
        ({"conv": {"wieght": torch.ones(1)}}, r"'conv.wieght' is no target.*'conv.weight'"),
        ({"fc1": {"weight": torch.ones(1)}}, r"'fc1.weight' is no target"),
        (
            {"conv": {"weight": torch.ones(8, 3, 3)}},
            r"'conv.weight' is \(8, 3, 3\), not \(8, 3, 3, 3\)",
        ),
        ({"conv": {"weight": torch.full((8, 3, 3, 3), 0.5)}}, "values other than 0 and 1"),
        ({"conv": {"weight": torch.full((8, 3, 3, 3), torch.nan)}}, "values other than 0 and 1"),
        ({"conv": {"weight": [1, 0]}}, "'conv.weight' is a list, not a tensor"),
    ],
)
def test_update_masks_when_a_mask_does_not_fit_then_says_so_and_changes_nothing(
    model, masks, message
):
    pruner = L1NormPruner(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    pruner.compress()
    before = pruner.get_masks()["conv"]
    good = {"conv": {"bias": torch.zeros(8)}}
    with pytest.raises(MaskError, match=message):
        pruner.update_masks({**good, **masks} if "conv" not in masks else masks)
    after = pruner.get_masks()["conv"]
    assert all(torch.equal(before[name], after[name]) for name in before)


@every_pruner
def test_unwrap_model_then_the_model_is_bare_and_keeps_its_zeros(model, kind, example):
    keys = list(model.state_dict())
    parameters = dict(model.named_parameters())
    classes = [type(module) for module in model.modules()]
    pruner = kind(model, [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    masked = model(example)
    assert pruner.unwrap_model() is model
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == classes
    assert all(parameters[n] is p for n, p in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(example), masked)
    assert not model.conv.weight[masks["conv"]["weight"] == 0].any()


@every_pruner
def test_unwrap_model_when_nothing_is_on_then_the_model_is_as_before(model, kind):
    state = copy.deepcopy(model.state_dict())
    kind(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}]).unwrap_model()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@every_pruner
def test_training_when_masks_are_on_then_kept_weights_learn_and_masked_ones_stay_zero(
    model, kind, example
):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    _, masks = kind(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}]).compress()
    before = model.conv.weight.detach().clone()
    model(example).square().sum().backward()
    optimizer.step()
    gone = masks["conv"]["weight"] == 0
    assert not model.conv.weight[gone].any()
    assert not torch.equal(model.conv.weight[~gone], before[~gone])


# from_compressor


@every_pruner
@pytest.mark.parametrize("first", PRUNERS)
def test_from_compressor_when_both_mask_one_target_then_the_masks_multiply(
    model, kind, first, example
):
    alone = compressed(kind, copy.deepcopy(model), {"op_names": ["conv"], "sparse_ratio": 0.5})[
        "conv"
    ]["weight"]
    one = first(model, [{"op_names": ["conv", "fc1"], "sparse_ratio": 0.25}])
    _, masks = one.compress()
    two = kind.from_compressor(one, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    assert isinstance(two, kind)
    same, both = two.compress()
    assert same is model
    assert torch.equal(both["conv"]["weight"], masks["conv"]["weight"] * alone)
    assert torch.equal(both["fc1"]["weight"], masks["fc1"]["weight"])
    assert torch.equal(model.conv.weight == 0, both["conv"]["weight"] == 0)
    masked = model(example)
    two.unwrap_model()
    assert not [key for key in model.state_dict() if "parametrizations" in key]
    assert torch.equal(model(example), masked)


def test_from_compressor_when_three_are_fused_then_all_masks_hold(model):
    one = LevelPruner(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    one.compress()
    two = L1NormPruner.from_compressor(one, [{"op_names": ["wide"], "sparse_ratio": 0.5}])
    two.compress()
    three = FPGMPruner.from_compressor(two, [{"op_types": ["Linear"], "sparse_ratio": 0.5}])
    _, masks = three.compress()
    assert sorted(masks) == ["conv", "fc1", "fc2", "wide"]
    three.unwrap_model()
    for name in masks:
        assert torch.equal(model.get_submodule(name).weight == 0, masks[name]["weight"] == 0), name


def test_from_compressor_when_given_an_evaluator_then_it_is_used_and_else_inherited(model):
    one = L1NormPruner(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}], "first")
    config = [{"op_names": ["fc1"], "sparse_ratio": 0.5}]
    assert L1NormPruner.from_compressor(one, config).evaluator == "first"
    assert L1NormPruner.from_compressor(one, config, "second").evaluator == "second"
    assert L1NormPruner.from_compressor(one, config, evaluator="third").evaluator == "third"
