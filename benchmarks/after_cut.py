"""What the optimizer, its rate and the batch make of a network that was just cut and repaired.

ResNet-20 without half of its MACs (``obs`` between layers, all groups, least squares), trained on
6,400 lossless images in all, taught by the dense model, the rate up and down along ``fit``'s
cosine.  1,000 training images are held out, to choose by; the test images choose nothing.  *Norms
anew*: their statistics re-estimated on 1,920 images at the end.  Rows are kept in
results/after_cut.jsonl as they are made.

    python -m benchmarks.after_cut                     # a minute or more for each row
    python -m benchmarks.after_cut --seeds 0 1 --rows "adamw 0.001, 32"
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from benchmarks.graphed import Images
from benchmarks.methods import BATCH, Data, accuracy, loss
from benchmarks.record import FOLDER, keep, rows_in, table, write
from secateur import Distillation
from secateur.fitting.deadline import rate
from tests.zoo import cifar_images, pretrained_cifar_resnet

ROWS = FOLDER / "after_cut.jsonl"
SEEN, HELD, WATCHED = 6400, 1000, 8
Made = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def _sgd(peak: float) -> Made:
    return lambda ps: torch.optim.SGD(ps, peak, momentum=0.9, weight_decay=1e-4)


def _adamw(peak: float) -> Made:
    return lambda ps: torch.optim.AdamW(ps, peak)


HOW: dict[str, tuple[Made, int]] = {
    "sgd 0.01, 32": (_sgd(0.01), 32),
    "sgd 0.001, 32": (_sgd(0.001), 32),
    "sgd 0.01, 128": (_sgd(0.01), 128),
    "adamw 0.0003, 32": (_adamw(3e-4), 32),
    "adamw 0.001, 32": (_adamw(1e-3), 32),
}
"""An optimizer and its peak rate, and images in a batch."""


def cut(data: Data) -> nn.Module:
    """Return the smaller network, repaired and not trained."""
    batches = data.batches()
    return secateur.prune(
        pretrained_cifar_resnet(20),
        data.images[:2],
        0.5,
        of="macs",
        criterion="obs",
        scope="global",
        normalize="output",
        max_sparsity=0.75,
        data=[next(batches)[0] for _ in range(WATCHED)],
        repair="least_squares",
    ).model


def _batches(data: Data, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield as ``benchmarks.methods`` does, and larger batches with a crop for each image."""
    return data.batches() if size == BATCH else Images(data.images, data.labels, size).stream()


def measure(name: str, seed: int, smaller: nn.Module, data: Data, held: Any) -> dict[str, Any]:
    """Return one row."""
    made, size = HOW[name]
    torch.manual_seed(seed)
    data.seed = seed
    batches, steps = _batches(data, size), SEEN // size
    model = copy.deepcopy(smaller).to(memory_format=torch.channels_last)  # faster on CPUs
    teacher = Distillation(model, pretrained_cifar_resnet(20).to(memory_format=torch.channels_last))
    optimizer = made(model.parameters())
    peak = optimizer.param_groups[0]["lr"]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = peak * rate(step / steps)
        model.train()
        optimizer.zero_grad()
        teacher(loss(model, next(batches))).backward()
        optimizer.step()
    teacher.close()
    test = cifar_images()
    row = {"row": name, "seed": seed, "at_cut": accuracy(smaller, *test)}
    row |= {"held": accuracy(model, *held), "accuracy": accuracy(model, *test)}
    secateur.reestimate_norms(model, [next(batches)[0] for _ in range(1920 // size)])
    return row | {"anew": accuracy(model, *test)}


def main() -> int:
    """Make the rows that are missing, then write the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", default=list(HOW), choices=list(HOW))
    options = parser.parse_args()
    rows = rows_in(ROWS)
    done = {(r["row"], r["seed"]) for r in rows}
    wanted = [(n, s) for s in options.seeds for n in options.rows if (n, s) not in done]
    if wanted:
        data = Data(torch.device("cpu"))
        order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(123))
        held = data.images[order[:HELD]], data.labels[order[:HELD]]
        data.images, data.labels = data.images[order[HELD:]], data.labels[order[HELD:]]
        smaller = cut(data)
    for name, seed in wanted:
        rows.append(measure(name, seed, smaller, data, held))
        keep(ROWS, rows[-1])
        print(*rows[-1].values(), sep="\t", flush=True)
    write("after_cut", "After the cut: optimizer, rate and batch", rows, _text(rows))
    return 0


def _text(rows: list[dict[str, Any]]) -> str:
    body = []
    for name in HOW:
        own = [r for r in rows if r["row"] == name]
        if own:
            found = [
                [r[key] for r in own if r[key] is not None] for key in ("held", "accuracy", "anew")
            ]
            means = [f"{statistics.mean(values):.1f}" if values else "" for values in found]
            body.append([name, *means, str(len(own))])
    return "\n\n".join(
        [
            f"resnet20 without half of its MACs, {rows[0]['at_cut']:.1f} % at the cut, after "
            f"{SEEN:,} images with the dense model as a teacher; accuracy on the held-out training "
            "images and on the 1,017 lossless test images, whose standard error is about 1 point.  "
            "Rows of seed 0 are of an earlier form of the script, whose crops fell otherwise.",
            table(["optimizer, batch", "held %", "test %", "norms anew %", "seeds"], body),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
