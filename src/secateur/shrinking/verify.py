"""Is the smaller model the masked model?  Both run on the same inputs, and the outputs compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur.graph.outputs import results_of
from secateur.runtime.forward import evaluating, full_precision, random_kept
from secateur.types import Example, call_arguments

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Verification:
    """How far the smaller model's outputs are from the masked model's.

    ``difference`` is ``max |a - b| / max |a|`` over all outputs and inputs tried; ``exact`` says
    that no group is inexact, so that it must be below ``tolerance``.

    >>> from secateur import prune
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> checked = prune(net, torch.randn(1, 8), sparsity=0.5).verification
    >>> checked.exact, checked.passed
    (True, True)
    """

    difference: float
    tolerance: float
    exact: bool
    inputs: int

    @property
    def passed(self) -> bool:
        return not self.exact or self.difference <= self.tolerance

    def __str__(self) -> str:
        kind = "exact" if self.exact else "inexact, as reported"
        return f"outputs differ by {self.difference:.1e} relative on {self.inputs} inputs ({kind})"


def trials(example: Example, seed: int = 0) -> Iterator[Example]:
    """Yield the example and a fresh random one of the same shapes, dtypes and value range."""
    yield example
    generator = torch.Generator().manual_seed(seed)

    def fresh(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.numel() == 0 or x.dtype == torch.bool:
            return x
        if x.is_floating_point():
            noise = torch.randn(x.shape, generator=generator).to(x)
            spread = x.std() if x.numel() > 1 and float(x.std()) > 0 else 1.0
            return noise * spread + x.mean()
        order = torch.randperm(x.numel(), generator=generator).to(x.device)
        return x.flatten()[order].view(x.shape)  # numbers that the model is known to accept

    yield tree_map(fresh, example)


def run(model: nn.Module, example: Example, seed: int = 0) -> list[list[Tensor]]:
    """Return the model's output tensors, in eval mode and without gradients, for each trial."""
    found = []
    with evaluating(model), torch.no_grad(), random_kept(), full_precision():
        for trial in trials(example, seed):
            args, kwargs = call_arguments(trial)
            torch.manual_seed(seed)
            found.append([t.clone() for t in results_of(model, model(*args, **kwargs))])
    return found


def difference(before: list[list[Tensor]], after: list[list[Tensor]]) -> float:
    """Return the largest relative difference of two runs; inf where shapes or NaNs differ."""
    worst = 0.0
    for olds, news in zip(before, after, strict=True):
        if len(olds) != len(news):
            return float("inf")
        for old, new in zip(olds, news, strict=True):
            if old.shape != new.shape:
                return float("inf")
            if old.numel() == 0:
                continue
            a, b = old.double(), new.double()
            finite = a.isfinite()
            if not torch.allclose(a[~finite], b[~finite], equal_nan=True):
                return float("inf")
            if not torch.equal(finite, b.isfinite()):
                return float("inf")
            if not bool(finite.any()):
                continue
            scale = max(float(a[finite].abs().max()), 1e-12)
            worst = max(worst, float((a[finite] - b[finite]).abs().max()) / scale)
    return worst


def tolerance_of(outputs: list[list[Tensor]]) -> float:
    """Return the tolerance for the coarsest floating type among the outputs."""
    dtypes = [t.dtype for run in outputs for t in run]
    return max((TOLERANCE.get(d, 1e-4) for d in dtypes), default=1e-4)
