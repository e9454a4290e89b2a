"""The numbers and shapes that a report draws: pure functions from facts to what is placed where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10

from secateur.graph.cost import human
from secateur.runtime.measure import figure

from .facts import GroupFact, Report
from .repaired import RepairFacts

MOST_PIECES = 160
"""Of one strip: more pieces than this cannot be told apart on a screen, and swell the page."""


@dataclass(frozen=True)
class Measure:
    """One figure of both models, as it is written; ``share`` is after ÷ before."""

    label: str
    before: str
    after: str
    change: str
    share: float
    better: bool


def change(before: float, after: float) -> str:
    """Return how much a figure changed, with a true minus sign.

    >>> change(200, 150), change(0, 0), change(64, 64)
    ('−25 %', '', '0 %')
    """
    if not before:
        return ""
    percent = round(100 * (after / before - 1))
    return f"{'−' if percent < 0 else '+' if percent else ''}{abs(percent)} %"


def measures(report: Report) -> list[Measure]:
    """Return the figures that are known of both models, those that people ask for first."""
    before, after = report.before, report.after
    found = [
        _scores(name, before.scores[name], after.scores[name])
        for name in before.scores
        if name in after.scores
    ]
    for label, old, new, unit in (
        ("MACs", before.macs, after.macs, ""),
        ("parameters", before.params, after.params, ""),
        ("weights", before.state_bytes, after.state_bytes, "B"),
        ("peak activations", before.peak_bytes, after.peak_bytes, "B"),
    ):
        words = human(old) + unit, human(new) + unit
        found.append(Measure(label, *words, change(old, new), _share(old, new), new <= old))
    if before.latency and after.latency:
        slow, fast = before.latency.median, after.latency.median
        words = f"{figure(slow)} ms", f"{figure(fast)} ms"
        found.append(
            Measure("latency", *words, change(slow, fast), _share(slow, fast), fast <= slow)
        )
    return found


def _scores(name: str, before: float, after: float) -> Measure:
    points = round(after - before, 2)
    sign = "−" if points < 0 else "+" if points else ""
    return Measure(
        name, f"{before:.2f}", f"{after:.2f}", f"{sign}{abs(points):.2f}", 1.0, points >= 0
    )


def _share(before: float, after: float) -> float:
    return after / before if before else 1.0


def headline(report: Report) -> str:
    """Return the outcome in one sentence."""
    macs = _share(report.before.macs, report.after.macs)
    params = _share(report.before.params, report.after.params)
    said = f"{macs:.0%} of the MACs and {params:.0%} of the parameters are left."
    if report.before.latency and report.after.latency:
        said += f" One forward is {report.after.latency.beside(report.before.latency)}."
    return said.replace("%", " %")


def strip(group: GroupFact) -> list[tuple[float, float, float]]:
    """Return where a group's kept positions lie: (start, width, density), all shares of 1.

    >>> from types import SimpleNamespace
    >>> strip(SimpleNamespace(size=4, kept=((0, 1), (3, 3))))
    [(0.0, 0.5, 1.0), (0.75, 0.25, 1.0)]
    """
    ranges = ((0, group.size - 1),) if group.kept is None else group.kept
    if len(ranges) <= MOST_PIECES:
        n = group.size
        return [(first / n, (last - first + 1) / n, 1.0) for first, last in ranges]
    counts = [0] * MOST_PIECES
    for first, last in ranges:
        for i in range(first * MOST_PIECES // group.size, last * MOST_PIECES // group.size + 1):
            start, end = (-(-k * group.size // MOST_PIECES) for k in (i, i + 1))
            counts[i] += min(last + 1, end) - max(first, start)
    full = group.size / MOST_PIECES
    pieces = enumerate(counts)
    return [(i / MOST_PIECES, 1 / MOST_PIECES, min(1.0, c / full)) for i, c in pieces if c]


@dataclass(frozen=True)
class Curve:
    """One quantity over steps, in a box of 100 by 100 with y downwards."""

    name: str
    points: tuple[tuple[float, float], ...]
    low: str
    high: str
    last: str
    first_step: str
    last_step: str

    @property
    def path(self) -> str:
        return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in self.points)


def curves(history: Sequence[dict[str, float]]) -> list[Curve]:
    """Return a curve for each quantity that was recorded with "step" at least twice."""
    names = dict.fromkeys(name for row in history for name in row if name != "step")
    found = []
    for name in names:
        rows = [(row["step"], row[name]) for row in history if name in row and "step" in row]
        if len(rows) < 2:
            continue
        steps, values = [x for x, _ in rows], [y for _, y in rows]
        low, high = min(values), max(values)
        if name == "sparsity":
            low, high = 0.0, 1.0
        span = (high - low) or 1.0
        width = (steps[-1] - steps[0]) or 1.0
        points = tuple((100 * (x - steps[0]) / width, 96 - 92 * (y - low) / span) for x, y in rows)
        ends = [f"{value:.3g}" for value in (low, high, values[-1], steps[0], steps[-1])]
        found.append(Curve(name, points, *ends))
    return found


@dataclass(frozen=True)
class Spread:
    """A latency on a common scale from 0: shares of the longest, in %."""

    name: str
    low: float
    median: float
    high: float
    text: str


def spreads(report: Report) -> list[Spread]:
    """Return both latencies with their middle half, or nothing where one is not known."""
    before, after = report.before.latency, report.after.latency
    if before is None or after is None:
        return []
    known = [("before", before), ("after", after)]
    longest = max(before.high, after.high)
    return [
        Spread(
            name,
            100 * each.low / longest,
            100 * each.median / longest,
            100 * each.high / longest,
            str(each),
        )
        for name, each in known
    ]


@dataclass(frozen=True)
class Refitted:
    """Errors of a reader before and after, in % of the widest, and as they are written."""

    name: str
    before: float
    after: float
    text: tuple[str, str]
    why: str


def refitted(repair: RepairFacts) -> list[Refitted]:
    """Return the readers whose errors were measured, in the order in which they run."""
    known = [
        (each, each.before, each.after)
        for each in repair.refits
        if each.before is not None and each.after is not None
    ]
    widest = max((max(before, after) for _, before, after in known), default=0.0) or 1.0
    return [
        Refitted(
            each.tensor,
            100 * before / widest,
            100 * after / widest,
            (percent(before), percent(after)),
            each.why,
        )
        for each, before, after in known
    ]


def percent(share: float) -> str:
    """Return a share of 1 in %, with as many digits as can matter.

    >>> percent(0.4237), percent(0.0424), percent(0.00001), percent(0.0)
    ('42 %', '4.2 %', '< 0.1 %', '0 %')
    """
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.{1 if 0 < share < 0.1 else 0}f} %"


def quality(repair: RepairFacts) -> str:
    """Return how far the whole model's outputs are from the dense model's, in one sentence."""
    before, after = repair.before, repair.after
    if before.error is None or after.error is None:
        return "No batch was left over to measure the whole model on."
    said = (
        f"On inputs that were held out, the model's outputs are off by {percent(after.error)} of "
        f"their spread; without the repair it was {percent(before.error)}."
    )
    if before.kl is not None and after.kl is not None:
        said += f" Predictions diverge by {after.kl:.3g} nats in the mean, from {before.kl:.3g}."
    return said


def decade(value: float) -> float:
    """Return where a relative difference lies between 1e-10 and 1, in %.

    >>> decade(1e-5), decade(0.0), decade(10.0)
    (50.0, 0.0, 100.0)
    """
    return min(100.0, max(0.0, 10 * (log10(value) + 10))) if value > 0 else 0.0
