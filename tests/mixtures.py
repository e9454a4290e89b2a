"""Mixtures of experts, written in many forms: how a router chooses, and how experts run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, INNER, EXPERTS, CHOSEN = 16, 16, 6, 2
Chosen = tuple[Tensor, Tensor]


def shares_first(m: Any, logits: Tensor) -> Chosen:
    return logits.softmax(-1).topk(CHOSEN, -1)


def shares_of_the_chosen(m: Any, logits: Tensor) -> Chosen:
    best, chosen = logits.topk(CHOSEN, -1)
    return best.softmax(-1), chosen


def shares_that_sum_to_one(m: Any, logits: Tensor) -> Chosen:
    best, chosen = torch.topk(logits.float().softmax(-1), CHOSEN, dim=-1, sorted=False)
    return best / best.sum(-1, keepdim=True), chosen


def corrected(m: Any, logits: Tensor) -> Chosen:
    """A bias says who is chosen, and not with what weight."""
    scores = logits.sigmoid()
    chosen = (scores + m.correction).topk(CHOSEN, -1)[1]
    best = scores.gather(1, chosen)
    return 2.5 * best / (best.sum(-1, keepdim=True) + 1e-20), chosen


def of_the_best_groups(m: Any, logits: Tensor) -> Chosen:
    scores = logits.sigmoid()
    choice = scores + m.correction
    groups = choice.view(-1, m.groups, m.experts // m.groups).topk(2, -1)[0].sum(-1)
    mask = torch.zeros_like(groups).scatter_(1, groups.topk(1, -1, sorted=False)[1], 1)
    mask = mask.unsqueeze(-1).expand(-1, m.groups, m.experts // m.groups).reshape(-1, m.experts)
    chosen = choice.masked_fill(~mask.bool(), float("-inf")).topk(CHOSEN, -1)[1]
    return scores.gather(1, chosen), chosen


ROUTERS = {
    f.__name__: f
    for f in (
        shares_first,
        shares_of_the_chosen,
        shares_that_sum_to_one,
        corrected,
        of_the_best_groups,
    )
}


def weighted_at_once(m: Any, y: Tensor, weight: Tensor, order: Tensor) -> Tensor:
    y = y * weight.reshape(-1, 1)[order]
    return y[order.argsort()].view(-1, CHOSEN, WIDTH).sum(1)


def weighted_after_they_are_put_back(m: Any, y: Tensor, weight: Tensor, order: Tensor) -> Tensor:
    out = torch.empty_like(y)
    out[order] = y
    return (out * weight.reshape(-1, 1)).view(-1, CHOSEN, WIDTH).sum(1)


def weighted_by_token(m: Any, y: Tensor, weight: Tensor, order: Tensor) -> Tensor:
    back = torch.index_select(y, 0, order.argsort()).view(-1, CHOSEN, WIDTH)
    return torch.sum(weight[..., None] * back, dim=1)


def added_where_they_belong(m: Any, y: Tensor, weight: Tensor, order: Tensor) -> Tensor:
    y = (y * weight.flatten()[order][:, None]).to(y.dtype)
    return torch.zeros(len(weight), WIDTH, dtype=y.dtype).index_add_(0, order // CHOSEN, y)


def scaled_and_weighted(m: Any, y: Tensor, weight: Tensor, order: Tensor) -> Tensor:
    return added_where_they_belong(m, (y.float() * m.scale).clone(), weight, order)


ENDS = {
    f.__name__: f
    for f in (
        weighted_at_once,
        weighted_after_they_are_put_back,
        weighted_by_token,
        added_where_they_belong,
        scaled_and_weighted,
    )
}


class Mixture(nn.Module):
    """A router and stacked experts, in a residual block, between two linear layers."""

    def __init__(
        self,
        router: Callable[..., Chosen] = shares_first,
        end: Callable[..., Tensor] = weighted_at_once,
        config: Any = None,
    ):
        super().__init__()
        self.choose, self.end = router, end
        self.experts, self.groups = EXPERTS, 2
        self.first = nn.Linear(WIDTH, WIDTH)
        self.router = nn.Linear(WIDTH, EXPERTS, bias=router is not shares_first)
        self.up = nn.Parameter(torch.randn(EXPERTS, 2 * INNER, WIDTH) / 3)
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER))
        self.scale = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.last = nn.Linear(WIDTH, 3)
        self.register_buffer("correction", torch.randn(EXPERTS) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).reshape(-1, WIDTH)
        weight, chosen = self.choose(self, self.router(x))
        order = chosen.reshape(-1).argsort(stable=True)
        counts = torch.histc(chosen.float(), self.experts, 0, self.experts - 1)
        ends = counts.cumsum(0, dtype=torch.int32)
        gate, up = F.grouped_mm(x[order // CHOSEN], self.up.mT, offs=ends).chunk(2, -1)
        y = F.grouped_mm(F.silu(gate) * up, self.down.mT, offs=ends)
        return self.last(x + self.end(self, y, weight, order))

    @torch.no_grad()
    def asked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each expert how many tokens choose it, and the norms of what they get."""
        x = self.first(x).reshape(-1, WIDTH)
        weight, chosen = self.choose(self, self.router(x))
        count, norm = torch.zeros(self.experts), torch.zeros(self.experts)
        for token, place in torch.cartesian_prod(torch.arange(len(x)), torch.arange(CHOSEN)):
            e = chosen[token, place]
            gate, up = (self.up[e] @ x[token]).chunk(2)
            y = self.down[e] @ (F.silu(gate) * up) * weight[token, place]
            count[e] += 1
            norm[e] += (y * self.scale if self.end is scaled_and_weighted else y).norm()
        return count, norm


FORMS = [(router, "weighted_at_once") for router in ROUTERS if "groups" not in router]
FORMS += [("shares_of_the_chosen", end) for end in ENDS if end != "weighted_at_once"]
"""Each router, and each end; in groups experts are several axes."""


def mixture(router: str = "shares_first", end: str = "weighted_at_once") -> Mixture:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Mixture(ROUTERS[router], ENDS[end]).eval()


def batches(many: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 24, WIDTH, generator=generator) for _ in range(many)]
