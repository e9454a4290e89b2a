"""What criteria ask for by keyword: sums over forwards, and what becomes of them.

A statistic is one class below ``statistic``.  ``observe`` returns the sums of one reading, which
are added up over readings, batches and ranks; ``value`` makes of them what a criterion gets.  A
criterion that asks for it by its name is all that uses it:

>>> @statistic
... class input_peak(PerChannel):
...     "A stand-in for the largest input: the fourth root of the mean fourth power."
...     def observe(self, reading):
...         fourth = lambda x, dims: x.float().pow(4).sum(dims)
...         return {"fourth": reading.total(fourth), "seen": reading.whole()}
...     def channels(self, sums):
...         return (sums["fourth"] / sums["seen"]).pow(0.25)
>>> "input_peak" in STATISTICS
True
>>> del STATISTICS["input_peak"]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from .arrangement import Arrangement
from .granularity import Granularity
from .readings import Reading

Sums = Mapping[str, Tensor]
"""Name → what was added up, each with the systems first."""

Seen = Mapping[Arrangement, Sums]
"""How a parameter is read → the sums of all readings that read it so."""


class Statistic:
    """What a criterion needs to know besides the weights.

    ``source`` says where it comes from: "weights" (nothing is collected), "backward" (gradients at
    each optimizer step) or "forward" (what weights are multiplied by).
    """

    source: Literal["weights", "backward", "forward"] = "forward"

    def observe(self, reading: Reading) -> dict[str, Tensor]:
        """Return the sums of one reading, in at least float32."""
        raise NotImplementedError

    def deliver(self, reading: Reading, made: Tensor) -> dict[str, Tensor]:
        """Return the sums of what became of a reading, as it joins what others make; see
        ``Watch``."""
        raise NotImplementedError

    def knows(self, arrangement: Arrangement, granularity: Granularity) -> bool:
        """Tell whether it says something of the rows of a weight that is read so."""
        return True

    @property
    def delivers(self) -> bool:
        """Tell whether it sums what becomes of readings, and not what they multiply."""
        return type(self).deliver is not Statistic.deliver

    def value(self, seen: Seen, granularity: Granularity, weight: Tensor) -> Any:
        """Return what a criterion gets, for the weight's rows in a granularity."""
        raise NotImplementedError


STATISTICS: dict[str, Statistic] = {}
"""Each name that a criterion may ask for.  What comes of it has the shape of ``rows``, or is a
function of rows."""

S = TypeVar("S", bound=type[Statistic])


def statistic(kind: S) -> S:
    """Register a statistic under the name of its class."""
    if kind.__name__ in STATISTICS:
        raise ValueError(f"statistic {kind.__name__!r} is registered already")
    STATISTICS[kind.__name__] = kind()
    return kind


@statistic
class generator(Statistic):
    """A torch.Generator, seeded by the run."""

    source = "weights"


@statistic
class grad(Statistic):
    """The loss's gradient for the rows; scores are averaged over the steps since the last pruning
    step."""

    source = "backward"


class PerChannel(Statistic):
    """One number for each channel of what a weight multiplies: O(channels) of memory."""

    def channels(self, sums: Sums) -> Tensor:
        """Return ``(systems, channels)``."""
        raise NotImplementedError

    def value(self, seen: Seen, granularity: Granularity, weight: Tensor) -> Tensor:
        spread = torch.zeros(weight.shape, device=weight.device)
        for arrangement, sums in seen.items():
            arrangement.spread(self.channels(sums).to(spread), spread)
        return granularity.rows(spread)


def seen_of(sums: Sums) -> Tensor:
    return sums["seen"].clamp(min=1)


def _square(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.to(_at_least_float32(x)).square().sum(dims).double()  # vector_norm is slower by far


def _sum(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.sum(dims, dtype=_at_least_float32(x)).double()


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@statistic
class input_norm(PerChannel):
    """Root of the mean square of what each weight multiplies."""

    def observe(self, reading: Reading) -> dict[str, Tensor]:
        return {"square": reading.total(_square), "seen": reading.whole()}

    def channels(self, sums: Sums) -> Tensor:
        return (sums["square"] / seen_of(sums)).sqrt()


@statistic
class input_mean(PerChannel):
    """Mean of what each weight multiplies."""

    def observe(self, reading: Reading) -> dict[str, Tensor]:
        return {"sum": reading.total(_sum), "seen": reading.whole()}

    def channels(self, sums: Sums) -> Tensor:
        return sums["sum"] / seen_of(sums)


@statistic
class input_variance(PerChannel):
    """Variance of what each weight multiplies."""

    def observe(self, reading: Reading) -> dict[str, Tensor]:
        return {
            "square": reading.total(_square),
            "sum": reading.total(_sum),
            "seen": reading.whole(),
        }

    def channels(self, sums: Sums) -> Tensor:
        mean = sums["sum"] / seen_of(sums)
        return (sums["square"] / seen_of(sums) - mean.square()).clamp(min=0)


@statistic
class input_zeros(PerChannel):
    """Share of zeros in what each weight multiplies, in [0, 1]."""

    def observe(self, reading: Reading) -> dict[str, Tensor]:
        def zeros(x: Tensor, dims: tuple[int, ...]) -> Tensor:
            return (x == 0).sum(dims).double()

        return {"zeros": reading.total(zeros), "rows": reading.count()}

    def channels(self, sums: Sums) -> Tensor:
        return sums["zeros"] / sums["rows"].clamp(min=1)[:, None]
