"""What the demo prunes: a small ResNet, real scans of digits, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import MissingExtraError


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.bn2(self.conv2(y)))


class DigitsNet(nn.Module):
    """A ResNet of three stages for 8×8 grey images: (n, 1, 8, 8) → (n, 10).

    >>> DigitsNet()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, width: int = 32, blocks: int = 2):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        layers: list[nn.Module] = []
        inputs = width
        for stage in range(3):
            outputs = width * 2**stage
            for block in range(blocks):
                layers.append(Block(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


class Digits(NamedTuple):
    """Scans of handwritten digits, (n, 1, 8, 8) in [0, 1], and their labels, (n,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(seed: int = 0) -> Digits:
    """Return scikit-learn's 1,797 digits: 1,197 to train on, 600 never seen in training."""
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingExtraError("the demo", "scikit-learn", "demo") from error
    data = load()
    images = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(data.target)
    train, test = train_test_split(
        range(len(labels)), test_size=600, stratify=data.target, random_state=seed
    )
    return Digits(images[train], labels[train], images[test], labels[test])


def fit(
    model: nn.Module,
    data: Digits,
    *,
    epochs: int,
    rate: float,
    seed: int,
    report: Callable[[float], object],
    batch: int = 64,
) -> None:
    """Train in place on images shifted by up to a pixel; ``report`` hears each epoch's loss."""
    generator = torch.Generator().manual_seed(seed)
    batches = len(data.train_labels) // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * batches)
    model.train()
    for _ in range(epochs):
        total = 0.0
        order = torch.randperm(len(data.train_labels), generator=generator)
        for chosen in order[: batches * batch].split(batch):
            down, right = torch.randint(0, 3, (2,), generator=generator).tolist()
            padded = F.pad(data.train_images[chosen], (1, 1, 1, 1))
            images = padded[:, :, down : down + 8, right : right + 8]
            loss = F.cross_entropy(model(images), data.train_labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        report(total / batches)
    model.eval()


@torch.inference_mode()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the model's outputs, (n, 10)."""
    return model(images)


def accuracy(model: nn.Module, data: Digits) -> float:
    """Return the share of test images whose digit is recognised, in %."""
    right = logits(model, data.test_images).argmax(1) == data.test_labels
    return 100 * int(right.sum()) / len(right)
