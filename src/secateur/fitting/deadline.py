"""How far a fit is, by steps or by the clock, and the learning rate that goes with it."""

from __future__ import annotations

import math
import time
from numbers import Real

from secateur.errors import ConfigError

WARM = 0.02
"""The share of the fit in which the learning rate rises."""


class Deadline:
    """A budget of minutes or of optimizer steps.

    Raises:
        ConfigError: both are given, or none, or no positive number.

    >>> Deadline(steps=40).progress(10)
    0.25
    """

    def __init__(self, minutes: float | None = None, steps: int | None = None) -> None:
        given = [b for b in (minutes, steps) if b is not None]
        numbers = all(isinstance(b, Real) and not isinstance(b, bool) for b in given)
        if (
            len(given) != 1
            or not numbers
            or not 0 < given[0] < math.inf
            or (steps is not None and steps % 1)
        ):
            raise ConfigError(
                f"fit() needs a budget above 0, minutes=… or steps=…; got minutes={minutes!r} and "
                f"steps={steps!r}"
            )
        self.minutes, self.steps = minutes, steps
        self.reserved = 0.0  # seconds that the last measurement will take
        self._begun = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds since the start, with those of earlier runs."""
        return time.monotonic() - self._begun

    def go_on(self, spent: float) -> None:
        """Count the seconds of earlier runs too."""
        self._begun = time.monotonic() - spent

    def progress(self, step: int) -> float:
        """Return how much of the budget is gone when so many steps were made; 1 ends it."""
        if self.steps is not None:
            return step / self.steps
        assert self.minutes is not None
        return self.spent / max(60 * self.minutes - self.reserved, 1e-9)


def rate(progress: float) -> float:
    """Return the learning rate as a share of its peak: up quickly, then down along a cosine.

    >>> rate(0.0), rate(0.02), rate(1.0)
    (0.05, 0.9990133642141358, 0.0)
    """
    up = max(min(progress / WARM, 1.0), 0.05)
    return up * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
