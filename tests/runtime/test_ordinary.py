"""Under ``torch.inference_mode`` everything works, and what comes of it can be trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sc


class Mixed(nn.Module):
    """Attention, a recurrent layer, a convolution with a batch norm, and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 4)
        self.recurrent = nn.LSTM(4, 6, batch_first=True)
        self.convolution, self.norm = nn.Conv1d(6, 8, 1), nn.BatchNorm1d(8)
        self.flatten, self.last = nn.Flatten(), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x)[0]
        x = self.recurrent(self.down(self.up(x).relu()))[0].transpose(1, 2)
        return self.last(self.flatten(self.norm(self.convolution(x)).relu()))


def example() -> Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def half(structure: sc.Structure) -> sc.Plan:
    return sc.Plan({g.name: tuple(range(g.size // 2)) for g in structure.exact if not g.sized})


def pruned_by_steps(model: nn.Module, x: Tensor) -> sc.Result:
    pruner = sc.Pruner(model, sc.Config(sparsity=0.5), x)
    pruner.step()
    return pruner.finish()


WAYS = {
    "prune": lambda model, x: sc.prune(model, x, 0.5),
    "in place": lambda model, x: sc.prune(model, x, 0.5, inplace=True),
    "Pruner": pruned_by_steps,
    "apply_plan": lambda model, x: sc.apply_plan(model, half(sc.analyze(model, x)), x),
    "shrink": lambda m, x: sc.shrink(m, half(s := sc.analyze(m, x)).masks(s), x),
}


@pytest.mark.parametrize(
    ("way", "built_inside"),  # built there a tensor stays of that mode: only a copy can be trained
    [*((way, False) for way in WAYS), ("prune", True), ("apply_plan", True)],
)
def test_pruning_when_in_inference_mode_then_the_result_is_the_same_and_trains(way, built_inside):
    torch.manual_seed(0)
    expected = WAYS[way](Mixed(), example())
    torch.manual_seed(0)
    if built_inside:
        with torch.inference_mode():
            model, x = Mixed(), example()
            result = WAYS[way](model, x)
    else:
        model, x = Mixed(), example()
        with torch.inference_mode():
            result = WAYS[way](model, x)
    assert result.verification.passed
    assert result.plan == expected.plan
    assert str(result.after) == str(expected.after)
    result.model.train()(example()).sum().backward()
    assert all(p.grad is not None for p in result.model.parameters())


def test_analyze_when_the_model_is_of_inference_mode_then_it_is_as_of_any_other():
    expected = str(sc.analyze(Mixed(), example()))
    with torch.inference_mode():
        model, x = Mixed(), example()
    before = dict(model.named_parameters())
    assert str(sc.analyze(model, x)) == expected
    with torch.inference_mode():
        assert str(sc.analyze(model, x)) == expected
    assert all(p is before[name] for name, p in model.named_parameters())
