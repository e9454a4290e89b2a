"""Layers for tokens, vectors and nodes: products of all forms, gates, experts, tied weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .draw import Does, Draw, Plain, maps
from .layers import activation

FLAT = ("sequence", "vector", "graph")


@maps(*FLAT)
def linear(d: Draw, c: int, o: int) -> nn.Module:
    layer = nn.Linear(c, o, bias=d.chance(0.7))
    return Plain(nn.Sequential(layer, activation(d)) if d.chance() else layer)


@maps(*FLAT)
def product(d: Draw, c: int, o: int) -> nn.Module:
    """A weight of one's own, multiplied in one of the ways that there are."""
    ways = ["@", "@ T", "einsum", "matmul", "functional", "tensordot", "sum"]
    how = d.pick(
        *ways, *["bmm", "baddbmm"] * (d.world == "sequence"), *["addmm"] * (d.world != "sequence")
    )
    turned = how in ("@ T", "functional", "sum")
    weight = nn.Parameter(torch.empty(o, c) if turned else torch.empty(c, o))

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        w = s.weight
        if how == "@ T":
            return x @ w.T + s.bias
        if how == "einsum":
            return torch.einsum("...c,co->...o", x, w)
        if how == "functional":
            return F.linear(x, w, s.bias)
        if how == "tensordot":
            return torch.tensordot(x, w, dims=([-1], [0]))
        if how == "sum":
            return (x.unsqueeze(-2) * w).sum(-1)
        if how == "bmm":
            return torch.bmm(x, w.expand(x.shape[0], *w.shape))
        if how == "baddbmm":
            return torch.baddbmm(s.bias, x, w.unsqueeze(0).repeat(x.shape[0], 1, 1))
        return torch.addmm(s.bias, x, w) if how == "addmm" else torch.matmul(x, w)

    return Does(forward, weight=weight, bias=nn.Parameter(torch.empty(o)))


@maps(*FLAT)
def gated(d: Draw, c: int, o: int) -> nn.Module:
    """GLUs, whose halves are taken apart in different ways."""
    m, how = d.width(), d.pick("chunk", "split", "slices", "glu", "apart", "view", "unbind")
    act = activation(d)
    if how == "apart":
        up = nn.Linear(c, m, bias=d.chance())
    wide = nn.Linear(c, 2 * m, bias=d.chance())

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        y = s.wide(x)
        if how == "glu":
            return s.down(F.glu(y, -1))
        if how == "chunk":
            a, b = y.chunk(2, -1)
        elif how == "split":
            a, b = torch.split(y, [s.hidden, s.hidden], -1)
        elif how == "slices":
            a, b = y[..., : s.hidden], y[..., s.hidden :]
        elif how == "view":
            pair = y.reshape(*y.shape[:-1], 2, -1)
            a, b = pair[..., 0, :], pair[..., 1, :]
        else:
            a, b = y.unflatten(-1, (2, -1)).unbind(-2)
        return s.down(s.act(a) * b)

    if how == "apart":
        down = nn.Linear(m, o)
        return Does(
            lambda s, x, *rest: s.down(s.act(s.gate(x)) * s.up(x)),
            gate=nn.Linear(c, m, bias=d.chance()),
            up=up,
            down=down,
            act=act,
        )
    return Does(forward, wide=wide, down=nn.Linear(m, o, bias=d.chance()), act=act, hidden=m)


@maps(*FLAT)
def low_rank(d: Draw, c: int, o: int) -> nn.Module:
    """The weight is a product of two, added to a whole one (LoRA), or fused before use."""
    r, fused = d.pick(2, 4), d.chance()
    a, b = nn.Parameter(torch.empty(r, c)), nn.Parameter(torch.empty(o, r))

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        if fused:
            return F.linear(x, s.base.weight + s.b @ s.a, s.base.bias)
        return s.base(x) + x @ s.a.T @ s.b.T

    return Does(forward, a=a, b=b, base=nn.Linear(c, o))


@maps(*FLAT)
def tied(d: Draw, c: int, o: int) -> nn.Module:
    """One weight is read twice: transposed, again, or by two layers."""
    how = d.pick("transposed", "twice", "modules")
    held = {"shared": nn.Linear(c, c if how == "modules" else d.width())}
    if how == "modules":
        held["other"] = nn.Linear(c, c)
        held["other"].weight = held["shared"].weight

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        if how == "modules":
            return s.mix(s.other(s.shared(x).relu()))
        w = s.shared.weight
        y = F.linear(s.shared(x).relu(), w.t())
        if how == "twice":
            y = y.tanh() + F.linear(F.linear(y, w).tanh(), w.t())
        return s.mix(y)

    return Does(forward, **held, mix=nn.Linear(c, o))


@maps(*FLAT)
def experts(d: Draw, c: int, o: int) -> nn.Module:
    """A mixture of stacked or listed experts, dense or by their places."""
    n, how, m = d.pick(2, 3), d.pick("einsum", "bmm", "list", "top1"), d.width()
    up, down = nn.Parameter(torch.empty(n, c, m)), nn.Parameter(torch.empty(n, m, o))
    bank = nn.ModuleList(nn.Linear(c, o) for _ in range(n))

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        gate = s.gate(x).softmax(-1)
        if how == "list":
            return sum((gate[..., i : i + 1] * e(x) for i, e in enumerate(s.bank)), 0.0)
        if how == "einsum":
            y = torch.einsum("...c,ncm->...nm", x, s.up).relu()
            return torch.einsum("...nm,nmo,...n->...o", y, s.down, gate)
        flat, shares = x.flatten(0, -2), gate.flatten(0, -2)
        if how == "bmm":
            y = torch.bmm(flat.expand(s.up.shape[0], *flat.shape), s.up).relu()
            z = (torch.bmm(y, s.down) * shares.T.unsqueeze(-1)).sum(0)
            return z.view(*x.shape[:-1], -1)
        z = flat.new_zeros(flat.shape[0], s.bank[0].out_features)
        best = shares.argmax(-1)
        for i, expert in enumerate(s.bank):
            at = torch.where(best == i)[0]
            z = z.index_add(0, at, expert(flat[at]) * shares[at, i, None])
        return z.view(*x.shape[:-1], -1)

    held = {"bank": bank} if how in ("list", "top1") else {"up": up, "down": down}
    return Does(forward, gate=nn.Linear(c, n), **held)


@maps(*FLAT)
def pieces(d: Draw, c: int, o: int) -> nn.Module:
    """Some features go one way, the others another, and meet again."""
    how = d.pick("split", "slice", "narrow", "literal", "chunk")
    if c < 2:
        return linear(d, c, o)
    first = d.randrange(1, c) if how != "chunk" else -(-c // 2)
    a, b = d.width(), d.width()

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        if how == "split":
            left, right = x.split([s.first, s.second], -1)
        elif how == "slice":
            left, right = x[..., : s.first], x[..., s.first :]
        elif how == "chunk":
            left, right = x.chunk(2, -1)
        else:
            k = s.first if how == "narrow" else first
            left, right = x.narrow(-1, 0, k), x.narrow(-1, k, x.shape[-1] - k)
        return s.mix(torch.cat([s.left(left), s.right(right).relu()], -1))

    layers = {"left": nn.Linear(first, a), "right": nn.Linear(c - first, b)}
    return Does(forward, **layers, mix=nn.Linear(a + b, o), first=first, second=c - first)


@maps(*FLAT)
def by_heads(d: Draw, c: int, o: int) -> nn.Module:
    """A linear layer of its own for each head (block-diagonal), or a loop over heads."""
    n, k, loop = d.pick(2, 3), d.pick(2, 3, 4), d.chance()
    weight = nn.Parameter(torch.empty(n, k, k))

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        y = s.up(x)
        if loop:
            k = s.weight.shape[1]
            parts = [y[..., i * k : (i + 1) * k] @ s.weight[i] for i in range(s.n)]
            return s.down(torch.cat(parts, -1))
        y = y.reshape(*y.shape[:-1], s.n, -1)
        return s.down(torch.einsum("...nk,nkj->...nj", y, s.weight).flatten(-2))

    return Does(forward, up=nn.Linear(c, n * k), weight=weight, down=nn.Linear(n * k, o), n=n)
