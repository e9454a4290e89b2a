"""Changes that are taken back whatever happens, also when an interrupt comes between two lines.

A ``with`` or ``finally`` alone cannot promise that: ``KeyboardInterrupt`` may come after a change
and before what undoes it was registered, or in the middle of undoing.  So each step that undoes a
change is registered before the change, stays registered until it ran whole, and what an inner
``with`` was kept from doing, the call that a user made (``outermost``) does.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

R = TypeVar("R")
Step = Callable[[], object]


class _Open(threading.local):
    def __init__(self) -> None:
        self.scopes: list[Undo] = []


_open = _Open()


class Undo:
    """Steps that take changes back, last first, when the ``with`` is left.

    Call it with a step *before* the change.  A step may run twice, and when nothing has changed
    yet.  One that fails does not keep the others from running.

    Args:
        lasting: the changes stay when the ``with`` ends without an error; an enclosing lasting one
            takes their steps over, and takes them back if it fails itself.

    >>> held = {}
    >>> with Undo() as undo:
    ...     undo(held.clear)
    ...     held["a"] = 1
    >>> held
    {}
    """

    def __init__(self, *, lasting: bool = False):
        self.lasting = lasting
        self.closing = False
        self._steps: list[Step] = []

    def __call__(self, step: Step) -> None:
        self._steps.append(step)

    def __enter__(self) -> Self:
        _open.scopes.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self.lasting:
                self.keep(None)
            elif kind is None or kind is GeneratorExit:  # what was opened since may go on
                self._end()
            else:
                self.roll_back()
        except BaseException:
            self.roll_back()
            raise

    def keep(self, result: R) -> R:
        """Let the changes stay, and return the result: what comes later can undo no more."""
        mine = _open.scopes
        outer = _lasting(besides=self)
        if outer is not None:
            outer._steps.extend(self._steps)
        if self in mine:
            mine.remove(self)
        return result if self._steps.clear() is None else result  # type: ignore[func-returns-value]

    def roll_back(self) -> None:
        """Take the changes back, and before them those of what was opened inside and not left."""
        mine = _open.scopes
        for scope in mine[: mine.index(self) : -1] if self in mine else []:
            scope._end()
        self._end()

    def _end(self) -> None:
        failed: Exception | None = None
        self.closing = True
        while self._steps:
            try:
                self._steps[-1]()
            except Exception as error:  # the other steps must run all the same
                failed = failed or error
            self._steps.pop()
        if self in _open.scopes:
            _open.scopes.remove(self)
        if failed is not None:
            raise failed


def undoable(step: Step) -> None:
    """Register a step of a change that lasts unless the call of the user fails."""
    scope = _lasting()
    if scope is not None:
        scope(step)


def _lasting(besides: Undo | None = None) -> Undo | None:
    """Return what takes a step over; what undoing itself changes is not undone."""
    mine = _open.scopes
    if any(scope.closing for scope in mine):
        return None
    return next((s for s in reversed(mine) if s.lasting and s is not besides), None)


def outermost(function: Callable[[], R], at_last: Step | None = None) -> R:
    """Run what a user called: if it fails, or is interrupted, nothing that it changed stays.

    Args:
        function: what was called; it may call others that are run so.
        at_last: called when the last of these is over.
    """
    inside = any(each.lasting for each in _open.scopes)
    gradients = torch.is_grad_enabled()
    scope = Undo(lasting=True)
    try:
        scope.__enter__()
        result = function()
        if at_last is not None and not inside:
            at_last()
        return scope.keep(result)
    except BaseException:
        scope.roll_back()
        torch.set_grad_enabled(gradients)  # a no_grad() may not have been left
        if at_last is not None and not inside:
            at_last()
        raise


@contextmanager
def in_mode(mode: Any) -> Iterator[Any]:
    """Enter a dispatch or function mode of torch, and leave it for certain."""
    with Undo() as undo:
        undo(partial(_leave, mode, _depth(mode)))
        mode.__enter__()
        yield mode


def unhook(table: dict[int, Any], hook: Any, *options: dict[int, Any]) -> None:
    """Take a hook out of torch's table of hooks by what it is: a handle may be lost."""
    for key in [key for key, each in list(table.items()) if each is hook]:
        for each in (*options, table):
            each.pop(key, None)


def unhook_module(module: nn.Module, hook: Any) -> None:
    """Take a forward hook, or one before it, off a module, by what it is."""
    before, after = module._forward_pre_hooks, module._forward_hooks
    unhook(before, hook, module._forward_pre_hooks_with_kwargs)
    unhook(after, hook, module._forward_hooks_with_kwargs, module._forward_hooks_always_called)


def unhooked_with(owner: object, module: nn.Module, hook: Any) -> Callable[[], object]:
    """Take a hook off a module when its owner is dropped, or what is returned is called.

    Call it before the hook is registered.
    """
    end = weakref.finalize(owner, _unhook_if_there, weakref.ref(module), hook)
    end.atexit = False
    return end


def _unhook_if_there(module: weakref.ref[nn.Module], hook: Any) -> None:
    found = module()
    if found is not None:
        unhook_module(found, hook)


def unhook_optimizer(optimizer: Any, hook: Any) -> None:
    """Take a hook before or after steps off an optimizer, by what it is."""
    for table in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
        unhook(table, hook)


def _depth(mode: Any) -> int:
    if isinstance(mode, TorchFunctionMode):
        return int(torch._C._len_torch_function_stack())
    assert isinstance(mode, TorchDispatchMode)
    return int(torch._C._len_torch_dispatch_stack())


def _leave(mode: Any, depth: int) -> None:
    if _depth(mode) > depth:
        mode.__exit__(None, None, None)
