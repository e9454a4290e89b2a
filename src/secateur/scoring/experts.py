"""Criteria that rank whole experts by the tokens that a router sends to them: no labels.

An expert is a position of a group that a router chooses among; of other groups these criteria know
nothing, and select none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .arrangement import Arrangement
from .criteria import criteria
from .granularity import Granularity
from .readings import Reading
from .statistics import PerChannel, Seen, Sums, seen_of, statistic

FEW = 32
"""Tokens that an expert must have seen for their mean to say much."""


class PerExpert(PerChannel):
    """One number for each matrix of a stack."""

    def knows(self, arrangement: Arrangement, granularity: Granularity) -> bool:
        return getattr(granularity, "dim", None) in arrangement.systems

    def asked(self, seen: Seen, granularity: Granularity, weight: Tensor) -> tuple[Tensor, int]:
        """Return how many tokens each expert saw, and how many there were."""
        spread = torch.zeros(weight.shape, device=weight.device)
        most = 0.0
        for arrangement, sums in seen.items():
            arrangement.spread(sums["rows"][:, None].to(spread), spread)
            most = max(most, float(sums["seen"].max()))
        return granularity.rows(spread)[:, 0], int(most)


@statistic
class input_rows(PerExpert):
    """Share of the rows that reach a weight: of an expert's, how often it is asked."""

    def observe(self, reading: Reading) -> dict[str, Tensor]:
        return {"rows": reading.total(_asked)[:, 0], "seen": reading.whole()}

    def channels(self, sums: Sums) -> Tensor:
        return (sums["rows"] / seen_of(sums))[:, None]


class Delivered(PerExpert):
    """What an expert adds to a token, times its router's weight, wherever that is multiplied."""

    def deliver(self, reading: Reading, made: Tensor) -> dict[str, Tensor]:
        norms = torch.zeros(reading.systems, dtype=torch.float64, device=made.device)
        for systems, rows in reading.parts(made):
            norms[systems] = torch.linalg.vector_norm(rows.float(), dim=-1).double().sum(-1)
        asked = reading.total(_asked)[:, 0]
        return {"norm": norms, "rows": asked, "seen": reading.whole()}


@statistic
class delivered_norm(Delivered):
    """Mean norm of what an expert adds to a token that is routed to it, by its router's weight."""

    def channels(self, sums: Sums) -> Tensor:
        return (sums["norm"] / sums["rows"].clamp(min=1))[:, None]


@statistic
class delivered_share(Delivered):
    """The same, as a mean over all tokens: nothing is added to those that go elsewhere."""

    def channels(self, sums: Sums) -> Tensor:
        return (sums["norm"] / seen_of(sums))[:, None]


def _asked(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Count the rows that hold anything: a mixture that runs all experts gives zeros to most."""
    return (x != 0).any(-1, keepdim=True).sum(dims).double()


@criteria.register(experts=True)
def frequency(rows: Tensor, *, input_rows: Tensor) -> Tensor:
    """How often an expert is asked: the share of tokens that are routed to it.

    Args:
        rows: shape ``(experts, elements)``; weights do not matter.
        input_rows: of the same shape, in [0, 1].

    >>> frequency(torch.ones(2, 1), input_rows=torch.tensor([[0.25], [0.75]]))
    tensor([0.2500, 0.7500])
    """
    return input_rows.mean(1)


@criteria.register(experts=True)
def reap(rows: Tensor, *, delivered_norm: Tensor) -> Tensor:
    r"""Mean of :math:`g \|f(x)\|_2` over the tokens x that are routed to an expert f, by weight g.

    How seldom it is asked does not count.

    Args:
        rows: shape ``(experts, elements)``; weights do not matter.
        delivered_norm: of the same shape.

    >>> reap(torch.ones(2, 1), delivered_norm=torch.tensor([[4.0], [3.0]]))
    tensor([4., 3.])

    Lasby et al., 2025, arXiv:2510.13999
    """
    return delivered_norm.mean(1)


@criteria.register(experts=True)
def contribution(rows: Tensor, *, delivered_share: Tensor) -> Tensor:
    r"""Mean of :math:`g \|f(x)\|_2` over all tokens, 0 where a token goes to other experts.

    That is ``reap`` times ``frequency``: what the sum of all experts loses.

    Args:
        rows: shape ``(experts, elements)``; weights do not matter.
        delivered_share: of the same shape.

    >>> contribution(torch.ones(2, 1), delivered_share=torch.tensor([[0.5], [1.5]]))
    tensor([0.5000, 1.5000])
    """
    return delivered_share.mean(1)
