"""What each key of an entry may say, and every sentence for what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from secateur.errors import ConfigError
from secateur.nni.config_list import parse
from tests.nni.config_list.entries import LINEAR, parse_problems


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
            ", key 'apply_method': must be 'mul', 'add' or 'bypass', got 'mull'."
            " Did you mean 'mul'?",
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
