"""The paper's signature: magnitude wins where much is kept, movement where little is.

Sanh et al., 2020 (arXiv:2005.07683), figure 2, here in small: a network that has learned to tell
ten digits is fine-tuned to tell odd from even, which shows the second half.  Both halves, with a
transformer on SST-2, are in benchmarks/movement.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import Config, Pruner
from secateur.masks import masking
from tests.trained import digits

METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"criterion": "magnitude", "schedule": "cubic"},
    "movement": {"method": "movement"},
}
STEPS = 300


@cache
def images(split: str) -> Tensor:
    return getattr(digits(), f"{split}_images").flatten(1)


def train(
    model: nn.Module, labels: Tensor, seed: int, after: Callable[[], object] = lambda: None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(STEPS):
        index = torch.randint(len(labels), (32,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images("train")[index]), labels[index]).backward()
        optimizer.step()
        after()


def accuracy(method: str, kept: float, seed: int) -> float:
    """Return the accuracy at odd and even, of a network pruned while it learned to tell them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = images("train").shape[1]
        model = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        model.append(nn.Linear(128, 10))
        train(model, digits().train_labels, seed)
        model[4] = nn.Linear(128, 2)
    config = Config(
        sparsity=1 - kept,
        granularity="element",
        names=["0", "2"],
        start=STEPS // 10,
        steps=STEPS * 6 // 10,
        **METHODS[method],
    )
    pruner = Pruner(model, config, images("train")[:2])
    train(model, digits().train_labels % 2, seed + 9, pruner.step)
    assert pruner.metrics()["sparsity"] == pytest.approx(1 - kept, abs=1e-3)
    masking.take_off(model)
    with torch.no_grad():
        right = model(images("test")).argmax(1) == digits().test_labels % 2
    return 100 * float(right.float().mean())


def lead(kept: float) -> float:
    """Return by how many points movement leads, on average over seeds."""
    mean = {m: statistics.mean(accuracy(m, kept, seed) for seed in range(3)) for m in METHODS}
    return mean["movement"] - mean["magnitude"]


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0.15, 0.05])
def test_accuracy_when_little_is_kept_then_movement_leads(kept):
    assert lead(kept) > 0.5


@pytest.mark.slow
def test_accuracy_when_much_is_kept_then_neither_leads_by_much():
    """This task is too easy to tell them apart there; SST-2 is not."""
    assert abs(lead(0.7)) < 1.5
