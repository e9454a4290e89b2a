"""The groups of a model as a map: layers are rows, groups are lines that stop where they live."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .facts import GroupFact, Report

ROW, LANE = 22, 13
"""Height of a row and width of a lane, in pixels."""
COLOURS = 6


@dataclass(frozen=True)
class Stop:
    """Where a group lives: ``out`` its positions are made, ``into`` they are summed over."""

    row: int
    out: bool
    into: bool


@dataclass(frozen=True)
class Line:
    """One group, from its first to its last layer, in a lane that it shares with no neighbour."""

    name: str
    lane: int
    colour: int
    thick: bool
    stops: tuple[Stop, ...]

    @property
    def x(self) -> float:
        return self.lane * LANE + LANE / 2 + 1


@dataclass(frozen=True)
class Station:
    """One row: a layer with its shapes, or the heading of the block that it is in."""

    label: str
    heading: bool
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Map:
    stations: tuple[Station, ...]
    lines: tuple[Line, ...]

    @property
    def width(self) -> int:
        return LANE * (1 + max((line.lane for line in self.lines), default=0)) + 2

    @property
    def height(self) -> int:
        return ROW * len(self.stations)


def map_of(report: Report) -> Map:
    """Return the map of a report's groups."""
    stations: list[Station] = []
    rows: dict[str, int] = {}
    block = ""
    for module in dict.fromkeys(_module(t.name) for t in report.tensors):
        heading, label = _split(module)
        if heading != block:
            block = heading
            if heading:
                stations.append(Station(heading, heading=True))
        rows[module] = len(stations)
        shapes = [t for t in report.tensors if _module(t.name) == module]
        largest = max(shapes, key=lambda t: len(t.before))
        before, after = _shape(largest.before), _shape(largest.after)
        if not largest.after:
            after = "dropped"
        stations.append(Station(label, False, before, after if after != before else ""))
    lines = _lanes([(g, _stops(g, rows)) for g in report.structure.groups])
    return Map(tuple(stations), tuple(lines))


def _module(tensor: str) -> str:
    """Return the module that a tensor's name names.

    >>> _module("layer1.0.conv1.weight"), _module("scale")
    ('layer1.0.conv1', 'scale')
    """
    return tensor.rpartition(".")[0] or tensor


def _split(module: str) -> tuple[str, str]:
    """Return the block of a module and its name inside; blocks end with their first number.

    >>> _split("encoder.layer.3.attention.query"), _split("conv1"), _split("stages.0")
    (('encoder.layer.3', 'attention.query'), ('', 'conv1'), ('stages', '0'))
    """
    match = re.match(r"(.*?\.\d+(?:\.\d+)*)\.(.+)", module)
    if match:
        return match[1], match[2]
    parent, _, name = module.rpartition(".")
    return parent, name


def _shape(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


def _stops(group: GroupFact, rows: dict[str, int]) -> tuple[Stop, ...]:
    roles: dict[int, set[str]] = {}
    for each in group.slices:
        row = rows.get(_module(each.tensor))
        if row is not None and each.role != "buffer":
            roles.setdefault(row, set()).add(each.role)
    return tuple(Stop(row, "out" in r, "in" in r) for row, r in sorted(roles.items()))


def _lanes(groups: Sequence[tuple[GroupFact, tuple[Stop, ...]]]) -> list[Line]:
    """Give each group the first lane that is free along its rows; long ones keep to the right."""
    placed: list[Line] = []
    taken: list[list[tuple[int, int]]] = []
    order = sorted((g for g in groups if g[1]), key=lambda g: (-_span(g[1]), g[1][0].row))
    for number, (group, stops) in enumerate(order):
        first, last = stops[0].row, stops[-1].row
        lane = next(
            (i for i, used in enumerate(taken) if all(last < a or b < first for a, b in used)),
            len(taken),
        )
        if lane == len(taken):
            taken.append([])
        taken[lane].append((first, last))
        thick = group.kept is not None
        placed.append(Line(group.name, lane, number % COLOURS, thick, stops))
    return placed


def _span(stops: tuple[Stop, ...]) -> int:
    return stops[-1].row - stops[0].row
