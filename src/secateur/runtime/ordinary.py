"""Ordinary tensors, which autograd can use, also where somebody is in ``torch.inference_mode``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from .reach import forget
from .undo import Undo, outermost

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def ordinary_mode() -> Iterator[None]:
    """Leave the modes that somebody may be in, and that change what is seen or computed.

    Inference mode hides operations, and its tensors can never be trained; autocast computes in
    another type; and what is made on ``meta`` by default has no values.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        if torch.get_default_device().type == "meta":
            stack.enter_context(torch.device("cpu"))
        undo = stack.enter_context(Undo())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                undo(partial(torch.set_autocast_enabled, device, True))
                torch.set_autocast_enabled(device, False)
        yield


def in_ordinary_mode(function: Callable[P, R]) -> Callable[P, R]:
    """Let what a user calls run in no mode of theirs, and leave nothing behind where it fails.

    It is outside of inference mode, so that what it makes can be trained, and of autocast.

    >>> @in_ordinary_mode
    ... def ones() -> Tensor:
    ...     return torch.ones(2)
    >>> with torch.inference_mode():
    ...     ones().is_inference(), torch.ones(2).is_inference()
    (False, True)
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        # twice: what fails is undone in the ordinary mode, and an interrupt may come as it is left
        return outermost(partial(_ordinarily, partial(function, *args, **kwargs)), at_last=forget)

    return run


def _ordinarily(function: Callable[[], R]) -> R:
    with ordinary_mode():
        return outermost(function)


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
