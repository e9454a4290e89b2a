"""The teacher is the dense model, and its loss is mixed as the formula says."""

from __future__ import annotations

import copy
from collections import namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import Config, Distillation, Pruner, distillation_loss
from secateur.errors import ConfigError
from secateur.training.distillation import logits_of

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 3
Output = namedtuple("Output", ["logits", "other"])


def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)
        )


def test_call_when_a_forward_was_made_then_the_loss_is_the_convex_mix() -> None:
    model = net()
    dense = copy.deepcopy(model).eval()
    distillation = Distillation(model, weight=0.7, temperature=3.0)
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    logits = model(X)
    loss = F.cross_entropy(logits, Y)
    expected = 0.3 * loss + 0.7 * distillation_loss(logits, dense(X), 3.0)
    torch.testing.assert_close(distillation(loss), expected)
    assert not distillation.waits


@pytest.mark.parametrize("scale", [1.0, 0.25, 1024.0])
def test_add_to_when_the_loss_is_scaled_then_gradients_are_those_of_the_mix(scale: float) -> None:
    found = []
    for in_place in (False, True):
        model = net()
        model[3].p = 0.0
        distillation = Distillation(model, teacher=net().requires_grad_(False))
        loss = F.cross_entropy(model(X), Y) * scale
        if in_place:
            distillation.add_to(loss, scale)
        else:
            loss = distillation(loss, scale)
        loss.backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_teacher_when_the_model_trains_then_it_stays_as_it_was_and_in_its_mode() -> None:
    model, teacher = net(), net().train()
    before = copy.deepcopy(teacher.state_dict())
    distillation = Distillation(model, teacher)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        distillation(F.cross_entropy(model(X), Y)).backward()
        optimizer.step()
    assert all(map(torch.equal, before.values(), teacher.state_dict().values()))
    assert teacher.training
    assert distillation.nbytes == sum(t.nbytes for t in before.values())


def test_forward_when_in_eval_mode_or_of_a_copy_then_nothing_is_seen() -> None:
    model = net()
    distillation = Distillation(model)
    model.eval()(X)
    with torch.no_grad():
        model.train()(X)
    other = copy.deepcopy(model).train()
    other(X)
    assert not distillation.waits
    with pytest.raises(ConfigError, match="no forward in training mode"):
        distillation(torch.ones(()))


def test_finish_when_the_model_was_distilled_then_it_is_cut_and_distilled_on() -> None:
    model = net()
    distillation = Distillation(model)
    pruner = Pruner(model, Config(sparsity=0.5), X)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    distillation(F.cross_entropy(model(X), Y)).backward()
    optimizer.step()
    pruner.step()
    assert pruner.finish().model[0].out_features == 8
    distillation(F.cross_entropy(model.train()(X), Y)).backward()
    distillation.close()
    model(X)
    assert not distillation.waits


@pytest.mark.parametrize(
    "output",
    [X, {"logits": X}, Output(X, None), {"logits": X, "loss": 0}],
    ids=["tensor", "dict", "tuple with names", "with loss"],
)
def test_logits_when_an_output_has_them_then_they_are_found(output: Any) -> None:
    assert logits_of(output) is X


@pytest.mark.parametrize("output", [(X, X), [X], {"loss": X}, None, 3.0])
def test_logits_when_an_output_has_none_then_says_what_it_is(output: Any) -> None:
    with pytest.raises(ConfigError, match=f"is a {type(output).__name__}"):
        logits_of(output)


@pytest.mark.parametrize(
    "settings",
    [{"weight": 1.1}, {"weight": float("nan")}, {"temperature": 0.0}, {"teacher": "dence"}],
)
def test_init_when_a_setting_is_out_of_range_then_says_so(settings: dict[str, Any]) -> None:
    model = net()
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Distillation(model, **settings)
    assert not model._forward_hooks


def test_check_when_the_teacher_is_another_then_says_what_to_do() -> None:
    distillation = Distillation(net())
    distillation.check(Distillation(net()).digest())
    with torch.no_grad():
        distillation.teacher[0].weight.add_(1)
    with pytest.raises(ConfigError, match="other weights"):
        distillation.check(Distillation(net()).digest())


def test_call_when_logits_differ_in_shape_then_says_which() -> None:
    def other() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 4))

    distillation = Distillation(model := net(), other())
    with pytest.raises(ConfigError, match=r"\(8, 3\) and \(8, 4\)"):
        model(X)
    assert isinstance(distillation.teacher(X), Tensor)
