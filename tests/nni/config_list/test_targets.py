"""Which tensors of a module are pruned, each with which settings."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from secateur.errors import ConfigError
from secateur.nni.config_list import Align, TargetSetting, parse, resolve
from secateur.scoring.granularity import NM, Channel, Element, Tile
from tests.nni.config_list.entries import LINEAR, Net, resolve_problems, resolved

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
    assert (bias.align, bias.sparse_ratio, bias.granularity) == (None, 0.5, Channel(0))


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
            granularity=Channel(0),
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
    assert {each.granularity for each in found.values()} == {Channel(-1)}
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
            "'fc1.weight': its 16 scores do not split into 3 equal parts.",
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
            "'bn1.weight': Channel(dim=1) does not fit a tensor of shape (8,):"
            " give a dimension from -1 to 0",
        ),
        (
            {"op_names": ["fc1"], "target_names": ["weight"], "granularity": [1, 1, 1]},
            "'fc1.weight': Tile(sizes=(1, 1, 1)) does not fit a tensor of shape (16, 4):"
            " give at most 2 tile sizes",
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
        ("conv1", "default", Channel(0)),
        ("conv1", "out_channel", Channel(0)),
        ("conv1", "in_channel", Channel(1)),
        ("up", "out_channel", Channel(1)),
        ("up", "in_channel", Channel(0)),
        ("fc1", "out_channel", Channel(0)),
        ("emb", "out_channel", Channel(0)),
        ("emb", "in_channel", Channel(1)),
        ("bn1", "out_channel", Channel(0)),
        ("fc1", "element", Element()),
        ("fc1", "2:4", NM(2, 4)),
        ("conv1", [1, -1, -1, -1], Tile((1, -1, -1, -1))),
        ("conv1", [4, 4], Tile((4, 4))),
        ("conv1", [[4, 4]], Tile((1, 1, 4, 4))),
        ("conv1", [[4, 4], "front"], Tile((1, 1, 4, 4))),
        ("conv1", [[4], "back"], Tile((4, -1, -1, -1))),
        ("conv1", [[4], "back", 1], Tile((4, 1, 1, 1))),
        ("conv1", ([4], "front", -1), Tile((-1, -1, -1, 4))),
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
