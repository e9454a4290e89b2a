"""An 8-billion-shaped model, block by block on a GPU: seconds for each billion of parameters.

Blocks are as wide as those of an 8B Llama; a few of them tell what each one takes, as all are
alike.  Weights and tokens are random: what is measured is time and memory, not what is kept.  A
case that would not end within the minutes, by the last one's time, is left out, and said.

    python -m benchmarks.stream_gpu --device cuda --minutes 8
    python -m benchmarks.stream_gpu --device cpu --smoke      # tiny shapes; writes no results
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import secateur as sc
from benchmarks.record import device_name, table, write
from benchmarks.stream import SMALL, Shape, made

EIGHT = Shape(4096, 14336, 4, batches=32, tokens=2048)
"""Four of the 32 blocks of an 8B Llama, calibrated with 32 texts of 2,048 tokens."""

WEIGHTS: dict[str, Any] = {"granularity": "element", "sparsity": 0.5, "names": ["*proj"]}
CASES: dict[str, dict[str, Any]] = {
    "Wanda, half of the weights": {**WEIGHTS, "criterion": "wanda", "repair": "none"},
    "SparseGPT, half of the weights": {**WEIGHTS, "criterion": "obs", "repair": "sparse"},
    "a fifth of the neurons, refitted": {"what": ["width"], "sparsity": 0.2},
}


def measured(name: str, shape: Shape, folder: Path, device: torch.device) -> dict[str, Any]:
    """Prune the checkpoint once; return what it took."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocabulary, (shape.batches, 1, shape.tokens), generator=generator)
    data = [{"input_ids": each, "use_cache": False} for each in ids]
    x = {"input_ids": ids[0, :, :16], "use_cache": False}
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        result = sc.prune_checkpoint(folder, out, x, data=data, device=device, **CASES[name])
    seconds = time.perf_counter() - start
    tables = 2 * shape.vocabulary * shape.hidden
    blocks = result.before.params - tables
    assert result.verification is not None
    return {
        "case": name,
        "device": device_name(device),
        "layers": shape.layers,
        "blocks": blocks,
        "seconds": seconds,
        "per_billion": seconds / blocks * 1e9,
        "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if cuda else None,
        "difference": result.verification.difference,
    }


def text(rows: list[dict[str, Any]], shape: Shape) -> str:
    """Return the table of all cases."""
    heads = ["what goes", "seconds", "s per billion", "GPU memory, GB", "masked == smaller"]
    body = [
        [
            row["case"],
            f"{row['seconds']:.0f}",
            f"{row['per_billion']:.0f}",
            "" if row["peak_gb"] is None else f"{row['peak_gb']:.1f}",
            f"{row['difference']:.1e}",
        ]
        for row in rows
    ]
    said = (
        f"{rows[0]['device']}; {shape.layers} blocks of hidden size {shape.hidden} and "
        f"{shape.inner} neurons, bfloat16, {shape.batches} texts of {shape.tokens} tokens. Seconds "
        "are of everything: reading, deciding, repairing, comparing, writing; per billion of the "
        "blocks' parameters."
    )
    return f"{said}\n\n{table(heads, body)}"


def main() -> None:
    """Measure the cases that fit into the minutes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes; writes no results")
    parser.add_argument("--folder", type=Path, help="where checkpoints go")
    asked = parser.parse_args()
    shape = SMALL if asked.smoke else EIGHT
    begun, took, rows = time.perf_counter(), 0.0, list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(dir=asked.folder) as work:
        folder = Path(work) / "dense"
        made(shape, folder)
        for name in CASES:
            if time.perf_counter() - begun + took > 60 * asked.minutes:
                print(f"{name}: left out, as the minutes are over")
                continue
            rows.append(measured(name, shape, folder, asked.device))
            took = rows[-1]["seconds"]
            print(*rows[-1].values(), sep="\t", flush=True)
    if asked.smoke:
        print(text(rows, shape))
    else:
        title = "An 8-billion-shaped model, block by block on a GPU"
        write("stream_gpu", title, rows, text(rows, shape))


if __name__ == "__main__":
    main()
