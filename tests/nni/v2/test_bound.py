"""Evaluators bound to copies of a model: optimizers, schedulers and classes are the user's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, StepLR

from secateur.nni.evaluators import LegacyEvaluator, TransformersEvaluator
from secateur.nni.evaluators.rebuilt import fresh
from secateur.nni.pytorch import TorchEvaluator, pruning
from tests.trained import live


class Own(SGD):
    """Has attributes of its own, and a bound method among them."""

    def __init__(self, params: Any, lr: float):
        super().__init__(params, lr, momentum=0.9)
        self.first = self.param_groups[0]["params"][0]
        self.held = {"all": tuple(self.param_groups[0]["params"])}
        self.steps = [0]
        self.after = self.count

    def count(self) -> None:
        self.steps[0] += 1

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        self.after()


class Inside(Optimizer):
    """Hands its groups on to an optimizer inside, as SAM does."""

    def __init__(self, params: Any, lr: float):
        super().__init__(params, {"lr": lr})
        self.inner = SGD(self.param_groups, lr, momentum=0.9)
        self.param_groups = self.inner.param_groups

    def step(self, closure: Any = None) -> Any:
        self.inner.step(closure)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    **{
        name: getattr(torch.optim, name)
        for name in ("SGD", "AdamW", "ASGD", "Adafactor", "Rprop", "RMSprop", "LBFGS", "NAdam")
    },
    "of the user's": Own,
    "one inside another": Inside,
}


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    one = nn.Linear(4, 2)
    return one, copy.deepcopy(one)


def step(optimizer: Optimizer, model: nn.Module) -> None:
    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(torch.ones(1, 4)).square().sum()
        loss.backward()
        return loss

    closure()
    optimizer.step(closure)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fresh_when_an_optimizer_has_stepped_then_its_copy_begins_anew_on_other_parameters(
    name: str, scheduled: bool
) -> None:
    one, other = pair()
    _, same = pair()
    optimizer = OPTIMIZERS[name](one.parameters(), lr=0.1)
    expected = OPTIMIZERS[name](same.parameters(), lr=0.1)
    if scheduled:  # it puts a step of its own on the instance
        StepLR(optimizer, 1, 1.0)
    step(optimizer, one)
    weight = one.weight.detach().clone()
    ids = {id(a): b for a, b in zip(one.parameters(), other.parameters(), strict=True)}
    made = fresh(optimizer, ids)
    assert not made.state
    assert type(made) is type(optimizer)
    for _ in range(2):
        step(made, other)
        step(expected, same)
    assert torch.equal(other.weight, same.weight)
    assert torch.equal(one.weight, weight)
    assert set(vars(expected)) <= set(vars(made))


def test_fresh_when_an_optimizer_has_attributes_then_they_are_the_copys_own() -> None:
    one, other = pair()
    optimizer = Own(one.parameters(), lr=0.1)
    ids = {id(a): b for a, b in zip(one.parameters(), other.parameters(), strict=True)}
    made: Any = fresh(optimizer, ids)
    assert made.first is other.weight
    assert made.held == {"all": (other.weight, other.bias)}
    step(made, other)
    assert (made.steps, optimizer.steps) == ([1], [0])
    nested: Any = fresh(Inside(one.parameters(), lr=0.1), ids)
    assert nested.inner.param_groups is nested.param_groups


def evaluator_of(kind: type[TorchEvaluator], model: nn.Module, rates: list[float]) -> Any:
    def training_func(model: nn.Module, optimizer: Any, criterion: Any, scheduler: Any, *_: Any):
        for _ in range(3):
            rates.append(optimizer.param_groups[0]["lr"])
            step(optimizer, model)
            scheduler.step()

    optimizer = SGD(model.parameters(), lr=1.0)
    return kind(training_func, optimizer, F.mse_loss, StepLR(optimizer, 1, 0.5))


def test_bound_to_when_the_lenders_optimizer_has_trained_then_a_copy_begins_as_it_was_built() -> (
    None
):
    model, other = pair()
    rates: list[float] = []
    evaluator = evaluator_of(TorchEvaluator, model, rates)
    evaluator.finetune(model)
    for _ in range(2):
        evaluator.bound_to(other, model).finetune(other)
    assert rates == [1.0, 0.5, 0.25] * 3
    assert evaluator.optimizers.param_groups[0]["lr"] == 0.125


def test_bound_to_when_a_class_is_the_users_then_it_stays() -> None:
    class Mine(TorchEvaluator):
        def evaluate(self, model: nn.Module) -> float:
            return 42.0

    class Older(LegacyEvaluator):
        mark = None

    model, other = pair()
    assert evaluator_of(Mine, model, []).bound_to(other, model).evaluate(other) == 42.0
    older = Older(print, SGD(model.parameters(), lr=1.0))
    older.mark = "mine"
    found = older.bound_to(other, model)
    assert (type(found), found.mark) == (Older, "mine")
    assert found.traced_optimizer.param_groups[0]["params"][0] is other.weight


@pytest.mark.parametrize("given", [True, False])
def test_compress_when_a_trainer_has_its_scheduler_then_each_round_has_the_same_rates(
    given: bool, tmp_path: Path
) -> None:
    found = live("hf", tmp_path / "trainer")
    trainer = found.evaluator.trainer
    trainer.args.max_steps, trainer.args.lr_scheduler_type = 4, "linear"
    scheduler = None
    if given:
        optimizer = SGD(found.model.parameters(), lr=3e-3)
        scheduler = LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 4))
        trainer.optimizer, trainer.lr_scheduler = optimizer, scheduler
    rates: list[float] = []

    class Mine(TransformersEvaluator):
        def train(self, model: nn.Module, after_step: Any, **limits: Any) -> None:
            super().train(model, lambda: rates.append(rate()), **limits)

        def evaluate(self, model: nn.Module) -> float:
            raise NotImplementedError

    def rate() -> float:
        return trainer.optimizer.param_groups[0]["lr"]

    evaluator = Mine(trainer, found.example)
    rules = [{"op_types": ["Linear"], "sparsity": 0.5}]
    pruner = pruning.LinearPruner(
        found.model, rules, "l1", 2, log_dir=tmp_path, evaluator=evaluator
    )
    pruner.compress()
    assert rates == pytest.approx([3e-3, 2.25e-3, 1.5e-3, 0.75e-3] * 3)
    assert trainer.model is found.model
    assert trainer.lr_scheduler is scheduler
    assert scheduler is None or scheduler.last_epoch == 0
    with pytest.raises(NotImplementedError):
        evaluator.bound_to(copy.deepcopy(found.model), found.model).evaluate(found.model)
