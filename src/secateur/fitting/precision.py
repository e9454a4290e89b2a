"""What a fit trains in: float32, or under autocast to bfloat16 where that is faster and as near."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError, did_you_mean
from secateur.runtime.batches import arguments
from secateur.runtime.copying import copied
from secateur.runtime.forward import in_eval_mode
from secateur.training.distillation import logits_of

FULL, HALF, AUTO = "float32", "bfloat16", "auto"
PRECISIONS = (AUTO, FULL, HALF)
FASTER = 0.9
"""Of the time in float32: what is not at least so much faster is not worth its rounding."""
NEAR = 0.05
"""Of the logits' norm, by which bfloat16 may be off; on ResNets of CIFAR it is by 0.007."""
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
    device = next((p.device.type for p in model.parameters()), "cpu")
    return torch.autocast(device, torch.bfloat16, enabled=precision == HALF)


def chosen(model: nn.Module, inputs: Any, loss: Callable[[nn.Module], Tensor]) -> str:
    """Return the precision to train a model in: bfloat16 where it pays, on this machine.

    A forward and a backward of a copy are timed in both; only a model in float32 is asked, and only
    logits that stay near are taken.

    Args:
        inputs: of the model, to compare its logits.
        loss: of the model that it is given, in training mode.

    >>> chosen(nn.Linear(2, 2).double(), torch.ones(1, 2).double(), lambda model: torch.zeros(()))
    'float32'
    """
    weights = [p for p in model.parameters() if p.is_floating_point()]
    trained = [p for p in weights if p.requires_grad]
    if not trained or any(p.dtype != torch.float32 for p in weights):
        return FULL
    trial = copied(model).train()
    full = _seconds(trial, loss, FULL)
    try:
        error, half = _error(model, inputs), _seconds(trial, loss, HALF)
    except Exception:  # it ran in float32: whatever a model's own code raises, it is of bfloat16
        return FULL
    return HALF if error <= NEAR and half < FASTER * full else FULL


def _error(model: nn.Module, inputs: Any) -> float:
    """Return how far logits of bfloat16 are off, as a share of their norm."""
    args, kwargs = arguments(model, inputs)
    with in_eval_mode(model), torch.no_grad():
        exact = logits_of(model(*args, **kwargs)).float()
        with autocast(model, HALF):
            rounded = logits_of(model(*args, **kwargs)).float()
    return float((rounded - exact).norm() / exact.norm())


def _seconds(model: nn.Module, loss: Callable[[nn.Module], Tensor], precision: str) -> float:
    """Return the least time of a forward and a backward."""
    took = []
    for _ in range(TIMES):
        start = time.perf_counter()
        model.zero_grad()
        with autocast(model, precision):
            found = loss(model)
        found.backward()
        float(sum(p.grad.sum() for p in model.parameters() if p.grad is not None))  # all is done
        took.append(time.perf_counter() - start)
    return min(took)
