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
    """The processor's seconds spent in its ``with`` blocks, and Late where they pass the limit.

    Processor time, not the wall's: how busy the machine is makes no difference.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.spent = limit, 0.0

    def __enter__(self) -> None:
        self._start = time.process_time()
        signal.signal(signal.SIGPROF, self._late)
        signal.setitimer(signal.ITIMER_PROF, max(self.limit - self.spent, 1e-6))

    def __exit__(self, *exception: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        self.spent += time.process_time() - self._start

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
