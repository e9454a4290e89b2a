"""Whatever is given, it is resolved or refused with a ConfigError."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import ConfigError
from secateur.nni import targets as nni_targets
from secateur.nni.config_list import Entry, parse, resolve
from tests.nni.config_list.entries import Net

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
@settings(max_examples=300)
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
