"""One goal, shared out in every way: who loses how much, what that is worth, and what it costs.

Real models, pruned without training, repaired on the data that the allocation sees; each draw is
other calibration data.  Goals of time are measured anew at the end, dense and smaller in turns, on
this machine's processor time (one thread).  Rows are kept in results/allocations.jsonl as they are
made.

    python -m benchmarks.allocations --models resnet20 --draws 0 1 2
    python -m benchmarks.allocations --models resnet56 --ways uniform estimate
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

import secateur
from benchmarks.models.real import REAL, Real
from benchmarks.record import FOLDER, keep, rows_in, table, write
from secateur.pruner import candidates as running
from secateur.runtime.measure import clock_of, latency

ROWS = FOLDER / "allocations.jsonl"
SAMPLES: dict[str, int] = {"resnet20": 256, "resnet56": 128, "minilm": 64, "docs llama": 16}
"""Calibration samples."""
WAYS: dict[str, dict[str, Any]] = {
    "uniform, alike": {"allocate": "uniform", "alike": True},
    **{name: {"allocate": name} for name in ("uniform", "global", "depth", "owl")},
    **{name: {"allocate": name} for name in ("estimate", "error")},
}
GOALS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "resnet20": ("macs", 0.5, {}),
    "resnet56": ("latency", 0.5, {}),
    "minilm": ("latency", 0.5, {}),
    "docs llama": ("params", 0.2, {"what": ["width"]}),
}
"""Model → what its goal is of, how much of it goes, and other settings."""


def timed(real: Real) -> Any:
    """Return 16 samples, of texts 64 tokens: of one or two, calls are most of the time."""
    (first,) = real.calibration(16, 0)
    if isinstance(first, dict):
        return {name: tensor[:, :64] for name, tensor in first.items()}
    return first


def row(name: str, way: str, draw: int, judged: int | None) -> dict[str, Any]:
    """Prune one model one way and return what came of it."""
    real, (of, share, settings) = REAL[name], GOALS[name]
    model = real.build()
    example = timed(real) if of == "latency" else real.example
    batches = real.calibration(SAMPLES[name], draw)
    asked, measured = [0], running.output_error

    def counting(*given: Any, **options: Any) -> float:
        asked[0] += 1
        return measured(*given, **options)

    running.output_error = counting
    begun = time.process_time()
    try:
        options = {**settings, **WAYS[way]}
        result = secateur.prune(model, example, share, "activation", of=of, data=batches, **options)
    finally:
        running.output_error = measured
    found = {
        "model": name,
        "of": of,
        "share": share,
        "allocate": way,
        "draw": draw,
        "evaluations": asked[0],
        "seconds": time.process_time() - begun,
        "macs": result.after.macs / result.before.macs,
        "params": result.after.params / result.before.params,
        "dense": real.quality(model, judged),
        "quality": real.quality(result.model, judged),
        "measure": real.measure,
        "goal": str(result.goals[0]),
    }
    return found | (_times(model, result.model, example) if of == "latency" else {})


def _times(dense: Any, smaller: Any, example: Any) -> dict[str, Any]:
    clock, clock_name = clock_of(torch.device("cpu"))
    times = latency({"dense": dense, "smaller": smaller}, example, runs=31, clock=clock)
    every = {name: [t.median, t.low, t.high] for name, t in times.items()}
    return {"clock": clock_name, "dense_ms": every["dense"], "smaller_ms": every["smaller"]}


def spread(found: list[float]) -> str:
    """Return a median with its middle half."""
    return f"{found[0]:.2f} ({found[1]:.2f} … {found[2]:.2f})"


def text(rows: list[dict[str, Any]]) -> str:
    """Return a table for each goal."""
    parts = [
        "No training; scored by `activation` and repaired. Seconds are processor time of one "
        "thread for all of `prune` (of a latency, on the wall); evaluations are models that "
        "were repaired and run to measure an error. Draws are of calibration data: mean ± standard "
        "deviation. *uniform*: widths that blocks share go later; *alike*: all groups lose the "
        "same share."
    ]
    for name, (of, share, settings) in GOALS.items():
        own = [row for row in rows if row["model"] == name]
        if own:
            kinds = f", {' and '.join(settings['what'])} alone" if settings else ""
            parts.append(
                f"**{name}, −{share:.0%} {of}{kinds}**: {own[0]['measure']}, dense "
                f"{own[0]['dense']:.2f}; {SAMPLES[name]} samples of calibration data."
            )
            parts.append(_table(own))
    return "\n\n".join(parts)


def _table(rows: list[dict[str, Any]]) -> str:
    timed = "smaller_ms" in rows[0]
    heads = ["shared out", "quality", "draws", "MACs left", "evaluations", "seconds"]
    body = []
    for way in WAYS:
        own = [row for row in rows if row["allocate"] == way]
        if not own:
            continue
        cells = [way, _mean([row["quality"] for row in own]), str(len(own))]
        cells.append(f"{statistics.mean(row['macs'] for row in own):.3f}")
        cells.append(f"{statistics.mean(row['evaluations'] for row in own):.0f}")
        cells.append(f"{statistics.mean(row['seconds'] for row in own):.0f}")
        if timed:
            (first, *_) = own
            left = first["smaller_ms"][0] / first["dense_ms"][0]
            cells += [spread(first["dense_ms"]), spread(first["smaller_ms"]), f"{left:.3f}"]
        body.append(cells)
    return table([*heads, *(["dense, ms", "smaller, ms", "time left"] if timed else [])], body)


def _mean(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def main() -> None:
    """Make the rows that are asked for and not there yet, and write the table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(GOALS), choices=list(GOALS))
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--draws", type=int, nargs="*", default=[0])
    parser.add_argument("--judged", type=int, help="so many held-out samples, in place of all")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = rows_in(ROWS)
    done = {(r["model"], r["allocate"], r["draw"]) for r in rows}
    for name in given.models:
        for draw in given.draws:
            for way in given.ways:
                if (name, way, draw) not in done:
                    rows.append(row(name, way, draw, given.judged))
                    keep(ROWS, rows[-1])
                    print(rows[-1], flush=True)
    write("allocations", "One goal, shared out in every way", rows, text(rows))


if __name__ == "__main__":
    main()
