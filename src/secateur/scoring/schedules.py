"""How the goal is approached: functions from progress to the share of the goal, both in [0, 1].

Progress is ``k / K`` with k of K pruning steps done, this one included.  Every schedule ends at
exactly 1, and none ever goes back.  A share of a goal is that times the goal; of a schedule that
*compounds*, each part of the way removes the same share of what is left.
"""

from __future__ import annotations

from secateur.registry import Registry

schedules = Registry("schedule", takes="progress")
COMPOUND = {"geometric"}


def asked(schedule: str, goal: float, share: float) -> float:
    """Return the sparsity that a share of the way to a goal asks for.

    >>> asked("linear", 0.75, 0.5), asked("geometric", 0.75, 0.5)
    (0.375, 0.5)
    """
    return 1 - (1 - goal) ** share if schedule in COMPOUND and share < 1 else goal * share


@schedules.register
def constant(progress: float) -> float:
    """The whole goal from the first step on.

    >>> constant(0.1)
    1.0
    """
    return 1.0


@schedules.register
def linear(progress: float) -> float:
    """Equal parts of the goal in every step: k / K.

    >>> linear(0.25)
    0.25
    """
    return progress


@schedules.register
def cubic(progress: float) -> float:
    """Much while the network can still recover, little near the end: 1 - (1 - k / K)^3.

    >>> cubic(0.5)
    0.875

    Zhu & Gupta, 2017, arXiv:1710.01878 (AGP, automated gradual pruning)
    """
    return 1 - (1 - progress) ** 3


@schedules.register
def geometric(progress: float) -> float:
    """The same share of what is left in every step: of a goal s, 1 - (1 - s)^(k / K) is gone.

    >>> geometric(0.25), asked("geometric", 0.9375, 0.25)
    (0.25, 0.5)

    Frankle & Carbin, 2019, arXiv:1803.03635 (rounds of a lottery ticket)
    """
    return progress
