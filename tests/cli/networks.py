"""Networks that the tests of the command line name as ``tests/cli/networks.py:…``."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
