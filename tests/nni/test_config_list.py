"""NNI's config_list: what each key does to which target, and every sentence for what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur.errors import ConfigError, NoMatchError
from secateur.granularity import NM, Block, Dim, Element
from secateur.nni import targets as nni_targets
from secateur.nni.config_list import (
    Align,
    Entry,
    TargetSetting,
    load,
    parse,
    register_module,
    resolve,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3)
        self.bn1 = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.act = nn.ReLU()
        self.fc1 = nn.Linear(4, 16)
        self.fc2 = nn.Linear(16, 8, bias=False)
        self.emb = nn.Embedding(5, 4)


@pytest.fixture
def model() -> Net:
    return Net()


@pytest.fixture
def forget_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nni_targets, "_known", dict(nni_targets._known))


def resolved(model: nn.Module, *entries: dict[str, Any], **kwargs: Any) -> dict[str, TargetSetting]:
    return {each.name: each for each in resolve(parse(list(entries)), model, **kwargs)}


def parse_problems(*entries: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(list(entries))
    return list(caught.value.problems)


def resolve_problems(model: nn.Module, *entries: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve(parse(list(entries)), model)
    return list(caught.value.problems)


LINEAR = {"op_types": ["Linear"], "sparse_ratio": 0.5}


# parse


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("op_types", ["Conv2d"]),
        ("op_names", ["conv1"]),
        ("op_names_re", [r"layer\d"]),
        ("exclude_op_types", ["Linear"]),
        ("exclude_op_names", ["fc1"]),
        ("exclude_op_names_re", ["fc."]),
        ("exclude", True),
        ("target_names", ["weight"]),
        ("sparse_ratio", 0.5),
        ("sparse_ratio", 1),
        ("sparse_ratio", None),
        ("sparse_threshold", 0.1),
        ("min_sparse_ratio", 0.1),
        ("max_sparse_ratio", 0.9),
        ("global_group_id", "a"),
        ("dependency_group_id", 3),
        ("granularity", "default"),
        ("granularity", "per_channel"),
        ("granularity", [1, -1]),
        ("internal_metric_block", 4),
        ("apply_method", "add"),
    ],
)
def test_parse_when_a_key_is_given_keeps_it(key: str, value: Any) -> None:
    (entry,) = parse([{"op_types": ["Linear"], key: value}])
    assert getattr(entry, key) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"op_typs": ["a"]}, ", key 'op_typs': unknown key. Did you mean 'op_types'?"),
        ({"op_names": "fc"}, ", key 'op_names': must be a list: write ['fc']."),
        ({1: 2}, ", key '1': unknown key."),
        (
            {"sparse_ratio": 50},
            ", key 'sparse_ratio': must be less than or equal to 1, got 50. Did you mean 0.5?",
        ),
        ({"sparse_ratio": "0.5"}, ", key 'sparse_ratio': must be a valid number, got '0.5'."),
        (
            {"max_sparse_ratio": -1},
            ", key 'max_sparse_ratio': must be greater than or equal to 0, got -1.",
        ),
        (
            {"global_group_id": 1.5},
            ", key 'global_group_id': must be a number or a text, got 1.5.",
        ),
        (
            {"internal_metric_block": 0},
            ", key 'internal_metric_block': must be greater than or equal to 1, got 0.",
        ),
        (
            {"apply_method": "mull"},
            ", key 'apply_method': must be 'mul' or 'add', got 'mull'. Did you mean 'mul'?",
        ),
        (
            {"granularity": [[1], "left"]},
            ", key 'granularity': must be [sizes, 'front' or 'back', 1 or -1], got [[1], 'left'].",
        ),
        (
            {"op_names_re": ["("]},
            ", key 'op_names_re': '(' is no regular expression:"
            " missing ), unterminated subpattern at position 0.",
        ),
        (
            {"align": {"target": "weight", "target_name": "weight"}},
            ", key 'align.target': unknown key. Did you mean 'target_name'?",
        ),
        (
            {"align": {}},
            ", key 'align.target_name': lacks a required key, got {}.",
        ),
        (
            {"target_settings": {"weight": {"sparse_ratio": 2}}},
            ", key 'target_settings.weight.sparse_ratio':"
            " must be less than or equal to 1, got 2. Did you mean 0.02?",
        ),
        (
            {"target_settings": {"_input_": {}, "_input_0": {}}},
            ", key 'target_settings': names the same target twice; '_input_' is '_input_0'.",
        ),
        (
            {"target_names": ["weight"], "target_settings": {"wieght": {}}},
            ", key 'target_settings.wieght': 'target_names' leaves it out. Did you mean 'weight'?",
        ),
        (
            {"sparse_ratio": 0.5, "sparse_threshold": 0.1},
            ": 'sparse_ratio' and 'sparse_threshold' are both given; keep one.",
        ),
        (
            {"sparse_ratio": 0.5, "target_settings": {"weight": {"sparse_threshold": 0.1}}},
            ", key 'target_settings.weight':"
            " 'sparse_ratio' and 'sparse_threshold' are both given; keep one.",
        ),
        (
            {"min_sparse_ratio": 0.5, "max_sparse_ratio": 0.2},
            ": 'min_sparse_ratio' (0.5) is greater than 'max_sparse_ratio' (0.2).",
        ),
        (
            {"granularity": "2:4", "sparse_ratio": 0.7},
            ": granularity '2:4' removes 0.5 exactly; leave out 'sparse_ratio'.",
        ),
        (
            {"sparse_ratio": 0.5, "align": {"target_name": "weight"}},
            ": an aligned target has no goal of its own; remove sparse_ratio.",
        ),
        (
            {"exclude": True, "sparse_ratio": 0.5},
            ": 'exclude' leaves nothing to set; remove sparse_ratio.",
        ),
    ],
)
def test_parse_when_a_key_is_wrong_names_entry_and_key(
    wrong: dict[Any, Any], sentence: str
) -> None:
    right = {"op_types": ["Linear"]}
    assert parse_problems(right, {**right, **wrong}) == [f"entry 2{sentence}"]


def test_parse_when_a_granularity_is_misspelt_suggests_the_near_one() -> None:
    (problem,) = parse_problems({"op_types": ["Linear"], "granularity": "per_chanel"})
    assert problem.startswith("entry 1, key 'granularity': unknown granularity 'per_chanel'.")
    assert "Did you mean 'per_channel'?" in problem


def test_parse_when_the_granularity_is_group_says_that_it_is_unknown() -> None:
    (problem,) = parse_problems({"op_types": ["Linear"], "granularity": "group"})
    assert "unknown granularity 'group'" in problem


def test_parse_when_an_entry_selects_nothing_says_so() -> None:
    sentence = "entry 1: selects no modules; give op_types, op_names or op_names_re."
    assert parse_problems({"sparse_ratio": 0.5}) == [sentence]


def test_parse_when_many_entries_are_wrong_tells_them_all_at_once() -> None:
    problems = parse_problems(
        {"op_typs": ["Linear"], "sparse_ratio": 50},
        LINEAR,
        3,
        {**LINEAR, "sparse_threshold": 0.1, "granularity": 7},
    )
    places = [problem.split(":")[0] for problem in problems]
    assert sorted(places) == [
        "entry 1",
        "entry 1, key 'op_typs'",
        "entry 1, key 'sparse_ratio'",
        "entry 3",
        "entry 4",
        "entry 4, key 'granularity'",
    ]


@pytest.mark.parametrize("wrong", [None, {"op_types": ["Linear"]}, "a", 3])
def test_parse_of_no_list_is_an_error(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="a config_list must be a list of dicts, got"):
        parse(wrong)


# which modules


@pytest.mark.parametrize(
    ("entry", "modules"),
    [
        ({"op_types": ["Linear"]}, ["fc1", "fc2"]),
        ({"op_types": ["Linear", "Conv2d"]}, ["conv1", "fc1", "fc2"]),
        ({"op_names": ["fc2", "conv1"]}, ["conv1", "fc2"]),
        ({"op_names_re": ["fc.*"]}, ["fc1", "fc2"]),
        ({"op_names_re": [".*1"]}, ["conv1", "bn1", "fc1"]),
        ({"op_names_re": ["c"]}, ["conv1"]),
        ({"op_names": ["conv1"], "op_names_re": ["fc"]}, ["conv1", "fc1", "fc2"]),
        ({"op_names_re": [".*1"], "op_types": ["Linear"]}, ["fc1"]),
        ({"op_names_re": [".*"]}, ["conv1", "bn1", "up", "fc1", "fc2", "emb"]),
        ({"op_types": ["Linear"], "exclude_op_names": ["fc1"]}, ["fc2"]),
        ({"op_names_re": [".*1"], "exclude_op_types": ["Linear"]}, ["conv1", "bn1"]),
        ({"op_names_re": [".*1"], "exclude_op_names_re": ["fc", "bn"]}, ["conv1"]),
    ],
)
def test_resolve_selects_modules_as_the_keys_say(
    model: Net, entry: dict[str, Any], modules: list[str]
) -> None:
    found = resolved(model, {**entry, "sparse_ratio": 0.5})
    assert list(dict.fromkeys(each.module for each in found.values())) == modules


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (
            {"op_names": ["conv2"]},
            ", key 'op_names': 'conv2' matches no module. Did you mean 'conv1'?",
        ),
        (
            {"op_types": ["Conv2D"]},
            ", key 'op_types': 'Conv2D' matches no module. Did you mean 'Conv2d'?",
        ),
        (
            {"op_names_re": ["cnov1"]},
            ", key 'op_names_re': 'cnov1' matches no module. Did you mean 'conv1'?",
        ),
        (
            {"op_types": ["Linear"], "exclude_op_names": ["fc3"]},
            ", key 'exclude_op_names': 'fc3' matches no module. Did you mean 'fc2'?",
        ),
        (
            {"op_names": ["fc1"], "op_types": ["Conv2d"]},
            ": selects no module; its keys rule each other out.",
        ),
        ({"op_names_re": ["act"]}, ": selects nothing that can be pruned."),
    ],
)
def test_resolve_when_a_selector_matches_nothing_names_it(
    model: Net, entry: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(NoMatchError) as caught:
        resolve(parse([LINEAR, entry]), model)
    assert caught.value.problems == (f"entry 2{sentence}",)


def test_resolve_when_a_named_class_has_no_known_targets_says_what_to_do(model: Net) -> None:
    assert resolve_problems(model, {"op_types": ["ReLU"]}) == [
        "entry 1: 'act' is a ReLU, a class without known targets;"
        " give 'target_names', or call register_module('ReLU', ...)."
    ]


def test_resolve_when_a_module_is_shared_makes_one_target() -> None:
    layer = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": layer, "b": layer})
    assert list(resolved(model, {"op_names": ["b"], "sparse_ratio": 0.5})) == ["a.weight", "a.bias"]
    assert list(resolved(model, LINEAR)) == ["a.weight", "a.bias"]


def test_resolve_when_the_model_is_one_layer_names_its_targets_plainly() -> None:
    assert list(resolved(nn.Linear(2, 2), LINEAR)) == ["weight", "bias"]


# entries after each other


def test_later_entries_override_earlier_ones_for_the_same_target(model: Net) -> None:
    found = resolved(model, LINEAR, {"op_names": ["fc1"], "sparse_ratio": 0.8})
    assert (found["fc1.weight"].sparse_ratio, found["fc1.weight"].entry) == (0.8, 2)
    assert (found["fc2.weight"].sparse_ratio, found["fc2.weight"].entry) == (0.5, 1)


def test_later_entries_for_another_target_keep_the_earlier_one(model: Net) -> None:
    output = {"op_names": ["fc1"], "target_names": ["_output_"], "sparse_ratio": 0.1}
    found = resolved(model, LINEAR, output)
    assert found["fc1.weight"].sparse_ratio == 0.5
    assert found["fc1._output_0"].sparse_ratio == 0.1


def test_exclude_removes_modules_and_a_later_entry_takes_them_back(model: Net) -> None:
    exclude = {"op_names": ["fc1"], "exclude": True}
    assert list(resolved(model, LINEAR, exclude)) == ["fc2.weight"]
    again = {"op_names": ["fc1"], "sparse_ratio": 0.1}
    assert "fc1.weight" in resolved(model, LINEAR, exclude, again)


# targets and their settings


def test_bias_by_default_is_aligned_to_the_weights_output_channels(model: Net) -> None:
    found = resolved(model, {"op_types": ["Conv2d", "ConvTranspose2d"], "sparse_ratio": 0.5})
    assert found["conv1.bias"].align == Align("conv1", "weight", (0,))
    assert found["up.bias"].align == Align("up", "weight", (1,))
    assert found["conv1.bias"].sparse_ratio is None
    assert found["conv1.bias"].granularity is None


def test_aligned_targets_come_after_their_sources(model: Net) -> None:
    align = {"module_name": "conv1", "target_name": "weight", "dims": [0]}
    found = resolved(
        model,
        {"op_names": ["bn1"], "target_settings": {"weight": {"align": align}}},
        {"op_names": ["conv1"], "sparse_ratio": 0.5},
    )
    assert list(found) == ["conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias"]
    assert found["bn1.bias"].align == Align("bn1", "weight", (0,))


def test_bias_selected_alone_has_scores_of_its_own(model: Net) -> None:
    entry = {"op_names": ["fc1"], "target_names": ["bias"], "sparse_ratio": 0.5}
    bias = resolved(model, entry)["fc1.bias"]
    assert (bias.align, bias.sparse_ratio, bias.granularity) == (None, 0.5, Dim(0))


@pytest.mark.parametrize("own", [{"sparse_ratio": 0.1}, {"align": None, "sparse_ratio": 0.1}])
def test_bias_with_a_goal_of_its_own_is_not_aligned(model: Net, own: dict[str, Any]) -> None:
    bias = resolved(model, {**LINEAR, "target_settings": {"bias": own}})["fc1.bias"]
    assert (bias.align, bias.sparse_ratio) == (None, 0.1)


def test_bias_of_a_grouped_transposed_convolution_is_left_alone() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2))
    assert list(resolved(model, {"op_names": ["0"], "sparse_ratio": 0.5})) == ["0.weight"]


def test_targets_that_the_layer_was_made_without_are_left_out(model: Net) -> None:
    entry = {"op_names": ["fc2"], "target_names": ["weight", "bias"], "sparse_ratio": 0.5}
    assert list(resolved(model, entry)) == ["fc2.weight"]


def test_target_settings_override_the_shortcuts_of_their_entry(model: Net) -> None:
    entry = {
        **LINEAR,
        "max_sparse_ratio": 0.9,
        "target_settings": {"weight": {"sparse_ratio": 0.2, "max_sparse_ratio": None}},
    }
    weight = resolved(model, entry)["fc1.weight"]
    assert (weight.sparse_ratio, weight.max_sparse_ratio) == (0.2, None)


def test_target_settings_as_documentation_writes_them_in_full_mean_the_short_form(
    model: Net,
) -> None:
    weight = dict.fromkeys(
        [
            "max_sparse_ratio",
            "min_sparse_ratio",
            "sparse_threshold",
            "global_group_id",
            "dependency_group_id",
            "internal_metric_block",
        ]
    )
    full = {
        "op_names": ["fc1", "fc2"],
        "target_names": ["weight", "bias"],
        "target_settings": {
            "weight": {
                **weight,
                "sparse_ratio": 0.5,
                "granularity": "default",
                "apply_method": "mul",
            },
            "bias": {"align": {"target_name": "weight", "dims": [0]}, "apply_method": "mul"},
        },
    }
    assert resolved(model, full) == resolved(model, LINEAR)


def test_every_setting_reaches_the_record(model: Net) -> None:
    entry = {
        "op_names": ["fc1"],
        "target_names": ["weight"],
        "sparse_threshold": 0.1,
        "min_sparse_ratio": 0.2,
        "max_sparse_ratio": 0.8,
        "global_group_id": "g",
        "dependency_group_id": 3,
        "internal_metric_block": 4,
        "granularity": "out_channel",
    }
    assert resolve(parse([entry]), model) == (
        TargetSetting(
            module="fc1",
            target="weight",
            module_type="Linear",
            shape=(16, 4),
            granularity=Dim(0),
            sparse_threshold=0.1,
            min_sparse_ratio=0.2,
            max_sparse_ratio=0.8,
            global_group_id="g",
            dependency_group_id=3,
            internal_metric_block=4,
            entry=1,
        ),
    )


def test_inputs_and_outputs_are_named_by_position_or_name(model: Net) -> None:
    names = ["_input_", "_input_x", "_output_", "_output_logits"]
    entry = {"op_names": ["act"], "target_names": names, "sparse_ratio": 0.5, "apply_method": "add"}
    found = resolved(model, entry)
    targets = [each.target for each in found.values()]
    assert targets == ["_input_0", "_input_x", "_output_0", "_output_logits"]
    assert {each.granularity for each in found.values()} == {Dim(-1)}
    assert {each.apply_method for each in found.values()} == {"add"}


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (
            {"op_names": ["fc1"], "target_names": ["wieght"]},
            "'fc1' (Linear) has no target 'wieght'. Did you mean 'weight'?",
        ),
        (
            {"op_names": ["fc2"], "apply_method": "add"},
            "'fc2.weight': apply_method 'add' is for inputs and outputs; a weight takes 'mul'.",
        ),
        (
            {"op_names": ["fc1"], "internal_metric_block": 3},
            "'fc1.weight': its 16 scores do not split into 3 equal blocks.",
        ),
        (
            {"op_names": ["fc1"], "granularity": "per_channel"},
            "'fc1.weight': granularity 'per_channel' does not fit here;"
            " use 'out_channel' or 'in_channel'.",
        ),
        (
            {"op_names": ["fc1"], "target_names": ["_input_"], "granularity": "in_channel"},
            "'fc1._input_0': granularity 'in_channel' does not fit here; use 'per_channel'.",
        ),
        (
            {"op_names": ["fc1"], "target_names": ["_input_"], "granularity": [[4], "back"]},
            "'fc1._input_0': its dimensions are not known; write all sizes for ((4,), 'back', -1).",
        ),
        (
            {"op_names": ["bn1"], "target_names": ["weight"], "granularity": "in_channel"},
            "'bn1.weight': Dim(dim=1) does not fit a tensor of shape (8,):"
            " give a dimension from -1 to 0",
        ),
        (
            {"op_names": ["fc1"], "target_names": ["weight"], "granularity": [1, 1, 1]},
            "'fc1.weight': Block(sizes=(1, 1, 1)) does not fit a tensor of shape (16, 4):"
            " give at most 2 block sizes",
        ),
    ],
)
def test_resolve_when_a_setting_does_not_fit_its_target_says_so(
    model: Net, entry: dict[str, Any], sentence: str
) -> None:
    assert resolve_problems(model, entry) == [f"entry 1: {sentence}"]


def test_resolve_when_a_layer_is_lazy_asks_for_a_run() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    problems = resolve_problems(model, {"op_names": ["0"], "sparse_ratio": 0.5})
    assert problems[0] == (
        "entry 1: '0.weight': has no shape yet; run the model once before it is pruned."
    )


def test_resolve_tells_the_problems_of_all_entries_at_once(model: Net) -> None:
    problems = resolve_problems(
        model,
        {"op_names": ["conv9"]},
        {"op_types": ["ReLU"]},
        {"op_names": ["fc1"], "internal_metric_block": 3},
    )
    assert sorted(problem[:7] for problem in problems) == ["entry 1", "entry 2", "entry 3"]


# granularity


@pytest.mark.parametrize(
    ("module", "value", "meant"),
    [
        ("conv1", "default", Dim(0)),
        ("conv1", "out_channel", Dim(0)),
        ("conv1", "in_channel", Dim(1)),
        ("up", "out_channel", Dim(1)),
        ("up", "in_channel", Dim(0)),
        ("fc1", "out_channel", Dim(0)),
        ("emb", "out_channel", Dim(0)),
        ("emb", "in_channel", Dim(1)),
        ("bn1", "out_channel", Dim(0)),
        ("fc1", "element", Element()),
        ("fc1", "2:4", NM(2, 4)),
        ("conv1", [1, -1, -1, -1], Block((1, -1, -1, -1))),
        ("conv1", [4, 4], Block((4, 4))),
        ("conv1", [[4, 4]], Block((1, 1, 4, 4))),
        ("conv1", [[4, 4], "front"], Block((1, 1, 4, 4))),
        ("conv1", [[4], "back"], Block((4, -1, -1, -1))),
        ("conv1", [[4], "back", 1], Block((4, 1, 1, 1))),
        ("conv1", ([4], "front", -1), Block((-1, -1, -1, 4))),
    ],
)
def test_granularity_in_every_form_means(model: Net, module: str, value: Any, meant: Any) -> None:
    entry = {"op_names": [module], "target_names": ["weight"], "granularity": value}
    assert resolved(model, entry)[f"{module}.weight"].granularity == meant


def test_granularity_default_is_what_the_caller_says(model: Net) -> None:
    entry = {"op_names": ["fc1"], "target_names": ["weight", "_input_"], "sparse_ratio": 0.5}
    found = resolved(model, entry, default_granularity="element")
    assert {each.granularity for each in found.values()} == {Element()}
    with pytest.raises(ConfigError, match="default_granularity must be"):
        resolve((), model, default_granularity="block")


def test_granularity_of_n_of_m_is_its_own_ratio(model: Net) -> None:
    found = resolved(model, {"op_names": ["fc1"], "granularity": "1:4"})
    assert found["fc1.weight"].sparse_ratio == 0.25


# groups and alignment


def test_groups_that_agree_are_kept(model: Net) -> None:
    found = resolved(
        model,
        {**LINEAR, "global_group_id": "g"},
        {
            "op_names": ["conv1", "bn1"],
            "target_names": ["weight"],
            "sparse_ratio": 0.2,
            "dependency_group_id": 1,
            "internal_metric_block": 4,
        },
    )
    assert found["fc1.weight"].global_group_id == found["fc2.weight"].global_group_id == "g"
    assert found["fc1.bias"].global_group_id is None
    assert found["conv1.weight"].blocks == found["bn1.weight"].blocks == 8


@pytest.mark.parametrize("key", ["global_group_id", "dependency_group_id"])
def test_groups_with_different_ratios_are_an_error(model: Net, key: str) -> None:
    weights = {"target_names": ["weight"], key: "g"}
    problems = resolve_problems(
        model,
        {"op_names": ["conv1"], "sparse_ratio": 0.5, **weights},
        {"op_names": ["bn1"], "sparse_ratio": 0.4, **weights},
    )
    assert problems == [
        f"{key} 'g': its members must have one sparse_ratio,"
        " got 0.5 for 'conv1.weight' (entry 1) and 0.4 for 'bn1.weight' (entry 2)."
    ]


def test_dependency_groups_with_different_numbers_of_scores_are_an_error(model: Net) -> None:
    assert resolve_problems(model, {**LINEAR, "dependency_group_id": 1}) == [
        "dependency_group_id 1: its members must have equally many scores,"
        " got 'fc1.weight' 16, 'fc2.weight' 8."
    ]


def test_dependency_groups_whose_scores_split_differently_agree_where_both_fit() -> None:
    # the least common multiple of numbers that divide a size divides it too
    model = nn.Sequential(nn.Linear(2, 12), nn.Linear(2, 12))
    shared = {"sparse_ratio": 0.5, "dependency_group_id": 1}
    found = resolved(
        model,
        {"op_names": ["0"], "internal_metric_block": 4, **shared},
        {"op_names": ["1"], "internal_metric_block": 6, **shared},
    )
    assert [found[f"{i}.weight"].internal_metric_block for i in (0, 1)] == [4, 6]


@pytest.mark.parametrize(
    ("align", "sentence"),
    [
        (
            {"module_name": "conv1", "target_name": "weight"},
            "'conv1.weight', which is not pruned.",
        ),
        (
            {"module_name": "fc3", "target_name": "weight"},
            "'fc3.weight', which is not pruned. Did you mean 'fc2'?",
        ),
        (
            {"module_name": "fc2", "target_name": "weight", "dims": [2]},
            "'fc2.weight', whose 2 dimensions do not include [2].",
        ),
        (
            {"module_name": "fc2", "target_name": "weight", "dims": [1]},
            "'fc2.weight', which has 16 positions where it needs 8.",
        ),
        (
            {"module_name": None, "target_name": "weight"},
            "'bn1.weight', which is aligned to it in turn; give one of them a sparse_ratio.",
        ),
    ],
)
def test_align_when_it_cannot_hold_says_why(
    model: Net, align: dict[str, Any], sentence: str
) -> None:
    entry = {"op_names": ["bn1"], "target_names": ["weight"], "align": align}
    problems = resolve_problems(model, {"op_names": ["fc2"], "sparse_ratio": 0.5}, entry)
    assert problems == [f"entry 2: 'bn1.weight' is aligned to {sentence}"]


def test_align_in_a_circle_is_an_error_for_each_member(model: Net) -> None:
    entries = [
        {
            "op_names": [one],
            "target_names": ["weight"],
            "align": {"module_name": other, "target_name": "weight"},
        }
        for one, other in (("conv1", "bn1"), ("bn1", "conv1"))
    ]
    problems = resolve_problems(model, *entries)
    assert len(problems) == 2
    assert all("in turn" in problem for problem in problems)


def test_align_with_a_granularity_says_where_the_dims_lie(model: Net) -> None:
    align = {"target_name": "weight", "dims": [0]}
    entry = {**LINEAR, "op_types": ["Conv2d"]}
    entry["target_settings"] = {"_output_": {"align": align, "granularity": [1, -1, -1]}}
    output = resolved(model, entry)["conv1._output_0"]
    assert output.granularity == Block((1, -1, -1))
    assert output.align == Align("conv1", "weight", (0,))


# NNI 2.x


def one_legacy_entry(**entry: Any) -> Entry:
    with pytest.warns(DeprecationWarning, match="is NNI 2.x's spelling; write"):
        (parsed,) = parse([{"op_types": ["Linear"], **entry}])
    return parsed


@pytest.mark.parametrize("key", ["sparsity", "sparsity_per_layer"])
def test_legacy_sparsity_becomes_the_ratio_of_each_target(key: str) -> None:
    entry = one_legacy_entry(**{key: 0.5})
    assert (entry.sparse_ratio, entry.global_group_id) == (0.5, None)


def test_legacy_total_sparsity_becomes_a_ratio_of_one_global_group() -> None:
    entry = one_legacy_entry(total_sparsity=0.5, max_sparsity_per_layer=0.9)
    assert (entry.sparse_ratio, entry.max_sparse_ratio) == (0.5, 0.9)
    assert entry.global_group_id == "total_sparsity of entry 1"


def test_legacy_partial_names_become_regular_expressions(model: Net) -> None:
    with pytest.warns(DeprecationWarning, match="op_partial_names"):
        entries = parse([{"op_partial_names": ["c1", "conv"], "sparse_ratio": 0.5}])
    assert {each.module for each in resolve(entries, model)} == {"conv1", "fc1"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_legacy_spelling_that_is_wrong_is_named_as_it_was_written() -> None:
    assert parse_problems({"op_types": ["Linear"], "sparsity": 3}) == [
        "entry 1, key 'sparsity': must be less than or equal to 1, got 3. Did you mean 0.03?"
    ]
    assert parse_problems({**LINEAR, "sparsity": 0.4}) == [
        "entry 1, key 'sparsity': says 'sparse_ratio' once more; keep one."
    ]


# files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps([LINEAR])),
        ("a.yaml", "- op_types: [Linear]\n  sparse_ratio: 0.5\n"),
        ("a.yml", "- {op_types: [Linear], sparse_ratio: 0.5}\n"),
    ],
)
def test_load_reads_the_list(tmp_path: Any, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert load(tmp_path / name) == [LINEAR]


def test_load_of_no_list_names_the_file(tmp_path: Any) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"a.json: must hold a list of dicts, got \{\}"):
        load(tmp_path / "a.json")


# classes of one's own


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4, 6))


@pytest.mark.usefixtures("forget_registered")
def test_register_module_gives_a_class_its_targets_and_defaults() -> None:
    output = {"align": {"target_name": "gamma", "dims": [0]}, "granularity": [-1, 1]}
    register_module("Scale", {"gamma": {"granularity": [1, -1]}, "_output_": output})
    found = resolved(nn.Sequential(Scale()), {"op_types": ["Scale"], "sparse_ratio": 0.5})
    assert found["0.gamma"].granularity == Block((1, -1))
    assert found["0.gamma"].sparse_ratio == 0.5
    assert found["0._output_0"].align == Align("0", "gamma", (0,))
    assert found["0._output_0"].granularity == Block((-1, 1))


@pytest.mark.usefixtures("forget_registered")
def test_register_module_holds_for_subclasses_and_takes_a_list() -> None:
    class Wider(Scale):
        pass

    register_module("Scale", ["gamma"])
    found = resolved(nn.Sequential(Wider()), {"op_types": ["Wider"], "granularity": "element"})
    assert found["0.gamma"].granularity == Element()


@pytest.mark.usefixtures("forget_registered")
def test_register_module_when_a_setting_is_wrong_names_it() -> None:
    with pytest.raises(ConfigError) as caught:
        register_module("Scale", {"gamma": {"sparse_ratio": 2, "granularty": "element"}})
    assert caught.value.problems == (
        "Scale.gamma, key 'sparse_ratio':"
        " must be less than or equal to 1, got 2. Did you mean 0.02?",
        "Scale.gamma, key 'granularty': unknown key 'granularty'. Did you mean 'granularity'?",
    )
    with pytest.raises(ConfigError, match="must be a list or a dict"):
        register_module("Scale", "gamma")


# anything at all

texts = st.sampled_from(
    ["Linear", "Conv2d", "conv1", "fc1", "fc.*", "weight", "bias", "_input_", "x", "", "mul", "("]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.sampled_from([0.5, 0.1, 1, "2:4", "out_channel", "in_channel", "default", 10**400])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner), max_leaves=4
)
setting_keys = st.sampled_from([*nni_targets.Setting.model_fields, "garbage"])
aligns = st.fixed_dictionaries(
    {"target_name": texts}, optional={"module_name": texts, "dims": st.lists(st.integers(-3, 3))}
)
setting_dicts = st.dictionaries(setting_keys, values | aligns, max_size=3)
entry_keys = st.sampled_from(
    [*Entry.model_fields, "sparsity", "total_sparsity", "op_partial_names", "garbage"]
)
anything = values | st.lists(texts, max_size=2) | aligns | st.dictionaries(texts, setting_dicts)
plausible = st.fixed_dictionaries(
    {"op_types": st.lists(st.sampled_from(["Linear", "Conv2d", "BatchNorm2d"]), min_size=1)},
    optional={
        "target_names": st.lists(texts, max_size=2),
        "target_settings": st.dictionaries(texts, setting_dicts, max_size=2),
        "sparse_ratio": st.floats(0, 1),
        "granularity": st.sampled_from(["element", "out_channel", "2:4", [2], [[2], "back"]]),
        "align": aligns,
        "dependency_group_id": st.integers(0, 1),
        "internal_metric_block": st.integers(1, 3),
    },
)
entries = st.dictionaries(entry_keys | st.integers(), anything, max_size=4) | plausible | values


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@given(st.lists(entries, max_size=3) | values, st.sampled_from(["out_channel", "element"]))
@settings(deadline=None, max_examples=300)
def test_parse_and_resolve_of_anything_are_records_or_a_config_error(
    raw: Any, default: str
) -> None:
    model = Net()
    try:
        records = resolve(parse(raw), model, default_granularity=default)
    except ConfigError:
        return
    for each in records:
        assert each.align is not None or each.granularity is not None
