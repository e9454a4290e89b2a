"""Less than was asked for goes: that is an error or the first warning, in any granularity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import GoalError

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
