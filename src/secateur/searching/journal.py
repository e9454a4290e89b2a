"""A study's file: one operation a line, appended under a lock, read as JSON and as nothing else.

Optuna's own file stops being readable when somebody is killed, or a disk is full, in the middle
of a line and another one writes behind it.  Here what was torn is cut off before the next line is
written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileOpenLock

from secateur.errors import FileError
from secateur.runtime.io import opened, writing

PATIENCE = 10
"""Seconds after which a lock belongs to somebody who was killed: it is held for milliseconds."""
CHUNK = 1 << 16
OPERATIONS = range(11)
"""Of Optuna's journals, from making a study to an attribute of a trial."""


class JournalFile(BaseJournalBackend):
    """The operations of a study in a file, for ``optuna.storages.JournalStorage``.

    Raises:
        FileError: it is no regular file, or a line of it is no operation.
        WriteError: it cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path.resolve()
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = JournalFileOpenLock(str(self.path), grace_period=PATIENCE)
            self.append_logs([])
        self._starts = [0]  # where each line begins that was read

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the operations from one on, but for one that is being written."""
        number = min(log_number_from, len(self._starts) - 1)
        with opened(self.path) as (file, size):
            file.seek(self._starts[number])
            while (start := file.tell()) < size:
                line = file.readline()
                if not line.endswith(b"\n"):
                    return
                if number + 1 == len(self._starts):
                    self._starts.append(start + len(line))
                if number >= log_number_from:
                    yield self._operation(line, number)
                number += 1

    def append_logs(self, logs: Sequence[dict[str, Any]]) -> None:
        """Write operations behind those that are there, to the disk."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with writing(self.path):
            self._lock.acquire()
            try:
                self._append(text.encode())
            finally:
                self._lock.release()

    def _append(self, text: bytes) -> None:
        with open(self.path, "ab+") as file:
            end = _whole(file)
            if end != file.seek(0, os.SEEK_END):
                file.truncate(end)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _operation(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("op_code") not in OPERATIONS:
            raise FileError(f"{self.path} is damaged, or no study: line {number + 1}")
        return found


def _whole(file: Any) -> int:
    """Return where the last whole line of a file ends."""
    end = int(file.seek(0, os.SEEK_END))
    while end:
        start = max(0, end - CHUNK)
        file.seek(start)
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0
