"""What to choose, and what came of it: tables of the documentation from ``benchmarks/results``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import mean
from typing import Any

from figures import RESULTS

Row = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """A row of the decision table, and the measured rows that it shows.

    Attributes:
        family: of models.
        has: what is there to prune by.
        write: settings of ``prune``, or another call.
        rows: keys of the measured rows: model, setting and way; of ``recovery``, the variant.
    """

    family: str
    has: str
    write: str
    rows: tuple[str, str, str] | str


BETWEEN = '`"obs", of="macs", scope="global", normalize="output", max_sparsity=0.75`'
CHOICES = (
    Choice("CNN", "nothing", '`of="macs"`', ("resnet56", "50 % of MACs kept, all groups", "l2")),
    Choice(
        "CNN",
        "inputs",
        f"{BETWEEN}, `data=`",
        ("resnet56", "50 % of MACs kept, all groups", "obs, between layers, repaired"),
    ),
    Choice(
        "CNN",
        "labels, minutes",
        "[`fit(model, 0.5, train=…)`](recipes/deadline.md)",
        "fit, half of the steps, all groups",
    ),
    Choice(
        "encoder (BERT)",
        "nothing",
        '`"l2"`',
        ("minilm", "feed-forward and heads −50 %", "l2"),
    ),
    Choice(
        "encoder (BERT)",
        "inputs",
        '`"elimination"`, `data=`',
        ("minilm", "feed-forward and heads −50 %", "elimination, repaired"),
    ),
    Choice(
        "Llama, widths",
        "text",
        '`"activation", names=["*mlp*"], uniform=True`, `data=`',
        ("docs llama", "feed-forward −20 %", "activation, repaired"),
    ),
    Choice(
        "Llama, 2:4",
        "text",
        '`"obs", granularity="2:4"`, `data=`',
        ("docs llama", "2:4", "obs, repaired"),
    ),
    Choice(
        "mixture of experts",
        "text",
        '`"contribution"`, `data=`',
        ("docs mixtral", "2 of 8 experts", "contribution"),
    ),
)
"""The best that was measured for each, beside what there is without data."""
NAMES = {
    "resnet20": "ResNet-20, accuracy on CIFAR-10 in %",
    "resnet56": "ResNet-56, accuracy on CIFAR-10 in %",
    "minilm": "MiniLM, correlation of similarities with the dense model's",
    "docs llama": "A Llama of 16 M parameters, perplexity (less is better)",
    "docs mixtral": "A Mixtral of 22 M parameters, perplexity (less is better)",
    "tiny darknet": "Tiny Darknet, top-1 on ImageNet classes in %",
}
LESS_IS_BETTER = ("docs llama", "docs mixtral")


def measured(name: str) -> list[Row]:
    """Return the rows of a benchmark."""
    found: list[Row] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["data"]
    return found


def choose() -> str:
    """Return the decision table: what there is, what to write, what was measured."""
    rows, trained = measured("repair"), measured("recovery")
    dense = {row["model"]: row["quality"] for row in rows if row["way"] == "dense"}
    lines = ["| model | there is | write | measured on | dense | pruned | CPU seconds |"]
    lines.append("|:---|:---|:---|:---|---:|---:|---:|")
    for choice in CHOICES:
        if isinstance(choice.rows, str):
            found = [(r["accuracy"], r["seconds"]) for r in trained if r["variant"] == choice.rows]
            model, setting = "resnet20", "50 % of MACs kept, trained"
        else:
            model, setting, _ = choice.rows
            key = choice.rows
            found = [
                (r["quality"], r["seconds"])
                for r in rows
                if (r["model"], r["setting"], r["way"]) == key
            ]
        value, seconds = (mean(each) for each in zip(*found, strict=True))
        lines.append(
            f"| {choice.family} | {choice.has} | {choice.write} | {model}: {setting} "
            f"| {dense[model]:.3g} | {value:.3g} | {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


RECIPES = {
    "attention": "a few heads",
    "bert": "faster",
    "body": "of all but the embeddings, with more text",
    "cnn": "without a loop",
    "deadline": "five minutes",
    "experts": "experts",
    "layers": "a layer",
    "llama": "without training",
    "onnx": "exported",
    "protected": "with layers protected",
    "size": "to a size of file",
    "2:4": "2:4",
}
"""Recipes of ``benchmarks.recipes``, and in a word what of a page each is."""


def expected(recipe: str) -> str:
    """Return what a recipe leaves of a real model, in a paragraph."""
    rows = [row for row in measured("recipes") if row["recipe"] == recipe]
    first = rows[0]
    value = {key: mean(r[key] for r in rows) for key in ("quality", "params", "macs", "seconds")}
    left = [f"{value['quality']:.4g}, where the dense model has {first['dense']:.4g}"]
    left.append(f"{value['params']:.0%} of its parameters and {value['macs']:.0%} of its MACs")
    if "speed" in first:
        left.append(f"{mean(row['speed'] for row in rows):.2f} times faster on one thread")
    loads = f" Loads with: {first['loads']}." if "loads" in first else ""
    clock = "seconds" if recipe == "deadline" else "seconds of processor time"
    return (
        f"**What you will get** ({RECIPES[recipe]}). {NAMES[first['model']]}; {first['does']}: "
        f"{'; '.join(left)}. It took {value['seconds']:.0f} {clock} (`benchmarks/recipes.py`, "
        f"{'one draw' if len(rows) == 1 else f'mean of {len(rows)} draws'}).{loads}\n"
    )


def gallery() -> str:
    """Return for each model what each setting left of it: without data, and at best with it."""
    rows = measured("repair")
    lines: list[str] = []
    for model, words in NAMES.items():
        own = [row for row in rows if row["model"] == model]
        (dense,) = (row["quality"] for row in own if row["way"] == "dense")
        lines += ["", f"## {words}", "", f"Dense: {dense:.4g}.", ""]
        lines += [
            "| removed | parameters | MACs | by chance or weights | best | by | CPU seconds |",
            "|:---|---:|---:|---:|---:|:---|---:|",
        ]
        for setting in dict.fromkeys(row["setting"] for row in own if row["way"] != "dense"):
            made = [row for row in own if row["setting"] == setting]
            lines.append(_row(setting, made, less=model in LESS_IS_BETTER))
    return "\n".join(lines) + "\n"


def _row(setting: str, made: list[Row], *, less: bool) -> str:
    """Return one line of the gallery."""

    def of(way: str) -> list[Row]:
        return [row for row in made if row["way"] == way]

    ways = dict.fromkeys(row["way"] for row in made)
    value = {way: mean(row["quality"] for row in of(way)) for way in ways}
    plain = [value[way] for way in ("random", "l2", "magnitude") if way in value]
    best = (min if less else max)(value, key=value.__getitem__)
    left = {key: mean(row[key] for row in of(best)) for key in ("params", "macs", "seconds")}
    beside = f"{(min if less else max)(plain):.4g}" if plain else "–"
    return (
        f"| {setting} | {left['params'] - 1:+.0%} | {left['macs'] - 1:+.0%} | {beside} "
        f"| {value[best]:.4g} | {best} | {left['seconds']:.0f} |"
    )
