"""NNI 2.x's config_list: which layers, how much of each, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from secateur.errors import ConfigError
from secateur.nni.pruning.v2.config_list import canonical, modern
from secateur.nni.pytorch.pruning import AGPPruner, L1NormPruner


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 4)
    )


def shares(config_list: Any) -> dict[str, float]:
    return {name: goal.sparsity for goal in canonical(config_list, net()) for name in goal.names}


class Plain(nn.Module):
    """Has no weight, and says so."""

    weight = None


CONV, LINEAR = {"op_types": ["Conv2d"]}, {"op_types": ["Linear"]}


@pytest.mark.parametrize(
    ("config_list", "expected"),
    [
        ([{**CONV, "sparsity": 0.5}], {"0": 0.5, "2": 0.5}),
        ([{**CONV, "sparsity_per_layer": 0.5}], {"0": 0.5, "2": 0.5}),
        ([{**CONV, "total_sparsity": 0.5}], {"0": 0.5, "2": 0.5}),
        ([{**CONV, "sparse_ratio": 0.5}], {"0": 0.5, "2": 0.5}),
        ([{"op_names": ["0", "4"], "sparsity": 0.5}], {"0": 0.5, "4": 0.5}),
        ([{**CONV, "op_names": ["0", "4"], "sparsity": 0.5}], {"0": 0.5}),
        ([{"op_partial_names": ["2"], "sparsity": 0.5}], {"2": 0.5}),
        ([{**CONV, "op_partial_names": ["2", "4"], "sparsity": 0.5}], {"2": 0.5}),
        ([{"op_types": ["default"], "sparsity": 0.5}], {"0": 0.5, "2": 0.5, "4": 0.5}),
        ([{**CONV, "sparsity": 0.5}, {"op_names": ["2"], "sparsity": 0.2}], {"0": 0.5, "2": 0.2}),
        ([{**CONV, "sparsity": 0.5}, {"op_names": ["2"], "exclude": True}], {"0": 0.5}),
        ([{"op_names": ["2"], "exclude": True}, {**CONV, "sparsity": 0.5}], {"0": 0.5, "2": 0.5}),
        ([{**CONV, "sparsity": 0.5}, {**LINEAR, "sparsity": 0.0}], {"0": 0.5, "2": 0.5, "4": 0.0}),
    ],
)
def test_canonical_when_entries_select_then_the_last_one_of_each_layer_says_its_share(
    config_list: Any, expected: dict[str, float]
) -> None:
    assert shares(config_list) == expected


def test_canonical_when_a_total_is_asked_then_its_layers_stay_together() -> None:
    rules = [
        {**CONV, "total_sparsity": 0.5, "max_sparsity_per_layer": 0.8},
        {**LINEAR, "sparsity": 0.3},
    ]
    goals = canonical(rules, net())
    assert [goal.entry() for goal in goals] == [
        {"op_names": ["0", "2"], "total_sparsity": 0.5, "max_sparsity_per_layer": 0.8},
        {"op_names": ["4"], "total_sparsity": 0.3},
    ]
    assert canonical([goal.entry() for goal in goals], net()) == goals


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"op_types": ["Conv2d"]}, "needs one of sparsity and total_sparsity, got none"),
        ({**CONV, "sparsity": 0.5, "total_sparsity": 0.5}, "got sparsity, total_sparsity"),
        ({**CONV, "sparsity": 1.0}, "must be in [0, 1), got 1.0"),
        ({**CONV, "sparsity": True}, "must be in [0, 1), got True"),
        ({**CONV, "sparsity": 0.5, "rho": 0}, "key 'rho': is out of range, got 0"),
        ({**CONV, "total_sparsty": 0.5}, "Did you mean 'total_sparsity'?"),
        ({"sparsity": 0.5}, "selects no modules; give op_types or op_names"),
        ({"op_partial_names": ["no"], "sparsity": 0.5}, "matches no module"),
        ("Conv2d", "must be a dict, got 'Conv2d'"),
        ({5: 1, **CONV, "sparsity": 0.5}, "key '5': unknown key"),
        ({"op_types": "Conv2d", "sparsity": 0.5}, "must be a list, got 'Conv2d'; write ['Conv2d']"),
        ({"op_types": 5, "sparsity": 0.5}, "key 'op_types': must be a list of texts, got 5"),
        ({"op_names": [["0"]], "sparsity": 0.5}, "key 'op_names': must be a list of texts, got"),
        ({"op_names": ["0", 0], "sparsity": 0.5}, "must be a list of texts, got 0 in it"),
        ({"op_partial_names": [0], "sparsity": 0.5}, "key 'op_partial_names': must be a list of"),
        ({"op_partial_names": "2", "sparsity": 0.5}, "write ['2']"),
        ({**CONV, "exclude_op_names": 3, "sparsity": 0.5}, "key 'exclude_op_names': must be a"),
        ({**CONV, "exclude": 1}, "key 'exclude': must be True or False, got 1"),
        ({**CONV, "sparsity": 0.5, "exclude": "no"}, "must be True or False, got 'no'"),
        ({**CONV, "sparsity": 0.5, "rho": {}}, "key 'rho': is out of range, got {}"),
        ({**CONV, "sparsity": 0.5, "rho": float("nan")}, "key 'rho': is out of range, got nan"),
        ({**CONV, "sparsity": float("nan")}, "must be in [0, 1), got nan"),
        ({**CONV, "total_sparsity": 0.5, "max_sparsity_per_layer": 1.5}, "must be at most 1"),
        ({**CONV, "total_sparsity": 0.5, "max_sparsity_per_layer": {"0": "x"}}, "out of range"),
        (
            {**CONV, "total_sparsity": 0.5, "max_sparsity_per_layer": 0.4},
            "max_sparsity_per_layer=0.4 is less than total_sparsity=0.5 asks for",
        ),
        ({"op_types": ["Flatten"], "sparsity": 0.5}, "nothing that has a weight (Flatten)"),
        ({"op_types": ["Plain"], "sparsity": 0.5}, "nothing that has a weight (Plain)"),
    ],
)
def test_canonical_when_an_entry_is_wrong_then_says_what(entry: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        canonical([entry], nn.Sequential(*net(), Plain()))
    assert words in str(caught.value)
    assert "entry 1" in str(caught.value)


EXCLUDED = [{**CONV, "sparsity": 0.5}, {"op_types": ["Conv2d", "Linear"], "exclude": True}]


@pytest.mark.parametrize(
    ("config_list", "words"),
    [([], "is empty"), ((), "is empty"), (EXCLUDED, "leaves no layer"), (EXCLUDED[1:], "no layer")],
)
@pytest.mark.parametrize("make", [L1NormPruner, lambda m, c: AGPPruner(m, c, "l1", 2)])
def test_pruner_when_a_list_leaves_nothing_to_prune_then_says_so_at_once(
    make: Any, config_list: Any, words: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words):
        make(net(), config_list)
    assert not list(tmp_path.iterdir())


def test_canonical_when_an_entry_excludes_what_has_no_weight_then_nothing_changes() -> None:
    rules = [{**CONV, "sparsity": 0.5}, {"op_types": ["Flatten"], "exclude": True}]
    assert shares(rules) == {"0": 0.5, "2": 0.5}


@pytest.mark.parametrize(
    "entry",
    [
        {"op_types": ["Conv2d", "Conv2D"], "sparsity": 0.5},
        {"op_names": ["0", "2", "9"], "sparsity": 0.5},
    ],
)
def test_canonical_when_some_words_match_nothing_then_warns_and_takes_the_others(
    entry: Any,
) -> None:
    with pytest.warns(UserWarning, match="matches nothing"):
        assert shares([entry]) == {"0": 0.5, "2": 0.5}


@pytest.mark.filterwarnings("ignore:entry 1, key:UserWarning")
def test_pruner_when_an_entry_selects_nothing_then_config_error() -> None:
    with pytest.raises(ConfigError, match="entry 1: selects no module"):
        L1NormPruner(net(), [{"op_types": ["Conv3d"], "sparsity": 0.5}])


def test_modern_when_pooled_then_layers_share_a_group_and_a_bound() -> None:
    (entry,) = modern(canonical([{**CONV, "total_sparsity": 0.5}], net()), net(), pooled=True)
    assert entry == {
        "op_names": ["0", "2"],
        "sparse_ratio": 0.5,
        "global_group_id": 0,
        "max_sparse_ratio": 0.99,
    }
