"""Networks that the tests of the command line name as ``tests/cli/networks.py:…``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur import Pruner


def conv(width: int = 8) -> nn.Module:
    """(n, 3, 12, 12) → (n, 5)."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 5),
    )


def with_example() -> tuple[nn.Module, Tensor]:
    return conv(), torch.ones(2, 3, 12, 12)


def example() -> Tensor:
    return torch.ones(2, 3, 12, 12)


class TwoInputs(nn.Module):
    """Embeds tokens (n, t) and mixes in features (n, 4) → (n, t, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.mix = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        return self.head(self.embed(tokens) + self.mix(features)[:, None])


def broken() -> nn.Module:
    raise RuntimeError("two\nlines")


NUMBER = 3


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 4, 3, 12, 12, generator=generator)
    return [(each, torch.tensor([0, 1, 2, 3])) for each in images]


def features() -> list[Tensor]:
    return [images for images, _ in batches()]


def encoder() -> nn.Module:
    """Four layers alike, of which some may go whole."""
    layers = (nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True) for _ in range(4))
    return nn.Sequential(*layers).eval()


def sequences() -> list[Tensor]:
    """Batches of inputs of the layers."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, 8, generator=generator) for _ in range(4)]


def squares(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def train(model: nn.Module, pruner: Pruner) -> list[dict[str, float]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rows = []
    for step, (images, labels) in enumerate(batches() * 2, 1):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruner.step()
        rows.append({"step": step, "loss": loss.item()})
    return rows


def too_short(model: nn.Module, pruner: Pruner) -> None:
    pruner.step()


def size(model: nn.Module) -> float:
    return -float(sum(parameter.numel() for parameter in model.parameters()))


def failing(model: nn.Module) -> float:
    raise RuntimeError("no such data")


class Reader(nn.Module):
    """Predicts the next of 20 tokens: ids (n, t) → logits (n, t, 20)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.inner = nn.Linear(8, 16)
        self.head = nn.Linear(16, 20)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(self.embed(ids))))


def reader() -> tuple[nn.Module, Tensor]:
    return Reader(), torch.arange(16).view(2, 8)
