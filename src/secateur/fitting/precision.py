"""What a fit trains in: float32, or under autocast to bfloat16 where that is faster and as near."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError, did_you_mean
from secateur.runtime.batches import arguments
from secateur.runtime.forward import in_eval_mode
from secateur.training.distillation import logits_of

FULL, HALF, AUTO = "float32", "bfloat16", "auto"
PRECISIONS = (AUTO, FULL, HALF)
FASTER = 0.9
"""Of the time in float32: what is not at least so much faster is not worth its rounding."""
NEAR = 0.05
"""Of the logits' norm, by which those of bfloat16 may be off: a tenth of it is usual."""
TIMES = 3


def check(precision: str) -> None:
    """Raise a ConfigError that names the nearest, if there is no such precision."""
    if precision not in PRECISIONS:
        raise ConfigError(
            f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}"
            f"{did_you_mean(str(precision), PRECISIONS)}"
        )


def autocast(model: nn.Module, precision: str) -> AbstractContextManager[Any]:
    """Return the context in which a model's training steps compute.

    >>> with autocast(nn.Linear(2, 2), "bfloat16"):
    ...     nn.Linear(2, 2)(torch.ones(1, 2)).dtype
    torch.bfloat16
    """
    return torch.autocast(_device(model).type, torch.bfloat16, enabled=precision == HALF)


def chosen(model: nn.Module, inputs: Any) -> str:
    """Return the precision of a trained model: bfloat16 where it pays, on this machine.

    Forwards on these inputs are timed in both; only float32 weights are asked, and only logits
    that stay near are taken.

    >>> chosen(nn.Linear(2, 2).double(), torch.ones(1, 2).double())
    'float32'
    """
    weights = [p for p in model.parameters() if p.is_floating_point()]
    if not weights or any(p.dtype != torch.float32 for p in weights):
        return FULL
    given, options = arguments(model, inputs)

    def run(precision: str) -> tuple[Tensor, float]:
        took = []
        for _ in range(TIMES):
            start = time.perf_counter()
            with autocast(model, precision):
                logits = logits_of(model(*given, **options)).float()
            float(logits.sum())  # a device has done it by then
            took.append(time.perf_counter() - start)
        return logits, min(took)

    with in_eval_mode(model), torch.no_grad():
        exact, full = run(FULL)
        try:
            rounded, half = run(HALF)
        except (RuntimeError, NotImplementedError):  # an operation of the model's refuses bfloat16
            return FULL
    near = float((rounded - exact).norm()) <= NEAR * float(exact.norm())
    return HALF if near and half < FASTER * full else FULL


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
