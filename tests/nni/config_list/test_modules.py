"""Which modules an entry selects, and which entry has the last word."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from secateur.errors import ConfigError, NoMatchError
from secateur.nni.config_list import Align, parse, register_module, resolve
from secateur.scoring.granularity import Element, Tile
from tests.nni.config_list.entries import LINEAR, Net, resolve_problems, resolved

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
    assert found["0.gamma"].granularity == Tile((1, -1))
    assert found["0.gamma"].sparse_ratio == 0.5
    assert found["0._output_0"].align == Align("0", "gamma", (0,))
    assert found["0._output_0"].granularity == Tile((-1, 1))


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
