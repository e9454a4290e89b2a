"""Group lasso and growing regularisation: all slices of a group shrink, in any model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur import Config, Pruner
from secateur.errors import ConfigError, FileError
from secateur.masks.resume import read_state, write_state
from tests import zoo
from tests.training.test_slim_penalty import net

EXAMPLE = torch.zeros(2, 6)
RATE = 0.1
QUICK = ("shufflenet_v2_x1_0",)
MODELS = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in zoo.TORCHVISION
]


def pruner_of(model: nn.Module, method: str, **settings: Any) -> Pruner:
    options = settings.pop("options", {})
    given = {"sparsity": 0.5, "start": 6, **settings}
    return Pruner(
        model, Config(method=method, method_options=options, **given), EXAMPLE.to(model[3].weight)
    )


def train(model: nn.Module, pruner: Pruner, steps: int, scale: float = 0.0) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.ones(4, 6).to(model[3].weight)) * scale).sum().backward()
        optimizer.step()
        pruner.step()


def below(module: nn.Module, tensor: str) -> Tensor:
    """Return a parameter without its mask."""
    return module._parameters[tensor].detach()


def slices(model: nn.Sequential) -> Tensor:
    """Return all that goes with each position between the last two layers, (8, values)."""
    return torch.cat([model[3].weight, model[3].bias[:, None], model[5].weight.T], dim=1).detach()


@pytest.mark.parametrize("alpha", [0.0, 4.0])
def test_group_lasso_when_a_step_is_made_then_all_slices_go_the_way_of_the_closed_form(
    alpha: float,
) -> None:
    model = net().double()
    pruner = pruner_of(model, "group_lasso", names=["3"], options={"strength": 0.3, "alpha": alpha})
    before = slices(model)
    train(model, pruner, 1)
    size = before.norm(dim=1)
    share = 2 ** (alpha * (size.max() - size) / (size.max() - size.min()))
    expected = before * (1 - RATE * 0.3 * share / size)[:, None]
    torch.testing.assert_close(slices(model), expected)
    assert not pruner.masks


def test_group_lasso_when_some_are_masked_then_only_the_others_shrink() -> None:
    model = net()
    pruner = pruner_of(model, "group_lasso", names=["3"], start=0, steps=3, schedule="linear")
    train(model, pruner, 1)
    kept = pruner.keeps["3"]
    assert 0 < int((~kept).sum()) < 4
    before = below(model[3], "weight").clone()
    train(model, pruner, 1)
    moved = (below(model[3], "weight") - before).norm(dim=1)
    assert (moved[kept] > 0).all()
    assert not moved[~kept].any()


def test_group_lasso_when_all_is_zero_then_nothing_becomes_nan() -> None:
    model = net()
    with torch.no_grad():
        for parameter in (*model[3].parameters(), *model[5].parameters()):
            parameter.zero_()
    pruner = pruner_of(model, "group_lasso", names=["3"])
    train(model, pruner, 8)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert int(pruner.keeps["3"].sum()) == 4


def test_growing_when_steps_are_made_then_what_goes_goes_the_way_of_the_closed_form() -> None:
    model = net().double()
    pruner = pruner_of(model, "growing", names=["3"], criterion="l1", options={"ceiling": 2.0})
    before = slices(model)
    last = before[:, :8].abs().sum(1)
    goes = last < last.sort().values[4]
    train(model, pruner, 1)
    assert torch.equal(slices(model), before)  # chosen by now
    shrunk = 1.0
    for step in range(1, 7):
        assert not pruner.keeps
        train(model, pruner, 1)
        shrunk *= 1 - RATE * 2.0 * step / 6
        dense = torch.cat([below(model[3], "weight"), below(model[3], "bias")[:, None]], dim=1)
        torch.testing.assert_close(dense[goes], before[goes, :9] * shrunk)
        assert torch.equal(dense[~goes], before[~goes, :9])
    assert torch.equal(pruner.keeps["3"], ~goes)


@pytest.mark.parametrize("method", ["group_lasso", "growing"])
def test_penalty_when_the_goal_is_reached_then_there_is_none(method: str) -> None:
    model = net()
    pruner = pruner_of(model, method)
    train(model, pruner, 6)
    assert pruner.method.penalty() is not None
    train(model, pruner, 1)
    assert pruner.method.penalty() is None


@pytest.mark.parametrize("granularity", ["element", "out_channel", "group", [2, 2], "2:4"])
@pytest.mark.parametrize("method", ["group_lasso", "growing"])
def test_step_when_trained_for_long_then_what_goes_is_small_beside_what_stays(
    method: str, granularity: Any
) -> None:
    model = net()
    goal = {"sparsity": None, "names": ["3"]} if granularity == "2:4" else {"names": ["3"]}
    pruner = pruner_of(
        model,
        method,
        granularity=granularity,
        start=150,
        options={"strength": 3e-2} if method == "group_lasso" else {},
        **goal,
    )
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, pruner, 150)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    pruner.step()
    assert pruner.masks
    for name, mask in pruner.masks.items():
        if not float(start[name].norm()):
            continue
        left = before[name][~mask].norm() / start[name][~mask].norm().clamp(min=1e-6)
        stayed = before[name][mask].norm() / start[name][mask].norm()
        assert left < 0.7 * stayed, name


@pytest.mark.parametrize("name", MODELS)
def test_growing_when_any_model_is_cut_then_hardly_anything_is_lost(name: str) -> None:
    model, example = zoo.build(name)
    config = Config(method="growing", method_options={"ceiling": 8.0}, sparsity=0.25, start=12)
    pruner = Pruner(model, config, example)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(12):  # no loss but the penalty
        optimizer.zero_grad()
        optimizer.step()
        pruner.step()
    with torch.no_grad():
        before = model(example)
    pruner.step()
    result = pruner.finish()
    assert result.after.params < result.before.params
    with torch.no_grad():
        after = result.model(example)
    lost = float((after - before).norm() / before.norm())
    assert lost < 0.01, f"{name} lost {lost:.1%}"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_group_lasso_when_any_model_is_cut_then_masked_equals_smaller(name: str) -> None:
    model, example = zoo.build(name)
    config = Config(method="group_lasso", sparsity=0.25, start=2, scope="global")
    pruner = Pruner(model, config, example)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.step()
        pruner.step()
    parts = {part.tensor for each in pruner.selectables for part in each.parts}
    held = dict(model.named_parameters())
    same = [name for name in parts if torch.equal(held[name], before[name]) and before[name].any()]
    assert not same, "every slice of every group shrinks"
    assert pruner.finish().verification.passed


@pytest.mark.parametrize(
    ("options", "settings", "words"),
    [
        ({"ceiling": 0.0}, {}, "greater than 0"),
        ({"ceiling": float("inf")}, {}, "finite"),
        ({}, {"start": 0}, "give a start of as many steps"),
        ({"choose_at": 7}, {"start": 6}, "chosen at call 7"),
    ],
)
def test_growing_when_its_settings_cannot_work_then_says_what_would(
    options: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError) as caught:
        pruner_of(model, "growing", options=options, **settings)
    assert words in str(caught.value)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


def test_group_lasso_when_its_strength_is_none_then_says_so() -> None:
    with pytest.raises(ConfigError, match="greater than or equal to 0"):
        pruner_of(net(), "group_lasso", options={"strength": -1.0})


def test_growing_when_the_criterion_has_seen_no_gradients_then_says_so() -> None:
    model = net()
    pruner = pruner_of(model, "growing", criterion="taylor")
    with pytest.raises(ConfigError, match="gradients"):
        pruner.step()


@pytest.mark.parametrize("change", ["shape", "kind", "name"])
def test_growing_when_a_state_is_damaged_then_it_is_refused(change: str, tmp_path: Any) -> None:
    model = net()
    pruner = pruner_of(model, "growing")
    train(model, pruner, 2)
    pruner.save(tmp_path / "state")
    state = read_state(tmp_path / "state")
    goes = state["method"]["goes"]
    if change == "name":
        goes["9.weight"] = goes.pop("3.weight")
    else:
        goes["3.weight"] = goes["3.weight"][:2] if change == "shape" else goes["3.weight"].float()
    write_state(tmp_path / "state", state)
    fresh = pruner_of(net(), "growing")
    with pytest.raises(FileError):
        fresh.load(tmp_path / "state")
    assert fresh.calls == 0
