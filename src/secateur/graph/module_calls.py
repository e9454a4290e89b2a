"""Which module runs: each call of one is written down while a forward is recorded."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from secateur.runtime.alone import in_trial
from secateur.runtime.caches import forget_unnamed
from secateur.runtime.undo import Undo, unhook

from .program import ModuleCall, Ref

DEEP = 32
"""Containers in containers of what a module returned; what is deeper nobody asks for."""


@contextmanager
def module_calls(model: nn.Module, recorder: Any) -> Iterator[list[str]]:
    """Write down each module's forward; yield the path of the one that failed."""
    paths = {id(module): path for path, module in model.named_modules()}
    stack = recorder.modules
    entered: list[tuple[int, dict[int | str, int]]] = []
    failed: list[str] = []
    numbers = itertools.count(1)

    def values(arguments: Any) -> dict[int | str, int]:
        tensors = {key: x for key, x in arguments if isinstance(x, Tensor)}
        return {key: recorder.values[x] for key, x in tensors.items() if x in recorder.values}

    def enter(module: nn.Module, arguments: Any) -> None:
        if not in_trial():  # another thread's
            return
        stack.append(paths.get(id(module), stack[-1]))
        recorder.running[next(numbers)] = module
        entered.append((len(recorder.recording.ops), values(enumerate(arguments))))

    def leave(module: nn.Module, _: Any, *rest: Any) -> None:
        if not in_trial():
            return
        *keywords, out = rest  # torch leaves them out when the forward failed
        start, inputs = entered.pop()
        if sys.exc_info()[0] is not None and not failed:
            failed.append(stack[-1])
        path = stack.pop()
        recorder.running.popitem()
        for cache in recorder.apart.caches:
            forget_unnamed(cache)
        if paths.get(id(module)) is not None:
            ran = range(start, len(recorder.recording.ops))
            inputs |= values(keywords[0].items() if keywords else ())
            recorder.recording.calls.append(
                ModuleCall(path, inputs, _returned(out, recorder.values), ran)
            )

    with Undo() as undo:
        undo(partial(_without, enter, leave))
        register_module_forward_pre_hook(enter)
        register_module_forward_hook(leave, with_kwargs=True, always_call=True)
        yield failed


def _without(enter: Any, leave: Any) -> None:
    """Take the two functions out of the hooks of all modules."""
    hooks: Any = module_hooks
    unhook(hooks._global_forward_pre_hooks, enter)
    # torch forgets these two, and torch.compile then warns of a global hook for ever
    options = hooks._global_forward_hooks_with_kwargs, hooks._global_forward_hooks_always_called
    unhook(hooks._global_forward_hooks, leave, *options)


def _returned(out: Any, values: Any, around: tuple[int, ...] = ()) -> Any:
    """Return what a module returned, with a reference for each tensor that was recorded.

    Args:
        around: ids of the containers that it is in: one may hold itself.
    """
    if isinstance(out, Tensor):
        return Ref(values[out]) if out in values else "other"
    if not isinstance(out, dict) and type(out) not in (tuple, list):
        return None if out is None else "other"
    if id(out) in around or len(around) > DEEP:
        return "other"
    around += (id(out),)
    if isinstance(out, dict):
        return {key: _returned(part, values, around) for key, part in out.items()}
    return tuple(_returned(part, values, around) for part in out)
