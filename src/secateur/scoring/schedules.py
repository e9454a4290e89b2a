"""How the goal is approached: functions from progress to the share of the goal, both in [0, 1].

Progress is ``k / K`` with k of K pruning steps done, this one included.  Every schedule ends at
exactly 1, and none ever goes back.  A share of a goal is that times the goal; of a schedule that
*compounds*, each part of the way removes the same share of what is left.
"""

from __future__ import annotations

from secateur.registry import Registry
from secateur.runtime.values import as_number

schedules = Registry("schedule", takes="progress")
COMPOUND = {"geometric"}
LOOKED_AT = 256
"""Of more steps, so many are looked at before a run begins."""
ROUNDING = 1e-6


def problem(schedule: str, steps: int) -> str:
    """Say how a schedule does not lead to the goal, or goes back on its way; nothing if it does.

    >>> problem("cubic", 10)
    ''
    """
    name, parts, before = f"schedule {schedule!r} must", min(steps, LOOKED_AT), 0.0
    for k in range(1, parts + 1):
        given = schedules[schedule](k / parts)
        share, where = as_number(given), f"at progress {k / parts:.3g}"
        if not -ROUNDING <= share <= 1 + ROUNDING:
            return f"{name} return shares of the goal, from 0 to 1; {where} it gives {given!r}."
        if share < before - ROUNDING:
            return f"{name} never fall; {where} it goes from {before:.3g} to {share:.3g}."
        before = share
    if before < 1 - ROUNDING:
        return f"{name} end at 1; it ends at {before:.3g}, so that the goal would not be met."
    return ""


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
