"""Error curves that are estimated, beside the same ones measured: their order, and what each takes.

Each group alone loses five shares of its channels, and is repaired.  Measured is the divergence of
the model's predictions; estimated the square of its logits' error.

    python -m benchmarks.curves                     # some ten minutes on one core
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch

from benchmarks.models.real import REAL
from benchmarks.record import table, write
from secateur import Config, Pruner
from secateur.selection.allocators.case import Curve
from secateur.selection.allocators.curves import SHARES

SAMPLES = {"resnet20": 256}


def curves(name: str, allocate: str) -> tuple[dict[tuple[int, ...], Curve], float]:
    """Return the error curve of each group, and the seconds of processor time that they took."""
    real = REAL[name]
    config = Config(sparsity=0.5, of="macs", criterion="activation", allocate=allocate)
    pruner = Pruner(real.build(), config, real.example, trained=False)
    pruner.repairs = "least_squares"
    pruner.calibrate(real.calibration(SAMPLES[name], 0))
    begun = time.process_time()
    pruner.decide()
    return pruner.budget.known.curves, time.process_time() - begun


def order(a: list[float], b: list[float]) -> float:
    """Return Spearman's correlation of two lists.

    >>> round(order([1.0, 2.0, 3.0], [2.0, 4.0, 9.0]), 3)
    1.0
    """
    ranks = [np.argsort(np.argsort(each)) for each in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def compared(name: str) -> list[dict[str, Any]]:
    """Return a row for each share, and one for all points of all curves."""
    (measured, slow), (estimated, quick) = (curves(name, way) for way in ("error", "estimate"))
    at = {unit: dict(curve) for unit, curve in estimated.items()}
    pairs = [
        (share, error, at[unit][share])
        for unit, curve in measured.items()
        for share, error in curve[1:]
        if share in at[unit]
    ]
    rows = []
    for share in (*SHARES, None):
        some = [(m, e) for s, m, e in pairs if share is None or abs(s - share) < 1e-3]
        ratios = [m / e for m, e in some if e > 0]
        rows.append(
            {
                "model": name,
                "share": share,
                "groups": len(some),
                "spearman": order(*map(list, zip(*some, strict=True))),
                "ratio": statistics.median(ratios),
                "seconds": [slow, quick],
            }
        )
    return rows


def text(rows: list[dict[str, Any]]) -> str:
    """Return a table of all rows."""
    slow, quick = rows[0]["seconds"]
    (name,) = {row["model"] for row in rows}
    body = [
        [
            "all" if row["share"] is None else f"{row['share']:.1%}",
            str(row["groups"]),
            f"{row['spearman']:.3f}",
            f"{row['ratio']:.2f}",
        ]
        for row in rows
    ]
    return (
        f"{name}, {SAMPLES[name]} images, after `least_squares`. Measured in {slow:.0f} s of one "
        f"thread, five shares of each group; estimated in {quick:.0f} s, ten shares.\n\n"
        + table(
            ["share gone", "cuts", "Spearman's correlation", "median measured ÷ estimated"], body
        )
    )


def main() -> None:
    """Compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet20", choices=list(SAMPLES))
    torch.set_num_threads(1)
    rows = compared(parser.parse_args().model)
    write("curves", "Error curves: estimated beside measured", rows, text(rows))


if __name__ == "__main__":
    main()
