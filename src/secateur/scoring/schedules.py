"""How the goal is approached: functions from progress to the share of the goal, both in [0, 1].

Progress is ``k / K`` with k of K pruning steps done, this one included.  Every schedule ends at
exactly 1, and none ever goes back.
"""

from __future__ import annotations

from secateur.registry import Registry

schedules = Registry("schedule")


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
