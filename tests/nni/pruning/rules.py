"""NNI's rules once more, slowly: plain loops over Python lists, to compare its pruners with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import floor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.nni.pruning import FPGMPruner, L1NormPruner, L2NormPruner, LevelPruner, Pruner

PRUNERS = [LevelPruner, L1NormPruner, L2NormPruner, FPGMPruner]
every_pruner = pytest.mark.parametrize("kind", PRUNERS)
RATIOS = [0.0, 0.29, 0.5, 0.75]


class Net(nn.Module):
    """One layer of each kind with known targets; a forward that uses them all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 8, 3, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.fc1 = nn.Linear(4, 12)
        self.fc2 = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.wide(self.bn(self.conv(x)).relu()).relu()).mean((2, 3))
        return self.fc2(self.fc1(x).relu())


# The rules once more, slowly.  A block is the list of the indices of its weights.

Blocks = list[list[tuple[int, ...]]]
LAYOUT = {  # granularity → block size per dimension; None is the whole dimension
    "element": lambda rank: [1] * rank,
    "out_channel": lambda rank: [1] + [None] * (rank - 1),
    "in_channel": lambda rank: [None, 1] + [None] * (rank - 2),
}


def blocks_of(shape: Sequence[int], granularity: str | Sequence[int]) -> Blocks:
    if isinstance(granularity, str):
        sizes = LAYOUT[granularity](len(shape))
    else:
        sizes = [1] * (len(shape) - len(granularity)) + [
            None if s == -1 else s for s in granularity
        ]
    sizes = [whole if size is None else size for size, whole in zip(sizes, shape, strict=True)]
    corners = product(*(range(0, n, size) for n, size in zip(shape, sizes, strict=True)))
    return [
        list(product(*(range(c, c + size) for c, size in zip(corner, sizes, strict=True))))
        for corner in corners
    ]


def block_values(weight: Tensor, blocks: Blocks) -> list[list[float]]:
    """Return the weights of each block; 0 beyond the end, where a block hangs over."""

    def at(index: tuple[int, ...]) -> float:
        inside = all(i < n for i, n in zip(index, weight.shape, strict=True))
        return float(weight[index]) if inside else 0.0

    return [[at(index) for index in block] for block in blocks]


def distance(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5


SCORE: dict[type, Callable[[list[list[float]]], list[float]]] = {
    LevelPruner: lambda rows: [sum(map(abs, row)) for row in rows],
    L1NormPruner: lambda rows: [sum(map(abs, row)) for row in rows],
    L2NormPruner: lambda rows: [sum(x * x for x in row) ** 0.5 for row in rows],
    FPGMPruner: lambda rows: [sum(distance(row, other) for other in rows) for row in rows],
}


def scores_of(kind: type[Pruner], weight: Tensor, granularity: str | Sequence[int]) -> list[float]:
    return SCORE[kind](block_values(weight.detach(), blocks_of(weight.shape, granularity)))


def lowest(scores: list[float], count: int, parts: int = 1) -> set[int]:
    """Return the positions of the ``count`` smallest scores of each of the equal parts."""
    size = len(scores) // parts
    gone: set[int] = set()
    for start in range(0, len(scores), size):
        gone |= set(sorted(range(start, start + size), key=scores.__getitem__)[:count])
    return gone


def mask_without(gone: set[int], shape: Sequence[int], granularity: str | Sequence[int]) -> Tensor:
    mask = torch.ones(tuple(shape))
    for number in gone:
        for index in blocks_of(shape, granularity)[number]:
            if all(i < n for i, n in zip(index, shape, strict=True)):
                mask[index] = 0
    return mask


def default(kind: type[Pruner]) -> str:
    return "element" if kind is LevelPruner else "out_channel"


def share(n: int, ratio: float) -> int:
    return floor(n * ratio + 1e-9)


def compressed(
    kind: type[Pruner], model: nn.Module, *config: dict[str, Any], evaluator: Any = None
) -> dict[str, dict[str, Tensor | None]]:
    _, masks = kind(model, list(config), evaluator).compress()
    return masks


def assert_same(masks: dict[str, dict[str, Any]], name: str, expected: Tensor) -> None:
    module, _, target = name.rpartition(".")
    found = masks[module][target]
    assert found.dtype == torch.float32, name
    assert found.shape == expected.shape, name
    assert torch.equal(found, expected), f"{name}: {int((found != expected).sum())} differ"
