"""Repair names no architecture: on one model of each kind, outputs on held-out data get nearer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur import Config, Pruner
from secateur.repair.quality import distance
from tests.repair.kinds import KINDS, made

SLOW = {
    "conv1d",
    "depthwise",
    "graph",
    "llama",
    "mamba",
    "mixtral",
    "shared weights",
    "swin",
    "vit",
}
NAMES = [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in KINDS]


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return all that a user would miss of a model: values, gradients, modes, hooks."""
    kept: dict[str, Any] = {n: t.clone() for n, t in model.state_dict().items()}
    kept |= {f"{n} grad": p.grad for n, p in model.named_parameters()}
    kept |= {f"{n} requires": p.requires_grad for n, p in model.named_parameters()}
    for name, module in model.named_modules():
        kept[f"{name} mode"] = module.training
        kept[f"{name} hooks"] = len(module._forward_hooks) + len(module._forward_pre_hooks)
        kept[f"{name} own"] = set(vars(module))
    return kept


def numbers(model: nn.Module) -> dict[str, Any]:
    return dict(model.state_dict())


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(v, b[k]) if isinstance(v, Tensor) else v == b[k] for k, v in a.items()
    )


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("name", NAMES)
def test_repair_when_a_model_of_any_kind_was_pruned_then_it_is_nearer_and_exact(name):
    model, batches = made(name, 11)
    *data, first, second, third = batches
    dense, before = copy.deepcopy(model), state_of(model)
    pruner = Pruner(model, Config(criterion="activation", sparsity=0.4), data[0])
    pruner.calibrate(data)
    pruner.decide()
    masked = pruner.finish(inplace=False, verify=False)
    assert same(state_of(model), before), "the user's model has changed"
    record = pruner.repair(data)
    after = state_of(model)
    assert same({**before, **numbers(model)}, after), "more than values has changed"
    for refit in record.refits:
        assert refit.damping is None or refit.after <= refit.before, refit
    assert any(refit.damping is not None for refit in record.refits)
    assert record.after.error < record.before.error
    result = pruner.finish(inplace=False)
    assert result.verification is not None
    assert result.verification.passed
    assert result.plan.counts == masked.plan.counts
    fresh = [first, second, third]
    repaired, left = (distance(dense, each.model, fresh).error for each in (result, masked))
    assert repaired < left, f"{record}"
