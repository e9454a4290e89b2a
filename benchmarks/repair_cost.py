"""What calibration and repair cost: processor time and memory, on random inputs.

Calibration is compared with plain forwards over the same batches, in the same process and in turns;
a repair has a process of its own, whose peak memory is its own.

    python -m benchmarks.repair_cost                        # results/repair_cost.md
    python -m benchmarks.repair_cost --only "resnet20*" --rounds 3
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models.real import REAL
from benchmarks.record import table, write
from secateur import Config, Pruner
from tests.zoo import torchvision_models

Made = tuple[nn.Module, list[Tensor], dict[str, Any]]


def resnet50() -> Made:
    """512 images of 224 × 224, half of the channels inside of blocks."""
    model = torchvision_models().resnet50().eval()
    batches = [torch.randn(32, 3, 224, 224) for _ in range(16)]
    return model, batches, {"names": ["layer*.conv1", "layer*.conv2"]}


def llama_block() -> Made:
    """16 texts of 512 tokens, half of the 14,336 neurons of a block 4,096 wide."""
    torchvision_models()  # transformers imports it
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=8,
        use_cache=False,
    )
    batches = [torch.randint(0, 1000, (4, 512)) for _ in range(4)]
    return LlamaModel(config).eval(), batches, {"names": ["*mlp*"]}


def _real(name: str, samples: int, names: str) -> Callable[[], Made]:
    return lambda: (REAL[name].build(), REAL[name].calibration(samples, 0), {"names": [names]})


CALIBRATED = {
    "resnet20": _real("resnet20", 512, "layer*.conv1"),
    "docs llama": _real("docs llama", 16, "*mlp*"),
}
REPAIRED = {"ResNet-50": resnet50, "Llama block, 4096/14336": llama_block}
STATISTICS = {"norms": "activation", "Gram matrices": "obs"}


def calibration(make: Callable[[], Made], rounds: int) -> dict[str, Any]:
    """Return the seconds of plain forwards, and how many times as long calibrations take."""
    model, batches, chosen = make()
    example = batches[0][:2]
    pruners = {
        name: Pruner(model, Config(sparsity=0.5, criterion=criterion, **chosen), example)
        for name, criterion in STATISTICS.items()
    }

    def plain() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    times: dict[str, list[float]] = {name: [] for name in ("plain", *STATISTICS)}
    for _ in range(rounds):
        times["plain"].append(_seconds(plain))
        for name, pruner in pruners.items():
            times[name].append(_seconds(partial(pruner.calibrate, batches)))
    ratios = {
        name: statistics.median(a / b for a, b in zip(times[name], times["plain"], strict=True))
        for name in STATISTICS
    }
    return {"plain": statistics.median(times["plain"]), **ratios}


def repaired(name: str) -> dict[str, float]:
    """Return the seconds of a repair at half the width, and this process's peak memory in GiB."""
    model, batches, chosen = REPAIRED[name]()
    config = Config(sparsity=0.5, criterion="activation", **chosen)
    pruner = Pruner(model, config, batches[0][:1])
    calibrated = _seconds(lambda: pruner.calibrate(batches))
    pruner.decide()
    before = _peak()
    seconds = _seconds(lambda: pruner.repair(batches))
    return {"calibrate": calibrated, "repair": seconds, "before": before, "peak": _peak()}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


def _seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> int:
    """Measure what is asked for, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="a shell pattern")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    for name, make in CALIBRATED.items():
        if fnmatch(name, options.only):
            found[name] = calibration(make, options.rounds)
            print(name, found[name], flush=True)
    alone = multiprocessing.get_context("spawn")
    for name in REPAIRED:
        if fnmatch(name, options.only):
            with alone.Pool(1) as pool:
                found[name] = pool.apply(repaired, (name,))
            print(name, found[name], flush=True)
    write("repair_cost", "What calibration and repair cost", found, _text(found))
    return 0


def _text(found: dict[str, dict[str, Any]]) -> str:
    calibrated = [
        [name, f"{row['plain']:.1f}", *(f"{row[kind]:.2f}" for kind in STATISTICS)]
        for name, row in found.items()
        if name in CALIBRATED
    ]
    repairs = [
        [name, *(f"{row[kind]:.0f}" for kind in ("calibrate", "repair"))]
        + [f"{row[kind]:.1f}" for kind in ("before", "peak")]
        for name, row in found.items()
        if name in REPAIRED
    ]
    parts: list[str] = []
    if calibrated:
        parts += [
            "Calibration, times as long as plain forwards over the same batches (seconds of "
            "processor time, one thread, median of rounds):",
            table(["", "plain forwards, s", *STATISTICS], calibrated),
        ]
    if repairs:
        parts += [
            "Calibration by norms, then repair by least squares at half the width; peak memory of "
            "the process before and after the repair, model and batches included:",
            table(["", "calibrate, s", "repair, s", "GiB before", "GiB peak"], repairs),
        ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
