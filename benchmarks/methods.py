"""Accuracy at half the MACs: every method on a pretrained CIFAR-10 ResNet, same training budget.

Each row is one method with one seed: a pretrained network, pruned to 50 % of its MACs and trained
for the same number of optimizer steps in all, before, while and after it is pruned.  One-shot
methods prune first; methods that learn what to remove use the first half for that.  Torch-Pruning's
comparable ones get the same.  Only channels inside of blocks go: Torch-Pruning does not follow the
zero channels that these networks' shortcuts add, and fails.  Rows are kept in
results/methods.jsonl as they are made, so that an interrupted run goes on where it was.

    python -m benchmarks.methods                     # what results/methods.md holds; hours on a CPU
    python -m benchmarks.methods --device cuda
    python -m benchmarks.methods --depth 20 --steps 20 --seeds 0
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from benchmarks.record import FOLDER, device_name, keep, rows_in, table, write
from secateur import Config, Pruner
from tests.zoo import cifar_images, pretrained_cifar_resnet

ROWS = FOLDER / "methods.jsonl"
BATCH = 32
RATE = 0.01

ONE_SHOT: dict[str, dict[str, Any]] = {
    "random": {"criterion": "random"},
    "l1": {"criterion": "l1"},
    "l2": {"criterion": "l2"},
    "fpgm": {"criterion": "fpgm"},
    "taylor": {"criterion": "taylor", "scope": "global"},
    "taylor, raw": {"criterion": "taylor", "scope": "global", "normalize": "none"},
}
TRAINED: dict[str, dict[str, Any]] = {
    "slim": {"method": "slim", "method_options": {"strength": 1e-3}},
    "agp (l2)": {"criterion": "l2", "schedule": "cubic"},
    "agp (taylor)": {"criterion": "taylor", "scope": "global", "schedule": "cubic"},
    "movement": {"method": "movement"},
}
COMMON: dict[str, Any] = {"of": "macs", "sparsity": 0.5, "names": ["layer*.conv1"]}
TORCH_PRUNING = ("tp l1", "tp l2", "tp fpgm", "tp taylor", "tp slim")


class Data:
    """Training batches with the usual augmentation, on a device."""

    def __init__(self, device: torch.device):
        self.images, self.labels = (tensor.to(device) for tensor in cifar_images("train"))
        self.seed = 0

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield random batches without end, the same for every method with this seed."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            order = torch.randperm(len(self.images), generator=generator)
            for index in order.to(self.images.device).split(BATCH)[:-1]:
                x = F.pad(self.images[index], (4, 4, 4, 4))
                top, left, flip = torch.randint(0, 9, (3,), generator=generator).tolist()
                x = x[:, :, top : top + 32, left : left + 32]
                yield (x.flip(-1) if flip > 4 else x), self.labels[index]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def train(
    model: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    after: Callable[[], object] = lambda: None,
    before: Callable[[nn.Module], object] = lambda model: None,
) -> None:
    """Train with SGD and a cosine schedule; call back before and after each optimizer step."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=1e-4)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, next(batches)).backward()
        before(model)
        optimizer.step()
        after()
        rates.step()
    model.eval()


def ours(name: str, model: nn.Module, example: Tensor, data: Data, steps: int) -> nn.Module:
    """Return the model pruned and trained by one of our methods."""
    batches = data.batches()
    if name in ONE_SHOT:
        given = {"batches": [next(batches) for _ in range(5)], "loss": loss}
        settings = {**COMMON, "seed": data.seed, **ONE_SHOT[name]}
        calibration = given if settings["criterion"] == "taylor" else {}
        smaller = secateur.prune(model, example, inplace=True, **settings, **calibration).model
        train(smaller, batches, steps)
        return smaller
    half = steps // 2
    settings = {**COMMON, **TRAINED[name]}
    if "schedule" in settings:
        settings |= {"steps": half // 4, "every": 4}
    elif settings.get("method") == "movement":
        settings |= {"start": half // 5, "steps": half - 2 * (half // 5)}
    else:
        settings |= {"start": half - 1}
    pruner = Pruner(model, Config(**settings), example)
    train(model, batches, half, after=pruner.step)
    smaller = pruner.finish().model
    train(smaller, batches, steps - half)
    return smaller


def theirs(name: str, model: nn.Module, example: Tensor, data: Data, steps: int) -> nn.Module:
    """Return the model pruned by Torch-Pruning and trained as ours are."""
    import torch_pruning as tp

    batches = data.batches()
    importance = {
        "tp l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "tp l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "tp fpgm": lambda: tp.importance.FPGMImportance(),
        "tp taylor": lambda: tp.importance.GroupTaylorImportance(),
        "tp slim": lambda: tp.importance.BNScaleImportance(),
    }[name]()
    kind = tp.pruner.BNScalePruner if name == "tp slim" else tp.pruner.BasePruner
    pruner = kind(
        model,
        example,
        importance,
        global_pruning=name in ("tp taylor", "tp slim"),
        pruning_ratio=0.95,
        iterative_steps=40,
        ignored_layers=[m for n, m in model.named_modules() if n.endswith(("conv2", "linear"))]
        + [model.conv1],
        **({"reg": 1e-3} if name == "tp slim" else {}),
    )
    if name == "tp slim":
        pruner.update_regularizer()
        train(model, batches, steps // 2, before=pruner.regularize)
        steps -= steps // 2
    if name == "tp taylor":
        for _ in range(5):
            loss(model, next(batches)).backward()
    goal = 0.5 * tp.utils.count_ops_and_params(model, example)[0]
    while tp.utils.count_ops_and_params(model, example)[0] > goal:
        pruner.step()
    model.zero_grad()
    train(model, batches, steps)
    return model


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    guesses = torch.cat([model(part).argmax(1) for part in images.split(250)])
    return 100 * float((guesses == labels).float().mean())


def measure(depth: int, method: str, seed: int, steps: int, data: Data) -> dict[str, Any]:
    """Return one row."""
    device = data.images.device
    images, labels = (x.to(device) for x in cifar_images())
    dense = pretrained_cifar_resnet(depth).to(device)
    example = images[:2]
    macs = secateur.analyze(dense, example).cost().macs
    torch.manual_seed(seed)
    data.seed = seed
    made = theirs if method in TORCH_PRUNING else ours
    start = time.perf_counter()
    smaller = made(method, copy.deepcopy(dense), example, data, steps)
    return {
        "model": f"resnet{depth}",
        "method": method,
        "seed": seed,
        "steps": steps,
        "device": device_name(device),
        "accuracy": accuracy(smaller, images, labels),
        "macs": secateur.analyze(smaller, example).cost().macs / macs,
        "params": sum(p.numel() for p in smaller.parameters())
        / sum(p.numel() for p in dense.parameters()),
        "seconds": time.perf_counter() - start,
    }


def main() -> int:
    """Make the rows that are missing, then write the table of all."""
    every = [*ONE_SHOT, *TRAINED, *TORCH_PRUNING]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--steps", type=int, default=504)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=every, choices=every)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()

    rows = rows_in(ROWS)
    key = ("model", "method", "seed", "steps", "device")
    made = {tuple(r[k] for k in key) for r in rows}
    data, model, on = Data(options.device), f"resnet{options.depth}", device_name(options.device)
    for seed in options.seeds:
        for method in options.methods:
            if (model, method, seed, options.steps, on) in made:
                continue
            rows.append(measure(options.depth, method, seed, options.steps, data))
            ROWS.parent.mkdir(exist_ok=True)
            keep(ROWS, rows[-1])
            print(*rows[-1].values(), sep="\t", flush=True)
    write("methods", "Methods at half the MACs, same training", rows, _text(rows, every))
    return 0


def _text(rows: list[dict[str, Any]], order: list[str]) -> str:
    images, labels = cifar_images()
    parts = []
    for model, steps in sorted({(r["model"], r["steps"]) for r in rows}):
        dense = accuracy(pretrained_cifar_resnet(int(model.removeprefix("resnet"))), images, labels)
        body = []
        for method in order:
            key = {"model": model, "steps": steps, "method": method}
            own = [r for r in rows if key.items() <= r.items()]
            if own:
                found = [r["accuracy"] for r in own]
                spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
                mean = {k: statistics.mean(r[k] for r in own) for k in ("macs", "params")}
                body.append(
                    [method, f"{statistics.mean(found):.2f}{spread}", str(len(own))]
                    + [f"{mean['macs']:.1%}", f"{mean['params']:.1%}"]
                    + [", ".join(sorted({r["device"] for r in own}))]
                )
        parts += [
            f"{model}, dense {dense:.2f} %; {steps} steps of {BATCH} images "
            f"in all, SGD, rate {RATE}; accuracy on the {len(labels):,} lossless test images, "
            "mean ± standard deviation over seeds (the standard error of one figure is about "
            "0.9 points).",
            table(
                ["method", "accuracy %", "seeds", "MACs left", "params left", "trained on"], body
            ),
        ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
