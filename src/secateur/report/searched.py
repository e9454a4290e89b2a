"""What a search tried, as facts, and where its trials lie in a picture of value against cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from secateur.searching import Search

from .fact import Count, Fact

Finite = Annotated[float, Field(allow_inf_nan=False)]
MOST_DRAWN = 1000
"""Trials of a picture, those of the front and the last ones: more cannot be told apart."""


class TrialFact(Fact):
    """One trial: its place in the search, its value, and what was left of the cost."""

    slot: Count
    value: Finite
    cost: Finite
    stopped: bool = False


class SearchFacts(Fact):
    """A search: what its costs are of, its trials, and which of them are the best."""

    of: str
    higher: bool
    fronts: bool
    best: Count
    front: tuple[Count, ...]
    trials: tuple[TrialFact, ...]


def search_facts(search: Search) -> SearchFacts:
    """Return a search as plain data; values that are infinite are left out."""
    trials = tuple(
        TrialFact(slot=t.slot, value=t.value, cost=t.cost, stopped=t.stopped)
        for t in search.trials
        if abs(t.value) != float("inf")
    )
    return SearchFacts(
        of=search.of,
        higher=search.higher,
        fronts=search.fronts,
        best=search.best.slot,
        front=tuple(trial.slot for trial in search.front),
        trials=trials,
    )


@dataclass(frozen=True)
class Point:
    """A trial in a box of 100 × 100, and what is said where somebody points at it."""

    x: float
    y: float
    kind: str
    text: str


@dataclass(frozen=True)
class Front:
    """A picture of value against cost: its points, the steps of the front, and its scales."""

    points: tuple[Point, ...]
    path: str
    low: str
    high: str
    cheapest: str
    dearest: str


def front(facts: SearchFacts) -> Front | None:
    """Return the picture of a search, None where it has fewer than two trials."""
    members = set(facts.front)
    last = facts.trials[-MOST_DRAWN:]
    shown = [t for t in facts.trials[:-MOST_DRAWN] if t.slot in members] + list(last)
    if len(shown) < 2:
        return None
    across, up = _scale([t.cost for t in shown]), _scale([t.value for t in shown])
    points, steps = list[Point](), list[str]()
    for trial in sorted(shown, key=lambda t: (t.cost, t.slot)):
        x, y = across(trial.cost), 100 - up(trial.value)
        kind = "front" if trial.slot in members else "stopped" if trial.stopped else "tried"
        kind = "best" if trial.slot == facts.best else kind
        text = f"trial {trial.slot}: {trial.value:.5g} at {trial.cost:.1%} of {facts.of}"
        points.append(Point(x, y, kind, text))
        if trial.slot in members:
            steps.append(f"H{x:.2f}V{y:.2f}" if steps else f"M{x:.2f} {y:.2f}")
    costs, values = [t.cost for t in shown], [t.value for t in shown]
    ends = f"{min(values):.4g}", f"{max(values):.4g}", f"{min(costs):.1%}", f"{max(costs):.1%}"
    return Front(tuple(points), "".join(steps), *ends)


def _scale(values: list[float]) -> Callable[[float], float]:
    """Return a function from values to places between 4 and 96; one value is in the middle."""
    low, high = min(values), max(values)
    return lambda value: 4 + 92 * ((value - low) / (high - low)) if high > low else 50.0
