"""Sums over rows of what a reader gets and what it should give, one set for each of its systems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.runtime.distributed import reduced
from secateur.scoring.statistics import moments, precise

from .system import System


@dataclass
class Moments:
    """Second moments of the kept inputs of one system, and with its outputs.

    Args:
        kept: int64, the features that stay.
        outputs: how many there are.
    """

    kept: Tensor
    outputs: int
    rows: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add inputs ``(rows, features)`` and outputs ``(rows, out)``."""
        x = x.index_select(1, self.kept)
        dtype = torch.promote_types(precise(len(self.kept)), x.dtype)
        wide = torch.promote_types(x.dtype, torch.float32)
        found = {
            "gram": moments(x[None], x[None], dtype)[0],
            "cross": moments(x[None], y[None], dtype)[0],
            "x": x.sum(0, dtype=wide).double(),
            "y": y.sum(0, dtype=wide).double(),
            "energy": y.to(wide).square().sum(0).double(),
        }
        self.rows += len(x)
        for name, value in found.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def together(self, other: Moments) -> Moments:
        """Return the moments of all rows of both."""
        sums = {n: v + other.sums[n] if n in other.sums else v for n, v in self.sums.items()}
        return Moments(self.kept, self.outputs, self.rows + other.rows, sums or dict(other.sums))

    def reduced(self, device: torch.device) -> Moments:
        """Return the moments of the rows of all ranks."""
        many, outputs = len(self.kept), self.outputs
        dtype = precise(many)
        shapes = {"gram": (many, many), "cross": (many, outputs), "x": (many,)}
        shapes |= {"y": (outputs,), "energy": (outputs,)}
        total = {}
        for name, shape in shapes.items():
            kind = dtype if name in ("gram", "cross") else torch.float64
            own = self.sums.get(name, torch.zeros(shape, dtype=kind, device=device))
            total[name] = reduced(own, "sum")
        rows = int(reduced(torch.tensor(self.rows, dtype=torch.float64), "sum"))
        return Moments(self.kept, self.outputs, rows, total)

    def system(
        self, weight: Tensor, mask: Tensor, *, centred: bool, scale: Tensor | None = None
    ) -> System:
        """Return what a repair solves, of the kept features.

        Args:
            weight: dense, ``(out, features)``.
            mask: bool, of its shape.
            centred: an intercept takes the means over.
            scale: what is behind multiplies each output by it, ``(out,)``: an error counts as much.
        """
        kind = self.sums["gram"].dtype
        mean = {name: value / self.rows for name, value in self.sums.items()}
        gram, cross, energy = mean["gram"], mean["cross"], mean["energy"]
        if centred:
            x, y = mean["x"].to(kind), mean["y"].to(kind)
            gram, cross = gram - torch.outer(x, x), cross - torch.outer(x, y)
            energy = (energy - mean["y"].square()).clamp(min=0)
        weight, mask = weight[:, self.kept].to(kind), mask[:, self.kept]
        if scale is not None:
            s = scale.to(kind)
            weight, cross, energy = weight * s[:, None], cross * s, energy * s.square()
        return System(weight, gram, cross, energy.to(kind), mask, self.rows)

    def intercept(self, weight: Tensor) -> Tensor:
        """Return what is left of the outputs' means with a weight ``(out, kept)``."""
        x, y = self.sums["x"] / self.rows, self.sums["y"] / self.rows
        return y - weight.to(x) @ x


def per_system(parts: Sequence[Moments], x: Tensor, y: Tensor, where: slice) -> None:
    """Add inputs and outputs ``(systems, rows, …)`` of some systems to the moments of each."""
    for part, inputs, outputs in zip(parts[where], x, y, strict=True):
        part.add(inputs, outputs)


def kept_features(masks: Tensor) -> Iterator[Tensor]:
    """Yield what any output of a system keeps, for masks ``(systems, out, features)``."""
    for mask in masks:
        yield mask.any(0).nonzero()[:, 0]
