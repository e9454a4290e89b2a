"""Folders for files that are being written, and who writes where.

A scratch folder lies beside what it is for, has a name that nobody can guess, and is its maker's
alone; so what is written in it follows no link that somebody planted, and two who write the same
file never meet.  Its maker holds a lock on it, which the system takes back when the process ends,
however it ends: one that nobody holds is swept away by the next who writes there.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: nothing is swept there, and nobody waits
    fcntl = None  # type: ignore[assignment]

LETTERS = 40
"""Of a file's name, in that of its scratch folder: with all of them it might be too long."""


@contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder in ``parent``, which is made where it is missing; gone afterwards."""
    parent.mkdir(parents=True, exist_ok=True)
    start = f".{name[:LETTERS]}."
    _sweep(parent, start)
    folder, lock = _made(parent, start)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _made(parent: Path, start: str) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=start, suffix=".tmp", dir=parent))
        if fcntl is None:
            return folder, None
        try:
            lock = _locked(folder, wait=True)
        except FileNotFoundError:  # swept before it was locked
            continue
        if lock is None or folder.exists():
            return folder, lock
        os.close(lock)


def _sweep(parent: Path, start: str) -> None:
    """Remove what those left who were killed."""
    if fcntl is None:
        return
    named = re.compile(rf"{re.escape(start)}[a-z0-9_]{{8}}\.tmp")
    for entry in os.scandir(parent):
        if named.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            try:
                lock = _locked(Path(entry.path), wait=False)
            except OSError:  # held, gone by now, or somebody else's
                continue
            if lock is not None:
                shutil.rmtree(entry.path, ignore_errors=True)
                os.close(lock)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until nobody else is in such a block for this folder, in any thread or process."""
    lock = _locked(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _locked(folder: Path, *, wait: bool) -> int | None:
    """Lock a folder; None where the file system has no locks.

    Raises:
        BlockingIOError: somebody else holds it, and we do not wait.
        OSError: it cannot be opened.
    """
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # network file systems may have none
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return handle
