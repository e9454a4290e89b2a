"""What a cost is, what it is computed from, and a goal for one.

A cost is one small class in a file of this folder, under ``@cost``; its name is its class's.

>>> @cost
... class layers(Cost):
...     "Operations that multiply: a stand-in, which no cut changes."
...     words = ("layers",)
...     def of(self, count):
...         return 3.0
>>> "layers" in COSTS
True
>>> del COSTS["layers"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, TypeVar

from torch import nn

from secateur.errors import ConfigError
from secateur.graph.axes import Atom
from secateur.graph.blocks import Block
from secateur.graph.cost import human
from secateur.graph.infer import Inferred
from secateur.runtime.measure import Latency
from secateur.runtime.values import as_number
from secateur.types import Example

Count = Callable[[Atom], int]
"""How many positions of an axis are kept."""

SHARED = ("B", "bytes")
"""Units of several costs."""
LARGE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
"""Prefixes of what is counted."""


@dataclass(frozen=True)
class Subject:
    """Whose cost it is: the dense model, its example inputs, and its recorded forward.

    ``table`` is the file of measured latencies, read and added to, if one is kept.
    """

    model: nn.Module
    example: Example
    inferred: Inferred
    table: str | None = None


class Cost:
    """What a smaller model costs, for any number of positions that its groups keep.

    ``words`` are the units in which amounts of it are written, without prefixes, the usual first.
    """

    words: ClassVar[tuple[str, ...]]
    prefixes: ClassVar[Mapping[str, float]] = LARGE

    def __init__(self, subject: Subject):
        self.subject = subject

    @classmethod
    def name(cls) -> str:
        """What a config calls it."""
        return cls.__name__

    def of(self, count: Count) -> float:
        """Return the cost when each axis keeps ``count(axis)`` positions."""
        raise NotImplementedError

    def amount(self, count: Count) -> float:
        """Return the cost when each axis keeps so many positions, held to be one.

        Raises:
            ConfigError: it is no number, or a negative one.
        """
        found = self.of(count)
        if not 0 <= as_number(found) < inf:
            raise ConfigError(f"cost {self.name()!r} must return an amount, and gives {found!r}")
        return float(found)

    def of_block(self, block: Block, count: Count) -> float:
        """Return what goes with a block of which each axis keeps ``count(axis)`` positions.

        Raises:
            ConfigError: what goes with a block is not known of this cost.
        """
        known = ", ".join(n for n, k in COSTS.items() if k.of_block is not Cost.of_block)
        raise ConfigError(
            f"of={self.name()!r}: what a block that goes saves is not known of it, but of: {known}"
        )

    @classmethod
    def shown(cls, amount: float) -> str:
        """Return an amount as it is read: "1.81 G MACs"."""
        return f"{human(amount)} {cls.words[0]}"


class Timed(Cost):
    """A cost that is measured by running the model: what a table says of it is to be confirmed."""

    def time(self, models: Mapping[str, nn.Module]) -> dict[str, Latency]:
        """Measure whole models, in turns."""
        raise NotImplementedError

    def against_dense(self, model: nn.Module) -> Latency:
        """Measure a model and the dense one in turns, and return it as when that was first seen."""
        raise NotImplementedError

    def correct(self, count: Count, seconds: float) -> None:
        """Learn from what a really cut model took."""
        raise NotImplementedError

    def noise(self, count: Count) -> float:
        """Return how sure ``of`` is, in seconds."""
        raise NotImplementedError

    def told(self, found: Latency, count: Count) -> str:
        """Return how a measurement was made, its spread, and what the table lacks for it."""
        raise NotImplementedError


COSTS: dict[str, type[Cost]] = {}
"""Name → class: what ``of`` in a config may say, besides "channels"."""

C = TypeVar("C", bound=type[Cost])


def cost(kind: C) -> C:
    """Register a cost under the name of its class.

    Raises:
        ValueError: it is no subclass of ``Cost``, says not what its unit is called, or the name, or
            a unit, is taken.
    """
    given: object = kind  # whatever somebody decorates
    if not (isinstance(given, type) and issubclass(given, Cost)):
        raise ValueError(f"a cost must be a class derived from Cost, not {given!r}")
    if not getattr(kind, "words", ()) or kind.of is Cost.of:
        raise ValueError(
            f"cost {kind.name()!r} must say its unit in words, as in words = ('MACs',), and return "
            "an amount of it by of(count)"
        )
    words: Any = kind.words
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"cost {kind.name()!r}: words must be a tuple of units, not {words!r}")
    taken = {word: name for name, each in COSTS.items() for word in each.words}
    for word in kind.words:
        if taken.get(word, kind.name()) != kind.name() and word not in SHARED:
            raise ValueError(f"cost {kind.name()!r}: the unit {word!r} is of {taken[word]!r}")
    if kind.name() in COSTS:
        raise ValueError(f"cost {kind.name()!r} is registered already")
    COSTS[kind.name()] = kind
    return kind


@dataclass(frozen=True)
class Goal:
    """A cost, and what is allowed of it: ``asked`` are its own words, ``dense`` is the whole.

    ``relative`` tells that a share was asked for, no amount.
    """

    cost: Cost
    allowed: float
    dense: float
    asked: str
    relative: bool = False

    @property
    def share(self) -> float:
        """The share of the whole that is to go, 0 where it is met as it is."""
        return max(0.0, 1 - self.allowed / self.dense) if self.dense else 0.0


@dataclass(frozen=True)
class Reached:
    """What was asked of a cost, and what it is now; ``spread`` says how sure a measurement is.

    >>> print(Reached("macs", "300 M MACs", "812 M MACs", "299 M MACs", 0.632, True))
    macs: asked 300 M MACs, reached 299 M MACs of 812 M MACs (63.2% went)
    """

    of: str
    asked: str
    dense: str
    reached: str
    gone: float
    met: bool
    spread: str = ""

    def __str__(self) -> str:
        missed = "" if self.met else ", missed"
        more = f"; {self.spread}" if self.spread else ""
        return (
            f"{self.of}: asked {self.asked}, reached {self.reached} of {self.dense} "
            f"({self.gone:.1%} went{missed}{more})"
        )
