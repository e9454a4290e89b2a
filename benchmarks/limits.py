"""How long a task of a benchmark may take, and a process of its own for each."""

from __future__ import annotations

import multiprocessing
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

WHOLE = 1800  # seconds for a task with everything around what is timed

Outcome = dict[str, Any]


class Late(BaseException):
    """The pruning took longer than it may; no Exception, so that no library handles it."""


class Clock:
    """The seconds spent in its ``with`` blocks, and Late where they are more than the limit."""

    def __init__(self, limit: float) -> None:
        self.limit, self.spent = limit, 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()
        signal.signal(signal.SIGALRM, self._late)
        signal.setitimer(signal.ITIMER_REAL, max(self.limit - self.spent, 1e-6))

    def __exit__(self, *exception: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.spent += time.perf_counter() - self._start

    def _late(self, *signalled: object) -> None:
        raise Late

    def facts(self) -> Outcome:
        return {"limit": self.limit, "pruned_in": round(self.spent, 2)}


def in_a_process(task: Callable[..., Outcome], *of: Any) -> Outcome:
    """Return what a task says of a model, or that it died or was never done."""
    context = multiprocessing.get_context("fork")  # torch and the libraries are loaded already
    ours, theirs = context.Pipe(duplex=False)

    def work() -> None:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        theirs.send(task(*of))

    start = time.perf_counter()
    process = context.Process(target=work)
    process.start()
    theirs.close()
    try:
        found: Outcome = ours.recv() if ours.poll(WHOLE) else {"status": "too slow"}
    except EOFError:
        found = {"status": "died"}
    process.kill()
    process.join()
    return found | {"seconds": round(time.perf_counter() - start, 1)}
