"""Files, and the spelling of NNI 2.x."""

from __future__ import annotations

import json
from typing import Any

import pytest

from secateur.errors import ConfigError
from secateur.nni.config_list import Entry, load, parse, resolve
from tests.nni.config_list.entries import LINEAR, Net, parse_problems

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
