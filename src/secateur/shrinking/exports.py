"""What was made from a folder's weights does not stay beside others: an old model.onnx misleads."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

ONNX, PT2 = "model.onnx", "model.pt2"
EXPORTS = (ONNX, f"{ONNX}.data", PT2)
"""What ``secateur export`` writes beside the weights."""


@contextmanager
def exports_of(folder: Path) -> Iterator[None]:
    """Remove a folder's exports if the block changes the weights that they were made from.

    The log says so.  Where there were no weights before, exports are none of theirs and stay.
    """
    exports = [folder / name for name in EXPORTS if (folder / name).is_file()]
    before = _digest(folder) if exports else ""
    yield
    if before and _digest(folder) != before:
        for path in exports:
            path.unlink(missing_ok=True)
            log.warning("removed %s, an export of the weights that were here before", path)


def _digest(folder: Path) -> str:
    """Return a hash of all weights in a folder, "" where there are none."""
    found = hashlib.sha256()
    files = sorted(folder.glob("model*.safetensors"))
    for path in files:
        found.update(path.name.encode())
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest() if files else ""
