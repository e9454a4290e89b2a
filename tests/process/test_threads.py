"""What one thread prunes is nothing to another: neither to its pruning nor to its training."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc

from .process import changed, process_state


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.inner, self.outer = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(torch.relu(self.inner(self.norm(x))) * torch.ones(()))


def blocks() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(Block(), Block(), nn.Linear(16, 4)), torch.ones(2, 5, 16)


def layer() -> tuple[nn.Module, torch.Tensor]:
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.ones(2, 5, 16)


def convolutions() -> tuple[nn.Module, torch.Tensor]:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    return net, torch.ones(2, 3, 8, 8)


def decided(model: nn.Module, x: torch.Tensor) -> Any:
    """Return the names of blocks and groups, and what a prune keeps of each."""
    structure = sc.analyze(model, x)
    plan = sc.prune(model, x, 0.5).plan
    return [b.name for b in structure.blocks], [g.name for g in structure.groups], plan.keep


def together(*functions: Callable[[], Any]) -> list[Any]:
    """Return what functions return, or raise, that run at once in threads of their own."""
    found: list[Any] = [None] * len(functions)
    start = threading.Barrier(len(functions))

    def run(place: int) -> None:
        start.wait()
        try:
            found[place] = functions[place]()
        except BaseException as error:  # it is compared with what was expected
            found[place] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def train(steps: int, seed: int = 5) -> list[float]:
    """Return the losses of a training that draws from the process's generators."""
    net = blocks()[0]
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(
                torch.linspace(-0.3, 0.2 + i / 50, parameter.numel()).view_as(parameter)
            )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    random.seed(seed)
    torch.manual_seed(seed)
    losses = []
    for _ in range(steps):
        loss = (net(torch.rand(4, 5, 16)) * random.random()).square().mean()
        assert loss.dtype == torch.float32
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("second", [blocks, layer, convolutions])
def test_two_threads_when_both_prune_then_each_has_the_plan_that_it_has_alone(second: Any) -> None:
    pairs = [blocks(), second()]
    alone = [decided(*pair) for pair in pairs]
    before = process_state()
    assert together(*(lambda p=p: decided(*p) for p in pairs)) == alone
    assert changed(before, process_state()) == []


@pytest.mark.parametrize("build", [blocks, layer, convolutions])
def test_training_when_another_thread_prunes_then_both_are_as_alone(build: Any) -> None:
    pair = build()
    expected, losses = decided(*pair), train(60)
    found = together(lambda: [decided(*pair) for _ in range(2)], lambda: train(60))
    assert found == [[expected] * 2, losses]


def test_trial_when_another_thread_makes_tensors_then_they_are_of_its_own_type() -> None:
    from secateur.runtime.precise import Precisely

    with Precisely(torch.float64):
        here, (there,) = torch.zeros(2), together(lambda: torch.zeros(2))
    assert (here.dtype, there.dtype) == (torch.float64, torch.float32)
