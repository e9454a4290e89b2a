"""Dependency groups found in a model, and what pruning with them really removes."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur.nni.utils
from secateur.errors import ConfigError, TraceError
from secateur.nni import speedup
from secateur.nni.common.concrete_trace_utils import concrete_trace
from secateur.nni.config_list import parse, resolve
from secateur.nni.pruning import L1NormPruner
from secateur.nni.speedup import ModelSpeedup
from secateur.nni.utils import auto_set_dependency_group_ids
from tests import zoo

CONVS = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]


def settings_of(config_list: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what the entries say of each module: one says it for each."""
    assert all(len(entry["op_names"]) == 1 for entry in config_list)
    return {entry["op_names"][0]: entry for entry in config_list}


def families(config_list: list[dict[str, Any]]) -> list[list[str]]:
    found: dict[Any, list[str]] = defaultdict(list)
    for name, entry in settings_of(config_list).items():
        if "dependency_group_id" in entry:
            found[entry["dependency_group_id"]].append(name)
    return sorted(found.values())


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# which modules are tied


def test_auto_set_when_a_resnet_is_given_then_each_stage_is_one_group():
    model, example = zoo.build("resnet18")
    stages = [["conv1", "layer1.0.conv2", "layer1.1.conv2"]]
    for stage in ("layer2", "layer3", "layer4"):
        stages.append([f"{stage}.0.conv2", f"{stage}.0.downsample.0", f"{stage}.1.conv2"])
    assert families(auto_set_dependency_group_ids(model, CONVS, example)) == stages


def test_auto_set_when_convolutions_are_depthwise_then_they_go_with_what_they_read():
    model, example = zoo.build("mobilenet_v2")
    found = families(auto_set_dependency_group_ids(model, CONVS, example))
    modules = dict(model.named_modules())
    depthwise = {n for n, m in modules.items() if getattr(m, "groups", 1) > 1}
    grouped = [family for family in found if depthwise & set(family)]
    assert ["features.0.0", "features.1.conv.0.0"] in grouped
    assert ["features.2.conv.0.0", "features.2.conv.1.0"] in grouped
    assert depthwise == {name for family in grouped for name in family} & depthwise
    assert ["features.2.conv.2", "features.3.conv.2"] in found  # the first residual
    entries = auto_set_dependency_group_ids(model, CONVS, example)
    assert not any("internal_metric_block" in entry for entry in entries)


def test_auto_set_when_convolutions_are_grouped_then_their_metric_is_in_blocks():
    model, example = zoo.build("resnext50_32x4d")
    found = settings_of(auto_set_dependency_group_ids(model, CONVS, example))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            inside = name.startswith("layer") and name.endswith(("conv1", "conv2"))
            expected = 32 if inside else None  # what a grouped convolution reads and makes
            assert found.get(name, {}).get("internal_metric_block") == expected, name


class Join(nn.Module):
    """Two layers of one width whose outputs are joined by ``how``."""

    def __init__(self, how: Any):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6)
        self.out = nn.LazyLinear(2)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.how(self.a(x), self.b(x)))


@pytest.mark.parametrize(
    ("how", "tied"),
    [
        (torch.add, True),
        (torch.mul, True),
        (lambda a, b: a.relu() - b.sigmoid(), True),
        (torch.maximum, True),
        (lambda a, b: torch.cat([a, b], -1), False),
    ],
    ids=["add", "mul", "sub", "maximum", "cat"],
)
def test_auto_set_when_outputs_are_joined_then_only_those_that_share_channels_are_tied(how, tied):
    model, example = Join(how), torch.zeros(2, 4)
    model(example)
    config = [{"op_names": ["a", "b"], "sparse_ratio": 0.5}]
    found = families(auto_set_dependency_group_ids(model, config, example))
    assert found == ([["a", "b"]] if tied else [])


# the list that comes back


def test_auto_set_then_there_is_one_entry_for_each_module_and_the_given_list_is_unchanged():
    model, example = zoo.build("resnet18")
    config = [{**CONVS[0], "exclude_op_names": ["layer1.0.conv2"], "max_sparse_ratio": 0.6}]
    given = copy.deepcopy(config)
    found = auto_set_dependency_group_ids(model, config, example)
    assert config == given
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert [e["op_names"] for e in found] == [[n] for n in convs if n != "layer1.0.conv2"]
    assert all((e["sparse_ratio"], e["max_sparse_ratio"]) == (0.5, 0.6) for e in found)
    assert not any(key.startswith(("exclude", "op_types")) for entry in found for key in entry)


def plain(targets: Any) -> dict[str, Any]:
    """Return the settings of each target, but for what ties it and where it was written."""
    free = {"entry": 0, "dependency_group_id": None, "internal_metric_block": None}
    return {t.name: replace(t, **free) for t in targets}


LISTS: dict[str, list[dict[str, Any]]] = {
    "a later entry for one of them": [
        *CONVS,
        {"op_names": ["layer1.0.conv1"], "sparse_ratio": 0.25},
    ],
    "a later entry for one target": [
        *CONVS,
        {"op_names": ["fc"], "sparse_ratio": 0.25},
        {"op_names": ["fc"], "target_names": ["bias"], "sparse_ratio": 0.75},
    ],
    "an exclusion": [*CONVS, {"op_names_re": [r"layer[34]\..*"], "exclude": True}],
    "an exclusion and a return": [
        *CONVS,
        {"op_names": ["conv1", "layer1.0.conv1"], "exclude": True},
        {"op_names": ["layer1.0.conv1"], "sparse_ratio": 0.1},
    ],
    "a regular expression with targets that some lack": [
        {
            "op_names_re": [r"(fc|conv1|bn1|relu)$"],
            "target_names": ["weight", "bias", "running_mean"],
            "sparse_ratio": 0.5,
            "target_settings": {"running_mean": {"sparse_ratio": 0.3}},
        }
    ],
    "a group over all": [{**CONVS[0], "global_group_id": 1, "max_sparse_ratio": 0.9}],
    "an aligned norm": [
        {"op_names": ["conv1"], "sparse_ratio": 0.5},
        {
            "op_names": ["bn1"],
            "target_settings": {
                "weight": {"align": {"module_name": "conv1", "target_name": "weight", "dims": [0]}}
            },
        },
    ],
    "outputs beside weights": [
        {"op_names": ["conv1", "fc"], "target_names": ["weight", "_output_"], "sparse_ratio": 0.5}
    ],
}


@pytest.mark.parametrize("config", LISTS.values(), ids=LISTS)
def test_auto_set_then_the_new_list_selects_and_sets_the_same(config):
    model, example = zoo.build("resnet18")
    found = auto_set_dependency_group_ids(model, config, example)
    assert plain(resolve(parse(found), model)) == plain(resolve(parse(config), model))
    assert all(len(entry["op_names"]) == 1 for entry in found)


def test_auto_set_when_a_total_is_shared_then_the_modules_still_share_it():
    model, example = zoo.build("resnet18")
    config = [{"op_types": ["Conv2d"], "total_sparsity": 0.5}]
    with pytest.warns(DeprecationWarning, match="NNI 2.x's spelling"):
        found = auto_set_dependency_group_ids(model, config, example)
    targets = resolve(parse(found), model)
    assert {t.global_group_id for t in targets} == {"total_sparsity of entry 1"}


def test_auto_set_when_applied_twice_then_the_groups_are_the_same():
    model, example = zoo.build("resnet18")
    once = auto_set_dependency_group_ids(model, CONVS, example)
    twice = auto_set_dependency_group_ids(model, once, example)
    assert families(twice) == families(once)
    L1NormPruner(model, twice)


def test_auto_set_when_an_entry_uses_nni_2_names_then_each_new_entry_selects_one_module():
    model, example = Join(torch.add), torch.zeros(2, 4)
    model(example)
    config = [{"op_partial_names": ["a", "b"], "sparsity": 0.5}]
    with pytest.warns(DeprecationWarning, match="NNI 2.x's spelling"):
        found = auto_set_dependency_group_ids(model, config, example)
    assert found == [
        {"op_names": [name], "sparse_ratio": 0.5, "dependency_group_id": "a"} for name in "ab"
    ]


def test_auto_set_when_single_weights_are_pruned_then_nothing_is_tied():
    model, example = Join(torch.add), torch.zeros(2, 4)
    model(example)
    config = [{"op_names": ["a", "b"], "sparse_ratio": 0.5, "granularity": "element"}]
    assert auto_set_dependency_group_ids(model, config, example) == [
        {**config[0], "op_names": [name]} for name in "ab"
    ]


def test_auto_set_when_the_config_list_is_wrong_then_says_so():
    with pytest.raises(ConfigError, match="Did you mean 'Linear'"):
        auto_set_dependency_group_ids(
            nn.Sequential(nn.Linear(2, 2)), [{"op_types": ["Liner"]}], torch.zeros(1, 2)
        )


def test_auto_set_when_the_forward_fails_then_says_so():
    config = [{"op_types": ["Linear"], "sparse_ratio": 0.5}]
    with pytest.raises(TraceError):
        auto_set_dependency_group_ids(nn.Sequential(nn.Linear(2, 2)), config, torch.zeros(1, 3))


def test_nnis_misspelt_name_is_the_same_function():
    assert secateur.nni.utils.auto_set_denpendency_group_ids is auto_set_dependency_group_ids


# NNI's second function of that name


def test_auto_set_when_tied_modules_have_different_goals_then_the_pruner_says_so():
    model, example = Join(torch.add), torch.zeros(2, 4)
    model(example)
    config = [{"op_names": [name], "sparse_ratio": r} for name, r in (("a", 0.5), ("b", 0.25))]
    found = auto_set_dependency_group_ids(model, config, example)
    with pytest.raises(ConfigError, match="'a': its members must have one sparse_ratio"):
        L1NormPruner(model, found)


def test_second_auto_set_when_given_a_traced_model_then_it_is_the_same():
    model, example = zoo.build("resnet18")
    first = auto_set_dependency_group_ids(model, CONVS, example)
    traced = concrete_trace(model, (example,), use_operator_patch=True, leaf_module=(nn.ReLU,))
    assert speedup.auto_set_denpendency_group_ids(traced, CONVS) == first
    assert traced is model


def test_second_auto_set_when_given_a_dummy_input_then_no_trace_is_needed():
    model, example = zoo.build("resnet18")
    first = auto_set_dependency_group_ids(model, CONVS, example)
    assert speedup.auto_set_denpendency_group_ids(model, CONVS, dummy_input=example) == first


def test_second_auto_set_when_there_are_no_inputs_then_says_what_to_give():
    model, _ = zoo.build("resnet18")
    with pytest.raises(ConfigError, match="give dummy_input="):
        speedup.auto_set_denpendency_group_ids(model, CONVS)
    with pytest.raises(ConfigError, match="prune_axis=1"):
        speedup.auto_set_denpendency_group_ids(model, CONVS, "Filter", 1)


# what pruning with them removes


def pruned(name: str, ratio: float) -> tuple[nn.Module, nn.Module, Tensor, ModelSpeedup]:
    """Return the dense and the smaller model, the example, and how it went."""
    model, example = zoo.build(name)
    dense = copy.deepcopy(model)
    config = auto_set_dependency_group_ids(
        model, [{"op_types": ["Conv2d"], "sparse_ratio": ratio}], example
    )
    pruner = L1NormPruner(model, config)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    speedup = ModelSpeedup(model, example, masks)
    return dense, speedup.speedup_model(), example, speedup


def output_gap(dense: nn.Module, small: nn.Module, example: Tensor, speedup: ModelSpeedup) -> float:
    state = dense.state_dict()
    with torch.no_grad():
        for name, mask in speedup.result.masks.items():
            dense.get_parameter(name).mul_(mask)
        for name, amount in speedup.result.folded.items():
            state[name].add_(amount)
        expected = dense(example)
        return float((expected - small(example)).abs().max() / expected.abs().max())


@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize("name", ["resnet18", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def test_auto_set_then_pruning_and_speedup_remove_the_share_from_every_convolution(name, ratio):
    dense, small, example, speedup = pruned(name, ratio)
    convs = [(n, m) for n, m in dense.named_modules() if isinstance(m, nn.Conv2d)]
    left = 0
    for i, (path, before) in enumerate(convs):
        after = small.get_submodule(path)
        kept_out = before.out_channels - int(before.out_channels * ratio)
        kept_in = before.in_channels - (int(before.in_channels * ratio) if i else 0)
        assert (after.out_channels, after.in_channels) == (kept_out, kept_in), path
        left += kept_out * after.weight[0].numel()
    assert sum(m.weight.numel() for m in small.modules() if isinstance(m, nn.Conv2d)) == left
    assert params(small) < (1 - 0.95 * ratio) * params(dense)
    assert output_gap(dense, small, example, speedup) < 1e-5


def test_auto_set_when_convolutions_are_grouped_then_each_group_loses_the_same_share():
    model, example = zoo.build("resnext50_32x4d")
    config = auto_set_dependency_group_ids(model, CONVS, example)
    _, masks = L1NormPruner(model, config).compress()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            kept = masks[name]["weight"].flatten(1).amax(1).view(module.groups, -1)
            assert (kept.mean(1) == 0.5).all(), name


@pytest.mark.slow  # a model of many grouped convolutions
def test_auto_set_when_convolutions_are_grouped_then_the_smaller_model_is_exact():
    dense, small, example, speedup = pruned("resnext50_32x4d", 0.5)
    assert small.layer1[0].conv3.out_channels == 128
    assert small.conv1.out_channels == 32
    assert output_gap(dense, small, example, speedup) < 1e-5


@pytest.mark.slow  # a model of many grouped convolutions
def test_auto_set_when_convolutions_are_grouped_then_they_really_lose_the_share():
    dense, small, _, _ = pruned("resnext50_32x4d", 0.5)
    for path, before in dense.named_modules():
        if isinstance(before, nn.Conv2d) and before.groups > 1:
            after = small.get_submodule(path)
            assert after.out_channels == before.out_channels // 2, path
            assert after.in_channels == before.in_channels // 2, path
            assert after.groups == before.groups, path
