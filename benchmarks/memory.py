"""How much memory ``prune`` takes at its peak, in sizes of the model's weights, the model included.

Each case has a process of its own.  What Python, torch and transformers take before there is a
model is left out.  The C library keeps much of what is freed for later (blocks of up to 32 MiB), in
pieces that do not always fit what comes next; so each case is measured as it is, and again with a
C library that is told to give back at once what is freed: what ``prune`` itself holds.

    python -m benchmarks.memory                              # results/memory.md
    python -m benchmarks.memory --only "*in place"
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

import secateur
from benchmarks.record import table, write
from tests.repair.kinds import hugging_face
from tests.zoo import torchvision_models

MEBI = 2**20


def wide() -> tuple[nn.Module, Tensor]:
    """A hundred million parameters, 400 MB, in six layers; a forward takes next to nothing."""
    layers = [nn.Sequential(nn.Linear(4096, 4096), nn.ReLU()) for _ in range(6)]
    return nn.Sequential(*layers), torch.randn(2, 4096)


def resnet50() -> tuple[nn.Module, Tensor]:
    """26 million parameters in many small tensors; activations count, too."""
    return torchvision_models().resnet50().eval(), torch.randn(1, 3, 64, 64)


def llama() -> tuple[nn.Module, Tensor]:
    """Some 110 million parameters in eight decoder layers."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 4096}
    model = hugging_face("Llama", **sizes, **heads, use_cache=False)
    return model.eval(), torch.randint(0, 4096, (1, 16))


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "six layers, 4096 wide": wide,
    "ResNet-50": resnet50,
    "Llama, 1024 wide": llama,
}
SHARE = 0.5
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""With these glibc gives back what is freed; it is slower so."""


def peak(name: str, inplace: bool) -> dict[str, float]:
    """Return the weights' MiB, and the greatest memory of this process since, by their size."""
    torch.set_num_threads(1)
    _load_all()
    base = _resident()
    model, example = MODELS[name]()
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / MEBI
    start = time.perf_counter()
    secateur.prune(model, example, SHARE, criterion="l2", inplace=inplace)
    seconds = time.perf_counter() - start
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    return {"weights": weights, "peak": (most - base) / weights, "seconds": seconds}


def _load_all() -> None:
    """Let all be loaded that is when a first model is pruned, and give back what it took."""
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32}
    model = hugging_face("Llama", **small, num_attention_heads=2, use_cache=False).eval()
    secateur.prune(model, torch.randint(0, 32, (1, 8)), SHARE, criterion="l2")
    MODELS["ResNet-50"]()[0](torch.zeros(1, 3, 32, 32))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _resident() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / MEBI


def _alone(name: str, inplace: bool, environment: dict[str, str]) -> dict[str, float]:
    """Return what ``peak`` does, in a process of its own."""
    os.environ.update(environment)
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(peak, (name, inplace))
    finally:
        for key in environment:
            del os.environ[key]


COLUMNS = {
    "weights, MiB": ("weights", 0),
    "peak ÷ weights": ("peak", 2),
    "held ÷ weights": ("held", 2),
    "seconds": ("seconds", 1),
}


def main() -> int:
    """Measure what is asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="a shell pattern")
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    for name in MODELS:
        for how in ("a copy", "in place"):
            if fnmatch(f"{name}, {how}", options.only):
                row = _alone(name, how == "in place", {})
                held = _alone(name, how == "in place", AT_ONCE)
                found[f"{name}, {how}"] = row | {"held": held["peak"]}
                print(name, how, found[f"{name}, {how}"], flush=True)
    rows = [
        [name, *(f"{row[key]:.{places}f}" for key, places in COLUMNS.values())]
        for name, row in found.items()
    ]
    text = (
        "Peak memory of `prune(model, x, 0.5)`, checked, in sizes of the dense model's weights: "
        "1 is the model itself.  What is freed and kept by the C library is left out of the third "
        "column, where glibc gives it back at once (`MALLOC_MMAP_THRESHOLD_`)."
    )
    columns = ["", *COLUMNS]
    write("memory", "How much memory a prune takes", found, f"{text}\n\n{table(columns, rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
