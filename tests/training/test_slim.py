"""Slim: the penalty that the paper adds, on the scales that the config selects."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import Config, Pruner
from secateur.errors import ConfigError, UnknownNameError

EXAMPLE = torch.zeros(2, 3, 8, 8)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )


def step(model: nn.Module, optimizer: torch.optim.Optimizer, parts: int = 1) -> None:
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    y = torch.arange(8) % 4
    optimizer.zero_grad()
    for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
        (F.cross_entropy(model(a), b) / parts).backward()
    optimizer.step()


def slim(model: nn.Module, strength: float = 0.1, **settings: object) -> Pruner:
    options = {"strength": strength}
    config = {"method": "slim", "sparsity": 0.5, "method_options": options, **settings}
    return Pruner(model, Config(**config), EXAMPLE)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("parts", [1, 4])
def test_penalty_when_an_optimizer_steps_then_scales_gain_its_gradient_once(parts):
    plain, model = net().eval(), net().eval()
    pruner = slim(model)
    for each in (plain, model):
        step(each, torch.optim.SGD(each.parameters(), 0.1), parts)
    expected = gradients(plain)
    for name in ("1.weight", "4.weight"):
        expected[name] = expected[name] + 0.1 * plain.get_parameter(name).detach().sign()
    for name, found in gradients(model).items():
        torch.testing.assert_close(found, expected[name], msg=name)
    del pruner


def test_penalty_when_the_loss_is_scaled_then_it_is_not():
    model = net().eval()
    pruner = slim(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    scaler.scale(model(torch.zeros(2, 3, 8, 8)).sum() * 0).backward()
    scaler.step(optimizer)
    assert torch.equal(model[1].weight.grad, torch.full((16,), 0.1))
    del pruner


def test_penalty_when_the_pruner_is_gone_then_it_is_too():
    model = net()
    pruner = slim(model)
    del pruner
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model[1].weight.grad = torch.zeros(16)
    optimizer.step()
    assert not model[1].weight.grad.any()


def test_penalty_when_another_model_is_trained_then_it_is_left_alone():
    model, other = net(), net()
    pruner = slim(model)
    other[1].weight.grad = torch.zeros(16)
    torch.optim.SGD(other.parameters(), 0.1).step()
    assert not other[1].weight.grad.any()
    del pruner


def test_penalty_when_the_optimizer_takes_a_closure_then_it_is_added_after_it():
    model = net().eval()
    pruner = slim(model)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    before = model[1].weight.detach().clone()

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = model(torch.zeros(2, 3, 8, 8)).sum() * 0
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(model[1].weight.detach(), before - 0.1 * before.sign())
    del pruner


def test_step_when_scales_are_learned_then_the_smallest_of_the_whole_network_go():
    model = net()
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(0.2, 1.7, 16))
        model[4].weight.copy_(-torch.linspace(0.15, 0.85, 8))
    pruner = slim(model, strength=0.0)
    pruner.step()
    scales = torch.cat([torch.linspace(0.2, 1.7, 16), torch.linspace(0.15, 0.85, 8)])
    kept = scales > scales.sort().values[11]
    assert torch.equal(pruner.keeps["0"], kept[:16])
    assert torch.equal(pruner.keeps["3"], kept[16:])


def test_penalty_when_scales_are_masked_then_only_the_others_are_penalised():
    model = net().eval()
    pruner = slim(model, strength=0.1, scope="local")
    pruner.step()
    model.zero_grad()
    model[1]._parameters["weight"].grad = torch.zeros(16)
    torch.optim.SGD(model.parameters(), 0.0).step()
    expected = 0.1 * pruner.masks["1.weight"].float()
    assert torch.equal(model[1]._parameters["weight"].grad, expected)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"method": "slime"}, UnknownNameError, "Did you mean 'slim'?"),
        ({"method_options": {"strength": -1.0}}, ConfigError, "greater than or equal to 0"),
        ({"method_options": {"strengt": 1.0}}, ConfigError, "Did you mean 'strength'?"),
        ({"method": None}, ConfigError, "no method"),
    ],
)
def test_pruner_when_a_methods_settings_are_wrong_then_says_what_is_right(settings, error, words):
    with pytest.raises(error) as caught:
        slim(net(), **settings)
    assert words in str(caught.value)
