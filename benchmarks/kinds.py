"""Width, heads, depth, hidden size, experts: each alone and all under one budget, without training.

The goal is so many parameters: those of the embeddings, and a share of all others (the body).  Each
row is one prune of one model with one draw of calibration data, repaired; layers keep equal widths,
so that the stock class loads the result, but for rows of ``APART``.  Rows are kept in
results/kinds.jsonl as they are made, so that an interrupted run goes on.

    python -m benchmarks.kinds
    python -m benchmarks.kinds --models "docs llama" --shares 0.8 --what width all
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch
from torch import nn

import secateur
from benchmarks.models.real import REAL, Real
from benchmarks.record import FOLDER, keep, rows_in, table, write
from secateur.errors import GoalError

ROWS = FOLDER / "kinds.jsonl"
SAMPLES, BATCH, JUDGED = 16, 2, 64
"""Windows of 512 tokens: to calibrate with, of those in a batch, and to judge in each domain."""
APART = "all, apart"
"""Each layer may lose another share, by estimated errors: no stock class loads that."""
KINDS = {
    "docs llama": ("width", "heads", "depth", "hidden", "all", APART),
    "docs mixtral": ("width", "experts", "depth", "hidden", "experts, width", "all", APART),
}
SHARES = (0.9, 0.8, 0.7)
KEYS = ("model", "share", "what", "seed")


def allowed(model: nn.Module, share: float) -> int:
    """Return how many parameters may be left: a share of the body, and the embeddings."""
    total = sum(p.numel() for p in model.parameters())
    tables = {
        id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)
    }
    body = total - sum(tables.values())
    return total - round((1 - share) * body)


def measure(name: str, share: float, what: str, seed: int) -> dict[str, Any]:
    """Return one row."""
    real = REAL[name]
    dense = real.build()
    row: dict[str, Any] = dict(zip(KEYS, (name, share, what, seed), strict=True))
    if what == "dense":
        return row | _quality(real, dense)
    most, total = allowed(dense, share), sum(p.numel() for p in dense.parameters())
    data = torch.cat(real.calibration(SAMPLES, seed)).split(BATCH)
    start = time.process_time()
    try:
        result = _pruned(real, dense, what, most, data)
    except GoalError as error:
        return row | {"why": str(error).partition("\n")[0]}
    row |= {"seconds": time.process_time() - start, "params": result.after.params / total}
    row |= {"asked": most / total, "stock": result.rebuilt, "dropped": list(result.plan.drop)}
    row |= {"config": _sizes(dense, result.model), "notes": result.notes}
    return row | _quality(real, result.model)


def _pruned(real: Real, dense: nn.Module, what: str, most: int, data: Any) -> Any:
    if what != "depth":
        settings: dict[str, Any] = {
            "what": what.split(", "),
            "budget": [f"{most} params"],
            "uniform": True,
        }
        if what == APART:
            settings |= {"what": ["all"], "uniform": False, "allocate": "estimate"}
        return secateur.prune(dense, real.example, criterion="activation", data=data, **settings)
    blocks = secateur.analyze(dense, real.example).blocks
    total = sum(p.numel() for p in dense.parameters())
    count = -(-(total - most) // max(block.params for block in blocks))
    options = {"by": "error", "greedy": True, "repair": "least_squares"}
    return secateur.drop_blocks(dense, count, real.example, data=data, **options)


def _sizes(dense: nn.Module, model: nn.Module) -> dict[str, Any]:
    """Return the numbers of the config that are others now."""
    before, after = (vars(each.config) for each in (dense, model))
    return {k: v for k, v in after.items() if type(v) is int and before.get(k) != v}


def _quality(real: Real, model: nn.Module) -> dict[str, float]:
    assert real.elsewhere is not None
    return {"quality": real.quality(model, JUDGED), "elsewhere": real.elsewhere(model, JUDGED)}


def main() -> int:
    """Make the rows that are missing, then write the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=[*KINDS], choices=[*KINDS])
    parser.add_argument("--shares", nargs="+", type=float, default=[*SHARES])
    parser.add_argument("--what", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = rows_in(ROWS)
    made = {tuple(row[key] for key in KEYS) for row in found}
    for name in options.models:
        asked = [(s, w) for s in options.shares for w in options.what or KINDS[name]]
        keys = [(name, share, what, seed) for seed in options.seeds for share, what in asked]
        for key in [(name, 1.0, "dense", 0), *keys]:
            if key not in made:
                found.append(measure(*key))
                keep(ROWS, found[-1])
                print(*found[-1].values(), sep="\t", flush=True)
    write("kinds", "Each kind alone, and all under one budget", found, text(found))
    return 0


def text(found: list[dict[str, Any]]) -> str:
    """Return the tables of all rows, one of each model."""
    parts = [
        f"Perplexity on the first {JUDGED} windows of the test split / in another domain, no "
        f"training; {SAMPLES} windows of calibration data, repaired; of several "
        "draws of these, the mean. Per cent are of the parameters outside of the embeddings. "
        "`all`: how many layers go, and what the other kinds lose, by measured error (`experts, "
        "width`: of these two); `apart`: "
        "each layer another share, by estimated errors, which no stock class loads."
    ]
    for name, kinds in KINDS.items():
        own = [row for row in found if row["model"] == name]
        if not own:
            continue
        (dense,) = (row for row in own if row["what"] == "dense")
        shares = [s for s in SHARES if any(row["share"] == s for row in own)]
        head = [f"{name}, dense {_figure([dense])}", *(f"{share:.0%} kept" for share in shares)]
        body = [[k, *(_cell(own, share, k) for share in shares)] for k in kinds]
        parts.append(table(head, body))
    return "\n\n".join(parts)


def _cell(own: list[dict[str, Any]], share: float, what: str) -> str:
    same = [row for row in own if (row["share"], row["what"]) == (share, what)]
    made = [row for row in same if "quality" in row]
    if not made:
        return "so many cannot go" if same else "–"
    draws = f" ({len(made)} draw{'s' if len(made) > 1 else ''})"
    sizes = ", ".join(f"{k} {v}" for k, v in made[0]["config"].items())
    return f"{_figure(made)}{draws}; {sizes}"


def _figure(rows: list[dict[str, Any]]) -> str:
    means = (statistics.mean(row[kind] for row in rows) for kind in ("quality", "elsewhere"))
    return " / ".join(f"{mean:.4g}" for mean in means)


if __name__ == "__main__":
    sys.exit(main())
