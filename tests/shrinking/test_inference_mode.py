"""What is cut under ``torch.inference_mode`` is a model like any other: it trains, and is cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.nni.speedup import ModelSpeedup

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Asks for a transpose, which torch does not take apart under inference mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.mix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)) @ self.mix.T)


def speedup(net: nn.Module) -> nn.Module:
    rows = torch.ones(8)
    rows[:4] = 0
    masks = {"first": {"weight": rows[:, None].expand(8, 5), "bias": rows}}
    masks["norm"] = {"weight": rows, "bias": rows}
    return ModelSpeedup(net, X, masks).speedup_model()


def stepped(net: nn.Module) -> nn.Module:
    pruner = sc.Pruner(net, sc.Config(sparsity=0.5), X)
    pruner.step()
    return pruner.finish().model


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copy": lambda net: sc.prune(net, X, sparsity=0.5).model,
    "in place": lambda net: sc.prune(net, X, sparsity=0.5, inplace=True).model,
    "plan": lambda net: sc.apply_plan(net, sc.prune(net, X, sparsity=0.5).plan, X).model,
    "speedup": speedup,
    "stepped": stepped,
}


@pytest.mark.parametrize("way", WAYS)
def test_cut_when_made_under_inference_mode_then_trains_and_is_cut_again(way: str):
    torch.manual_seed(0)
    net = Net()
    net(X).sum().backward()  # gradients are cut along
    with torch.inference_mode():
        small = WAYS[way](net)
        again = sc.prune(small, X, sparsity=0.5).model
    for model, width in ((small, 4), (again, 2)):
        assert model.first.out_features == width
        held = [*model.parameters(), *model.buffers()]
        assert not any(t.is_inference() for t in held)
        assert not any(p.grad.is_inference() for p in model.parameters() if p.grad is not None)
        model.train()(X).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
