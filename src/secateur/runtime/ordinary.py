"""Ordinary tensors, which autograd can use, also where somebody is in ``torch.inference_mode``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from .claims import claimed
from .reach import forget
from .undo import Undo, outermost

_left: ContextVar[str] = ContextVar("left", default="")  # of which device the autocast was left

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
                undo(partial(_left.set, _left.get()))
                _left.set(device)
                torch.set_autocast_enabled(device, False)
        yield


def without_autocast() -> str:
    """Return what a forward that failed should be told of the caller's autocast, if there is one.

    >>> without_autocast()
    ''
    """
    if not _left.get():
        return ""
    return (
        "\nThe autocast around this call is left for it, as it changes what is computed. Where the "
        f"model runs only with it, let its forward enter torch.autocast({_left.get()!r}, …), "
        "or give inputs of the type of the weights"
    )


def in_ordinary_mode(function: Callable[P, R]) -> Callable[P, R]:
    """Let what a user calls run in no mode of theirs, and leave nothing behind where it fails.

    It is outside of inference mode, so that what it makes can be trained, and of autocast.  Of the
    calls on one model, one runs at a time (see ``claimed``).

    >>> @in_ordinary_mode
    ... def ones() -> Tensor:
    ...     return torch.ones(2)
    >>> with torch.inference_mode():
    ...     ones().is_inference(), torch.ones(2).is_inference()
    (False, True)
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        model = _model_of(*args, *kwargs.values())
        # twice: what fails is undone in the ordinary mode, and an interrupt may come as it is left
        call = partial(_ordinarily, partial(function, *args, **kwargs), model)
        return outermost(call, at_last=forget)

    return run


def _ordinarily(function: Callable[[], R], model: nn.Module | None) -> R:
    with ExitStack() as stack:
        stack.enter_context(ordinary_mode())
        if model is not None:
            stack.enter_context(claimed(model))
        try:
            return outermost(function)
        except Exception as error:  # whatever it is, its reader should know
            said = without_autocast().strip()
            if not any(said in text for text in (str(error), *getattr(error, "__notes__", ()))):
                error.add_note(said)  # "" is in every text
            raise


def _model_of(*given: Any) -> nn.Module | None:
    """Return the model that a call is about: the first that is given, or that of a pruner."""
    for each in given:
        found = each if isinstance(each, nn.Module) else getattr(each, "model", None)
        if isinstance(found, nn.Module):
            return found
    return None


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
