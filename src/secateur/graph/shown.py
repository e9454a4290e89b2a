"""What a person reads of groups and blocks: those of layers that are alike are one row."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .axes import Atom, Axis, Concat, Product, find, parts_of
from .groups import Group, Member
from .typing import Typed

T = TypeVar("T")
MOST = 4
"""Modules that one row names."""


@dataclass(frozen=True)
class Alike:
    """Things that differ by numbers in their names alone.

    ``name`` has a star where those numbers differ, as a pattern has.
    """

    name: str
    count: int

    def __str__(self) -> str:
        return f"{self.name} ×{self.count}" if self.count > 1 else self.name


def alike(
    things: Iterable[T], name: Callable[[T], str], same: Callable[[T], Hashable]
) -> list[tuple[Alike, T]]:
    """Return things in their order, those of one kind once, with the first of each.

    Args:
        things: anything with names.
        name: of one.
        same: what else must be equal of those of one kind.

    >>> layers = ["stem", "layers.0.fc", "layers.0.out", "layers.1.fc", "layers.1.out"]
    >>> [str(kind) for kind, _ in alike(layers, str, lambda _: None)]
    ['stem', 'layers.*.fc ×2', 'layers.*.out ×2']
    """
    found: dict[Hashable, list[T]] = {}
    for thing in things:
        found.setdefault((_unnumbered(name(thing)), same(thing)), []).append(thing)
    return [(Alike(_pattern(list(map(name, kind))), len(kind)), kind[0]) for kind in found.values()]


def starred(text: str) -> str:
    """Return a text with stars for the numbers of layers in its dotted names, and for no others.

    >>> starred("12 wide (code in net.py:7), as many as 'layers.0.fc' and layers.0")
    "12 wide (code in net.py:7), as many as 'layers.*.fc' and layers.*"
    """
    return re.sub(r"(?<=[A-Za-z_\]*]\.)\d+(?![\w:])|(?<![\w.:])\d+(?=\.[A-Za-z_])", "*", text)


def _unnumbered(name: str) -> str:
    """Return a name without the numbers between its dots: ``conv1`` and ``conv2`` are no kind."""
    return ".".join("#" if part.isdecimal() else part for part in name.split("."))


def _pattern(names: Sequence[str]) -> str:
    split = [name.split(".") for name in names]
    return ".".join(p[0] if len(set(p)) == 1 else "*" for p in zip(*split, strict=True))


def together(group: Group) -> str:
    """Say which sides of which modules go with each position: ``gate out, up out, down in``."""
    weighted = {_module(m) for m in group.members if m.role != "buffer"}
    members = [m for m in group.members if m.role != "buffer" or _module(m) not in weighted]
    sides = dict.fromkeys(map(_side, members))
    said = ", ".join([*sides][:MOST])
    return f"{said} and {len(sides) - MOST} more" if len(sides) > MOST else said


def _module(member: Member) -> str:
    return member.tensor.rpartition(".")[0]


def _side(member: Member) -> str:
    module, last = _module(member).rpartition(".")[2], member.tensor.rpartition(".")[2]
    return last if member.role == "buffer" or not module else f"{module} {member.role}"


def factors(group: Group, typed: Typed) -> str:
    """Say which factor of a dimension a group is, in brackets, or nothing where it is all of it.

    Args:
        group: what is told of.
        typed: of the tensor of its first member.
    """
    axis = find(typed[group.members[0].dim].axis)
    return "" if axis is group.atom else _form(axis, group.atom)


def _form(axis: Axis, atom: Atom) -> str:
    axis = find(axis)
    if not isinstance(axis, Product | Concat):
        return f"[{axis.size}]" if axis is atom else str(axis.size)
    inner = [_form(part, atom) for part in parts_of(axis)]
    if isinstance(axis, Product):
        return " × ".join(inner)
    return "(" + " + ".join(inner) + ")"
