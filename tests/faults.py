"""Ways to break files and processes; each returns what came of it, for tests and benchmarks."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

CALLS = ("open", "os.", "shutil.", "tempfile.", "fcntl.")
KILLED, DONE, FAILED = 9, 0, 1


def file_calls(act: Callable[[], object], inside: Path, at: int | None = None) -> int:
    """Run something in a child, which dies at its ``at``-th call about files inside of a folder.

    Returns:
        ``KILLED``, ``DONE`` or ``FAILED`` (it raised).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python ≥ 3.12 warns of forks beside threads
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    dying_at(act, inside, at)
    return FAILED  # it never comes back


def dying_at(act: Callable[[], object], inside: Path, at: int | None) -> None:
    """Run something in this process, which dies at a call, as ``file_calls`` has it, or after."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        about = any(isinstance(a, (str, os.PathLike)) and str(inside) in str(a) for a in arguments)
        if event.startswith(CALLS) and (about or event == "fcntl.flock"):
            if seen == at:
                os._exit(KILLED)
            seen += 1

    status = FAILED
    try:
        sys.addaudithook(hook)
        act()
        status = DONE
    finally:
        os._exit(status)


def kills(
    act: Callable[[], object], inside: Path, *, step: int = 1, most: int = 300
) -> Iterator[int]:
    """Kill something at each of its calls about files in turn; yield at which, until it is done."""
    for at in range(0, most, step):
        status = file_calls(act, inside, at)
        if status == DONE:
            return
        assert status == KILLED, f"it raised at call {at}"
        yield at
    raise AssertionError(f"it is not done after {most} calls")


def flipped(data: bytes, chance: Random) -> bytes:
    """Return data with one bit flipped."""
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]


def truncated(data: bytes, chance: Random) -> bytes:
    """Return a beginning of data."""
    return data[: chance.randrange(len(data))]
