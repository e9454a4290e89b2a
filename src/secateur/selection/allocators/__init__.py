"""Who loses how much: one function in a file for each way to share a goal among groups."""

from __future__ import annotations

from secateur.registry import import_all

from .case import Case, Known, Spread, held

import_all(__name__, __path__)

__all__ = ["Case", "Known", "Spread", "held"]
