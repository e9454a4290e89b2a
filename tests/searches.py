"""A small search, for tests, also in processes of its own that can be killed."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from secateur import Search

with torch.random.fork_rng():
    torch.manual_seed(0)
    _FIRST = [nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12)]
    _NET = nn.Sequential(*_FIRST, nn.ReLU(), nn.Linear(12, 3))


def net() -> nn.Module:
    """Return a small network, always the same, whatever other threads draw meanwhile."""
    return copy.deepcopy(_NET)


def inputs() -> Tensor:
    return torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


def likeness(model: nn.Module) -> float:
    """Return how near a model's outputs are to the dense one's."""
    with torch.no_grad():
        return -float((model(inputs()) - net()(inputs())).square().mean())


def search(storage: Any, evaluate: Callable[[nn.Module], Any] = likeness, **options: Any) -> Search:
    """Search half of the MACs of the small network."""
    given = {"trials": 8, "sampler": "random", "sparsity": 0.5, **options}
    return secateur.search(net(), inputs()[:2], evaluate, storage=storage, **given)


def drawn(found: Search) -> list[tuple[int, float, float, dict[str, float]]]:
    """Return what two searches have in common that tried the same."""
    return [(t.slot, t.value, t.cost, dict(t.allocation)) for t in found.trials]


def work(storage: str, dies_at: int | None, options: dict[str, Any]) -> None:
    """Search in this process, and be killed in the middle of an evaluation."""
    torch.set_num_threads(1)
    calls = 0

    def evaluate(model: nn.Module) -> float:
        nonlocal calls
        calls += 1
        if calls == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return likeness(model)

    search(storage, evaluate, **options)
