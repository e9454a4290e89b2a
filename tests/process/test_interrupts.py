"""An interrupt at any line leaves the model and the process as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc

from .interrupts import drawn, interrupted

X = torch.linspace(-1, 1, 2 * 3 * 6 * 6).view(2, 3, 6, 6)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 4, 8),
            nn.ReLU(),
            nn.Linear(8, 4),
        )


def layer() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


def analyze(model: nn.Module) -> Any:
    return sc.analyze(model, X)


def prune(model: nn.Module) -> Any:
    return sc.prune(model, X, 0.5, inplace=True)


def repair(model: nn.Module) -> Any:
    return sc.prune(model, X, 0.5, inplace=True, data=[X + i for i in range(4)])


def prune_layer(model: nn.Module) -> Any:
    return sc.prune(model, X.reshape(2, -1)[:, :80].reshape(2, 10, 8), 0.5, inplace=True)


def fold(model: nn.Module) -> Any:
    mask = torch.arange(8) > 3
    masks = {"0.weight": mask[:, None, None, None].expand(8, 3, 3, 3), "0.bias": mask}
    return sc.shrink(model, masks, X, inplace=True)


JOBS = {
    "analyze": (net, analyze),
    "prune": (net, prune),
    "repair": (net, repair),
    "attention": (layer, prune_layer),
    "fold": (net, fold),
}


@pytest.mark.parametrize("job", ["repair", "fold"])
def test_interrupt_when_it_comes_at_a_drawn_line_then_model_and_process_are_as_before(
    job: str,
) -> None:
    _at_drawn_lines(*JOBS[job], many=5)


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_interrupt_when_it_comes_at_many_lines_then_model_and_process_are_as_before(
    job: str,
) -> None:
    _at_drawn_lines(*JOBS[job], many=200)


def _at_drawn_lines(
    build: Callable[[], nn.Module], job: Callable[[nn.Module], Any], many: int
) -> None:
    torch.set_num_threads(1)  # a child has none of the threads of the pool
    found = [interrupted(build, job, moment) for moment in drawn(build, job, many, seed=many)]
    assert [each for each in found if each] == []
    assert len(found) == many
