"""One trial at a time, and nobody else's threads in it.

A trial puts things of its own in the place of some that the process has once: hooks of all modules,
functions of ``math``, caches of the user's functions, the flag of a fast path.  Two threads that
did so side by side would see each other's, and put them back in the wrong order: the second waits.
Threads that only train or serve do not wait: what a trial has put there asks ``in_trial`` first,
and leaves them what they had.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

from .undo import Undo

_held: dict[str, object] = {}  # "by": the token of whoever is in a trial
_token: ContextVar[object] = ContextVar("token", default=None)
PAUSE = 0.002  # seconds between two looks whether a trial is over


def in_trial() -> bool:
    """Tell whether the running code is part of the trial, or another thread's."""
    token = _token.get()
    return token is not None and _held.get("by") is token


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other thread is in a trial, and begin one; inside one, do nothing.

    A thread that a trial starts is part of it if it runs in a copy of its context.

    >>> with alone():
    ...     in_trial()
    True
    >>> in_trial()
    False
    """
    if in_trial():
        yield
        return
    with Undo() as undo:
        mine = object()
        undo(partial(_let_go, mine))
        _token.set(mine)
        while _held.setdefault("by", mine) is not mine:  # taken and known in one: no interrupt
            time.sleep(PAUSE)
        yield


def _let_go(mine: object) -> None:
    if _held.get("by") is mine:
        del _held["by"]
    if _token.get() is mine:
        _token.set(None)


os.register_at_fork(after_in_child=lambda: _held.clear() if not in_trial() else None)
