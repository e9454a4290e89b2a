"""A small network, a loop that counts and fails on demand, and one pruner of each that trains."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.nni import TorchEvaluator
from secateur.nni.pruning import (
    L1NormPruner,
    LinearPruner,
    MovementPruner,
    SlimPruner,
    TaylorPruner,
)

FC2 = [{"op_names": ["fc2"], "sparse_ratio": 0.5}]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.fc2 = nn.Linear(8, 8)
        self.fc3 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.fc2(self.norm(self.fc1(x)).relu()).relu())


class Bench:
    """A small network and a loop that counts, fails on demand, and keeps what it saw."""

    def __init__(self, lr: float = 0.05, momentum: float = 0.0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = Net()
        self.generator = torch.Generator().manual_seed(1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=momentum)
        self.evaluator = TorchEvaluator(
            self.training_func, self.optimizer, self.training_step, dummy_input=torch.randn(4, 6)
        )
        self.fail_at: int | None = None
        self.steps = 0
        self.sparsities: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], model: nn.Module) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def batch(self) -> tuple[Tensor, Tensor]:
        x = torch.randn(16, 6, generator=self.generator)
        return x, x[:, :3].argmax(1)

    def training_func(
        self,
        model: nn.Module,
        optimizer: Any,
        training_step: Any,
        lr_scheduler: Any = None,
        max_steps: int | None = None,
        max_epochs: int | None = None,
    ) -> None:
        model.train()
        for _ in range(max_steps if max_steps is not None else 10 * (max_epochs or 1)):
            if self.steps == self.fail_at:
                raise LookupError("the data is gone")
            optimizer.zero_grad()
            training_step(self.batch(), model).backward()
            optimizer.step()
            self.steps += 1
            self.sparsities.append(float((self.model.fc2.weight == 0).float().mean()))


def kept(masks: dict[str, Any], name: str, target: str = "weight") -> int:
    return int(masks[name][target].count_nonzero())


TRAINED = {
    "taylor": lambda b: TaylorPruner(b.model, FC2, b.evaluator, 4),
    "slim": lambda b: SlimPruner(b.model, FC2, b.evaluator, 4),
    "movement": lambda b: MovementPruner(b.model, FC2, b.evaluator, 1, 4),
    "linear": lambda b: LinearPruner(L1NormPruner(b.model, FC2), 1, 4, b.evaluator),
}
