"""ADMM: the pull is the paper's, its projections are those of the goal, and it ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur import Config, Pruner
from secateur.errors import ConfigError
from tests.training.test_slim_penalty import net

EXAMPLE = torch.zeros(2, 6)
RHO, RATE = 0.4, 0.1


def admm(model: nn.Module, **settings: Any) -> Pruner:
    options = {"rho": RHO, "interval": 2, **settings.pop("options", {})}
    config = {"sparsity": 0.5, "start": 6, "granularity": "element", "types": ["Linear"]}
    given = {"method": "admm", "method_options": options, **config, **settings}
    if given["granularity"] == "group":
        del given["types"]
    return Pruner(model, Config(**given), EXAMPLE.to(next(model.parameters())))


def train(model: nn.Module, pruner: Pruner, steps: int, scale: float = 0.0) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.ones(4, 6).to(model[3].weight)) * scale).sum().backward()
        optimizer.step()
        pruner.step()


def projected(value: Tensor, kept: int) -> Tensor:
    """Return the nearest matrix with so many values."""
    last = value.abs().flatten().sort(descending=True).values[kept - 1]
    return value * (value.abs() >= last)


def test_step_when_weights_are_pulled_then_they_go_the_way_of_the_closed_form() -> None:
    model = net().double()
    weight = model[3].weight.detach().clone()
    pruner = admm(model)
    z, u = projected(weight, 32), torch.zeros_like(weight)
    for step in range(1, 7):
        train(model, pruner, 1)
        weight = weight - RATE * RHO * (weight - z + u)
        if step % 2 == 0:
            z, u = projected(weight + u, 32), weight + u - projected(weight + u, 32)
        torch.testing.assert_close(model[3].weight.detach(), weight)
        state = pruner.method.state_dict()
        torch.testing.assert_close(state["z"]["3.weight"], z)
        torch.testing.assert_close(state["u"]["3.weight"], u)


@pytest.mark.parametrize("granularity", ["element", "out_channel", "group", [2, 2], "2:4"])
def test_step_when_pulled_for_long_then_what_goes_is_nearly_zero_before(granularity: Any) -> None:
    model = net()
    goal = {"sparsity": 0.5} if granularity != "2:4" else {"names": ["3"], "sparsity": None}
    pruner = admm(model, granularity=granularity, start=120, options={"interval": 60}, **goal)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, pruner, 120)
    assert not pruner.masks
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    pruner.step()
    assert pruner.masks
    for name, mask in pruner.masks.items():
        gone = before[name][~mask].norm()
        assert gone < 0.1 * start[name][~mask].norm() + 1e-6, name
        torch.testing.assert_close(before[name][mask], start[name][mask], rtol=0, atol=1e-6)


def test_penalty_when_the_goal_is_reached_then_there_is_none() -> None:
    model = net()
    pruner = admm(model)
    train(model, pruner, 6)
    assert pruner.method.penalty() is not None
    train(model, pruner, 1)
    assert pruner.method.penalty() is None
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, pruner, 3)
    assert all(map(torch.equal, before, model.parameters()))


def test_penalty_when_targets_have_a_rho_each_then_each_is_pulled_with_its_own() -> None:
    model = net()
    rho = {"*": 1e-9, "3.*": RHO}
    pruner = admm(model, options={"rho": rho})
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, pruner, 6)
    moved = {n: float((p.detach() - before[n]).abs().max()) for n, p in model.named_parameters()}
    assert moved["3.weight"] > 1e-3
    assert max(moved["0.weight"], moved["5.weight"]) < 1e-6


def test_state_when_restored_into_another_run_then_it_goes_on_alike() -> None:
    first, second = net(), net()
    one = admm(first)
    train(first, one, 3, scale=1.0)
    two = admm(second)
    second.load_state_dict(first.state_dict())
    two.load_state_dict(one.state_dict())
    for model, pruner in ((first, one), (second, two)):
        train(model, pruner, 5, scale=1.0)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert all(torch.equal(one.masks[name], mask) for name, mask in two.masks.items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start": 0, "options": {"interval": 9}}, "is call 1, before the first projection"),
        ({"criterion": "taylor"}, "needs grad, and what is projected are weights"),
        ({"options": {"rho": {"*": 0.1, "33.*": 0.2}}}, "'33.*' matches no target"),
        ({"options": {"rho": {"0.*": 0.1}}}, "rho says nothing of 3.weight, 5.weight: add"),
        ({"options": {"rho": -0.5}}, "greater than 0"),
        ({"options": {"rho": {"*": 0.0}}}, "greater than 0"),
    ],
)
def test_pruner_when_the_settings_cannot_work_then_says_what_would(
    settings: dict[str, Any], words: str
) -> None:
    model = net()
    with pytest.raises(ConfigError) as caught:
        admm(model, **settings)
    assert words in str(caught.value)
