"""What draws the shares of trials, by name.  A new one is a function in a file of this folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from optuna.samplers import BaseSampler

from secateur.registry import Registry
from secateur.searching.space import Space

Make = Callable[[int], BaseSampler]
"""Seed of a slot → the sampler that draws for it."""
F = TypeVar("F", bound="Callable[[Setting], Make]")

samplers = Registry("sampler", takes="setting")
FRONTS: set[str] = set()
"""Those that look for the front of value against cost, and not for one best."""


@dataclass(frozen=True)
class Setting:
    """What a sampler is made for.

    Attributes:
        space: its units.
        trials: how many there will be.
        seed: of all that is drawn.
        higher: larger values are better.
        options: of this sampler.
    """

    space: Space
    trials: int
    seed: int
    higher: bool
    options: Mapping[str, Any] = field(default_factory=dict)


def sampler(*, front: bool = False) -> Callable[[F], F]:
    """Register a function from a setting to what makes samplers, under its own name."""

    def register(function: F) -> F:
        if front:
            FRONTS.add(function.__name__)
        return samplers.register(function)

    return register
