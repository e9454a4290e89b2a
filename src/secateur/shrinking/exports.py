"""What was made from a folder's weights does not stay beside others: an old model.onnx misleads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from secateur.runtime.together import Seal, seal_of

log = logging.getLogger(__name__)

ONNX, PT2, SEMI_STRUCTURED = "model.onnx", "model.pt2", "semi_structured.json"
EXPORTS = (ONNX, f"{ONNX}.data", PT2, SEMI_STRUCTURED)
"""What ``secateur export`` writes beside the weights."""
REPORTS = ("report.json", "report.html")
"""What tells of the model that was here before, and of no other."""


def remove_outdated(folder: Path, weights: Mapping[str, Seal]) -> None:
    """Remove a folder's exports before other weights take the place of those they were made from.

    The log says so.  Where there were no weights before, exports are none of theirs and stay.

    Args:
        folder: that holds the weights of before, if any.
        weights: file → seal, of the new ones.
    """
    exports = [folder / name for name in EXPORTS if (folder / name).is_file()]
    before = {path.name: seal_of(path) for path in folder.glob("model*.safetensors") if exports}
    if before and before != weights:
        for path in exports:
            path.unlink(missing_ok=True)
            log.warning("removed %s, an export of the weights that were here before", path)
