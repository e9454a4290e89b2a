"""The seven pruners of NNI 2.x on real models, ADMM beside one cut, a ticket beside fresh weights.

Three tables.  *Reached*: each of the seven on a network for scans of digits and on a pretrained
ResNet-20, single weights and channels, in a loop of one's own and in Lightning.  *ADMM*: beside
the same steps without its pull, then one cut by magnitude or L1 norm, and the same retraining.
*Tickets*: the first weights of what rounds have left, beside fresh weights under the same mask,
trained alike.  Rows are kept in results/nni2.jsonl as they are made, so that an interrupted run
goes on where it was.

    python -m benchmarks.nni2
    python -m benchmarks.nni2 --tables admm tickets
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.record import FOLDER, keep, rows_in, table, write
from secateur import Config, Pruner
from secateur.masks import masking
from secateur.nni.pytorch import TorchEvaluator, pruning
from tests.trained import digits, live, net
from tests.zoo import cifar_images, pretrained_cifar_resnet

ROWS = FOLDER / "nni2.jsonl"
GOAL = 0.5
SEEDS = (0, 1, 2)
NETWORKS = {"digits": "stem", "ResNet-20": "conv1"}
"""What is pruned → the part of the name of its first layer, which is left alone."""

Batches = Iterator[tuple[Tensor, Tensor]]


def batches(images: Tensor, labels: Tensor, seed: int, size: int = 64) -> Batches:
    """Yield batches for ever, in an order that a seed says."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(labels), generator=generator).split(size):
            if len(index) == size:
                yield images[index], labels[index]


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that are told right, in %."""
    model.eval()
    guessed = torch.cat([model(part).argmax(1) for part in images.split(256)])
    return 100 * float((guessed == labels).float().mean())


def train(
    model: nn.Module,
    data: Batches,
    steps: int,
    optimizer: torch.optim.Optimizer,
    after: Callable[[], object] = lambda: None,
) -> None:
    model.train()
    for _ in range(steps):
        images, labels = next(data)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        after()


@cache
def dense_digits() -> dict[str, Tensor]:
    model = net()
    data = batches(digits().train_images, digits().train_labels, 0)
    train(model, data, 360, torch.optim.Adam(model.parameters(), 3e-3))
    return model.state_dict()


# reached


def setting(network: str, trainer: str, folder: Path) -> tuple[nn.Module, Any, Any]:
    """Return a trained model, its evaluator, and the test images and labels."""
    if trainer == "lightning":
        found = live("lightning", folder)
        found.model.net.load_state_dict(dense_digits())
        found.evaluator.trainer.fit_loop.epoch_loop.max_steps = 12
        return found.model, found.evaluator, (digits().test_images, digits().test_labels)
    if network == "digits":
        model, train_on = net(), (digits().train_images, digits().train_labels)
        model.load_state_dict(dense_digits())
        test, rate, example = (digits().test_images, digits().test_labels), 3e-3, (2, 1, 8, 8)
    else:
        model, train_on = pretrained_cifar_resnet(20), cifar_images("train")
        test, rate, example = cifar_images("test"), 5e-3, (2, 3, 32, 32)
    data = batches(*train_on, 0)
    judged = tuple(part[:256] for part in train_on)

    def training_func(
        model: nn.Module, optimizer: Any, criterion: Any, scheduler: Any, steps: Any, epochs: Any
    ) -> None:
        train(model, data, steps or 12 * (epochs or 1), optimizer)  # of 12 steps each

    evaluator = TorchEvaluator(
        training_func,
        torch.optim.SGD(model.parameters(), rate, momentum=0.9),
        F.cross_entropy,
        dummy_input=torch.zeros(example),
        evaluating_func=lambda model: accuracy(model, *judged),
    )
    return model, evaluator, test


def made(
    name: str, structured: bool, model: nn.Module, evaluator: Any, network: str, trainer: str
) -> Any:
    """Return one of the seven, set to remove half."""
    rules = [
        {"op_types": ["Conv2d"], "total_sparsity": GOAL, "max_sparsity_per_layer": 0.8},
        {"op_partial_names": [NETWORKS[network]], "op_types": ["Conv2d"], "exclude": True},
    ]
    if network == "ResNet-20":  # the partial name is in all of its names
        rules[1] = {"op_names": ["conv1"], "exclude": True}
    algorithm, params = ("l1" if structured else "level"), {}
    grain = "coarse-grained" if structured else "fine-grained"
    admm = {"evaluator": evaluator, "iterations": 2, "training_epochs": 1, "granularity": grain}
    annealing = {"evaluator": evaluator, "stop_temperature": 90, "pruning_algorithm": algorithm}
    logs = tempfile.mkdtemp()
    if name in ("ActivationAPoZRankPruner", "ActivationMeanRankPruner"):
        return getattr(pruning, name)(model, rules, evaluator, 12)
    if name == "ADMMPruner":
        return pruning.ADMMPruner(model, [{**rules[0], "rho": 0.1}, rules[1]], **admm)
    if name == "LotteryTicketPruner":
        return pruning.LotteryTicketPruner(
            model, rules, algorithm, 2, logs, evaluator=evaluator, pruning_params=params
        )
    if name == "SimulatedAnnealingPruner":
        return pruning.SimulatedAnnealingPruner(model, rules, **annealing, log_dir=logs)
    if name == "AutoCompressPruner":
        return pruning.AutoCompressPruner(
            model, rules, 2, admm, annealing, logs, evaluator=evaluator
        )
    if trainer == "loop":  # whose scores are in %
        judge = evaluator.evaluating_func
        evaluator.evaluating_func = lambda model: judge(model) / 100
    return pruning.AMCPruner(2, model, rules, evaluator, log_dir=logs)


SEVEN = (
    *("ActivationAPoZRankPruner", "ActivationMeanRankPruner", "ADMMPruner", "LotteryTicketPruner"),
    *("SimulatedAnnealingPruner", "AutoCompressPruner", "AMCPruner"),
)
ONLY_CHANNELS = ("ActivationAPoZRankPruner", "ActivationMeanRankPruner", "AMCPruner")


def reached(name: str, network: str, trainer: str, structured: bool) -> dict[str, Any]:
    """Prune once; return one row."""
    start = time.perf_counter()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model, evaluator, test = setting(network, trainer, Path(folder))
        dense = accuracy(model, *test)
        pruner = made(name, structured, model, evaluator, network, trainer)
        if name in SEVEN[:3]:
            _, masks = pruner.compress()
            evaluator.finetune(model)
            pruner._unwrap_model()
        else:
            pruner.compress()
            _, model, masks, _, _ = pruner.get_best_result()
            if name == "LotteryTicketPruner":  # the ticket has the first weights
                masking.put_on(model, {f"{n}.weight": by["weight"] for n, by in masks.items()})
                evaluator.bound_to(model, pruner.task_generator.dense).finetune(model)
                masking.take_off(model)
    if name == "AMCPruner":
        best = pruner.get_best_result()[0]
        gone = pruner.task_generator.tasks[best].state["current_total_sparsity"]
    else:
        total = sum(by["weight"].numel() for by in masks.values())
        gone = 1 - sum(float(by["weight"].sum()) for by in masks.values()) / total
    return {
        "dense": dense,
        "gone": gone,
        "accuracy": accuracy(model, *test),
        "seconds": time.perf_counter() - start,
    }


# ADMM beside one cut

STEPS = {"before": 126, "after": 54}
PULLS = {144: (20, (0.01, 0.05, 0.3, 1.0)), 1000: (100, (0.01, 0.05, 0.1, 0.3))}
"""Steps with the pull → from one projection to the next, and the strengths that are tried."""


def cut(granularity: str, sparsity: float, pull: int, rho: float, seed: int) -> dict[str, Any]:
    """Train the digits' network, with a pull or none (0), cut, and retrain; return one row."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    model = net(seed)
    data = batches(digits().train_images, digits().train_labels, seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    train(model, data, STEPS["before"], optimizer)
    single = granularity == "element"
    settings: dict[str, Any] = {"granularity": granularity, "sparsity": sparsity}
    settings |= {"types": ["Conv2d"]} if single else {}
    settings |= {"criterion": "magnitude"} if single else {"criterion": "l1"}
    if rho:
        options = {"rho": rho, "interval": PULLS[pull][0]}
        settings |= {"method": "admm", "method_options": options}
    config = Config(**settings, start=pull - 1)
    pruner = Pruner(model, config, digits().test_images[:2])
    train(model, data, pull, optimizer, pruner.step)
    test = digits().test_images, digits().test_labels
    at_once = accuracy(model, *test)
    train(model, data, STEPS["after"], torch.optim.SGD(model.parameters(), 0.01, momentum=0.9))
    return {
        "gone": pruner.metrics()["sparsity"],
        "at once": at_once,
        "accuracy": accuracy(model, *test),
        "seconds": time.perf_counter() - start,
    }


# tickets

ROUND = 144


def ticket(granularity: str, sparsity: float, seed: int) -> dict[str, Any]:
    """Find a ticket of the digits' network; train it, and fresh weights under its mask."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    model, rounds = net(seed), 5
    data = (digits().train_images, digits().train_labels)
    test = digits().test_images, digits().test_labels
    settings = {"types": ["Conv2d"]} if granularity == "element" else {}
    config = Config(
        **settings,
        granularity=granularity,
        sparsity=sparsity,
        criterion="magnitude" if granularity == "element" else "l2",
        method="lottery",
        steps=rounds,
        every=ROUND,
    )
    pruner = Pruner(model, config, test[0][:2])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    train(model, batches(*data, seed), rounds * ROUND, optimizer, pruner.step)
    found = {}
    for way in ("ticket", "fresh weights"):
        tried = model if way == "ticket" else net(seed + 100)
        if way == "fresh weights":
            masking.put_on(tried, pruner.masks)
        optimizer = torch.optim.Adam(tried.parameters(), 3e-3)
        train(tried, batches(*data, seed + 7), ROUND, optimizer)
        found[way] = accuracy(tried, *test)
    return {"gone": pruner.metrics()["sparsity"], **found, "seconds": time.perf_counter() - start}


# all


def wanted(tables: list[str]) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    """Yield what a row is of, and what makes it."""
    if "tickets" in tables:
        for granularity, sparsity in (("element", 0.9), ("element", 0.97), ("group", 0.7)):
            for seed in SEEDS:
                key = granularity, sparsity, seed
                about = dict(zip(("granularity", "sparsity", "seed"), key, strict=True))
                yield {"table": "tickets", **about}, lambda key=key: ticket(*key)
    if "admm" in tables:
        grains = ("element", 0.97), ("group", 0.7)
        tries = ((pull, rho) for pull, (_, rhos) in PULLS.items() for rho in (0.0, *rhos))
        for (granularity, sparsity), (pull, rho), seed in product(grains, tries, SEEDS):
            key = granularity, sparsity, pull, rho, seed
            names = ("granularity", "sparsity", "pull", "rho", "seed")
            about = dict(zip(names, key, strict=True))
            yield {"table": "admm", **about}, lambda key=key: cut(*key)
    if "reached" in tables:
        places = [("digits", "loop"), ("digits", "lightning"), ("ResNet-20", "loop")]
        for network, trainer in places:
            for name in SEVEN:
                for structured in (False, True):
                    if not structured and name in ONLY_CHANNELS:
                        continue
                    key = name, network, trainer, structured
                    names = ("pruner", "network", "trainer", "structured")
                    about = dict(zip(names, key, strict=True))
                    yield {"table": "reached", **about}, lambda key=key: reached(*key)


def main() -> int:
    """Make the rows that are missing, then write the tables of all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = ["tickets", "admm", "reached"]
    parser.add_argument("--tables", nargs="+", default=known, choices=known)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = rows_in(ROWS)
    for about, make in wanted(options.tables):
        if any(row.items() >= about.items() for row in rows):
            continue
        row = {**about, **make()}
        rows.append(row)
        ROWS.parent.mkdir(exist_ok=True)
        keep(ROWS, row)
        print(*row.values(), sep="\t", flush=True)
    write("nni2", "NNI 2.x's seven pruners", rows, _text(rows))
    return 0


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def _text(rows: list[dict[str, Any]]) -> str:
    parts = [
        "Accuracies in %, mean ± standard deviation over seeds; digits: 600 scans that no training "
        "saw (one is 0.17 points), ResNet-20: 1,017 test images of CIFAR-10."
    ]
    of = {name: [r for r in rows if r["table"] == name] for name in ("tickets", "admm", "reached")}
    ways = ("ticket", "fresh weights")
    parts += ["## A winning ticket beside fresh weights under the same mask", ""]
    body = []
    for key in dict.fromkeys((r["granularity"], r["sparsity"]) for r in of["tickets"]):
        own = [r for r in of["tickets"] if (r["granularity"], r["sparsity"]) == key]
        means = [_mean([r[way] for r in own]) for way in ways]
        body.append([key[0], f"{key[1]:.0%}", *means, str(len(own))])
    parts.append(table(["removed", "goal", *ways, "seeds"], body))
    parts.append(
        f"Five rounds of {ROUND} steps, and {ROUND} of the ticket or of the fresh weights."
    )
    parts += ["## ADMM beside one cut, trained as long", ""]
    body = []
    kinds = ("granularity", "sparsity", "pull", "rho")
    for key in sorted({tuple(row[kind] for kind in kinds) for row in of["admm"]}):
        own = [row for row in of["admm"] if tuple(row[kind] for kind in kinds) == key]
        means = [_mean([row[when] for row in own]) for when in ("at once", "accuracy")]
        way = f"ADMM, rho {key[3]:g}" if key[3] else "one cut"
        body.append([key[0], f"{key[1]:.0%}", str(key[2]), way, *means, str(len(own))])
    heads = ["removed", "goal", "steps of pull", "", "when cut", "retrained", "seeds"]
    parts.append(table(heads, body))
    parts.append(
        f"{STEPS['before']} steps of training, then so many with the pull or without, the cut, and "
        f"{STEPS['after']} of retraining; SGD. In 144 steps there are 7 projections, in 1,000 ten. "
        "The strengths are tried on the very seeds and test images that they are compared on; 0.3 "
        "was first chosen by seed 0."
    )
    parts += ["## Each of the seven at a half", ""]
    body = [
        [
            row["pruner"],
            row["network"],
            row["trainer"],
            "channels" if row["structured"] else "weights",
            f"{row['gone']:.1%}",
            f"{row['dense']:.1f}",
            f"{row['accuracy']:.1f}",
            f"{row['seconds']:.0f}",
        ]
        for row in of["reached"]
    ]
    heads = ["pruner", "network", "trainer", "removed", "gone", "dense", "pruned", "s"]
    parts.append(table(heads, body))
    parts.append(
        "Gone: of the weights of all convolutions but the first, as masks; of AMC, of their FLOPs, "
        "cut. Channels are rounded down in each layer. Trainings are of 12 steps of 64 images, far "
        "too short to compare the pruners by."
    )
    return "\n\n".join(part for part in parts if part)


if __name__ == "__main__":
    sys.exit(main())
