"""Ordinary tensors, which autograd can use, also where somebody is in ``torch.inference_mode``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def ordinary_mode() -> Iterator[None]:
    """Leave inference mode, which hides operations and whose tensors can never be trained."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def in_ordinary_mode(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function run outside of inference mode, so that what it makes can be trained.

    >>> @in_ordinary_mode
    ... def ones() -> Tensor:
    ...     return torch.ones(2)
    >>> with torch.inference_mode():
    ...     ones().is_inference(), torch.ones(2).is_inference()
    (False, True)
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with ordinary_mode():
            return function(*args, **kwargs)

    return run


def ordinary(tensor: Tensor) -> Tensor:
    """Return a tensor as it is, or a copy of one that was made in inference mode."""
    if not tensor.is_inference():
        return tensor
    copy = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copy, tensor.requires_grad)
    return copy


def make_ordinary(model: nn.Module) -> None:
    """Let a model that was built in inference mode have ordinary tensors; ties hold."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None and tensor.is_inference():
                    table[name] = made.setdefault(id(tensor), ordinary(tensor))  # type: ignore[assignment]
