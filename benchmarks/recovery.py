"""What training-time pruning gains or loses by when it ends, how fast it learns and what it knows.

Every row is a ResNet with its pretrained weights, half of its MACs and one budget of steps on the
lossless CIFAR-10 images, as in ``benchmarks.methods``; what differs is named.  ``end`` is the share
of the steps at whose end the network is cut; after that the smaller one is trained.  Minutes
of ``fit`` include what it measures on the way.  Rows are kept in
results/recovery.jsonl as they are made.

    python -m benchmarks.recovery                          # hours on a CPU
    python -m benchmarks.recovery --seeds 1 --variants "l1" "growing"
    python -m benchmarks.recovery --depth 56 --steps 504 --variants "l1" "slim 0.01, local"
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from benchmarks.methods import BATCH, COMMON, Data, accuracy, loss
from benchmarks.record import FOLDER, device_name, keep, rows_in, table, write
from secateur import Config, Distillation, Pruner
from tests.zoo import cifar_images, pretrained_cifar_resnet

ROWS = FOLDER / "recovery.jsonl"
STEPS = 504
RATE = 0.01
LOW = 0.001

WATCHED = 8
"""Batches that a criterion, a repair or norms see at the cut."""
HELD = 1000
"""Training images that ``fit`` measures on."""
HOW = ("steps", "cuts", "end", "cosines", "rate", "repaired", "norms", "taught", "decay")
"""What of a variant is no setting of its pruner."""

Variant = dict[str, Any]


def _slim(strength: float, end: float, **more: Any) -> Variant:
    return {"method": "slim", "method_options": {"strength": strength}, "end": end, **more}


def _movement(end: float, **options: Any) -> Variant:
    return {"method": "movement", "method_options": options, "end": end}


HELPED: Variant = {"repaired": True, "taught": True, "rate": 0.003, "steps": STEPS // 2}
"""Half of the steps, with a repair at the cut and the dense model as a teacher."""
THRICE: Variant = {"rounds": 3, "precision": "float32"}
"""How a fit was conducted before it was measured in one round, and in bfloat16."""
OBS: Variant = {"criterion": "obs", "scope": "global", "normalize": "output", "max_sparsity": 0.75}

VARIANTS: dict[str, Variant] = {
    "l1": {"criterion": "l1", "end": 0},
    "l1, repaired": {"criterion": "l1", "end": 0, **HELPED},
    "obs, repaired": {**OBS, "end": 0, **HELPED},
    "agp, five cuts": {"schedule": "cubic", "end": 0.4, "cuts": 5, **HELPED},
    "slim 0.01, local": _slim(1e-2, 0.4, scope="local", **HELPED),
    "movement, prior 1": {**_movement(0.4, prior=1.0), **HELPED},
    "growing, obs, ceiling 10": {
        **OBS,
        "method": "growing",
        "method_options": {"ceiling": 10.0},
        "end": 0.4,
        **HELPED,
    },
    "growing, ceiling 10": {
        "method": "growing",
        "criterion": "l1",
        "method_options": {"ceiling": 10.0},
        "end": 0.4,
        **HELPED,
        "steps": STEPS // 4,
    },
    "group lasso 0.1": {
        "method": "group_lasso",
        "method_options": {"strength": 0.1},
        "end": 0.4,
        **HELPED,
    },
    "l1, low rate": {"criterion": "l1", "end": 0, "rate": LOW},
    "agp, two cosines, end 0.5": {"schedule": "cubic", "end": 0.5, "cosines": 2},
    "agp, end 0.5": {"schedule": "cubic", "end": 0.5},
    "agp, end 0.25": {"schedule": "cubic", "end": 0.25},
    "agp, end 0.1": {"schedule": "cubic", "end": 0.1},
    "agp, end 0.25, low rate": {"schedule": "cubic", "end": 0.25, "rate": LOW},
    "slim 0.01, end 0.5": _slim(1e-2, 0.5),
    "slim 0.01, local, end 0.25": _slim(1e-2, 0.25, scope="local"),
    "movement, end 0.5": _movement(0.5),
    "movement, prior 1, end 0.5": _movement(0.5, prior=1.0),
    "movement, prior 1, end 0.25, low rate": {**_movement(0.25, prior=1.0), "rate": LOW},
    "growing, end 0.5": {"method": "growing", "criterion": "l1", "end": 0.5},
    "growing, end 0.25, low rate": {
        "method": "growing",
        "criterion": "l1",
        "method_options": {"ceiling": 10.0},
        "end": 0.25,
        "rate": LOW,
    },
    "group lasso 0.003, end 0.5": {
        "method": "group_lasso",
        "method_options": {"strength": 3e-3},
        "end": 0.5,
    },
    "group lasso 0.3, end 0.25, low rate": {
        "method": "group_lasso",
        "method_options": {"strength": 0.3},
        "end": 0.25,
        "rate": LOW,
    },
    "fit, 5 minutes": {"budget": {"minutes": 5, **THRICE}, "rate": LOW},
    "fit, 5 minutes, all groups, AdamW": {
        "budget": {"minutes": 5, "names": ["*"], **THRICE},
        "default": True,
        "rate": 1e-3,
    },
    "fit, 5 minutes, all groups, AdamW, one round": {
        "budget": {"minutes": 5, "names": ["*"], "rounds": 1, "precision": "float32"},
        "default": True,
        "rate": 1e-3,
    },
    "fit, 5 minutes, its defaults": {
        "budget": {"minutes": 5, "names": ["*"]},
        "default": True,
        "rate": 1e-3,
    },
    "fit, half of the steps, l1 in one round": {
        "budget": {"steps": STEPS // 2, "rounds": 1, "criterion": "l1", "scope": "local"}
    },
    "fit, half of the steps": {"budget": {"steps": STEPS // 2, **THRICE}, "rate": LOW},
    "fit, half of the steps, all groups, AdamW": {
        "budget": {"steps": STEPS // 2, "names": ["*"], **THRICE},
        "default": True,
        "rate": 1e-3,
    },
    "fit, half of the steps, all groups": {
        "budget": {"steps": STEPS // 2, "names": ["*"], **THRICE},
        "rate": LOW,
    },
}


def settings_of(variant: Variant, cut: int) -> dict[str, Any]:
    """Return what a pruner that is to have pruned after ``cut`` calls is configured with."""
    own = {k: v for k, v in variant.items() if k not in HOW}
    settings = {"criterion": "l2", **COMMON, **own}
    if "schedule" in own:
        every = cut // variant["cuts"] if "cuts" in variant else 4
        return settings | {"steps": max(cut // every, 1), "every": every}
    if own.get("method") == "movement":
        return settings | {"start": cut // 5, "steps": cut - 2 * (cut // 5)}
    return settings | {"start": max(cut - 1, 0)}


def trained(
    variant: Variant, model: nn.Module, data: Data, steps: int
) -> tuple[nn.Module, float | None]:
    """Return the smaller model, and its accuracy when it was cut."""
    cut = round(steps * variant["end"])
    batches, rate = data.batches(), variant.get("rate", RATE)
    pruner = Pruner(model, Config(**settings_of(variant, cut)), data.images[:2])
    teacher = Distillation(model) if variant.get("taught") else None
    if variant.get("criterion") == "obs":
        pruner.calibrate([next(batches)[0] for _ in range(WATCHED)])

    def started(length: int) -> tuple[torch.optim.Optimizer, Any]:
        decay = variant.get("decay", 1e-4)
        optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=decay)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length)

    twice = variant.get("cosines") == 2
    optimizer, rates = started(cut if twice else steps)
    at_cut = None
    for step in range(steps):
        if step == cut:
            finish(variant, model, pruner, optimizer, [next(batches)[0] for _ in range(WATCHED)])
            at_cut = accuracy(model, *(x.to(data.images.device) for x in cifar_images()))
            if twice:
                optimizer, rates = started(steps - cut)
        model.train()
        optimizer.zero_grad()
        found = loss(model, next(batches))
        (found if teacher is None else teacher(found)).backward()
        optimizer.step()
        rates.step()
        if step < cut:
            pruner.step()
    return model.eval(), at_cut


def finish(
    variant: Variant,
    model: nn.Module,
    pruner: Pruner,
    optimizer: torch.optim.Optimizer,
    seen: list[Tensor],
) -> None:
    """Cut the model, and do before and after what the variant says."""
    if not pruner.keeps:  # one shot
        pruner.step()
    if variant.get("repaired"):
        pruner.repair(seen)
    secateur.cut_optimizer(optimizer, pruner.finish())
    if variant.get("norms"):
        secateur.reestimate_norms(model, seen)


def fitted(variant: Variant, model: nn.Module, data: Data) -> tuple[nn.Module, int]:
    """Return what ``secateur.fit`` makes of its budget, and its steps.

    What it measures are training images that it does not train on: the test images choose nothing.
    """
    device = data.images.device
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(HELD))
    own, held = copy.copy(data), order.to(device)[:HELD]
    own.images, own.labels = (x[order.to(device)[HELD:]] for x in (data.images, data.labels))

    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters, variant.get("rate", RATE), momentum=0.9, weight_decay=1e-4
        )

    made = secateur.fit(
        model,
        train=own.batches,
        evaluate=lambda model: accuracy(model, data.images[held], data.labels[held]),
        optimizer=None if variant.get("default") else optimizer,
        **(COMMON | variant["budget"]),
    )
    return made.model, made.rounds[-1].step


def measure(name: str, depth: int, seed: int, steps: int, data: Data) -> dict[str, Any]:
    """Return one row."""
    variant, start = VARIANTS[name], time.perf_counter()
    torch.manual_seed(seed)
    data.seed = seed
    at_cut: float | None = None
    model, dense = (pretrained_cifar_resnet(depth).to(data.images.device) for _ in range(2))
    if "budget" in variant:
        model, steps = fitted(variant, model, data)
    else:
        model, at_cut = trained(variant, model, data, steps)
    example = data.images[:2]
    macs = [secateur.analyze(each, example).cost().macs for each in (model, dense)]
    return {
        "variant": name,
        "model": f"resnet{depth}",
        "seed": seed,
        "steps": steps,
        "device": device_name(data.images.device),
        "accuracy": accuracy(model, *(x.to(data.images.device) for x in cifar_images())),
        "at_cut": at_cut,
        "held": HELD if "budget" in variant else 0,
        "macs": macs[0] / macs[1],
        "seconds": time.perf_counter() - start,
    }


def main() -> int:
    """Make the rows that are missing, then write the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--steps", type=int, help="by default each variant's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    rows = rows_in(ROWS)
    made = {_key(row) for row in rows}
    data = Data(options.device)
    for seed in options.seeds:
        for name in options.variants:
            budget = "budget" in VARIANTS[name]  # its steps are known when it has run
            steps = options.steps or VARIANTS[name].get("steps", STEPS)
            wanted = {
                "variant": name,
                "model": f"resnet{options.depth}",
                "seed": seed,
                "steps": 0 if budget else steps,
                "device": device_name(options.device),
                "held": HELD if budget else 0,
            }
            if _key(wanted) in made:
                continue
            rows.append(measure(name, options.depth, seed, steps, data))
            keep(ROWS, rows[-1])
            print(*rows[-1].values(), sep="\t", flush=True)
    write("recovery", "What training-time pruning gains and loses by", rows, _text(rows))
    return 0


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what a row is of: two with the same key are the same measurement."""
    steps = 0 if "budget" in VARIANTS[row["variant"]] else row["steps"]
    model = row.get("model", "resnet20")
    return (row["variant"], model, row["seed"], steps, row["device"], row.get("held", 0))


def _text(rows: list[dict[str, Any]]) -> str:
    images, labels = cifar_images()
    order, body, models = list(VARIANTS), [], sorted({row.get("model", "resnet20") for row in rows})
    kinds = {(key[1], order.index(key[0]), -key[3], key[5]) for key in map(_key, rows)}
    for model, place, steps, held in sorted(kinds):
        name = order[place]
        own = [r for r in rows if _key(r)[:2] + _key(r)[3::2] == (name, model, -steps, held)]
        found, cut = [r["accuracy"] for r in own], [r["at_cut"] for r in own]
        spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
        body.append(
            [model, name, f"{statistics.mean(found):.1f}{spread}"]
            + ["" if None in cut else f"{statistics.mean(cut):.1f}"]
            + [f"{VARIANTS[name].get('rate', RATE):g}"]
            + [f"{statistics.mean(r['steps'] for r in own):.0f}", str(held or ""), f"{len(own)}"]
        )
    dense = [
        f"{model} {accuracy(pretrained_cifar_resnet(int(model[6:])), images, labels):.2f} %"
        for model in models
    ]
    return "\n\n".join(
        [
            f"Dense: {', '.join(dense)}.  Half of the MACs gone, steps of {BATCH} images, "
            "SGD, or as said, along one cosine; accuracy on the "
            f"{len(labels):,} lossless test images, whose standard error is about 1 point.  At the "
            "cut: before the smaller model is trained on.  Rows at a rate of 0.003 are repaired at "
            "the cut, on eight batches, and taught by the dense model.  The two cores were shared "
            "with other work, so that minutes hold few steps.  fit keeps the best of what it "
            "measures: on so many held training images, or, in older rows without, on these test "
            "images.",
            table(
                ["model", "variant", "accuracy %", "at the cut %", "rate", "steps", "held"]
                + ["seeds"],
                body,
            ),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
