"""Whole heads or widths of heads: what of a grid goes, at the same cost, on real models.

Scored by ``activation`` and repaired, not trained; ``fine`` takes widths out of each head (queries
and keys among them), ``auto`` takes whole heads.

    python -m benchmarks.grids
    python -m benchmarks.grids --models minilm --draws 0 1 2
"""

from __future__ import annotations

import argparse
from itertools import product
from statistics import mean
from typing import Any

import torch

import secateur as sc
from benchmarks.models.real import REAL
from benchmarks.record import FOLDER, keep, rows_in, table, write

ROWS = FOLDER / "grids.jsonl"
SAMPLES = {"minilm": 128, "docs llama": 16}
ATTENTION = {"minilm": "*attention*", "docs llama": "*attn*"}
GRIDS = ("fine", "auto")
SETTINGS: dict[str, dict[str, Any]] = {
    "a quarter of attention": {"sparsity": 0.25, "only": True},
    "half of attention": {"sparsity": 0.5, "only": True},
    "half of the MACs": {"sparsity": 0.5, "of": "macs"},
}


def row(name: str, setting: str, grid: str, draw: int) -> dict[str, Any]:
    """Prune one model and return what came of it."""
    real, asked = REAL[name], {**SETTINGS[setting]}
    model = real.build()
    if asked.pop("only", False):
        asked["names"] = [ATTENTION[name]]
    data = real.calibration(SAMPLES[name], draw)
    result = sc.prune(
        model,
        real.example,
        criterion="activation",
        data=data,
        grid=grid,
        allocate="uniform",
        **asked,
    )
    return {
        "model": name,
        "setting": setting,
        "grid": grid,
        "draw": draw,
        "params": result.after.params / result.before.params,
        "macs": result.after.macs / result.before.macs,
        "dense": real.quality(model),
        "quality": real.quality(result.model),
        "measure": real.measure,
    }


def text(rows: list[dict[str, Any]]) -> str:
    """Return the table of all."""
    body = []
    for name, setting, grid in product(SAMPLES, SETTINGS, GRIDS):
        own = [r for r in rows if (r["model"], r["setting"], r["grid"]) == (name, setting, grid)]
        if not own:
            continue
        quality, params, macs = (mean(r[k] for r in own) for k in ("quality", "params", "macs"))
        cells = [f"{name}, {setting}", grid, f"{own[0]['dense']:.4g}", f"{quality:.4g}"]
        body.append([*cells, f"{params:.3f}", f"{macs:.3f}", str(len(own))])
    heads = ["what goes", "grid", "dense", "pruned", "params left", "MACs left", "draws"]
    return (
        "MiniLM: correlation of similarities with the dense model's; docs Llama: perplexity (less "
        "is better). Of the docs Llama's two heads of keys a quarter is none.\n\n"
    ) + table(heads, body)


def main() -> None:
    """Make the rows that are asked for and not there yet, and write the table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(SAMPLES), choices=list(SAMPLES))
    parser.add_argument("--draws", type=int, nargs="*", default=[0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = rows_in(ROWS)
    done = {(r["model"], r["setting"], r["grid"], r["draw"]) for r in rows}
    for draw, *key in product(given.draws, given.models, SETTINGS, GRIDS):
        if (*key, draw) not in done:
            rows.append(row(*key, draw))
            keep(ROWS, rows[-1])
            print(rows[-1], flush=True)
    write("grids", "Whole heads, or widths of heads", rows, text(rows))


if __name__ == "__main__":
    main()
