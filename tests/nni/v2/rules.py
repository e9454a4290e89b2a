"""What the tests of NNI 2.x's pruners share: a network, its evaluator, and rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.nni.pytorch import TorchEvaluator
from tests.trained import accuracy, digits, live

CONVS = [
    {"op_types": ["Conv2d"], "total_sparsity": 0.5},
    {"op_partial_names": ["stem"], "exclude": True},
]
"""Of ``tests.trained``'s network, whichever trainer holds it."""
EXAMPLE = torch.zeros(2, 1, 8, 8)
TRAINERS = ["loop", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("lightning", "hf"))]


class Loop:
    """Trains by batches of the digits, and counts them."""

    def __init__(self, model: nn.Module, lr: float = 3e-3, epoch: int = 4):
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        self.rates = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.9)
        self.epoch, self.steps = epoch, 0
        self.used: list[float] = []
        self.evaluator = TorchEvaluator(
            self.train,
            self.optimizer,
            F.cross_entropy,
            self.rates,
            dummy_input=EXAMPLE,
            evaluating_func=lambda model: 100 * accuracy(model),
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        at = slice(64 * (step % 18), 64 * (step % 18) + 64)
        return digits().train_images[at], digits().train_labels[at]

    def train(
        self,
        model: nn.Module,
        optimizer: Any,
        criterion: Any,
        scheduler: Any = None,
        max_steps: int | None = None,
        max_epochs: int | None = None,
    ) -> None:
        """An epoch has few steps, so that tests are short."""
        model.train()
        most = max_steps if max_steps is not None else self.epoch * (max_epochs or 1)
        for step in range(most):
            self.used.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            x, y = self.batch(self.steps)
            criterion(model(x), y).backward()
            optimizer.step()
            self.steps += 1
            if scheduler is not None and (step + 1) % self.epoch == 0:
                scheduler.step()

    def legacy(self, model: nn.Module, optimizer: Any, criterion: Any) -> None:
        """An epoch, as NNI's pruners were given it before 2.9."""
        self.train(model, optimizer, criterion, max_epochs=1)


def trained_by(kind: str, folder: Path) -> tuple[nn.Module, Any]:
    """Return a network and an evaluator: of a "loop", "lightning" or "hf"."""
    found = live(kind, folder)
    return found.model, found.evaluator


def kept(masks: dict[str, dict[str, Tensor]]) -> dict[str, float]:
    """Return the share of each layer's weights that is kept."""
    return {name: float(by["weight"].mean()) for name, by in masks.items()}
