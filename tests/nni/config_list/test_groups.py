"""Targets that are pruned together, and targets that follow others."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from secateur.nni.config_list import Align
from secateur.scoring.granularity import Tile
from tests.nni.config_list.entries import LINEAR, Net, resolve_problems, resolved


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
    assert found["conv1.weight"].units == found["bn1.weight"].units == 8


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
    assert output.granularity == Tile((1, -1, -1))
    assert output.align == Align("conv1", "weight", (0,))
