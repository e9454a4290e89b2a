"""Sums over rows of what a reader gets and what it should give, one set for each of its systems."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from secateur.runtime.distributed import reduced_each
from secateur.scoring.grams import moments, precise

from .system import System


@dataclass
class Sums:
    """Sums over rows of one system's kept inputs and its outputs.

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
        self.rows += len(x)
        for name, value in self._found(x.index_select(1, self.kept), y).items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def together(self, other: Self) -> Self:
        """Return the sums over all rows of both."""
        sums = {n: v + other.sums[n] if n in other.sums else v for n, v in self.sums.items()}
        return replace(self, rows=self.rows + other.rows, sums=sums or dict(other.sums))

    def reduced(self, device: torch.device) -> Self:
        """Return the sums over the rows of all ranks."""
        own = {"rows": torch.tensor(self.rows, dtype=torch.float64)}
        for name, (shape, kind) in self._forms().items():
            own[name] = self.sums.get(name, torch.zeros(shape, dtype=kind, device=device))
        total = reduced_each(own, "sum")
        return replace(self, rows=int(total.pop("rows")), sums=total)

    def error(self, weight: Tensor, mask: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return each output's mean squared error with the masked weight, ``(out,)``."""
        raise NotImplementedError

    def _found(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return the sums of kept inputs and outputs."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return {
            "x": x.sum(0, dtype=wide).double(),
            "y": y.sum(0, dtype=wide).double(),
            "energy": y.to(wide).square().sum(0).double(),
        }

    def _forms(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return the shape and type of each sum."""
        sizes = {"x": len(self.kept), "y": self.outputs, "energy": self.outputs}
        return {name: ((size,), torch.float64) for name, size in sizes.items()}

    def intercept(self, weight: Tensor) -> Tensor:
        """Return what is left of the outputs' means with a weight ``(out, kept)``."""
        x, y = self.sums["x"] / self.rows, self.sums["y"] / self.rows
        return y - weight.to(x) @ x

    def spread(self, scale: Tensor | None = None) -> Tensor:
        """Return the variances of the outputs, summed; ``scale`` multiplies each, ``(out,)``."""
        mean, square = (self.sums[name] / self.rows for name in ("y", "energy"))
        variance = (square - mean.square()).clamp(min=0)
        return variance.sum() if scale is None else (variance * scale.square()).sum()


class Moments(Sums):
    """Second moments of the kept inputs of one system, and with its outputs."""

    def _found(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        dtype = torch.promote_types(precise(len(self.kept)), x.dtype)
        gram, cross = moments(x[None], x[None], dtype)[0], moments(x[None], y[None], dtype)[0]
        return {"gram": gram, "cross": cross, **super()._found(x, y)}

    def _forms(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        many, kind = len(self.kept), precise(len(self.kept))
        own = {"gram": ((many, many), kind), "cross": ((many, self.outputs), kind)}
        return {**own, **super()._forms()}

    def error(self, weight: Tensor, mask: Tensor, scale: Tensor | None = None) -> Tensor:
        raw = self.system(weight, mask, centred=False, scale=scale)
        return raw.error(raw.weight * raw.mask)

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


@dataclass
class Means(Sums):
    """What an intercept can say of one system: no second moments, O(features) of memory.

    Args:
        weight: returns the masked one, ``(out, features)``; what it misses is summed.
    """

    weight: Callable[[], Tensor] = lambda: torch.empty(0)

    def _found(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        wide = torch.promote_types(x.dtype, torch.float32)
        missed = y.to(wide) - x.to(wide) @ self.weight()[:, self.kept].to(wide).T
        return {"missed": missed.square().sum(0).double(), **super()._found(x, y)}

    def _forms(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"missed": ((self.outputs,), torch.float64), **super()._forms()}

    def error(self, weight: Tensor, mask: Tensor, scale: Tensor | None = None) -> Tensor:
        missed = self.sums["missed"] / self.rows
        return missed if scale is None else missed * scale.to(missed).square()


def per_system(parts: Sequence[Sums], x: Tensor, y: Tensor, where: slice) -> None:
    """Add inputs and outputs ``(systems, rows, …)`` of some systems to the moments of each."""
    for part, inputs, outputs in zip(parts[where], x, y, strict=True):
        part.add(inputs, outputs)


def kept_features(masks: Tensor) -> Iterator[Tensor]:
    """Yield what any output of a system keeps, for masks ``(systems, out, features)``."""
    for mask in masks:
        yield mask.any(0).nonzero()[:, 0]
