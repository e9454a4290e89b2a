"""As accurate as dense? All of CIFAR-10's training images, and some minutes of a GPU.

A pretrained ResNet loses MACs, and every row has the same share of the minutes, with all that it
takes: deciding, repairing, cutting, capturing.  On a GPU images stay there, each is cropped and
flipped for itself, and a whole step (batch, teacher, backward, penalty, optimizer) is one CUDA
graph, but for ``fit``, whose loop is the library's, and the penalty of Torch-Pruning, which reads a
number in every step.  The rate falls along a cosine of the time.  All but the first row learn from
the dense model.  Torch-Pruning takes channels inside of blocks alone (see ``benchmarks.methods``).
Rows are kept in results/cifar_full.jsonl as they are made.

    python -m benchmarks.cifar_full --device cuda --minutes 8
    python -m benchmarks.cifar_full --device cpu --minutes 0.2 --smoke --out /tmp/smoke
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from benchmarks.graphed import SGD, Clock, Images, Loop
from benchmarks.methods import accuracy
from benchmarks.record import FOLDER, device_name, table, write
from secateur import Config, Pruner
from secateur.runtime.copying import copied
from tests.zoo import cifar_images, pretrained_cifar_resnet

SPEEDUPS = (2.57, 4.0)
SPARSE = 0.35
"""The share of a row's time that a penalty has before the cut."""
STAGES = 20
"""A penalty that changes is captured anew so many times."""
HELD = 2000
"""Training images that ``fit`` chooses its best by; no row trains on them."""
WATCHED = 8


@dataclass
class Case:
    """What a row is made from."""

    dense: nn.Module
    images: Images
    held: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    speedup: float
    clock: Clock
    graphed: bool

    def loop(self, model: nn.Module, teacher: nn.Module | None) -> Loop:
        """Return what trains a model, with a teacher or without."""
        return Loop(model, teacher, self.images, self.clock, self.graphed)

    @property
    def model(self) -> nn.Module:
        return copied(self.dense)

    @property
    def goal(self) -> float:
        return 1 - 1 / self.speedup

    @property
    def example(self) -> Tensor:
        return self.images.batch()[0][:2]


def dense(case: Case) -> tuple[nn.Module, int]:
    """Train the dense model as long again."""
    loop = case.loop(case.model, None)
    loop.capture()
    loop.until(1)
    return loop.model, loop.steps


def fitted(case: Case) -> tuple[nn.Module, int]:
    """Use ``secateur.fit`` as it is, with the rows' own optimizer."""
    made = secateur.fit(
        case.dense,
        case.goal,
        train=case.images.stream,
        evaluate=lambda model: accuracy(model, *case.held),
        minutes=max(case.clock.seconds - case.clock.spent, 0.06) / 60,
        optimizer=lambda parameters: SGD(list(parameters)),
        on_round=lambda made: None,
    )
    return made.model, made.rounds[-1].step


def penalised(method: str) -> Callable[[Case], tuple[nn.Module, int]]:
    """Return what makes a row of a method whose penalty shrinks what goes."""

    def make(case: Case) -> tuple[nn.Module, int]:
        settings: dict[str, Any] = {"of": "macs", "sparsity": case.goal, "criterion": "l1"}
        loop = case.loop(case.model, case.dense)
        config = Config(method=method, start=STAGES - 1, **settings)
        pruner = Pruner(loop.model, config, case.example)
        for stage in range(STAGES):
            loop.capture()
            loop.until(SPARSE * (stage + 1) / STAGES)
            pruner.step()
        pruner.repair([case.images.batch()[0] for _ in range(WATCHED)])
        pruner.finish()
        loop.start()
        loop.capture()
        loop.until(1)
        return loop.model, loop.steps

    return make


def torch_pruning(case: Case) -> tuple[nn.Module, int]:
    """Let Torch-Pruning's group-norm pruner do the same."""
    import torch_pruning as tp

    model, example = case.model, case.example
    loop = case.loop(model, case.dense)
    inner = [m for n, m in model.named_modules() if n.endswith(("conv2", "linear"))]
    pruner = tp.pruner.GroupNormPruner(
        model,
        example,
        tp.importance.GroupMagnitudeImportance(p=2),
        reg=5e-4,
        global_pruning=True,
        pruning_ratio=0.95,
        max_pruning_ratio=0.95,
        iterative_steps=200,
        ignored_layers=[*inner, model.get_submodule("conv1")],
    )
    loop.penalise = lambda: pruner.regularize(model)
    loop.until(SPARSE)
    count = tp.utils.count_ops_and_params
    goal = count(model, example)[0] / case.speedup
    while count(model, example)[0] > goal:
        pruner.step()
    loop.penalise = None
    loop.start()
    loop.capture()
    loop.until(1)
    return model, loop.steps


ROWS: dict[str, Callable[[Case], tuple[nn.Module, int]]] = {
    "dense": dense,
    "fit": fitted,
    "growing": penalised("growing"),
    "group_lasso": penalised("group_lasso"),
    "tp group norm": torch_pruning,
}


def prepared(options: argparse.Namespace) -> Case:
    """Return the network and all images on the device; a row replaces the clock."""
    device = options.device
    splits = {
        split: [x[: options.images].to(device) for x in cifar_images(split, lossless=options.smoke)]
        for split in ("train", "test")
    }
    images, labels = splits["train"]
    held = min(HELD, len(labels) // 5)
    return Case(
        dense=pretrained_cifar_resnet(options.depth).to(device),
        images=Images(images[held:], labels[held:], options.batch),
        held=(images[:held], labels[:held]),
        test=(splits["test"][0], splits["test"][1]),
        speedup=1.0,
        clock=Clock(0.0),
        graphed=not options.eager,
    )


def measure(name: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Return one row."""
    torch.manual_seed(options.seed)
    model, steps = ROWS[name](case)
    took = case.clock.spent
    macs = [secateur.analyze(m.eval(), case.example).cost().macs for m in (model, case.dense)]
    return {
        "row": name,
        "speedup": case.speedup,
        "device": device_name(options.device),
        "model": f"resnet{options.depth}",
        "seconds": took,
        "asked": case.clock.seconds,
        "steps": steps,
        "batch": options.batch,
        "graphed": options.device.type == "cuda" and case.graphed,
        "seed": options.seed,
        "before": accuracy(case.dense, *case.test),
        "accuracy": accuracy(model, *case.test),
        "macs": macs[0] / macs[1],
    }


def main() -> int:
    """Make the rows, and write the table of all that were ever made."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="of all rows together")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--speedups", type=float, nargs="+", default=list(SPEEDUPS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=50000, help="of either split, at most")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny, of lossless images: does it run?"
    )
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    if options.smoke:
        options.depth, options.batch, options.images = 20, 8, 160
    plan = [
        (name, speedup)
        for name in options.rows
        for speedup in (options.speedups if name != "dense" else [1.0])
    ]
    file = options.out / "cifar_full.jsonl"
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    ready, seconds = prepared(options), 60 * options.minutes / len(plan)
    for name, speedup in plan:
        case = replace(ready, speedup=speedup, clock=Clock(seconds))
        rows.append(measure(name, case, options))
        with file.open("a") as opened:
            opened.write(json.dumps(rows[-1]) + "\n")
        print(*rows[-1].values(), sep="\t", flush=True)
    text = _text(rows)
    if options.out == FOLDER:
        write("cifar_full", "CIFAR-10 with minutes of training", rows, text)
    else:
        print(text)
    return 0


def _text(rows: list[dict[str, Any]]) -> str:
    body = [
        [r["row"], f"{r['speedup']:g}×", f"{r['accuracy']:.2f}", f"{r['macs']:.1%}"]
        + [f"{r['seconds']:.0f}", f"{r['steps']:,}", r["model"], r["device"]]
        for r in rows
    ]
    heads = ["row", "asked", "accuracy %", "MACs left", "seconds", "steps", "model", "device"]
    first = rows[0]
    return "\n\n".join(
        [
            f"{first['model']} came with {first['before']:.2f} % on these test images, which are "
            "JPEG as the training images are.  Every row had the same time, all that it takes "
            "included; steps are what fitted.  fit returns the best of what it measured on images "
            "held out of the training, the others their last model.",
            table(heads, body),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
