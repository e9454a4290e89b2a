"""The table as a whole: what real models run has a rule, and every rule is tested."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.graph.record import record
from secateur.graph.rules import RULES, rule_for
from tests.graph.rules.harness import randomised

FAMILIES = (
    *("contraction", "convolution", "elementwise", "indexing"),
    *("normalization", "reduction", "shape", "spatial"),
)

# What models run and no rule will follow: all that it touches stays, and the report says so.
FREEZES_ON_PURPOSE = {
    "aten._native_multi_head_attention.default": "the fast path is off while a model is watched",
    "aten.mkldnn_rnn_layer.default": "a recurrent layer is replaced as a whole module",
}

# Rules that no call here reaches: another device's kernels, training, exported graphs; and one
# whose kernel takes multiples of 16 bytes only (it is tested on whole models).
ELSEWHERE = """
    _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
    _scaled_dot_product_fused_attention_overrideable _scaled_dot_product_cudnn_attention
    convolution_overrideable cudnn_convolution cudnn_batch_norm miopen_batch_norm
    cudnn_grid_sampler mkldnn_max_pool2d _fused_rms_norm _convolution _to_dense lift_fresh_copy
    _batch_norm_no_update _batch_norm_with_update _native_batch_norm_legit
    _native_batch_norm_legit_functional _native_batch_norm_legit_no_training native_dropout
    _grouped_mm copy diagonal_copy grid_sampler_3d _pack_padded_sequence nonzero_static
"""


def operations() -> list[str]:
    lines = Path(__file__).with_name("ops.txt").read_text().splitlines()
    return [line.split()[0] for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("name", operations())
def test_table_when_models_run_an_operation_then_it_has_a_rule(name):
    _, packet, overload = name.split(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload)
    assert (rule_for(operation) is not None) != (name in FREEZES_ON_PURPOSE)


@cache
def exercised() -> frozenset[Any]:
    """Return the operations, and their packets, that the cases and laws of all families run."""
    found: set[Any] = set()
    for family in FAMILIES:
        module = import_module(f"tests.graph.rules.test_{family}")
        runs = [(randomised(case.model), case.example) for case in module.CASES.values()]
        runs += [
            (law.net({k: n + 1 for k, n in law.least.items()}), ()) for law in module.LAWS.values()
        ]
        for model, example in runs:
            for op in record(model, example).ops:
                found |= {op.func, op.func.overloadpacket}
    return frozenset(found)


def is_composed(key: Any) -> bool:
    """Tell whether torch takes an operation apart before any rule could see it."""
    if hasattr(key, "overloads"):
        overloads = [getattr(key, name) for name in key.overloads() if "out" not in name]
    else:
        overloads = [key]
    names = [op.name() for op in overloads if torch._C._dispatch_has_kernel(op.name())]
    composite = "CompositeImplicitAutograd"
    return all(torch._C._dispatch_has_kernel_for_dispatch_key(n, composite) for n in names)


@pytest.mark.filterwarnings("ignore:index_reduce", "ignore:segment_reduce")  # that it is beta
def test_table_when_an_operation_has_a_rule_then_a_test_runs_it():
    tested = {RULES[key] for key in exercised() if key in RULES}
    untested = sorted(
        str(key)
        for key, rule in RULES.items()
        if key not in exercised()
        and not is_composed(key)
        and str(key).removeprefix("aten.") not in ELSEWHERE.split()
        and not (str(key).endswith("_") and rule in tested)  # the same rule writes in place
    )
    assert untested == []
