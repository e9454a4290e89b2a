"""Several functions that run side by side, one at a time, each up to where it meets the others.

A forward cannot be stopped in its middle and gone on with, unless it has a thread of its own.  Here
threads take turns: exactly one runs at any moment, so that nothing depends on luck.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .drawing import TURN
from .undo import Undo, in_mode, outermost


class _Stopped(BaseException):
    """Unwinds a function that is not wanted any more; no ``except Exception`` stops it."""


class Turns:
    """A function that runs in turns: ``next`` lets it go on until it meets or ends.

    It is given a function ``meet``, which it calls with anything, and which returns when the next
    turn begins.  Leaving the ``with`` ends it wherever it is.

    >>> def count(meet):
    ...     for i in range(2):
    ...         meet(i)
    >>> with Turns(count) as turns:
    ...     turns.next(), turns.next(), turns.next(), turns.over
    (0, 1, None, True)
    """

    def __init__(self, function: Callable[[Callable[[Any], None]], Any]):
        self._function = function
        self._mine: SimpleQueue[None] = SimpleQueue()  # as these are not torn by an interrupt
        self._theirs: SimpleQueue[None] = SimpleQueue()
        self._met: Any = None
        self._error: BaseException | None = None
        self._stopping = False
        self.over = False
        self.result: Any = None
        """What the function returned, once it is over."""
        self._undo = Undo()
        device, threads = torch.get_default_device(), torch.get_num_threads()
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run,
            args=(self._run, device, threads, _get_current_dispatch_mode_stack()),
            name=TURN,
            daemon=True,
        )

    def __enter__(self) -> Self:
        self._undo.__enter__()
        self._undo(self._stop)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.__exit__(kind, error, trace)

    def _stop(self) -> None:
        self._stopping = True
        if self._thread.ident is None:  # it never began
            return
        while not self.over:  # a function may meet again while it is unwound
            self._theirs.put(None)
            self._mine.get()
        self._thread.join()

    def next(self) -> Any:
        """Return what the function met with, or None once it is over.

        Raises: what the function raises.
        """
        if not self.over:
            self._theirs.put(None)
            self._mine.get()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        found, self._met = self._met, None
        return found

    def _run(self, device: torch.device, threads: int, modes: list[Any]) -> None:
        self._theirs.get()
        try:
            if not self._stopping:
                torch.set_num_threads(threads)  # each thread begins with torch's own default
                torch.set_autocast_cache_enabled(False)  # their cache is one, of casts nobody sees
                self.result = outermost(partial(self._computed, device, modes))
        except _Stopped:
            pass
        except BaseException as error:  # it is raised where the turn was given
            self._error = None if self._stopping else error
        finally:
            self.over = True
            self._mine.put(None)

    def _computed(self, device: torch.device, modes: list[Any]) -> Any:
        """Run the function in the modes of the thread that takes turns with this one."""
        with ExitStack() as stack:
            if device.type != "cpu":
                stack.enter_context(device)
            for mode in modes:
                stack.enter_context(in_mode(mode))
            return self._function(self._meet)

    def _meet(self, found: Any) -> None:
        self._met = found
        self._mine.put(None)
        self._theirs.get()
        if self._stopping:
            raise _Stopped
