"""``repair="bias"`` moves means, and sums no second moments, whatever the model is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from secateur import Config, Pruner
from secateur.repair import moments
from tests.repair.kinds import KINDS, low_rank, made

SLOW = {"depthwise", "graph", "llama", "mamba", "mixtral", "swin", "vit"}
NAMES = [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in KINDS]


def decided(model: nn.Module, batches: Any, **settings: Any) -> Pruner:
    pruner = Pruner(model, Config(criterion="activation", sparsity=0.4, **settings), batches[0])
    pruner.calibrate(batches)
    pruner.decide()
    return pruner


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("name", NAMES)
def test_bias_when_a_model_of_any_kind_is_repaired_then_no_second_moments_are_summed(
    name, monkeypatch
):
    def refused(*_: Any) -> None:
        raise AssertionError("second moments were summed")

    model, batches = made(name, 8)
    pruner = decided(model, batches)
    monkeypatch.setattr(moments, "moments", refused)
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim > 1}
    record = pruner.repair(batches, "bias")
    for n, weight in weights.items():
        now = model.get_parameter(n).detach()
        assert torch.equal(now, weight * pruner.masks.get(n, torch.ones_like(weight).bool())) or (
            torch.equal(now, weight)
        ), n
    assert record.refits
    result = pruner.finish(inplace=False)
    assert result.verification is not None
    assert result.verification.passed


@pytest.mark.parametrize("held", [True, False], ids=["judged", "one batch"])
def test_bias_when_a_layer_loses_inputs_then_its_bias_takes_over_their_means(held):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    draw = low_rank(torch.Generator().manual_seed(1), 64, 6)
    batches = [draw().double() for _ in range(4 if held else 1)]
    hidden = torch.cat([net[1](net[0](x)) for x in batches]).detach()
    bias, weight = net[2].bias.detach().clone(), net[2].weight.detach().clone()
    pruner = decided(net, batches, names=["0"])
    record = pruner.repair(batches, "bias")
    gone = ~pruner.masks["2.weight"][0]
    assert 0 < gone.sum() < 16
    wanted = bias + weight[:, gone] @ hidden[:, gone].mean(0)
    torch.testing.assert_close(net[2].bias.detach(), wanted)
    (refit,) = record.refits
    assert refit.done
    assert "1 of 1 readers refitted" in str(record)
    if held:
        (judge,) = batches[3:]
        inner = net[1](net[0](judge)).detach()
        dense, now = inner @ weight.T + bias, net[2](inner * ~gone).detach()
        spread = dense.var(0, correction=0).sum()
        assert refit.after == pytest.approx(float((dense - now).square().mean(0).sum() / spread))
        assert refit.after < refit.before
