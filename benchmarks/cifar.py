"""Accuracy of pretrained CIFAR-10 ResNets after one-shot pruning, no fine-tuning.

For each network, pruner and ratio: the masks as the pruner made them, the masks as the speed-up
completed them, and the smaller model.  The last two must predict the same class on every image.
What the masked channels still emit (a BatchNorm's bias) is folded into the layers that read it, or
masked too: that is the last column.

    python -m benchmarks.cifar                      # the 1,017 lossless test images
    python -m benchmarks.cifar --jpeg 10000         # and, once a network, the test set from JPEG
    python -m benchmarks.cifar --depths 20 --ratios 0.3
"""

from __future__ import annotations

import argparse
import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from benchmarks.record import table, write
from secateur.nni import pruning
from secateur.nni.speedup import ModelSpeedup
from secateur.nni.utils import auto_set_dependency_group_ids
from tests.zoo import cifar_images, pretrained_cifar_resnet

KINDS = ("masked", "completed", "smaller", "silent")
PRUNERS = ("L1NormPruner", "L2NormPruner", "FPGMPruner", "LevelPruner")


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, batch: int = 500) -> Tensor:
    """Return the most likely class of each image, (n,)."""
    return torch.cat([model(part).argmax(1) for part in images.split(batch)])


def pruned(dense: nn.Module, pruner: str, ratio: float, example: Tensor) -> dict[str, Any]:
    """Return the masked, the completed and the smaller models, and the costs before and after."""
    model = copy.deepcopy(dense)
    config = [{"op_types": ["Conv2d"], "sparse_ratio": ratio}]
    if pruner != "LevelPruner":
        config = auto_set_dependency_group_ids(model, config, example)
    compressor = getattr(pruning, pruner)(model, config)
    _, masks = compressor.compress()
    masked = copy.deepcopy(compressor.unwrap_model())
    speedup = ModelSpeedup(copy.deepcopy(dense), example, masks)
    smaller = speedup.speedup_model()
    if speedup.result is None:
        raise RuntimeError("speedup_model() returned without a result")
    silent = ModelSpeedup(copy.deepcopy(dense), example, masks, constants="mask").speedup_model()
    completed = copy.deepcopy(dense)
    state = completed.state_dict()
    with torch.no_grad():
        for name, keep in speedup.result.masks.items():
            completed.get_parameter(name).mul_(keep)
        for name, amount in speedup.result.folded.items():
            state[name].add_(amount)
    return {
        "masked": masked,
        "completed": completed,
        "smaller": smaller,
        "silent": silent,
        "macs": secateur.analyze(smaller, example).cost().macs
        / secateur.analyze(dense, example).cost().macs,
        "params": sum(p.numel() for p in smaller.parameters())
        / sum(p.numel() for p in dense.parameters()),
    }


def measure(
    depth: int, pruner: str, ratio: float, sets: dict[str, tuple[Tensor, Tensor]]
) -> list[dict[str, Any]]:
    """Return one row for each set of images."""
    dense = pretrained_cifar_resnet(depth)
    example = next(iter(sets.values()))[0][:2]
    made = pruned(dense, pruner, ratio, example)
    rows = []
    for name, (images, labels) in sets.items():
        guesses = {kind: predict(made[kind], images) for kind in KINDS}
        rows.append(
            {
                "model": f"resnet{depth}",
                "pruner": pruner,
                "ratio": ratio,
                "images": name,
                "macs": made["macs"],
                "params": made["params"],
                "same": int((guesses["completed"] == guesses["smaller"]).sum()),
                "of": len(labels),
            }
            | {k: 100 * int((g == labels).sum()) / len(labels) for k, g in guesses.items()}
        )
    return rows


def main() -> int:
    """Measure all, write the results, return 1 when a smaller model disagrees with its masks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56])
    parser.add_argument("--ratios", type=float, nargs="+", default=[k / 10 for k in range(1, 8)])
    parser.add_argument("--pruners", nargs="+", default=PRUNERS, choices=PRUNERS)
    parser.add_argument("--jpeg", type=int, default=0, help="also this many images from JPEG")
    options = parser.parse_args()

    sets = {"lossless": cifar_images()}
    if options.jpeg:
        images, labels = cifar_images(lossless=False)
        sets["jpeg"] = images[: options.jpeg], labels[: options.jpeg]

    dense = []
    rows = []
    for depth in options.depths:
        for name, (images, labels) in sets.items():
            right = int((predict(pretrained_cifar_resnet(depth), images) == labels).sum())
            accuracy = 100 * right / len(labels)
            dense.append({"model": f"resnet{depth}", "images": name, "accuracy": accuracy})
        for pruner in options.pruners:
            for ratio in options.ratios:
                first = (pruner, ratio) == (options.pruners[0], options.ratios[0])
                used = {n: s for n, s in sets.items() if n == "lossless" or first}
                rows += measure(depth, pruner, ratio, used)
                print(*rows[-1].values(), sep="\t", flush=True)
    write(
        "cifar",
        "One-shot pruning of CIFAR-10 ResNets",
        {"dense": dense, "pruned": rows},
        _text(dense, rows),
    )
    return int(any(row["same"] != row["of"] for row in rows))


def _text(dense: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    heading = [
        "model",
        "pruner",
        "ratio",
        "images",
        "masked %",
        "completed %",
        "smaller %",
        "constants masked %",
    ]
    body = [
        [row["model"], row["pruner"], f"{row['ratio']:.1f}", row["images"]]
        + [f"{row[kind]:.2f}" if kind in row else "–" for kind in KINDS]
        + [f"{row['macs']:.0%}", f"{row['params']:.0%}", f"{row['same']:,} of {row['of']:,}"]
        for row in rows
    ]
    start = [[row["model"], row["images"], f"{row['accuracy']:.2f}"] for row in dense]
    return "\n\n".join(
        [
            "Test accuracy without fine-tuning. Same: images on which the completed and the "
            "smaller model predict the same class.  The smaller model has the constants of masked "
            "channels folded into the layers that read them; in the column before the last three "
            "they are masked too (–: not measured).",
            table(["dense", "images", "accuracy %"], start),
            table([*heading, "MACs left", "params left", "same"], body),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
