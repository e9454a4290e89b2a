"""How a forward is run to look at it: in eval mode, leaving no trace, as exactly as can be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def in_training_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in training mode, and modes and buffers back as they were afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        model.train()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, was in buffers:
                buffer.copy_(was)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, in which it runs the operations that its code names."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with in_eval_mode(model):
        torch.backends.mha.set_fastpath_enabled(False)  # it would hide the operations
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def random_kept() -> AbstractContextManager[None]:
    """Put the random generators of the CPU and of all GPUs back afterwards."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return torch.random.fork_rng(devices=list(gpus))


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products in float32, where GPUs would round the factors to TF32's 10 bits.

    Convolutions do that by default, and two that sum other channels then differ by 1e-3.
    """
    flags = _precision_flags()
    before = [getattr(place, name) for place, name, _ in flags]
    try:
        for place, name, exact in flags:
            setattr(place, name, exact)
        yield
    finally:
        for (place, name, _), was in zip(flags, before, strict=True):
            setattr(place, name, was)


def _precision_flags() -> list[tuple[Any, str, Any]]:
    """Return where torch keeps how float32 products are computed, and what exactly means there.

    Since torch 2.9 there are finer flags; where somebody has set these, the older ones raise.
    """
    backends: Any = torch.backends
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    older: list[tuple[Any, str, Any]] = [(p, "allow_tf32", False) for p in (matmul, cudnn)]
    try:
        for place, name, _ in older:
            getattr(place, name)
    except RuntimeError:
        return [(p, "fp32_precision", "ieee") for p in (matmul, cudnn.conv, cudnn.rnn)]
    return older
