"""One call at a time on a model: a second thread that prunes it waits for the first.

Otherwise one would see the model half cut, in another type, or with numbers of a trial in it.  What
the second gets is what it would have got after the first.  A thread that trains the model, or runs
it, is nobody's to hold back: that nothing else does so meanwhile is the caller's to see to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

from torch import nn

from secateur.errors import ModelError

from .alone import PAUSE
from .undo import Undo

_claims: dict[object, tuple[object, nn.Module]] = {}
"""Claim → whose it is, and the model, in the order in which they came; each change is one step."""
_owner: ContextVar[object] = ContextVar("owner", default=None)


@contextmanager
def claimed(model: nn.Module) -> Iterator[None]:
    """Wait until no other thread has claimed the model, or a part of it, and claim it.

    Within a call that has it already, do nothing.

    Raises:
        ModelError: the call has another model already, so that two might wait for each other.

    >>> net = nn.Linear(2, 2)
    >>> with claimed(net), claimed(net):
    ...     len(_claims)
    1
    """
    owner, mine = _owner.get(), object()
    if owner is not None and any(of is owner and _has(held, model) for of, held in _now()):
        yield
        return
    with Undo() as undo:
        undo(partial(_let_go, mine))
        if owner is None:
            _owner.set(mine)
        _claims[mine] = owner or mine, model
        while _first(mine) is not mine:
            if owner is not None:
                raise ModelError(
                    f"this {type(model).__name__} is pruned, or analysed, by another thread, and "
                    "this one is pruning a second model: give each thread a copy (copy.deepcopy)"
                )
            time.sleep(PAUSE)
        yield


def _now() -> list[tuple[object, nn.Module]]:
    return list(_claims.values())


def _first(mine: object) -> object:
    """Return the claim that came first of those that share a module with one, this one itself."""
    owner, model = _claims[mine]
    for claim, (of, held) in list(_claims.items()):
        if claim is mine or (of is not owner and _shared(held, model)):
            return claim
    return mine


def _has(held: nn.Module, model: nn.Module) -> bool:
    return held is model or _modules(model) <= _modules(held)


def _shared(a: nn.Module, b: nn.Module) -> bool:
    return a is b or not _modules(a).isdisjoint(_modules(b))


def _modules(model: nn.Module) -> set[int]:
    while True:
        try:
            return {id(module) for module in model.modules()}
        except RuntimeError:  # another thread takes a layer out just now
            time.sleep(PAUSE)


def _let_go(mine: object) -> None:
    _claims.pop(mine, None)
    if _owner.get() is mine:
        _owner.set(None)


def _in_child() -> None:
    """Forget the claims of the threads that a forked process does not have."""
    for claim, (owner, _) in list(_claims.items()):
        if owner is not _owner.get():
            del _claims[claim]


os.register_at_fork(after_in_child=_in_child)
