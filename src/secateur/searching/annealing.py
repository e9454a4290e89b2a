"""Simulated annealing over shares: a walk that takes worse steps while it is hot.

All of it is values in, values out: who searches evaluates, and keeps the walk.  The algorithm is
that of NNI 2's ``SimulatedAnnealingPruner``, after Kirkpatrick et al., 1983.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from random import Random

from .ranges import check

MOST_TRIES = 10_000
"""Of drawing shares until they meet a goal; then there are none that do."""


@dataclass(frozen=True)
class Walk:
    """Where annealing stands: the shares it went to last, their score, and how hot it is."""

    shares: tuple[float, ...]
    score: float
    temperature: float


@dataclass(frozen=True)
class Annealing:
    """How far steps go, which are taken, and how fast it cools.

    Attributes:
        start_temperature: of the first step.
        stop_temperature: below it nothing is taken any more.
        cool_down_rate: what an accepted step multiplies the temperature by.
        perturbation_magnitude: the most that a share changes in the first step.
        score_scale: a score that is lower by this is accepted with probability 1/e at the start
            temperature.  NNI's own walk has the start temperature here, which suits scores in %;
            with accuracies in [0, 1] it accepts everything.
    """

    start_temperature: float = 100.0
    stop_temperature: float = 20.0
    cool_down_rate: float = 0.9
    perturbation_magnitude: float = 0.35
    score_scale: float = 100.0

    def __post_init__(self) -> None:
        check(
            self,
            positive=("start_temperature", "stop_temperature", "score_scale"),
            shares=("cool_down_rate", "perturbation_magnitude"),
        )

    def magnitude(self, temperature: float) -> float:
        """Return the most that a share changes in a step."""
        return temperature / self.start_temperature * self.perturbation_magnitude

    def probability(self, loss: float, temperature: float) -> float:
        """Return how likely a step is taken that makes the score lower by ``loss``.

        >>> round(Annealing(score_scale=0.1).probability(0.1, temperature=100.0), 3)
        0.368
        """
        if loss < 0:
            return 1.0
        return exp(-loss / self.score_scale * self.start_temperature / temperature)

    def begun(self, shares: Sequence[float], score: float) -> Walk:
        """Return the walk after the first evaluation, which is accepted whatever it says."""
        return Walk(tuple(shares), score, self.start_temperature)

    def judged(self, walk: Walk, shares: Sequence[float], score: float, draw: float) -> Walk:
        """Return the walk after a step was evaluated: gone on and cooled, or as it was.

        Args:
            walk: where it stands.
            shares: where the step led to.
            score: of these shares; higher is better.
            draw: a random number in [0, 1).
        """
        if draw >= self.probability(walk.score - score, walk.temperature):
            return walk
        return Walk(tuple(shares), score, walk.temperature * self.cool_down_rate)

    def over(self, walk: Walk) -> bool:
        """Tell whether it is too cold to go on."""
        return walk.temperature < self.stop_temperature

    def step(self, walk: Walk, random: Random) -> list[float]:
        """Return the shares that are tried next, before they are made to meet a goal."""
        most = self.magnitude(walk.temperature)
        return [max(0.0, share + random.uniform(-most, most)) for share in walk.shares]


def rescaled(
    shares: Sequence[float],
    sizes: Sequence[int],
    goal: float,
    most: Sequence[float] | None = None,
) -> list[float] | None:
    """Return shares of layers in their order that remove ``goal`` of all weights, or None.

    The largest layer gets the largest share, where its bound allows.  None where a share would not
    be in [0, 1), or nothing would go.

    Args:
        shares: one for each layer, in any order.
        sizes: the weights of each layer.
        goal: the share of all weights to remove, in [0, 1).
        most: the share that each layer may lose; what is above goes from the others.

    >>> rescaled([0.6, 0.3], [100, 300], 0.5)
    [0.285714..., 0.571428...]
    >>> rescaled([0.9, 0.0], [100, 300], 0.9) is None
    True
    >>> rescaled([0.6, 0.3], [100, 300], 0.5, most=[0.52, 0.52])
    [0.44..., 0.52]
    """
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    paired = dict(zip(order, sorted(shares), strict=True))
    removed = sum(int(sizes[i] * share) for i, share in paired.items())
    if removed == 0:
        return [0.0] * len(sizes) if goal == 0 else None
    found = [paired[i] * goal * sum(sizes) / removed for i in range(len(sizes))]
    if most is not None:
        found = _capped(found, sizes, goal, most)
    return found if min(found) >= 0 and max(found) < 1 else None


def _capped(
    shares: Sequence[float], sizes: Sequence[int], goal: float, most: Sequence[float]
) -> list[float]:
    """Return shares within their bounds; the others come as much nearer to theirs as is missing."""
    found = [min(share, bound) for share, bound in zip(shares, most, strict=True)]
    room = [bound - share for share, bound in zip(found, most, strict=True)]
    missing = goal * sum(sizes) - sum(n * share for n, share in zip(sizes, found, strict=True))
    free = sum(n * share for n, share in zip(sizes, room, strict=True))
    nearer = min(1.0, max(0.0, missing) / free) if free > 0 else 0.0
    return [share + nearer * left for share, left in zip(found, room, strict=True)]


def first_shares(
    sizes: Sequence[int], goal: float, random: Random, most: Sequence[float] | None = None
) -> list[float]:
    """Return random shares that remove ``goal`` of all weights; ever nearer to equal ones.

    Raises:
        ValueError: there are none.
    """
    low = 0.0
    for _ in range(MOST_TRIES):
        low += 0.05 * (1 - low)
        drawn = [random.uniform(low, 1) for _ in sizes]
        if (found := rescaled(drawn, sizes, goal, most)) is not None:
            return found
    raise ValueError(f"no shares in [0, 1) remove {goal:.1%} of layers of {list(sizes)} weights")


def next_shares(
    annealing: Annealing,
    walk: Walk,
    sizes: Sequence[int],
    goal: float,
    random: Random,
    most: Sequence[float] | None = None,
) -> list[float]:
    """Return the shares that are tried next, which remove ``goal`` of all weights.

    Raises:
        ValueError: none near the walk do.
    """
    for _ in range(MOST_TRIES):
        found = rescaled(annealing.step(walk, random), sizes, goal, most)
        if found is not None:
            return found
    raise ValueError(f"no shares near {list(walk.shares)} remove {goal:.1%} of all weights")
