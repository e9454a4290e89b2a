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

from collections.abc import Callable, Mapping
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

    def value(self, seen: Seen, granularity: Granularity, weight: Tensor) -> Any:
        """Return what a criterion gets, for the weight's rows in a granularity."""
        raise NotImplementedError


STATISTICS: dict[str, Statistic] = {}
"""Each name that a criterion may ask for.  What comes of it has the shape of ``rows``, or is a
function from rows to as many."""

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


def _seen(sums: Sums) -> Tensor:
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
        return (sums["square"] / _seen(sums)).sqrt()


@statistic
class input_mean(PerChannel):
    """Mean of what each weight multiplies."""

    def observe(self, reading: Reading) -> dict[str, Tensor]:
        return {"sum": reading.total(_sum), "seen": reading.whole()}

    def channels(self, sums: Sums) -> Tensor:
        return sums["sum"] / _seen(sums)


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
        mean = sums["sum"] / _seen(sums)
        return (sums["square"] / _seen(sums) - mean.square()).clamp(min=0)


@statistic
class input_zeros(PerChannel):
    """Share of zeros in what each weight multiplies, in [0, 1]."""

    def observe(self, reading: Reading) -> dict[str, Tensor]:
        def zeros(x: Tensor, dims: tuple[int, ...]) -> Tensor:
            return (x == 0).sum(dims).double()

        return {"zeros": reading.total(zeros), "rows": reading.count()}

    def channels(self, sums: Sums) -> Tensor:
        return sums["zeros"] / sums["rows"].clamp(min=1)[:, None]


@statistic
class input_rows(PerChannel):
    """Share of the rows that reach a weight: of an expert's, how often it is asked."""

    def observe(self, reading: Reading) -> dict[str, Tensor]:
        return {"rows": reading.count(), "seen": reading.whole()}

    def channels(self, sums: Sums) -> Tensor:
        return (sums["rows"] / _seen(sums))[:, None]


PLACES = 16
"""Of each image that a convolution's second moments are made of, at least, to rank what it reads.

Ranks need fewer than weights do: a ResNet-20 without half of its inner channels, chosen by ``obs``
and repaired, keeps 80.0 % with 16 and 80.5 with 64, on some 1,000 images, at a third of the time.
"""


class Gram(Statistic):
    """Second moments of what weights multiply together: O(features²) of memory for each input.

    A criterion gets a function from rows to rows, which multiplies what a unit reads of each input
    by a matrix of those features.
    """

    def observe(self, reading: Reading) -> dict[str, Tensor]:
        features = reading.features
        x = reading.source
        total = x.new_zeros(reading.systems, features, features, dtype=precise(features))
        rows = 0
        for where, inputs, _ in reading.chunks(places=PLACES):
            total[where] += moments(inputs, inputs, total.dtype)
            rows += inputs.shape[0] * inputs.shape[1]
        taken = reading.count().sum() / max(rows, 1)  # a convolution's chunks are a sample
        return {"gram": total * taken, "seen": reading.whole()}

    def blocks(self, gram: Tensor, together: Tensor) -> Tensor:
        """Return the matrix of each system, zero between features of different units.

        Args:
            gram: mean products of features, ``(features, features)``.
            together: bool, of the same shape: they belong to one unit.
        """
        raise NotImplementedError

    def value(
        self, seen: Seen, granularity: Granularity, weight: Tensor
    ) -> Callable[[Tensor], Tensor]:
        places = granularity.rows(torch.arange(weight.numel()).reshape(weight.shape))
        units = torch.empty(weight.numel(), dtype=torch.long)
        units[places] = torch.arange(len(places))[:, None].expand(places.shape)
        units = units.reshape(weight.shape)

        def multiplied(rows: Tensor) -> Tensor:
            given = torch.zeros(weight.numel(), dtype=torch.float64, device=rows.device)
            given[places.to(rows.device)] = rows.double()
            given = given.reshape(weight.shape)
            made = torch.zeros_like(given)
            for arrangement, sums in seen.items():
                matrices = arrangement.of(given)
                labels = arrangement.of(units)[:, 0].to(rows.device)
                found = []
                for gram, label, w in zip(sums["gram"], labels, matrices, strict=True):
                    mean = (gram / _seen(sums).to(gram)).to(w)
                    found.append(w @ self.blocks(mean, label[:, None] == label[None, :]))
                arrangement.put(made, torch.stack(found))
            return granularity.rows(made).to(rows.dtype)

        return multiplied


@statistic
class input_moments(Gram):
    """A function: rows times the second moments of what they multiply, within each unit.

    ``(rows * input_moments(rows)).sum(1)`` is the mean square of what the units add to outputs.
    """

    def blocks(self, gram: Tensor, together: Tensor) -> Tensor:
        return gram * together


@statistic
class input_inverse(Gram):
    """A function: rows times what is left of the second moments once all others make up for a unit.

    ``(rows * input_inverse(rows)).sum(1)`` is the mean square error of the outputs when a unit goes
    and the others are refitted: the inverse of its block of the inverse.
    """

    def blocks(self, gram: Tensor, together: Tensor) -> Tensor:
        damped = gram + DAMPING * gram.diagonal().mean().clamp(min=1e-30) * torch.eye(
            len(gram), dtype=gram.dtype, device=gram.device
        )
        return torch.linalg.inv(torch.linalg.inv(damped) * together)


DAMPING = 0.01
"""Of the mean diagonal, added to it before it is inverted."""


def precise(features: int) -> torch.dtype:
    """Return in what products of so many features are added up."""
    return torch.float64 if features <= 2048 else torch.float32


def moments(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``xᵀ y`` of ``(systems, rows, …)``, added up in ``dtype``.

    Large products are computed in float32, blocks of rows at a time, and added up in ``dtype``.
    """
    small = x.shape[-1] * y.shape[-1] <= 128**2
    inner = dtype if small else torch.promote_types(x.dtype, torch.float32)
    found = x.new_zeros(len(x), x.shape[-1], y.shape[-1], dtype=dtype)
    for a, b in zip(x.split(4096, 1), y.split(4096, 1), strict=True):
        found += torch.matmul(a.mT.to(inner), b.to(inner)).to(dtype)
    return found
