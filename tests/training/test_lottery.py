"""Lottery: rounds remove equal shares of what is left, and go back to where they began."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import Config, Pruner
from secateur.errors import ConfigError
from secateur.masks import masking
from tests import runs

EXAMPLE = torch.zeros(2, 6)
GRANULARITIES = ["element", "out_channel", "group"]


class Loop:
    """A network, its optimizer and schedule, and the rates that steps were made with."""

    def __init__(self, every: int = 5, steps: int = 3, **settings: Any):
        self.model = runs.net()
        options = settings.pop("options", {})
        config = Config(
            **{"sparsity": 0.875, "method": "lottery", "method_options": options, **settings},
            every=every,
            steps=steps,
        )
        self.start = self.state()
        self.pruner = Pruner(self.model, config, EXAMPLE)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.rates = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.8)
        self.used: list[float] = []
        self.masks: list[dict[str, Tensor]] = []

    def state(self) -> dict[str, Tensor]:
        """Return the weights below any mask, and the buffers."""
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        return {n: t.detach().clone() for n, t in named}

    def train(self, steps: int) -> dict[str, Tensor]:
        self.model.train()
        for _ in range(steps):
            x = torch.randn(16, 6, generator=torch.Generator().manual_seed(len(self.used)))
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x), (x[:, :3].sum(1) > 0).long()).backward()
            self.optimizer.step()
            self.used.append(self.optimizer.param_groups[0]["lr"])
            self.rates.step()
            updates = self.pruner.updates
            self.pruner.step()
            if self.pruner.updates > updates:
                self.masks.append(dict(self.pruner.masks))
        return self.state()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_step_when_rounds_end_then_the_same_share_of_what_is_left_goes_each_time(
    granularity: str,
) -> None:
    loop = Loop(granularity=granularity, sparsity=0.875)
    loop.train(15)
    for number, masks in enumerate(loop.masks, 1):
        for name in ("0.weight", "4.weight"):
            rows = masks[name].flatten(1) if granularity == "element" else masks[name].any(1)
            kept = float(rows.float().mean())
            assert kept == pytest.approx(0.5**number, abs=0.05), (number, name)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("rewind", ["weights", "learning_rate"])
def test_step_when_something_is_gone_then_it_never_comes_back(
    granularity: str, rewind: str
) -> None:
    loop = Loop(granularity=granularity, options={"rewind": rewind})
    loop.train(15)
    for before, after in zip(loop.masks, loop.masks[1:], strict=False):
        assert all(not bool((after[name] & ~mask).any()) for name, mask in before.items())


@pytest.mark.parametrize("scope", ["local", "global"])
def test_step_when_a_round_ends_then_weights_and_statistics_are_those_of_the_start(
    scope: str,
) -> None:
    loop = Loop(scope=scope)
    for _ in range(3):
        trained = loop.train(4)
        assert not torch.equal(trained["0.weight"], loop.start["0.weight"])
        found = loop.train(1)
        assert all(torch.equal(found[name], value) for name, value in loop.start.items())
        assert int(found["1.num_batches_tracked"]) == 0


def test_step_when_a_round_begins_then_the_optimizer_remembers_nothing_of_the_last() -> None:
    loop = Loop()
    loop.train(6)
    weight = loop.model[0]._parameters["weight"]
    assert int(loop.optimizer.state[weight]["step"]) == 1


@pytest.mark.parametrize("rewind", ["weights", "learning_rate"])
def test_step_when_rounds_follow_then_the_learning_rate_is_that_of_the_first(rewind: str) -> None:
    loop = Loop(options={"rewind": rewind})
    loop.train(20)
    first = [1e-2 * 0.8**k for k in range(5)]
    assert loop.used == pytest.approx(first * 4)


@pytest.mark.parametrize("rewind", ["weights", "learning_rate"])
def test_step_when_it_goes_back_to_a_later_step_then_all_is_as_then(rewind: str) -> None:
    loop = Loop(options={"rewind": rewind, "rewind_to": 2})
    early = loop.train(2)
    memory = loop.optimizer.state[loop.model[0].weight]["exp_avg"].clone()
    found = loop.train(3)
    same = [name for name, value in early.items() if torch.equal(found[name], value)]
    assert (set(same) == set(early)) == (rewind == "weights")
    loop.train(3)
    assert loop.used == pytest.approx([1e-2 * 0.8**k for k in (0, 1, 2, 3, 4, 2, 3, 4)])
    state = loop.optimizer.state[loop.model[0]._parameters["weight"]]
    assert int(state["step"]) == (5 if rewind == "weights" else 8)
    assert not torch.equal(state["exp_avg"], memory)


def test_step_when_the_loss_scaler_skips_steps_then_it_goes_back_to_what_was_made() -> None:
    loop = Loop(options={"rewind_to": 3}, every=4)
    loop.train(1)
    held = loop.state()
    for _ in range(3):  # calls without a step of the optimizer
        loop.pruner.step()
    assert loop.pruner.masks
    found = loop.state()
    assert all(torch.equal(found[name], value) for name, value in held.items())


def test_finish_when_the_last_round_is_over_then_the_ticket_is_the_start_cut() -> None:
    loop = Loop(granularity="group")
    loop.train(15)
    result = loop.pruner.finish()
    assert result.verification.passed
    assert result.model[0].out_features == 2
    kept = loop.masks[-1]["0.weight"].any(1)
    assert torch.equal(result.model[0].weight, loop.start["0.weight"][kept])


@pytest.mark.parametrize("options", [{"rewind_to": 5}, {"rewind_to": -1}, {"rewind": "weight"}])
def test_pruner_when_it_cannot_go_back_there_then_config_error(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="rewind"):
        Loop(options=options)


def test_step_when_two_optimizers_train_then_each_goes_back() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    config = Config(sparsity=0.5, method="lottery", steps=2, every=2, granularity="element")
    pruner = Pruner(model, config, EXAMPLE)
    both = [torch.optim.Adam(model[i].parameters(), lr=0.1 * (i + 1)) for i in (0, 2)]
    for step in range(5):
        for optimizer in both:
            optimizer.zero_grad()
        model(torch.randn(4, 6)).square().sum().backward()
        for optimizer in both:
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= 0.5
        pruner.step()
        if step == 4:
            for i, optimizer in zip((0, 2), both, strict=True):
                assert int(optimizer.state[model[i]._parameters["weight"]]["step"]) == 1
                assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * (i + 1))
    masking.take_off(model)
