"""What masks cost while training: a step with masks over the same step without.

Next to ``torch.nn.utils.prune`` with the same masks, in the same run, and with a ``Pruner`` that is
stepped in every iteration, after its goal is reached.  The four models take turns in every round,
and a ratio is the median over rounds of ratios within a round, so that what else runs on the
machine falls on all of them alike.  The order is random: a fixed one makes 1 % of small layers.  On
a CPU, time is that of the process, on one thread; on a GPU it is the clock's, until the device is
done.

The chain of small layers is bound by what calls cost, not by what they compute: as near as a CPU
comes to a GPU that waits for Python.  Compiled, it has fewer calls to make.

    python -m benchmarks.overhead                   # results/overhead.md
    python -m benchmarks.overhead --device cuda     # results/overhead_gpu.md
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from benchmarks.record import device_name, table, write
from secateur import Config, Pruner
from secateur.masks import masking
from tests.zoo import torchvision_models

KINDS: dict[str, dict[str, Any]] = {
    "single weights": {"criterion": "magnitude", "granularity": "element"},
    "output channels": {"criterion": "l1", "granularity": "out_channel"},
    "groups": {"criterion": "l1"},
}

SHORT = 10
"""Times as many rounds for the chain, whose steps take a hundredth of the others'."""


def resnet() -> tuple[nn.Module, Any, Tensor]:
    """ResNet-18 on 32 images of 64 × 64."""
    model = torchvision_models().resnet18(num_classes=10)
    return model, torch.randn(32, 3, 64, 64), torch.randint(0, 10, (32,))


def resnet50() -> tuple[nn.Module, Any, Tensor]:
    """ResNet-50 on 64 images of 224 × 224."""
    model = torchvision_models().resnet50(num_classes=10)
    return model, torch.randn(64, 3, 224, 224), torch.randint(0, 10, (64,))


class Encoder(nn.Module):
    """A transformer encoder of 4 layers and a head, without dropout."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean(1))


def transformer() -> tuple[nn.Module, Any, Tensor]:
    """4 layers of width 256 on 32 sequences of 64."""
    return Encoder(), torch.randn(32, 64, 256), torch.randint(0, 10, (32,))


def chain() -> tuple[nn.Module, Any, Tensor]:
    """16 convolutions of width 8 and norms on 2 images of 8 × 8."""
    layers: list[nn.Module] = []
    for width in [3] + [8] * 15:
        layers += [nn.Conv2d(width, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return model, torch.randn(2, 3, 8, 8), torch.randint(0, 10, (2,))


def by_torch(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Put masks on with torch's own pruning."""
    for name, mask in masks.items():
        path, _, tensor = name.rpartition(".")
        torch_prune.custom_from_mask(model.get_submodule(path), tensor, mask)


def as_it_is(model: nn.Module) -> nn.Module:
    """Return a model that is not compiled."""
    return model


def stepper(
    model: nn.Module, x: Tensor, y: Tensor, after: Callable[[], object] = lambda: None
) -> Callable[[], float]:
    """Return a function that makes one training step and returns its seconds."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    model.train()

    def step() -> float:
        start = clock()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        after()
        return clock() - start

    def clock() -> float:
        if not x.is_cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    return step


def measure(
    make: Callable[[], tuple[nn.Module, Any, Tensor]],
    kind: str,
    rounds: int,
    device: torch.device,
    prepared: Callable[[nn.Module], Any],
) -> Any:
    """Return one row; ``prepared`` makes of a model what is called in training."""
    torch.manual_seed(0)
    dense, x, y = (given.to(device) for given in make())
    config = Config(sparsity=0.5, **KINDS[kind])
    masks = Pruner(dense, config, x[:2]).decide()
    plain, ours, stepped, theirs = (copy.deepcopy(dense) for _ in range(4))  # all alike
    masking.put_on(ours, masks)
    pruner = Pruner(stepped, config, x[:2])
    by_torch(theirs, masks)
    run = {
        "plain": stepper(prepared(plain), x, y),
        "secateur": stepper(prepared(ours), x, y),
        "pruner": stepper(prepared(stepped), x, y, pruner.step),
        "torch": stepper(prepared(theirs), x, y),
    }
    for name in list(run):
        try:
            run[name]()  # warm up; the second step fails where torch's masks are stale
            run[name]()
        except RuntimeError as error:
            if name != "torch":
                raise
            print(f"torch.nn.utils.prune fails: {error}"[:120])
            del run[name]
    order = random.Random(0)
    turns = [order.sample(list(run), len(run)) for _ in range(rounds)]
    times = [{name: run[name]() for name in turn} for turn in turns]
    ratios = {
        name: statistics.median(t[name] / t["plain"] for t in times)
        for name in run
        if name != "plain"
    }
    return {
        "model": make.__doc__.split("\n")[0].rstrip(".") if make.__doc__ else "",
        "masks": kind if prepared is as_it_is else f"{kind}, compiled",
        "plain_ms": 1000 * statistics.median(t["plain"] for t in times),
        **ratios,
    }


def main() -> int:
    """Measure all and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    gpu = options.device.type != "cpu"
    torch.set_num_threads(1)
    makers = (resnet, transformer, resnet50, chain) if gpu else (resnet, transformer, chain)
    runs = [(make, kind, as_it_is) for make in makers for kind in KINDS]
    rows = []
    for make, kind, prepared in [*runs, (chain, "groups", torch.compile)]:
        rounds = options.rounds * (SHORT if make is chain else 1)
        rows.append(measure(make, kind, rounds, options.device, prepared))
        print(*rows[-1].values(), sep="\t", flush=True)
    body = [
        [row["model"], row["masks"], f"{row['plain_ms']:.3g}", f"{row['secateur']:.3f}"]
        + [f"{row['pruner']:.3f}"]
        + [f"{row['torch']:.3f}" if "torch" in row else "fails"]
        for row in rows
    ]
    heading = ["model", "half masked", "plain step, ms", "masks on", "and Pruner.step()"]
    heading += ["torch.nn.utils.prune"]
    write(
        "overhead_gpu" if gpu else "overhead",
        "A training step with masks over one without",
        rows,
        f"Medians of {options.rounds} interleaved rounds ({options.rounds * SHORT} of the small "
        "convolutions, where Python is the limit), "
        f"{device_name(options.device) if gpu else 'CPU time on one thread'}; SGD with "
        "momentum.  torch.nn.utils.prune computes a masked weight before its module's forward; "
        "attention reads its output weight without one, and the second backward fails.\n\n"
        + table(heading, body),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
