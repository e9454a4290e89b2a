"""Wrappers whose forward is not their module's own are refused, with what to give instead."""

from __future__ import annotations

import pytest
import torch
import torch.distributed
from torch import nn

import secateur as sc
from secateur.errors import ModelError

X = torch.zeros(2, 8)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


WRAPPERS = {
    "DDP": (nn.parallel.DistributedDataParallel, r"give \.module"),
    "DataParallel": (nn.DataParallel, r"give \.module"),
    "compiled": (torch.compile, r"give \._orig_mod"),
    "traced": (lambda model: torch.jit.trace(model, X), "give the module that it was made from"),
}
WAYS = [
    lambda model: sc.analyze(model, X),
    lambda model: sc.prune(model, X, 0.5),
    lambda model: sc.Pruner(model, sc.Config(sparsity=0.5), X),
    lambda model: sc.shrink(model, {}, X),
    lambda model: sc.apply_plan(model, sc.Plan({}), X),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("wrapper", "way"), [*((w, 0) for w in WRAPPERS), *(("DDP", i) for i in range(1, len(WAYS)))]
)
def test_pruning_when_a_wrapper_is_given_then_the_error_says_what_to_give(wrapper, way, inside):
    wrap, what = WRAPPERS[wrapper]
    model = nn.Sequential(wrap(net())) if inside else wrap(net())
    with pytest.raises(ModelError, match=what) as error:
        WAYS[way](model)
    assert ("its '0' is" in str(error.value)) is inside


def test_prune_when_the_model_compiles_itself_then_its_own_operations_are_seen():
    model = net()
    model.compile()
    assert sc.prune(model, X, 0.5).model[0].out_features == 8
    assert model._compiled_call_impl is not None
