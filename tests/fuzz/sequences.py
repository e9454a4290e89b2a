"""What is done along a sequence or between nodes: tables of places, recurrence, scatter, gather."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .draw import Does, Draw, maps, sames

LONGEST = 140
"""Tables of places have as many rows; examples are shorter."""


@sames("sequence")
def placed(d: Draw, c: int, o: int) -> nn.Module:
    hows = ["start", "narrow", "end", "offset", "embedding", "flat", "ids", "select", "kernel"]
    how = d.pick(*hows, "buffer", "transposed", "twice", "reshaped")
    shape = {"flat": (LONGEST, c), "transposed": (c, LONGEST)}.get(how, (1, LONGEST, c))
    held: dict[str, Any] = {"table": nn.Parameter(torch.empty(shape))}
    if how in ("embedding", "ids"):
        held = {"places": nn.Embedding(LONGEST, c)}
    if how == "ids":
        held["ids"] = torch.arange(LONGEST).unsqueeze(0)
    if how == "buffer":
        held = {"table": torch.randn(1, LONGEST, c)}

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        n = x.shape[1]
        if how == "embedding":
            return x + s.places(torch.arange(n))
        if how == "ids":
            return x + s.places(s.ids[:, :n])
        t = s.table
        if how == "flat":
            return x + t[:n]
        if how == "transposed":
            return x + t[:, :n].T
        if how == "narrow":
            return x + t.narrow(1, 0, n)
        if how == "end":
            return x + t[:, -n:]
        if how == "offset":
            return x + t[:, 2 : 2 + n]
        if how == "select":
            return x + t.index_select(1, torch.arange(n))
        if how == "twice":
            return x * t[:, :n].sigmoid() + t[:, -n:]
        if how == "reshaped":
            return x + t.reshape(-1, t.shape[-1])[:n]
        if how == "kernel":  # as many taps as the input has tokens
            return x + (t[:, :n] * x).sum(1, keepdim=True) * 0.2
        return x + t[:, :n]

    return Does(forward, **held)


@sames("sequence")
def with_a_token(d: Draw, c: int, o: int) -> nn.Module:
    """A learned token is put before the others, and taken away later."""
    how, layer = d.pick("cat", "registers", "pad"), nn.Linear(c, c)
    n = {"registers": 3}.get(how, 1)

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        y = torch.cat([s.token.expand(x.shape[0], -1, -1), x], 1)
        y = y + s.layer(y.mean(1, keepdim=True)) + y.roll(1, 1) * 0.5
        return y[:, s.token.shape[1] :] + y[:, :1]

    return Does(forward, token=nn.Parameter(torch.empty(1, n, c)), layer=layer)


@maps("sequence")
def recurrent(d: Draw, c: int, o: int) -> nn.Module:
    both = d.chance(0.3) and o % 2 == 0
    kind, layers = d.pick(nn.RNN, nn.GRU, nn.LSTM), d.pick(1, 1, 2)
    inner = kind(c, o // 2 if both else o, layers, batch_first=True, bidirectional=both)
    return Does(lambda s, x, *rest: s.inner(x)[0], inner=inner)


@maps("sequence")
def recurrent_by_hand(d: Draw, c: int, o: int) -> nn.Module:
    """A loop over time: an Elman cell, a gated one, torch's cell, or a scan with decay."""
    m, how = d.width(), d.pick("elman", "gated", "cell", "lstm", "scan")
    held: dict[str, Any] = {"into": nn.Linear(c, m), "over": nn.Linear(m, m)}
    if how == "gated":
        held = {"into": nn.Linear(c, 2 * m), "over": nn.Linear(m, 2 * m)}
    if how in ("cell", "lstm"):
        held = {"cell": nn.GRUCell(c, m) if how == "cell" else nn.LSTMCell(c, m)}
    if how == "scan":
        held = {"into": nn.Linear(c, m), "decay": nn.Parameter(torch.empty(m))}

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], s.m)
        memory, done = h, []
        for t in range(x.shape[1]):
            if how == "cell":
                h = s.cell(x[:, t], h)
            elif how == "lstm":
                h, memory = s.cell(x[:, t], (h, memory))
            elif how == "elman":
                h = torch.tanh(s.into(x[:, t]) + s.over(h))
            elif how == "gated":
                z, new = (s.into(x[:, t]) + s.over(h)).chunk(2, -1)
                h = h + z.sigmoid() * (new.tanh() - h)
            else:
                h = s.decay.sigmoid() * h + s.into(x[:, t])
            done.append(h)
        return s.out(torch.stack(done, 1))

    return Does(forward, **held, out=nn.Linear(m, o), m=m)


@maps("sequence")
def mamba(d: Draw, c: int, o: int) -> nn.Module:
    """A gate, a causal depthwise convolution and a selective scan."""
    m, n = d.width(), 2
    conv = nn.Conv1d(m, m, 3, groups=m, padding=2)
    layers = {"up": nn.Linear(c, 2 * m), "conv": conv, "select": nn.Linear(m, 2 * n + 1)}
    layers |= {"out": nn.Linear(m, o)}

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        y, gate = s.up(x).chunk(2, -1)
        y = F.silu(s.conv(y.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        b, c, step = s.select(y).split([n, n, 1], -1)
        step = F.softplus(step + s.shift)
        decay = torch.exp(step.unsqueeze(-1) * -s.rate.exp())
        state = y.new_zeros(y.shape[0], y.shape[2], n)
        done = []
        for t in range(y.shape[1]):
            taken = (step[:, t] * y[:, t]).unsqueeze(-1) * b[:, t].unsqueeze(1)
            state = decay[:, t] * state + taken
            done.append((state * c[:, t].unsqueeze(1)).sum(-1))
        return s.out(torch.stack(done, 1) * F.silu(gate))

    shift = nn.Parameter(torch.empty(m))
    return Does(forward, **layers, shift=shift, rate=nn.Parameter(torch.empty(m, n)))


@sames("sequence")
def along_time(d: Draw, c: int, o: int) -> nn.Module:
    """Moved, chosen, padded or mixed along the sequence; channels stay what they are."""
    how = d.pick(
        "shift", "cumsum", "gather", "topk", "fourier", "mean", "half", "mask", "pad", "conv"
    )
    conv, half = nn.Conv1d(c, c, 3, padding=1, groups=d.pick(1, c)), c // 2

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        n = x.shape[1]
        if how == "half":  # RWKV and TSM: some of the channels are moved
            moved = F.pad(x, (0, 0, 1, 0))[:, :-1]
            return torch.cat([moved[..., : s.half], x[..., s.half :]], -1)
        if how == "gather":
            index = torch.arange(n).flip(0)[None, :, None].expand(x.shape[0], n, x.shape[-1])
            return x.gather(1, index)
        if how == "topk":
            best = x.pow(2).sum(-1).topk(2, dim=1).indices
            return x + x.gather(1, best.unsqueeze(-1).expand(-1, -1, x.size(-1))).mean(
                1, keepdim=True
            )
        table = {
            "shift": lambda: x + torch.roll(x, 1, 1),
            "cumsum": lambda: x.cumsum(1) * 0.3,
            "fourier": lambda: torch.fft.fft(x, dim=1).real * 0.3,
            "mean": lambda: x - x.mean(1, keepdim=True),
            "mask": lambda: x.masked_fill((torch.arange(n) % 3 == 0)[None, :, None], 0.7),
            "pad": lambda: F.pad(x, (0, 0, 1, 1), value=0.2)[:, 2:],
            "conv": lambda: s.conv(x.transpose(1, 2)).transpose(1, 2),
        }
        return table[how]()

    return Does(forward, conv=conv, half=half)


@maps("sequence")
def convolved(d: Draw, c: int, o: int) -> nn.Module:
    conv = nn.Conv1d(c, o, 3, padding=1, groups=d.pick(1, d.divisor(c, o)))
    return Does(lambda s, x, *rest: s.conv(x.mT).mT, conv=conv)


@maps("sequence", "vector")
def nearest(d: Draw, c: int, o: int) -> nn.Module:
    """A codebook: distances to learned vectors, softly or by the nearest one."""
    how, m = d.pick("soft", "hard", "cosine", "cdist"), d.width()

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        y, book = s.into(x), s.book
        if how == "cosine":
            gap = -F.normalize(y, dim=-1) @ F.normalize(book, dim=-1).T
        elif how == "cdist":
            gap = torch.cdist(y, book.expand(*y.shape[:-2], *book.shape))
        else:
            gap = (y.unsqueeze(-2) - book).pow(2).sum(-1)
        if how == "hard":
            return s.out(y + F.embedding(gap.argmin(-1), book))
        return s.out(y + (-gap).softmax(-1) @ book)

    book = nn.Parameter(torch.empty(5, m))
    return Does(forward, into=nn.Linear(c, m), book=book, out=nn.Linear(m, o))


@maps("graph")
def message(d: Draw, c: int, o: int) -> nn.Module:
    """Sums of what the neighbours send: scatter and gather in the ways that libraries write."""
    hows = ["index_add", "scatter_add", "scatter_reduce", "put", "matrix", "amax", "mean"]
    how, gathered = d.pick(*hows), d.pick("index", "select", "gather")

    def forward(s: Any, x: Tensor, edges: Tensor) -> Tensor:
        y, (src, dst) = s.into(x), edges
        n, c = x.shape[0], y.shape[-1]
        wide = dst[:, None].expand(-1, c)
        if gathered == "gather":
            sent = y.gather(0, src.view(-1, 1).expand(-1, c))
        else:
            sent = y[src] if gathered == "index" else y.index_select(0, src)
        zero = y.new_zeros(n, c)
        if how == "index_add":
            z = zero.index_add_(0, dst, sent)
        elif how == "scatter_add":
            z = zero.scatter_add_(0, wide, sent)
        elif how in ("scatter_reduce", "mean", "amax"):
            kind = {"scatter_reduce": "sum"}.get(how, how)
            z = zero.scatter_reduce(0, wide, sent, reduce=kind, include_self=how != "mean")
        elif how == "put":
            z = zero.index_put((dst,), sent, accumulate=True)
        else:
            one = torch.ones(len(src), dtype=x.dtype)
            links = one.new_zeros(n, n).index_put((dst, src), one, accumulate=True)
            z = links @ y
        return s.out(z.relu()) + s.own(x)

    m = d.width()
    layers = {"into": nn.Linear(c, m), "out": nn.Linear(m, o), "own": nn.Linear(c, o)}
    return Does(forward, **layers)


@maps("graph")
def graph_attention(d: Draw, c: int, o: int) -> nn.Module:
    """GAT: a softmax over the edges that arrive, for each head."""
    heads, w = d.pick(1, 2, 3), d.pick(2, 4)

    def forward(s: Any, x: Tensor, edges: Tensor) -> Tensor:
        src, dst = edges
        n = x.shape[0]
        y = s.into(x).view(-1, s.heads, s.w)
        score = F.leaky_relu((y[src] * s.left).sum(-1) + (y[dst] * s.right).sum(-1), 0.2)
        score = score.exp()
        total = score.new_zeros(n, s.heads).index_add(0, dst, score)
        sent = y[src] * (score / (total[dst] + 1e-9)).unsqueeze(-1)
        z = y.new_zeros(n, s.heads, s.w).index_add(0, dst, sent)
        return s.out(z.view(-1, s.heads * s.w))

    left, right = (nn.Parameter(torch.empty(1, heads, w)) for _ in range(2))
    layers = {"into": nn.Linear(c, heads * w), "out": nn.Linear(heads * w, o)}
    return Does(forward, **layers, left=left, right=right, heads=heads, w=w)


@maps("vector")
def interactions(d: Draw, c: int, o: int) -> nn.Module:
    """Pairs of features: outer products, differences, bilinear layers, maxout, hyper-networks."""
    how, k = d.pick("outer", "differences", "bilinear", "maxout", "hyper", "cross"), 3
    layers: dict[str, nn.Module] = {
        "outer": lambda: nn.Linear(c * c, o),
        "differences": lambda: nn.Linear(c * c, o),
        "bilinear": lambda: nn.Bilinear(c, c, o),
        "maxout": lambda: nn.Linear(c, o * k),
        "hyper": lambda: nn.Linear(c, c * o),
        "cross": lambda: nn.Linear(c, o),
    }

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        if how == "outer":
            return s.layer(torch.einsum("bi,bj->bij", x, x).flatten(1))
        if how == "differences":
            return s.layer((x.unsqueeze(2) - x.unsqueeze(1)).flatten(1))
        if how == "bilinear":
            return s.layer(x, x)
        if how == "maxout":
            return s.layer(x).view(x.shape[0], -1, k).max(-1)[0]
        if how == "hyper":
            w = s.layer(x).view(x.shape[0], x.shape[1], -1)
            return torch.bmm(x.unsqueeze(1), w).squeeze(1)
        return s.layer(x * (x @ s.weight) + x)

    return Does(forward, layer=layers[how](), weight=nn.Parameter(torch.empty(c, 1)))
