"""Layers removed whole, without training: chosen by influence or by error, repaired or not.

Rows are kept in results/depth.jsonl as they are made, so that an interrupted run goes on.

    python -m benchmarks.depth
    python -m benchmarks.depth --models minilm --counts 1
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import secateur
from benchmarks.models.real import REAL
from benchmarks.record import FOLDER, keep, rows_in, table, write
from benchmarks.repair import _quality

ROWS = FOLDER / "depth.jsonl"
SAMPLES = {"docs llama": 16, "minilm": 512}
KEYS = ("model", "count", "by", "repair", "seed")


def measure(name: str, count: int, by: str, repair: str, seed: int) -> dict[str, Any]:
    """Return one row."""
    real = REAL[name]
    dense = real.build()
    row: dict[str, Any] = dict(zip(KEYS, (name, count, by, repair, seed), strict=True))
    if not count:
        return row | _quality(real, dense)
    data, start = real.calibration(SAMPLES[name], seed), time.process_time()
    given: dict[str, Any] = {"data": data, "by": by, "repair": repair}
    result = secateur.drop_blocks(dense, count, real.example, **given)
    row |= {"seconds": time.process_time() - start, "dropped": result.plan.drop}
    row |= {"params": result.after.params / result.before.params, "stock": result.rebuilt}
    return row | _quality(real, result.model)


def main() -> int:
    """Make the rows that are missing, then write the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=[*SAMPLES], choices=[*SAMPLES])
    parser.add_argument("--counts", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--by", nargs="+", default=["influence", "error"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    found = rows_in(ROWS)
    made = {tuple(row[key] for key in KEYS) for row in found}
    for name in options.models:
        for by in options.by:
            for count in options.counts:
                for repair in ("none", "least_squares") if count else ("none",):
                    key = (name, count, by if count else "", repair, options.seeds[0])
                    for seed in options.seeds if count else (0,):
                        if (key := (*key[:4], seed)) not in made:
                            made.add(key)
                            found.append(measure(*key))
                            keep(ROWS, found[-1])
                            print(*found[-1].values(), sep="\t", flush=True)
    write("depth", "Layers removed whole, without training", found, _text(found))
    return 0


def _text(found: list[dict[str, Any]]) -> str:
    parts = ["No labels, no training. Second figure: in another domain. Processor seconds of all."]
    for name in dict.fromkeys(row["model"] for row in found):
        own = [row for row in found if row["model"] == name]
        body = [[_what(row), _figures(row), *_more(row)] for row in own]
        head = ["", "quality", "dropped", "params left", "the stock class says it", "seconds"]
        about = f"{name} ({REAL[name].measure}; {SAMPLES[name]} samples)"
        parts += [f"## {about}", table(head, body)]
    return "\n\n".join(parts)


def _what(row: dict[str, Any]) -> str:
    if not row["count"]:
        return "dense"
    repaired = "" if row["repair"] == "none" else ", repaired"
    return f"{row['count']} by {row['by']}{repaired} (seed {row['seed']})"


def _figures(row: dict[str, Any]) -> str:
    return " / ".join(f"{row[kind]:.4g}" for kind in ("quality", "elsewhere") if kind in row)


def _more(row: dict[str, Any]) -> list[str]:
    if not row["count"]:
        return [""] * 4
    left, said = f"{row['params']:.0%}", "yes" if row["stock"] else "no"
    return [", ".join(row["dropped"]), left, said, f"{row['seconds']:.0f}"]


if __name__ == "__main__":
    sys.exit(main())
