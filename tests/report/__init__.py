"""Tests of the report, and the browser that looks at it."""

from __future__ import annotations

from math import nan

from secateur.repair.report import Distance, Refit, Repair


def repaired(*tensors: str) -> Repair:
    """Return a record in which every second reader is repaired, and the first has too few rows."""
    refits = [
        Refit(name, 0.5 / (i + 1), 0.02 / (i + 1) ** 2, 0.01 if i else None, 4096, "")
        for i, name in enumerate(tensors)
    ]
    refits[0] = Refit(tensors[0], 0.61, 0.61, None, 12, "12 rows are too few for 64 features")
    unknown = Refit("not.measured", nan, nan, 0.01, 4096)
    return Repair(
        "least_squares", (*refits, unknown), Distance(0.42, 0.31), Distance(0.067, 0.0123), True
    )
