"""Multiply-accumulates: every contraction counts what the same sum of products counts in a loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from secateur import analyze, prune
from tests.graph.rules.harness import Net

X, Y, V = torch.randn(6, 8), torch.randn(8, 5), torch.randn(8)
STACK = torch.randn(3, 8, 16)
ENDS = torch.tensor([1, 4, 6], dtype=torch.int32)
ROWS = torch.randn(6, 8)


def by_expert() -> list[Tensor]:
    return [ROWS[a:b] @ STACK[e] for e, (a, b) in enumerate([(0, 1), (1, 4), (4, 6)])]


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1) @ v


Q, K = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4)

# an operation, and the same products in operations that torch's own counter knows
SAME: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "mv": (lambda: torch.mv(X, V), lambda: X @ V[:, None]),
    "addmv": (lambda: torch.addmv(X[:, 0], X, V), lambda: X @ V[:, None]),
    "dot": (lambda: torch.dot(V, V), lambda: V[None] @ V[:, None]),
    "addmm-in-place": (lambda: torch.zeros(6, 5).addmm_(X, Y), lambda: X @ Y),
    "addbmm": (
        lambda: torch.addbmm(torch.zeros(5, 5), Q[0], Q[0].mT),
        lambda: torch.bmm(Q[0], Q[0].mT),
    ),
    "grouped_mm": (lambda: F.grouped_mm(ROWS, STACK, offs=ENDS), by_expert),
    "attention": (
        lambda: F.scaled_dot_product_attention(Q, K, K),
        lambda: plain_attention(Q, K, K),
    ),
    "attention-masked": (
        lambda: F.scaled_dot_product_attention(Q, K, K, attn_mask=torch.ones(5, 7).bool()),
        lambda: plain_attention(Q, K, K),
    ),
    "einsum": (
        lambda: torch.einsum("nhqd,nhkd->nhqk", Q, K),
        lambda: torch.bmm(Q.flatten(0, 1), K.flatten(0, 1).mT),
    ),
    "conv_tbc": (
        lambda: torch.conv_tbc(torch.randn(9, 2, 8), torch.randn(3, 8, 4), torch.zeros(4), 1),
        lambda: F.conv1d(torch.randn(2, 8, 9), torch.randn(4, 8, 3), padding=1),
    ),
    "bilinear": (
        lambda: F.bilinear(X, X, torch.randn(4, 8, 8)),
        lambda: (X[:, :, None] * X[:, None, :]).flatten(1) @ torch.randn(64, 4),
    ),
    "distances": (lambda: torch.cdist(X, X), lambda: X @ X.mT),
}


@pytest.mark.parametrize("name", SAME)
def test_macs_when_an_operation_contracts_then_they_are_those_of_plain_products(name):
    run, plain = SAME[name]
    with FlopCounterMode(display=False) as flops:
        plain()
    model = Net(lambda m, x: (run(), x)[1])
    structure = analyze(model, torch.zeros(1))
    assert structure.cost().macs == flops.get_total_flops() // 2 > 0
    assert structure.uncounted == ()


class Experts(nn.Module):
    """A router's two choices of four experts, whose weights are stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 4)
        self.up = nn.Parameter(torch.randn(4, 16, 64) / 4)
        self.down = nn.Parameter(torch.randn(4, 64, 16) / 8)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        order = chosen.flatten().argsort()
        ends = chosen.flatten().bincount(minlength=4).cumsum(0).to(torch.int32)
        hidden = F.grouped_mm(x[order // 2], self.up, offs=ends).relu()
        out = F.grouped_mm(hidden, self.down, offs=ends)
        out = torch.zeros_like(out).index_copy(0, order, out)
        return self.head((out.view(-1, 2, 16) * weight[..., None]).sum(1))


def test_prune_when_experts_are_stacked_then_a_share_of_macs_is_as_large_a_share_of_them():
    torch.manual_seed(0)
    model, x = Experts(), torch.randn(32, 16)
    whole = analyze(model, x).cost()
    assert whole.macs == 32 * (16 * 4 + 16 * 3) + 64 * 2 * 16 * 64
    result = prune(model, x, sparsity=0.3, of="macs")
    assert 0.25 < 1 - result.after.macs / result.before.macs < 0.5
    assert result.after.params > 0.5 * result.before.params


def test_print_when_what_is_not_counted_runs_then_it_is_named():
    model = Net(
        lambda m, x: m.b(torch.fft.rfft(m.a(x), dim=1).abs()), a=nn.Linear(4, 8), b=nn.Linear(8, 2)
    )
    structure = analyze(model, torch.randn(2, 3, 4))
    assert structure.uncounted == ("aten._fft_r2c.default",)
    assert "not in the MACs: aten._fft_r2c.default" in str(structure)
    assert "not in the MACs: aten._fft_r2c.default" in str(
        prune(model, torch.randn(2, 3, 4), sparsity=0.5)
    )
