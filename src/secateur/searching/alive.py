"""Who runs a trial, and whether they still do: heartbeats, and processes of this machine."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROC = Path("/proc")


def this_process() -> list[Any]:
    """Return what tells this process from all others: its machine, its number and its start."""
    return [_machine(), os.getpid(), _started(os.getpid())]


def has_ended(process: object) -> bool:
    """Tell whether a process of this machine has ended; False where that cannot be known.

    >>> has_ended(this_process()), has_ended(["another machine", 1, 1]), has_ended(None)
    (False, False, False)
    """
    if not isinstance(process, list) or len(process) != 3:
        return False
    machine, number, start = process
    if machine != _machine() or type(number) is not int or type(start) is not int:
        return False
    return _started(number) != start


def _machine() -> str:
    """Return what no other machine, and no later start of this one, has in common."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink(PROC / "self/ns/pid")  # containers count their processes anew
    except OSError:
        return f"{socket.gethostname()}, unknown"
    return f"{socket.gethostname()}, {boot}, {space}"


def _started(number: int) -> int | None:
    """Return when a process was started, in ticks; None where there is none, or no way to know."""
    try:
        text = (PROC / str(number) / "stat").read_text()
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()
    return None if state in ("Z", "X") else int(rest[18])


class Heartbeat:
    """Within it, ``beat`` is called now and then, until it says that nobody listens.

    Args:
        beat: is given a number that grows; returns False when it need not be called again.
        interval: in seconds.
        at_last: called at the end, by the thread that called ``beat``.
    """

    def __init__(self, beat: Callable[[int], bool], interval: float, at_last: Callable[[], object]):
        self._beat = beat
        self._at_last = at_last
        self._interval = interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="secateur heartbeat")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        count = 1
        while not self._over.wait(self._interval) and self._beat(count):
            count += 1
        self._at_last()
