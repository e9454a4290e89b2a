"""Blocks and groups under one budget: what goes is what the outputs lose least by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ConfigError, GoalError
from secateur.repair.quality import distance
from tests.mixtures import batches as mixture_batches
from tests.mixtures import mixture
from tests.shrinking.test_depth import Listed, encoder

ALL: dict[str, Any] = {"what": ["all"], "allocate": "uniform", "repair": "none"}
"""Without curves and repairs, which take most of the time."""
SLOW = pytest.mark.slow
X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))


def data(many: int = 8, features: int = 8) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, features, generator=draw) for _ in range(many)]


def with_a_layer_that_does_nothing(norm: str = "pre") -> nn.Module:
    torch.manual_seed(0)
    net = Listed(norm, depth=4).eval()
    with torch.no_grad():
        for part in (net.layers[2].mix, net.layers[2].down):
            part.weight.mul_(1e-3)
            part.bias.mul_(1e-3)
    return net


@pytest.mark.parametrize(
    ("of", "share", "more"),
    [
        ("params", 0.3, {}),
        pytest.param("macs", 0.5, {}, marks=SLOW),
        pytest.param("params", 0.1, {"allocate": "error"}, marks=SLOW),
        pytest.param("params", 0.5, {"repair": "least_squares"}, marks=SLOW),
        pytest.param("macs", 0.3, {"allocate": "error", "uniform": True}, marks=SLOW),
    ],
)
def test_prune_when_all_kinds_share_a_goal_then_it_is_met_and_exact(of, share, more):
    result = sc.prune(encoder(), X, share, **{**ALL, **more}, of=of, data=data())
    assert getattr(result.after, of) <= (1 - share) * getattr(result.before, of)
    assert result.goals[0].met
    assert result.verification.exact
    assert result.verification.passed
    assert sum(p.numel() for p in result.model.parameters()) == result.after.params


@pytest.mark.parametrize(
    ("norm", "repair"), [("pre", "none"), pytest.param("none", "least_squares", marks=SLOW)]
)
def test_prune_when_a_layer_does_nothing_then_it_is_what_goes(norm, repair):
    net, given = with_a_layer_that_does_nothing(norm), data(8, 5)
    block = next(b for b in sc.analyze(net, given[0]).blocks if b.name == "layers.2")
    total = sum(p.numel() for p in net.parameters())
    budget = [f"{total - block.params} params"]
    settings = {"what": ["depth", "width"], "budget": budget, "repair": repair}
    result = sc.prune(net, given[0], **settings, data=given)
    assert result.plan.drop == ("layers.2",)
    assert not result.plan.keep, "the layer alone meets the goal"
    assert len(result.model.layers) == 3
    assert distance(net, result.model, given).error < 0.01
    assert any("without layers.2" in note and "is taken" in note for note in result.notes)


@pytest.mark.parametrize("uniform", [pytest.param(False, marks=SLOW), True])
def test_prune_when_layers_go_beside_widths_then_what_is_left_is_counted_right(uniform):
    net, given = with_a_layer_that_does_nothing(), data(8, 5)
    total = sum(p.numel() for p in net.parameters())
    settings = {"what": ["depth", "width"], "budget": [f"{total * 2 // 3} params"]}
    result = sc.prune(net, given[0], **settings, uniform=uniform, data=given, allocate="uniform")
    assert result.plan.drop
    assert result.plan.keep
    assert sum(p.numel() for p in result.model.parameters()) == result.after.params
    assert 0.6 * total < result.after.params <= total * 2 // 3
    assert result.verification.passed
    widths = {layer.up.out_features for layer in result.model.layers}
    assert len(widths) == 1 or not uniform
    assert result.repair.after.error < result.repair.before.error
    found = distance(net, result.model, given[3::4]).error
    assert result.repair.after.error == pytest.approx(found, rel=1e-3)


@SLOW
def test_prune_when_no_layer_is_worth_it_then_none_goes():
    net, given = encoder(), data()
    mixed = sc.prune(net, X, 0.2, what=["all"], data=given)
    alone = {"what": ["width", "heads", "hidden"], "of": "params", "allocate": "error"}
    narrow = sc.prune(net, X, 0.2, **alone, data=given)
    assert mixed.repair.after.error <= narrow.repair.after.error + 1e-9
    if not mixed.plan.drop:
        assert mixed.plan == narrow.plan


def test_prune_when_there_are_no_blocks_then_the_other_kinds_meet_the_goal_and_a_note_says_so():
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    result = sc.prune(net, X, 0.3, **ALL, data=data())
    assert result.goals[0].met
    assert "Sequential has no blocks that can go" in result.notes


@SLOW
def test_prune_when_depth_and_experts_share_a_goal_then_both_are_weighed():
    net = nn.Sequential(mixture(), nn.Linear(3, 3)).eval()
    x = mixture_batches()[0]
    result = sc.prune(net, x, 0.3, **ALL, data=mixture_batches(8))
    assert result.goals[0].met
    assert result.verification.passed


@SLOW
def test_prune_when_all_kinds_are_asked_for_in_place_then_it_is_the_same():
    asked = encoder(), encoder()
    given = data()
    copy = sc.prune(asked[0], X, 0.4, **ALL, data=given)
    here = sc.prune(asked[1], X, 0.4, **ALL, data=given, inplace=True)
    assert here.model is asked[1]
    assert copy.plan == here.plan
    assert torch.equal(copy.model(X), here.model(X))


def test_result_when_blocks_and_widths_went_then_it_loads_again(tmp_path):
    net, given = with_a_layer_that_does_nothing(), data(8, 5)
    total = sum(p.numel() for p in net.parameters())
    settings = {"what": ["depth", "width"], "budget": [f"{total * 2 // 3} params"]}
    result = sc.prune(net, given[0], **{**ALL, **settings}, data=given)
    assert result.plan.drop
    assert result.plan.keep
    result.save(tmp_path)
    again = sc.load_pruned(tmp_path, with_a_layer_that_does_nothing()).eval()
    assert torch.equal(again(given[0]), result.model(given[0]))


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no data": ({"data": None}, ConfigError, "decided by what the outputs lose: give data"),
    "a time": ({"of": "memory"}, ConfigError, "not known of it, but of: macs, params"),
    "targets": (
        {"what": (), "sparsity": None, "targets": [{"what": ["depth", "width"], "sparsity": 0.5}]},
        ConfigError,
        "without targets",
    ),
    "too much": ({"sparsity": 0.999}, GoalError, "of params cannot go"),
    "a slip": ({"what": ["depth", "widht"]}, ConfigError, "Did you mean 'width'"),
}


@pytest.mark.parametrize(("given", "error", "said"), WRONG.values(), ids=WRONG)
def test_prune_when_kinds_cannot_share_a_goal_then_that_is_said(given, error, said):
    net = encoder()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    settings = {"sparsity": 0.4, "data": data(), **ALL, **given}
    with pytest.raises(error, match=said):
        sc.prune(net, X, **settings)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_pruner_when_blocks_are_to_go_in_a_loop_then_that_is_refused():
    config = sc.Config(sparsity=0.4, what=["all"])
    with pytest.raises(ConfigError, match="in one shot"):
        sc.Pruner(encoder(), config, X)
    pruner = sc.Pruner(encoder(), config, X, trained=False)
    with pytest.raises(ConfigError, match="has no state"):
        pruner.state_dict()


def test_config_when_all_kinds_are_named_then_each_is():
    kinds = ("depth", "experts", "heads", "hidden", "width")
    assert sc.Config(what=["all"], sparsity=0.1).what == kinds
