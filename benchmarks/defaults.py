"""What a default must beat: every criterion that needs no data, on every model with real weights.

Each row is one model, a share of its MACs and one way to choose; what is measured is the model's
own quality, without any training.  Rows are kept in results/defaults.jsonl as they are made, so
that an interrupted run goes on where it was.

    python -m benchmarks.defaults                               # an hour on two cores
    python -m benchmarks.defaults --models resnet20 minilm
    python -m benchmarks.defaults --table                       # only write what is there
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import secateur
from benchmarks.models.real import REAL, Real
from benchmarks.record import FOLDER, keep, rows_in, table, write

ROWS = FOLDER / "defaults.jsonl"
SAMPLES = {
    "resnet20": 1017,
    "resnet56": 500,
    "tiny darknet": 102,
    "minilm": 150,
    "stories260k": 32,
    "docs llama": 8,
    "docs mixtral": 8,
}
"""How many held-out images, sentences or windows of 512 tokens each is measured on."""
SHARES = {
    "resnet20": (0.3, 0.5),
    "resnet56": (0.3, 0.5),
    "tiny darknet": (0.1,),
    "minilm": (0.2,),
    "stories260k": (0.2,),
    "docs llama": (0.2,),
    "docs mixtral": (0.3,),
}
"""Of the MACs, that go."""
SEEDS = range(5)


@secateur.criteria.register(of="readers")
def l2_of_readers(rows: Tensor) -> Tensor:
    """Return the norms of the columns that read a channel."""
    return secateur.criteria["l2"](rows)


@secateur.criteria.register(of="both")
def l2_of_both(rows: Tensor) -> Tensor:
    """Return the norms of the rows that make a channel and of the columns that read it."""
    return secateur.criteria["l2"](rows)


WAYS: dict[str, Callable[[Real], dict[str, Any]]] = {
    **{f"random {seed}": lambda _, s=seed: {"criterion": "random", "seed": s} for seed in SEEDS},
    "l2, all alike": lambda _: {"criterion": "l2", "alike": True},
    "l2": lambda _: {"criterion": "l2"},
    "l2 of readers": lambda _: {"criterion": "l2_of_readers"},
    "l2 of both": lambda _: {"criterion": "l2_of_both"},
    "default": lambda _: {},
    "default, 2 real samples": lambda real: {"data": real.calibration(2, 0), "repair": "none"},
}
LABELLED: dict[str, dict[str, Any]] = {
    "taylor": {},
    "taylor, global": {"scope": "global"},
    "taylor, global, raw": {"scope": "global", "normalize": "none"},
}
LABELS = 32
"""Labelled images or windows for ``taylor``."""


def measure(name: str, share: float, way: str) -> dict[str, Any]:
    """Return one row."""
    real = REAL[name]
    model = real.build()
    if way in LABELLED:
        assert real.labelled is not None
        options: dict[str, Any] = {"criterion": "taylor", **LABELLED[way], "loss": real.loss}
        options["data"] = real.labelled(LABELS, 0)
    else:
        options = WAYS[way](real)
    result = secateur.prune(
        model, real.example, share, of="macs", inplace=True, verify=False, **options
    )
    found = {
        "model": name,
        "share": share,
        "way": way,
        "samples": SAMPLES[name],
        "quality": real.quality(result.model, SAMPLES[name]),
        "macs": result.after.macs / result.before.macs,
    }
    keep(ROWS, found)
    print(*found.values(), sep="\t", flush=True)
    return found


def rows() -> list[dict[str, Any]]:
    """Return the rows that there are."""
    return rows_in(ROWS)


def main() -> None:
    """Measure what is missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(REAL), choices=list(REAL))
    parser.add_argument("--ways", nargs="+", default=[*WAYS, *LABELLED])
    parser.add_argument("--table", action="store_true", help="measure nothing more")
    options = parser.parse_args()
    for name in options.models if not options.table else ():
        for share in SHARES[name]:
            for way in options.ways:
                done = {(r["model"], r["share"], r["way"]) for r in rows()}
                unlabelled = way in LABELLED and REAL[name].labelled is None
                if (name, share, way) not in done and not unlabelled:
                    measure(name, share, way)
    found = rows()
    write("defaults", "What a default must beat", {"rows": found}, _text(found))


def _text(found: list[dict[str, Any]]) -> str:
    ways = [way for way in WAYS if not way.startswith("random")] + list(LABELLED)
    quality = {(r["model"], r["share"], r["way"]): r["quality"] for r in found}
    lines = []
    for name, shares in SHARES.items():
        for share in shares:
            chance = [quality.get((name, share, f"random {seed}")) for seed in SEEDS]
            known = [q for q in chance if q is not None]
            if not known:
                continue
            spread = f"{min(known):.4g}–{max(known):.4g}" if known else "–"
            given = [quality.get((name, share, way)) for way in ways]
            mean = _mean(known, REAL[name].higher)
            shown = ["–" if q is None else f"{q:.4g}" for q in given]
            arrow = "↑" if REAL[name].higher else "↓"
            lines.append([f"{name} {arrow}", f"{share:.0%}", f"{mean:.4g}", spread, *shown])
    measures = "; ".join(
        f"{name}: {real.measure}, {SAMPLES[name]} held-out samples"
        for name, real in REAL.items()
        if any(row["model"] == name for row in found)
    )
    missing = [name for name in REAL if not any(line[0].startswith(name) for line in lines)]
    return "\n\n".join(
        [
            "One shot, no training. ↑: more is better, ↓: less is. Random: mean and range of "
            f"{len(SEEDS)} seeds (of perplexities the geometric mean). Widths inside of blocks go "
            "first, but for *all alike*, where all groups lose the same share. Default: "
            '`prune(model, x, share, of="macs")` and nothing else. Two real samples: the same with '
            f"`data=` two images, sentences or windows, without repair. `taylor`: {LABELS} "
            "labelled samples, each layer for itself, or all ranked together.",
            table(["model", "MACs gone", "random", "range", *ways], lines),
            f"{measures}." + (f" Not whole yet: {', '.join(missing)}." if missing else ""),
        ]
    )


def _mean(values: list[float], plain: bool) -> float:
    if plain:
        return statistics.fmean(values)
    return math.exp(statistics.fmean(math.log(value) for value in values))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
