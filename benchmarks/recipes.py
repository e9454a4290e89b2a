"""What the documentation's recipes leave of real models: quality, cost and time, one row each.

Each has the settings of its page, and the data of ``benchmarks.models.real``; seconds are processor
time of one thread for all of it, or, of a budget of time, on the wall with all cores.  Speed is
measured anew at the end, dense and smaller in turns.  Rows are kept in results/recipes.jsonl as
they are made.

    python -m benchmarks.recipes
    python -m benchmarks.recipes --only bert llama --draws 0 1 2
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from benchmarks.methods import Data
from benchmarks.models.real import REAL, Real, accuracy
from benchmarks.record import FOLDER, keep, rows_in, table, write
from secateur.runtime.measure import clock_of, latency

ROWS = FOLDER / "recipes.jsonl"
MINUTES = 5
HELD = 1000
"""Training images that ``fit`` is judged by."""

Call = Callable[[Real, nn.Module, int], tuple[nn.Module, str]]


@dataclass(frozen=True)
class Recipe:
    """One recipe on one model.

    Attributes:
        model: a name in ``REAL``.
        does: what a reader is told that goes.
        call: ``(real, model, draw) → smaller model, where it loads``.
        timed: what the speed of both is measured on; None measures none.
    """

    model: str
    does: str
    call: Call
    timed: Callable[[Real], Any] | None = None


def pruned(samples: int, *given: Any, **settings: Any) -> Call:
    """Return a call of ``prune`` with so many samples of calibration data."""

    def call(real: Real, model: nn.Module, draw: int) -> tuple[nn.Module, str]:
        data = real.calibration(samples, draw)
        result = sc.prune(model, real.example, *given, data=data, **settings)
        return result.model, result.loads_with

    return call


def sentences(real: Real) -> Any:
    """Return 16 texts of 64 tokens."""
    (first,) = real.calibration(16, 0)
    return {name: tensor[:, :64] for name, tensor in first.items()}


def images(real: Real) -> Tensor:
    """Return 16 images."""
    (first,) = real.calibration(16, 0)
    assert isinstance(first, Tensor)
    return first


def fitted(real: Real, model: nn.Module, draw: int) -> tuple[nn.Module, str]:
    """Prune and train for some minutes, judged by training images that are held out."""
    data = Data(torch.device("cpu"))
    data.seed = draw
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(HELD))
    held, own = order[:HELD], copy.copy(data)
    own.images, own.labels = data.images[order[HELD:]], data.labels[order[HELD:]]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return own.batches()

    def evaluate(small: nn.Module) -> float:
        return accuracy(small, data.images[held], data.labels[held], 128)

    found = sc.fit(model, 0.5, train=batches, evaluate=evaluate, minutes=MINUTES)
    return found.model, found.result.loads_with


def exported(real: Real, model: nn.Module, draw: int) -> tuple[nn.Module, str]:
    """Prune by MACs, export, and return what onnxruntime answers with."""
    import onnxruntime

    small, _ = RECIPES["cnn"].call(real, model, draw)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.onnx"
        batch = torch.export.Dim("batch", max=1024)
        torch.onnx.export(
            small, (images(real),), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False
        )
        run = onnxruntime.InferenceSession(str(path))

    class Served(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            (found,) = run.run(None, {run.get_inputs()[0].name: x.numpy()})
            return torch.from_numpy(found)

    served = Served()
    served.of = small
    return served, "onnxruntime"


OBS: dict[str, Any] = {"scope": "global", "normalize": "output", "max_sparsity": 0.75}
WIDTH: dict[str, Any] = {"what": ["width"], "uniform": True}
RECIPES: dict[str, Recipe] = {
    "cnn": Recipe("resnet56", "half of the MACs", pruned(256, 0.5, "obs", of="macs", **OBS)),
    "deadline": Recipe("resnet56", f"half of the MACs, trained for {MINUTES} minutes", fitted),
    "bert": Recipe(
        "minilm",
        "62 % of the neurons of the feed-forward layers",
        pruned(512, 0.62, "elimination", names=["*intermediate*"], uniform=True, round_to=64),
        sentences,
    ),
    "llama": Recipe(
        "docs llama",
        "a fifth of the parameters, of the feed-forward layers",
        pruned(16, 0.2, "activation", of="params", round_to=8, **WIDTH),
    ),
    "body": Recipe(
        "docs llama",
        "a fifth of all but the embeddings, of the feed-forward layers, with 64 windows",
        pruned(64, 0.16, "activation", of="params", round_to=8, **WIDTH),
    ),
    "experts": Recipe("docs mixtral", "2 of 8 experts", pruned(16, 0.25, "contribution")),
    "layers": Recipe("docs llama", "1 of 8 layers", pruned(16, 0.125, what=["depth"])),
    "attention": Recipe(
        "minilm",
        "3 of 12 heads of each layer",
        pruned(128, 0.25, "elimination", names=["*attention*"]),
    ),
    "protected": Recipe(
        "resnet56",
        "half of the MACs, none of it in the last stage",
        pruned(256, 0.5, "obs", of="macs", exclude=["layer3.*"], **OBS),
    ),
    "2:4": Recipe(
        "docs llama",
        "every other weight of the layers, 2 of 4",
        pruned(16, criterion="obs", granularity="2:4", names=["*proj"], repair="sparse"),
    ),
    "size": Recipe(
        "resnet56", "of 3.5 MB all but 1.5", pruned(256, None, "obs", budget="1.5 MB", **OBS)
    ),
    "onnx": Recipe("resnet56", "half of the MACs, in onnxruntime", exported),
}


def row(name: str, draw: int) -> dict[str, Any]:
    """Follow one recipe and return what came of it."""
    recipe = RECIPES[name]
    real = REAL[recipe.model]
    dense, model = real.build(), real.build()
    clock = time.perf_counter if recipe.call is fitted else time.process_time
    begun = clock()
    small, loads = recipe.call(real, model, draw)
    seconds = clock() - begun
    costs = [sc.analyze(m, real.example).cost() for m in (getattr(small, "of", small), dense)]
    found = {
        "recipe": name,
        "model": recipe.model,
        "does": recipe.does,
        "draw": draw,
        "seconds": seconds,
        "params": costs[0].params / costs[1].params,
        "macs": costs[0].macs / costs[1].macs,
        "dense": real.quality(dense),
        "quality": real.quality(small),
        "measure": real.measure,
        "loads": loads,
    }
    if recipe.timed is not None:
        times = latency(
            {"dense": dense, "smaller": small},
            recipe.timed(real),
            runs=31,
            clock=clock_of(torch.device("cpu"))[0],
        )
        found["speed"] = times["dense"].median / times["smaller"].median
    return found


def text(rows: list[dict[str, Any]]) -> str:
    """Return the table of all."""
    body = []
    for name, recipe in RECIPES.items():
        own = [r for r in rows if r["recipe"] == name]
        if not own:
            continue
        mean = {
            key: statistics.mean(r[key] for r in own)
            for key in ("params", "macs", "quality", "seconds")
        }
        speeds = [r["speed"] for r in own if "speed" in r]
        body.append(
            [f"{name}: {recipe.model}, {recipe.does}", f"{own[0]['dense']:.4g}"]
            + [f"{mean['quality']:.4g}", f"{mean['params']:.2f}", f"{mean['macs']:.2f}"]
            + [f"{statistics.mean(speeds):.2f}" if speeds else "", f"{mean['seconds']:.0f}"]
        )
    heads = ["recipe: model, what goes", "dense", "pruned", "params", "MACs", "faster", "seconds"]
    draws = sorted({len([r for r in rows if r["recipe"] == name]) for name in RECIPES} - {0})
    return (
        "Accuracy in %, perplexity (less is better), or for MiniLM the correlation of similarities "
        "with the dense model's, on held-out data; params and MACs are what is left. Seconds are "
        f"processor time of one thread, and for `deadline` the {MINUTES} minutes that it was given "
        "on two cores, with what comes before and after. Draws of calibration data: "
        f"{' or '.join(map(str, draws))} each.\n\n"
    ) + table(heads, body)


def main() -> None:
    """Make the rows that are asked for and not there yet, and write the table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--draws", type=int, nargs="*", default=[0])
    given = parser.parse_args()
    rows = rows_in(ROWS)
    done = {(r["recipe"], r["draw"]) for r in rows}
    threads = torch.get_num_threads()
    for name in given.only:
        torch.set_num_threads(threads if RECIPES[name].call is fitted else 1)
        for draw in given.draws:
            if (name, draw) in done:
                continue
            rows.append(row(name, draw))
            keep(ROWS, rows[-1])
            print(rows[-1], flush=True)
    write("recipes", "What the recipes leave of real models", rows, text(rows))


if __name__ == "__main__":
    main()
