"""Half of the measured latency, and half of the MACs: who loses how much, and what that costs.

Real models, pruned without training, repaired on the data that the allocation sees.  Times are
measured anew at the end, dense and smaller in turns, on this machine's processor time (one thread).
Rows are kept in results/allocations.jsonl as they are made.

    python -m benchmarks.allocations
    python -m benchmarks.allocations --models resnet20 --of macs --ways uniform error
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

import secateur
from benchmarks.models.real import REAL, Real
from benchmarks.record import FOLDER, table, write
from secateur.pruner import candidates as running
from secateur.runtime.measure import clock_of, latency

ROWS = FOLDER / "allocations.jsonl"
SAMPLES: dict[str, int] = {"resnet20": 256, "resnet56": 128, "minilm": 64}
"""Calibration samples."""
WAYS = ("uniform", "global", "depth", "owl", "error")
GOALS = {"resnet20": ("macs",), "resnet56": ("latency",), "minilm": ("latency",)}


def timed(real: Real) -> Any:
    """Return 16 samples, of texts 64 tokens: of one or two, calls are most of the time."""
    (first,) = real.calibration(16, 0)
    if isinstance(first, dict):
        return {name: tensor[:, :64] for name, tensor in first.items()}
    return first


def row(name: str, of: str, share: float, allocate: str, judged: int | None) -> dict[str, Any]:
    """Prune one model one way and return what came of it."""
    real = REAL[name]
    model = real.build()
    example = timed(real) if of == "latency" else real.example
    batches = real.calibration(SAMPLES[name], 0)
    asked, measured = [0], running.output_error

    def counting(*given: Any) -> float:
        asked[0] += 1
        return measured(*given)

    running.output_error = counting
    begun = time.perf_counter()
    try:
        result = secateur.prune(
            model, example, share, "activation", of=of, allocate=allocate, data=batches
        )
    finally:
        running.output_error = measured
    seconds = time.perf_counter() - begun
    clock, clock_name = clock_of(torch.device("cpu"))
    times = latency({"dense": model, "smaller": result.model}, example, runs=31, clock=clock)
    return {
        "model": name,
        "of": of,
        "share": share,
        "allocate": allocate,
        "evaluations": asked[0],
        "seconds": seconds,
        "macs": result.after.macs / result.before.macs,
        "params": result.after.params / result.before.params,
        "dense": real.quality(model, judged),
        "quality": real.quality(result.model, judged),
        "measure": real.measure,
        "clock": clock_name,
        "dense_ms": [times["dense"].median, times["dense"].low, times["dense"].high],
        "smaller_ms": [times["smaller"].median, times["smaller"].low, times["smaller"].high],
        "goal": str(result.goals[0]),
    }


def spread(found: list[float]) -> str:
    """Return a median with its middle half."""
    return f"{found[0]:.2f} ({found[1]:.2f} … {found[2]:.2f})"


def text(rows: list[dict[str, Any]]) -> str:
    """Return the table of all rows."""
    headings = [
        "model, goal",
        "shared out",
        "quality (dense)",
        "dense, ms",
        "smaller, ms",
        "time left",
        "MACs left",
        "evaluations",
        "seconds",
    ]
    lines = [
        [
            f"{r['model']}: −{r['share']:.0%} {r['of']}",
            r["allocate"],
            f"{r['quality']:.2f} ({r['dense']:.2f})",
            spread(r["dense_ms"]),
            spread(r["smaller_ms"]),
            f"{r['smaller_ms'][0] / r['dense_ms'][0]:.3f}",
            f"{r['macs']:.3f}",
            str(r["evaluations"]),
            f"{r['seconds']:.0f}",
        ]
        for r in rows
    ]
    return table(headings, lines) + "\n"


def main() -> None:
    """Make the rows that are asked for and not there yet, and write the table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(GOALS))
    parser.add_argument("--of", nargs="*")
    parser.add_argument("--ways", nargs="*", default=["uniform", "error"], choices=WAYS)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--judged", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    done = {(r["model"], r["of"], r["share"], r["allocate"]) for r in rows}
    for name in given.models:
        for of in given.of or GOALS[name]:
            for way in given.ways:
                if (name, of, given.share, way) not in done:
                    rows.append(row(name, of, given.share, way, given.judged))
                    with ROWS.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
                    print(rows[-1], flush=True)
    write("allocations", "Half of a cost: shares that are measured", rows, text(rows))


if __name__ == "__main__":
    main()
