"""A checkpoint larger than the memory that pruning it may take: peak memory and seconds, streamed.

A Llama-shaped bf16 checkpoint of random weights is written shard by shard, and pruned by width with
repair, streamed; a smaller one of the same layers is also pruned in memory.  Each case has a
process of its own, in which a thread watches anonymous memory (what mapped files take is the
system's to take back); one that goes beyond the limit is killed.  What Python, torch and
transformers take before is in the figures.  Layers are narrow where rows of calibration are
counted by their width, as a repair needs as many: processors without bf16 units are slow.

    python -m benchmarks.stream                  # results/stream.md: 6 GB, some hours on two cores
    python -m benchmarks.stream --small          # a minute, nothing is written
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import secateur as sc
from benchmarks.record import table, write
from tests.zoo import torchvision_models

LIMIT = 2.5e9
"""Bytes of anonymous memory that a streamed run may take."""
SHARE = 0.2


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped checkpoint."""

    hidden: int
    inner: int
    layers: int
    vocabulary: int = 32000
    batches: int = 4
    tokens: int = 512
    """Of each batch of calibration, which is one sample."""

    def config(self) -> Any:
        import transformers

        return transformers.LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 128,
            num_key_value_heads=self.hidden // 256,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.tokens,
            architectures=["LlamaForCausalLM"],
            dtype=torch.bfloat16,
        )


LARGE, FITS = Shape(4096, 1408, 44), Shape(4096, 1408, 4)
SMALL = Shape(256, 64, 3, vocabulary=500, tokens=32)


def made(shape: Shape, folder: Path) -> None:
    """Write a checkpoint of random weights, one layer at a time."""
    from safetensors.torch import save_file

    from secateur.streaming.checkpoint import built

    torchvision_models()
    import transformers

    folder.mkdir()
    config = shape.config()
    config.save_pretrained(folder)
    model = built(transformers.LlamaForCausalLM, config, torch.bfloat16)
    shards: dict[str, list[str]] = {}
    for name in model.state_dict():
        part = name.split(".")
        shards.setdefault(part[2] if "layers" in part else part[-2], []).append(name)
    generator, where = torch.Generator().manual_seed(0), dict[str, str]()
    for number, names in enumerate(shards.values()):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name in names:
            wanted = model.state_dict()[name].shape
            drawn = torch.randn(wanted, generator=generator, dtype=torch.float32) * 0.02
            tensors[name] = (drawn + (len(wanted) == 1)).to(torch.bfloat16)
        save_file(tensors, folder / file, {"format": "pt"})
        where |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )


def anonymous() -> int:
    """Return the bytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


class Watched:
    """Watches anonymous memory; beyond a limit the process ends."""

    def __init__(self, limit: float | None):
        self.peak, self.limit, self._over = 0, limit, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.peak = max(self.peak, anonymous())
            if self.limit is not None and self.peak > self.limit:
                print(f"anonymous memory: {self.peak / 1e9:.2f} GB", flush=True)
                faulthandler.dump_traceback(all_threads=True)
                os.kill(os.getpid(), signal.SIGKILL)


def pruned(shape: Shape, folder: Path, stream: bool, limit: float | None) -> dict[str, Any]:
    """Prune a checkpoint, and return what it took."""
    torchvision_models()
    import transformers

    ids = torch.randint(shape.vocabulary, (shape.batches, 1, shape.tokens))
    data = [{"input_ids": each, "use_cache": False} for each in ids]
    x = {"input_ids": ids[0, :, :16], "use_cache": False}
    settings: dict[str, Any] = {"sparsity": SHARE, "what": ["width"], "data": data}
    start = time.perf_counter()
    with Watched(limit) as watched:
        if stream:
            result = sc.prune_checkpoint(folder, folder.with_suffix(".small"), x, **settings)
        else:
            model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
            result = sc.prune(model, x, inplace=True, **settings)
    seconds = time.perf_counter() - start
    assert result.verification is not None
    assert result.repair is not None
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {
        "case": "streamed" if stream else "in memory",
        "shape": asdict(shape),
        "checkpoint_gb": size / 1e9,
        "params": result.before.params,
        "peak_anonymous_gb": watched.peak / 1e9,
        "limit_gb": None if limit is None else limit / 1e9,
        "seconds": seconds,
        "seconds_per_billion": seconds / result.before.params * 1e9,
        "masked == smaller": result.verification.difference,
        "refitted": sum(refit.done for refit in result.repair.refits),
        "error": [result.repair.before.error, result.repair.after.error],
    }


def measured(shape: Shape, folder: Path, stream: bool, limit: float | None) -> dict[str, Any]:
    """Return what pruning took in a process of its own.

    Raises:
        BrokenProcessPool: it was killed, as one that takes more than the limit is.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(pruned, shape, folder, stream, limit).result(timeout=12 * 3600)


def shown(rows: list[dict[str, Any]]) -> str:
    headings = ["case", "checkpoint GB", "layers", "peak anonymous GB", "limit", "seconds"]
    headings += ["s per billion", "masked == smaller", "error of the output, before → after repair"]
    return table(
        headings,
        [
            [
                row["case"],
                f"{row['checkpoint_gb']:.2f}",
                str(row["shape"]["layers"]),
                f"{row['peak_anonymous_gb']:.2f}",
                "none" if row["limit_gb"] is None else f"{row['limit_gb']:.2f}",
                f"{row['seconds']:.0f}",
                f"{row['seconds_per_billion']:.0f}",
                f"{row['masked == smaller']:.1e}",
                f"{row['error'][0]:.4f} → {row['error'][1]:.4f}",
            ]
            for row in rows
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny shapes; write no results")
    parser.add_argument("--folder", type=Path, help="where checkpoints go; needs twice their size")
    asked = parser.parse_args()
    cases = [(SMALL, True, LIMIT), (SMALL, False, None)]
    if not asked.small:
        cases = [(LARGE, True, LIMIT), (FITS, True, LIMIT), (FITS, False, None)]
    rows = []
    with tempfile.TemporaryDirectory(dir=asked.folder) as work:
        for number, (shape, stream, limit) in enumerate(cases):
            folder = Path(work) / str(number)
            made(shape, folder)
            rows.append(measured(shape, folder, stream, limit))
            print(rows[-1], flush=True)
    if asked.small:
        print(shown(rows))
    else:
        write("stream", "Pruning a checkpoint block by block", rows, shown(rows))


if __name__ == "__main__":
    main()
