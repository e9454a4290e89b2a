"""Figures of the documentation: inline SVG in the theme's colours, from ``benchmarks/results``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from math import ceil, floor, log
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"

Row = Mapping[str, Any]


def cifar_figure(pruner: str) -> str:
    """Return accuracy against ratio on CIFAR-10, with one pruner in the foreground, as SVG."""
    rows = json.loads((RESULTS / "cifar.json").read_text())["data"]["pruned"]
    rows = [r for r in rows if r["model"] == "resnet20" and r["images"] == "lossless"]
    left, top, width, height = 52, 16, 520, 210

    def at(ratio: float, accuracy: float) -> str:
        return f"{left + width * ratio / 0.8:.1f} {top + height * (1 - accuracy / 100):.1f}"

    parts = [
        f'<text x="{left - 8}" y="{top + height * (1 - y / 100) + 4:.0f}" text-anchor="end" '
        f'class="soft">{y}</text><path class="line" opacity=".35" '
        f'd="M{at(0, y)}L{at(0.8, y)}"/>'
        for y in (0, 25, 50, 75, 100)
    ]
    parts += [
        f'<text x="{left + width * x / 0.8:.0f}" y="{top + height + 18}" text-anchor="middle" '
        f'class="soft">{x:.0%}</text>'
        for x in (0.1, 0.3, 0.5, 0.7)
    ]
    for name in sorted({r["pruner"] for r in rows}, key=lambda n: n == pruner):
        points = sorted((r["ratio"], r["completed"]) for r in rows if r["pruner"] == name)
        line = "L".join(at(*point) for point in points)
        style = 'class="a"' if name == pruner else 'class="line" opacity=".5"'
        parts.append(f'<path {style} d="M{line}"><title>{name}</title></path>')
        for ratio, accuracy in points if name == pruner else ():
            x, y = at(ratio, accuracy).split()
            parts.append(
                f'<circle class="fa" cx="{x}" cy="{y}" r="4"/>'
                f'<text x="{float(x) + 8:.1f}" y="{float(y) - 8:.1f}">{accuracy:.1f} %</text>'
            )
    return drawing(
        (left + width + 70, top + height + 30),
        f"accuracy against sparsity, {pruner}",
        parts,
        "CIFAR-10 accuracy of ResNet-20 in one shot, without fine-tuning, against the "
        "sparsity of each layer; in grey the other three. Measured by benchmarks/cifar.py.",
    )


def methods_figure(highlight: str) -> str:
    """Return accuracy at half the MACs of every method, with one in the foreground, as SVG."""
    rows = longest("methods", "model")
    found = accuracies(rows, "method")
    ticks = even(found.values())
    left, top, width, step = 160, 8, 390, 24
    bottom = top + step * len(found)

    def x(accuracy: float) -> float:
        return round(left + width * (accuracy - ticks[0]) / (ticks[-1] - ticks[0]), 1)

    parts = [
        f'<path class="line" opacity=".35" d="M{x(tick)} {top}V{bottom}"/>'
        f'<text x="{x(tick)}" y="{bottom + 18}" text-anchor="middle" class="soft">{tick:g}</text>'
        for tick in ticks
    ]
    for number, (name, own) in enumerate(sorted(found.items(), key=lambda each: -mean(each[1]))):
        y = top + step * number + step // 2
        front = re.split("[ ,]", name.removeprefix("tp "))[0] == highlight
        colour = "b" if name.startswith("tp ") else "a"
        weight = ' font-weight="600"' if front else ""
        low, high = map(x, interval(own))
        parts.append(
            f'<path class="{colour if front else "line"}" d="M{low} {y}H{high}"/>'
            f'<circle class="{"f" + colour if front else "soft"}" cx="{x(mean(own))}" cy="{y}" '
            f'r="4.5"/><text x="{left - 14}" y="{y + 4}" text-anchor="end"{weight}>'
            f"{name.replace('tp ', 'Torch-Pruning: ')}</text>"
            f'<text x="{left + width + 14}" y="{y + 4}"{weight}>{shown(own)}</text>'
        )
    return drawing(
        (left + width + 100, bottom + 26),
        f"accuracy of every method at half the MACs, {highlight}",
        parts,
        f"CIFAR-10 accuracy in percent of {rows[0]['model'].replace('resnet', 'ResNet-')}, cut to "
        f"at most half of its MACs and trained for {rows[0]['steps']:,} steps in all; "
        f"{seeds(found.values())}. Measured by benchmarks/methods.py.",
    )


def movement_figure() -> str:
    """Return accuracy on SST-2 against the share of the weights that is kept, as SVG."""
    rows = longest("movement", "layers", "batch", taught=False, half=False)
    rows = [row for row in rows if row["method"] in ("dense", "movement", "magnitude")]
    found = accuracies(rows, "method", "kept")
    dense = [row["accuracy"] for row in rows if row["method"] == "dense"]
    kept = sorted({share for method, share in found if method != "dense"})
    ticks = even(found.values())
    left, top, width, height = 44, 36, 500, 220

    def x(share: float) -> float:  # a logarithmic axis
        return round(left + width * (1 - log(share) / log(kept[0] / 1.5)), 1)

    def y(accuracy: float) -> float:
        return round(top + height * (ticks[-1] - accuracy) / (ticks[-1] - ticks[0]), 1)

    parts = [
        f'<text x="{left - 10}" y="{y(tick) + 4}" text-anchor="end" class="soft">{tick:g}</text>'
        f'<path class="line" opacity=".35" d="M{left} {y(tick)}h{width}"/>'
        for tick in ticks
    ] + [
        f'<text x="{x(share)}" y="{top + height + 34}" text-anchor="middle" class="soft">'
        f"{share:.0%}</text>"
        for share in kept
    ]
    if dense:
        parts.append(
            f'<path class="line" stroke-dasharray="6 4" d="M{left} {y(mean(dense))}h{width}"/>'
            f'<text x="{left + width + 8}" y="{y(mean(dense)) + 4}">dense {shown(dense)}</text>'
        )
    for colour, method, at in (("a", "movement", left), ("b", "magnitude", left + 120)):
        curve = {share: found[method, share] for share in kept if (method, share) in found}
        if not curve:
            continue
        line = "L".join(f"{x(share)} {y(mean(own))}" for share, own in curve.items())
        parts.append(
            f'<path class="{colour}" d="M{at} 12h24"/><text x="{at + 32}" y="16">{method}</text>'
            f'<path class="{colour}" d="M{line}"/>'
        )
        for share, own in curve.items():
            low, high = map(y, interval(own))
            best = max(mean(found[each]) for each in found if each[1] == share) == mean(own)
            parts.append(
                f'<path class="{colour}" style="stroke-width:1.5" d="M{x(share)} {low}V{high}"/>'
                f'<circle class="f{colour}" cx="{x(share)}" cy="{y(mean(own))}" r="4.5"/>'
                f'<text x="{x(share)}" y="{high - 9 if best else low + 19}" text-anchor="middle" '
                f'class="over">{shown(own)}</text>'
            )
    return drawing(
        (left + width + 132, top + height + 42),
        "accuracy on SST-2 against the share kept, movement and magnitude",
        parts,
        f"Accuracy in percent on SST-2's dev set of the first {rows[0]['layers']} layers of "
        "all-MiniLM-L6-v2, against the share of the encoder's weights that is kept, after "
        f"{rows[0]['steps']:,} steps of fine-tuning; {seeds(found.values())}. Measured by "
        "benchmarks/movement.py.",
    )


def longest(name: str, *keys: str, **wanted: object) -> list[Row]:
    """Return the rows of a benchmark with the most steps, all of one value of each key.

    Rows that say something else than what is wanted do not count.
    """
    every = json.loads((RESULTS / f"{name}.json").read_text())["data"]
    rows = [r for r in every if all(r.get(k, value) == value for k, value in wanted.items())]
    most = max([row["steps"], *(row.get(key, 0) for key in keys)] for row in rows)
    return [row for row in rows if [row["steps"], *(row.get(key, 0) for key in keys)] == most]


def accuracies(rows: Sequence[Row], *keys: str) -> dict[Any, list[float]]:
    """Return the accuracies of all seeds by the value of a key, or of several."""
    found: dict[Any, list[float]] = {}
    for row in rows:
        value = row[keys[0]] if len(keys) == 1 else tuple(row[key] for key in keys)
        found.setdefault(value, []).append(row["accuracy"])
    return dict(sorted(found.items()))


def interval(found: Sequence[float]) -> tuple[float, float]:
    """Return mean - and + standard deviation, which one figure has none of."""
    spread = stdev(found) if len(found) > 1 else 0.0
    return mean(found) - spread, mean(found) + spread


def shown(found: Sequence[float]) -> str:
    """Return mean ± standard deviation as text."""
    return f"{mean(found):.1f}" + (f" ± {stdev(found):.1f}" if len(found) > 1 else "")


def seeds(groups: Iterable[Sequence[float]]) -> str:
    """Return how many runs each figure comes from.

    >>> seeds([[1.0]]), seeds([[1.0], [1.0, 2.0]])
    ('one seed', 'mean ± standard deviation of 1 to 2 seeds')
    """
    counts = {len(group) for group in groups}
    low, high = min(counts), max(counts)
    if high == 1:
        return "one seed"
    return f"mean ± standard deviation of {high if low == high else f'{low} to {high}'} seeds"


def even(groups: Iterable[Sequence[float]]) -> list[float]:
    """Return even numbers from below to above all intervals, at most eight.

    >>> even([[86.3, 88.1], [91.9]])
    [85, 86, 87, 88, 89, 90, 91, 92]
    """
    bounds = [bound for group in groups for bound in interval(group)]
    for step in (1, 2, 5, 10, 20):
        first, last = floor(min(bounds) / step), max(ceil(max(bounds) / step), 1)
        if last - first < 8:
            break
    return [step * number for number in range(first, max(last, first + 1) + 1)]


def drawing(size: tuple[int, int], label: str, parts: Sequence[str], caption: str) -> str:
    """Return an SVG of a size with a caption, as a figure in a page."""
    body = "\n".join(parts)
    return (
        f'<figure class="drawing"><svg viewBox="0 0 {size[0]} {size[1]}" role="img" '
        f'aria-label="{label}">\n{body}\n</svg>\n<figcaption>{caption}</figcaption></figure>\n'
    )
