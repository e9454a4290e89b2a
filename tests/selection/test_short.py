"""Less than was asked for goes: that is an error or the first warning, in any granularity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import GoalError
from tests.repair.kinds import LLAMA, hugging_face

X = torch.randn(4, 8)


def net(first: int = 64, second: int = 64) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(8, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(second, 4)).eval()


@pytest.mark.parametrize("settings", [{}, {"scope": "global"}, {"uniform": True}])
@pytest.mark.parametrize(
    ("widths", "share", "step"),
    [((64, 64), 0.75, 32), ((64, 64), 0.5, 48), ((16, 12), 0.75, 8), ((64, 20), 0.5, 16)],
)
def test_prune_when_rounding_lets_much_less_go_then_the_first_warning_says_so(
    widths: tuple[int, int], share: float, step: int, settings: dict[str, Any]
) -> None:
    model = net(*widths)
    try:
        result = sc.prune(model, X, share, round_to=step, **settings)
    except GoalError as error:
        assert f"round_to={step}" in str(error)  # noqa: PT017  # either is a word
        return
    went = 1 - sum(m.out_features for m in result.model[:3:2]) / sum(widths)
    if went >= share:
        assert result.warnings == []
        return
    first = result.warnings[0]
    assert first.startswith(f"{went:.1%} of all positions go, where ")
    assert f"round_to={step}" in first
    assert str(result).startswith("warning")


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("granularity", ["group", "element", "out_channel", "in_channel"])
def test_prune_when_a_bound_is_below_what_is_asked_then_it_is_said(
    granularity: str, scope: str, strict: bool
) -> None:
    settings = {"granularity": granularity, "scope": scope, "max_sparsity": 0.2, "strict": strict}
    if strict:
        with pytest.raises(GoalError, match="cannot go, at most"):
            sc.prune(net(), X, 0.5, **settings)
        return
    assert "cannot go, at most" in sc.prune(net(), X, 0.5, **settings).warnings[0]


@pytest.mark.parametrize("granularity", ["group", "element", "out_channel", "2:4"])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.33, 0.5, 0.9])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_prune_when_as_much_goes_as_was_asked_for_then_nothing_is_said(
    granularity: str, share: float, scope: str
) -> None:
    if granularity == "2:4":
        settings: dict[str, Any] = {"granularity": granularity}
    else:
        settings = {"granularity": granularity, "sparsity": share, "scope": scope}
    result = sc.prune(net(40, 28), X, **settings)
    assert not [w for w in (*result.warnings, *result.notes) if "asked for" in w]


def test_prune_when_single_weights_go_then_the_head_says_how_many() -> None:
    result = sc.prune(net(), X, 0.05, granularity="element", criterion="magnitude")
    assert result.unchanged
    assert "5% of the weights of 3 tensors zero, no shape changed" in " ".join(str(result).split())


@pytest.mark.parametrize("named", [True, False])
def test_prune_when_a_neuron_loses_all_its_weights_then_a_config_that_says_shapes_stays_true(
    named: bool,
) -> None:
    model = hugging_face("Llama", **LLAMA).eval()
    with torch.no_grad():
        for name in ("gate_proj", "up_proj"):
            model.get_submodule(f"model.layers.0.mlp.{name}").weight[5] *= 1e-6
        model.get_submodule("model.layers.0.mlp.down_proj").weight[:, 5] *= 1e-6

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.of = model

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.of(ids, use_cache=False).logits

    given = model if named else Wrapped().eval()
    settings = {"granularity": "element", "names": ["*mlp*"], "normalize": "none"}
    result = sc.prune(given, torch.arange(1, 17).view(1, 16), 0.5, "magnitude", **settings)
    assert result.unchanged is named
    assert named or result.plan.counts == {"of.model.layers.0.mlp.gate_proj": 31}
