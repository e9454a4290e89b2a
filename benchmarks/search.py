"""Searched allocations against given ones: the pretrained ResNet-20 at half of its MACs.

No training: each trial prunes, repairs on calibration images, and is valued on other images of
the training part.  The test images are seen once, by the best of each way.  Trials are kept in a
study's file (``--studies``), so that an interrupted run goes on where it was; a row of the table
is one way.

    python -m benchmarks.search                                  # all; an hour on two cores
    python -m benchmarks.search --ways "tpe*" --trials 40
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur
from benchmarks.models.real import REAL, accuracy
from benchmarks.record import FOLDER, keep, rows_in, table, write

ROWS = FOLDER / "search.jsonl"
MODEL = "resnet20"
GOAL = {"sparsity": 0.5, "of": "macs"}
CALIBRATION, FITNESS, BATCH = 256, 1000, 64
GIVEN: dict[str, dict[str, Any]] = {
    "uniform": {"alike": True},
    "widths inside of blocks first": {},
    "error curves, estimated": {"allocate": "estimate"},
    "error curves": {"allocate": "error"},
}
"""Allocations that nobody searches, by the settings of ``prune`` that they are."""
SEARCHED = ("random", "annealing", "tpe", "amc", "cmaes")


def parts(seed: int) -> tuple[list[torch.Tensor], Callable[[nn.Module], float]]:
    """Return calibration batches, and the value of a model on other images of the same part."""
    labelled = REAL[MODEL].labelled
    assert labelled is not None  # a classifier's data is
    batches = labelled(CALIBRATION + FITNESS, seed)
    images = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])

    def fitness(model: nn.Module) -> float:
        return accuracy(model.eval(), images[CALIBRATION:], labels[CALIBRATION:], 2 * BATCH)

    return list(images[:CALIBRATION].split(BATCH)), fitness


def measure(way: str, seed: int, trials: int, studies: Path) -> dict[str, Any]:
    """Return one row: the value that was searched by, the test accuracy, and what it took."""
    real = REAL[MODEL]
    dense, (data, fitness) = real.build(), parts(seed)
    start = time.perf_counter()
    if way in GIVEN:
        given = {**GOAL, "seed": seed, **GIVEN[way]}
        result, count, seconds = secateur.prune(dense, real.example, **given, data=data), 0, None
    else:
        found = secateur.search(
            dense,
            real.example,
            fitness,
            **GOAL,
            trials=trials,
            sampler=way,
            storage=studies,
            name=f"{way} {trials} seed {seed}",
            data=data,
            seed=seed,
        )
        result, count = found.result(), len(found.trials)
        seconds = sum(trial.seconds for trial in found.trials)  # of all runs that made it
    seconds = time.perf_counter() - start if seconds is None else seconds
    left = result.after.macs / result.before.macs
    row = {"way": way, "seed": seed, "trials": count, "seconds": seconds, "macs": left}
    return row | {"fitness": fitness(result.model), "test": real.quality(result.model)}


def main() -> int:
    """Make the rows that are missing, then write the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ways", default="*", help="a shell pattern")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--studies",
        type=Path,
        default=Path(tempfile.gettempdir()) / "secateur-benchmark-search.journal",
    )
    options = parser.parse_args()
    found = rows_in(ROWS)
    made = {(row["way"], row["seed"], row["trials"]) for row in found}
    for seed in options.seeds:
        for way in (*GIVEN, *SEARCHED):
            trials = 0 if way in GIVEN else options.trials
            if fnmatch(way, options.ways) and (way, seed, trials) not in made:
                found.append(measure(way, seed, options.trials, options.studies))
                ROWS.parent.mkdir(exist_ok=True)
                keep(ROWS, found[-1])
                print(*found[-1].values(), sep="\t", flush=True)
    write("search", "Searched allocations", found, _text(found))
    return 0


def _text(found: list[dict[str, Any]]) -> str:
    about = (
        f"{MODEL} at half of its MACs, repaired on {CALIBRATION} images, not trained; valued on "
        f"{FITNESS} others. The test images were seen once, at the end. Seconds are of one thread "
        "of a machine that others used too. The first trial of each search began at the allocation "
        "that `prune` has, brought nearer to the goal, the second at equal shares."
    )
    heads = ["", "seed", "evaluations", "seconds", "MACs left", "valued, %", "test, %"]
    order = [*GIVEN, *SEARCHED]
    body = [
        [
            row["way"],
            str(row["seed"]),
            str(row["trials"]),
            f"{row['seconds']:.0f}",
            f"{row['macs']:.1%}",
            f"{row['fitness']:.2f}",
            f"{row['test']:.2f}",
        ]
        for row in sorted(found, key=lambda row: (row["seed"], order.index(row["way"])))
    ]
    return f"{about}\n\n{table(heads, body)}"


if __name__ == "__main__":
    sys.exit(main())
