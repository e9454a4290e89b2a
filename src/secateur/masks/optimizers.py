"""The moment before an optimizer steps, seen from outside: nothing is wrapped or patched.

By then gradients are accumulated over micro-batches, averaged over ranks, free of a loss scale and
clipped, whatever training code runs: it is where gradients are read, and where a penalty adds its
own.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from secateur.runtime.undo import undoable

_ended: set[Any] = set()  # hooks that could not be taken away yet
_optimizer: Any = sys.modules[Optimizer.__module__]  # torch.optim hides it
OPTIMIZER = _optimizer.__file__
"""Where torch walks through its hooks, in a function named ``wrapper``."""
PAUSE = 0.0005  # seconds between two looks whether an optimizer of another thread is stepping


def before_each_step(callback: Callable[[Optimizer], None]) -> Callable[[], None]:
    """Call a bound method before each step of any optimizer; return what ends it.

    It ends by itself when the method's object is gone.  Optimizers that compute the loss in their
    step (a closure, as Lightning passes) are called back after the closure, when gradients exist.
    """
    method = weakref.WeakMethod(callback)

    def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        observe = method()
        if observe is None:  # Python swallows what interrupts a finalizer: it may not have ended
            _ended.add(hook)
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            observe(optimizer)
            return None

        def observed() -> Any:
            with torch.enable_grad():
                loss = closure()
            observe(optimizer)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": observed}
        return (args[0], observed, *args[2:]), kwargs

    undoable(partial(_end, hook))
    while _stepping(besides=threading.get_ident()):
        time.sleep(PAUSE)
    register_optimizer_step_pre_hook(hook)
    ended = weakref.finalize(callback.__self__, _end, hook)  # type: ignore[attr-defined]
    ended.atexit = False
    return ended


def _end(hook: Any) -> None:
    """Take a hook away, and those that waited for it.

    Not while torch walks through its hooks, which must not change under it: then ``sweep`` does.
    """
    _ended.add(hook)
    sweep()


def sweep() -> None:
    """Take away the hooks that ended in the middle of a step, unless one is going on."""
    if not _ended or _stepping():
        return
    hooks = _optimizer._global_optimizer_pre_hooks
    for key in [key for key, each in list(hooks.items()) if each in _ended]:
        hooks.pop(key, None)
    _ended.clear()


def _stepping(besides: int | None = None) -> bool:
    """Tell whether an optimizer is in a step, in any thread but one."""
    return any(
        _is_step(frame) for thread, frame in sys._current_frames().items() if thread != besides
    )


def _is_step(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "wrapper" and frame.f_code.co_filename == OPTIMIZER:
            return True
        frame = frame.f_back
    return False


def learning_rate_share(optimizer: Optimizer, peak: float) -> tuple[float, float]:
    """Return the first group's learning rate as a share of its peak, and the peak.

    The peak is the rate that the scheduler started from (``initial_lr``), else the largest seen;
    ``peak`` is that of the last call.

    >>> learning_rate_share(torch.optim.SGD([torch.zeros(1)], lr=0.1), 0.4)
    (0.25, 0.4)
    """
    group = optimizer.param_groups[0]
    rate = float(group["lr"])
    peak = float(group.get("initial_lr", max(rate, peak)))
    return (rate / peak if peak > 0 else 0.0), peak


class Scaler(Protocol):
    """A ``torch.amp.GradScaler``."""

    def get_scale(self) -> float: ...


class LastStep:
    """What is known of the optimizer's last step."""

    def __init__(self) -> None:
        self.fresh = False  # there was one since the pruner's last
        self.ever = False
        self.share = 1.0
        self.scale = 1.0
        self.peak = 0.0

    def seen(self, optimizer: Optimizer, scaler: Scaler | None) -> None:
        """Take down what an optimizer that is about to step tells."""
        self.fresh = self.ever = True
        self.share, self.peak = learning_rate_share(optimizer, self.peak)
        self.scale = 1.0 if scaler is None else float(scaler.get_scale())


def add_gradient(penalty: Tensor, parameters: Sequence[Tensor]) -> None:
    """Add the gradient of a differentiable scalar to that of parameters."""
    with torch.enable_grad():
        gradients: Sequence[Tensor | None] = torch.autograd.grad(
            penalty, parameters, allow_unused=True
        )
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        before = parameter.grad
        parameter.grad = gradient if before is None else before.add_(gradient)
