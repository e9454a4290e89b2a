"""Attention, as people write it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from einops import rearrange

    EINOPS = ["einops"]
except ImportError:  # what is drawn is then another program
    EINOPS = []

from .draw import Does, Draw, Plain, maps, sames


class Attention(nn.Module):
    """Heads, made of a fused or of three layers, told apart and joined in drawn ways."""

    def __init__(self, d: Draw, c: int, o: int):
        super().__init__()
        self.heads, self.width = d.pick(2, 3, 4), d.pick(2, 4, 6)
        self.keys = d.pick(self.heads, 1, self.heads // 2 if self.heads % 2 == 0 else 1)
        self.inner = self.heads * self.width
        self.scale = self.width**-0.5
        self.fused = d.pick("no", "no", "view", "chunk", "split", "slices", "head first")
        if self.fused != "no":
            self.keys = self.heads
            self.qkv = nn.Linear(c, 3 * self.inner, bias=d.chance())
        else:
            self.q = nn.Linear(c, self.inner, bias=d.chance())
            self.k = nn.Linear(c, self.keys * self.width, bias=d.chance())
            self.v = nn.Linear(c, self.keys * self.width, bias=d.chance())
        self.out = nn.Linear(self.inner, o)
        self.shaped = d.pick("attributes", "width", "heads", "inner", "shape", *EINOPS)
        self.joined = d.pick("flatten", "-1", "inner", "product", *EINOPS)
        self.repeat = d.pick("interleave", "expand", "broadcast")
        self.method = d.pick(
            "eager", "fused", "fused scaled", "sqrt", "linear", "einsum", "unit", "sdpa mask"
        )
        self.place = d.pick(
            "none", "none", "rotary", "relative", "mask", "alibi", "cache", "middle"
        )
        if self.place == "rotary":
            self.register_buffer("turns", 1 / 100 ** (torch.arange(0, self.width, 2) / self.width))
        if self.place == "relative":
            self.table = nn.Parameter(torch.empty(self.heads, 40))
        if self.place == "middle":
            self.table = nn.Parameter(torch.empty(281, self.heads))
        if self.place == "mask":
            self.register_buffer("causal", torch.ones(1, 1, 140, 140).tril().bool())
        if self.place == "alibi":
            self.register_buffer("slopes", 2.0 ** -torch.arange(1, self.heads + 1))
        self.cache: Any = None

    def apart(self, x: Tensor, heads: int) -> Tensor:
        """Return ``(B, heads, T, width)``."""
        batch, length = x.shape[:2]
        shapes = {
            "attributes": (batch, length, heads, self.width),
            "width": (batch, length, -1, self.width),
            "heads": (batch, length, heads, -1),
            "inner": (batch, length, heads, self.inner // self.heads),
            "shape": (batch, -1, heads, x.shape[-1] // heads),
        }
        if self.shaped == "einops":
            return rearrange(x, "b n (h d) -> b h n d", h=heads)
        return x.view(shapes[self.shaped]).transpose(1, 2)

    def three(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = x.shape
        if self.fused == "no":
            return (
                self.apart(self.q(x), self.heads),
                self.apart(self.k(x), self.keys),
                self.apart(self.v(x), self.keys),
            )
        y = self.qkv(x)
        if self.fused == "view":
            q, k, v = y.reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            return q, k, v
        if self.fused == "head first":
            parts = y.view(batch, length, self.heads, 3 * self.width).transpose(1, 2)
            q, k, v = parts.chunk(3, -1)
            return q, k, v
        if self.fused == "chunk":
            parts = y.chunk(3, -1)
        elif self.fused == "split":
            parts = y.split(self.inner, dim=-1)
        else:
            n = self.inner
            parts = y[..., :n], y[..., n : 2 * n], y[..., 2 * n :]
        q, k, v = (self.apart(part, self.heads) for part in parts)
        return q, k, v

    def repeated(self, x: Tensor) -> Tensor:
        times = self.heads // self.keys
        if times == 1 or self.repeat == "interleave":
            return x if times == 1 else x.repeat_interleave(times, dim=1)
        b, h, t, w = x.shape
        if self.repeat == "expand":
            return x[:, :, None].expand(b, h, times, t, w).reshape(b, h * times, t, w)
        return x.unsqueeze(2).repeat(1, 1, times, 1, 1).flatten(1, 2)

    def bias(self, length: int, total: int, like: Tensor) -> Tensor | None:
        if self.place == "relative":
            gap = torch.arange(total)[None, :] - torch.arange(length)[:, None]
            return self.table[:, gap.clamp(-19, 19) + 19][None]
        if self.place == "middle":
            middle = self.table.shape[0] // 2
            near = self.table[middle - total + 1 : middle + length]
            gap = torch.arange(length)[:, None] - torch.arange(total)[None, :] + total - 1
            return near[gap].permute(2, 0, 1)[None]
        if self.place == "alibi":
            gap = torch.arange(total)[None, :] - torch.arange(length)[:, None]
            return self.slopes.to(like)[None, :, None, None] * gap.abs()
        if self.place == "mask":
            off = ~self.causal[:, :, :length, :total]
            return torch.zeros(off.shape, dtype=like.dtype).masked_fill(off, -1e9)
        return None

    def turned(self, x: Tensor) -> Tensor:
        if self.place != "rotary":
            return x
        angle = torch.outer(torch.arange(x.shape[2], dtype=x.dtype), self.turns.to(x))
        cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat([-right, left], -1) * sin

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        q, k, v = self.three(x)
        q, k = self.turned(q), self.turned(k)
        if self.place == "cache":
            if self.cache is not None and self.cache[0].shape[0] == k.shape[0]:
                k, v = torch.cat([self.cache[0], k], 2), torch.cat([self.cache[1], v], 2)
            self.cache = k.detach(), v.detach()
        if self.fused == "no":
            k, v = self.repeated(k), self.repeated(v)
        y = self.context(q, k, v, self.bias(q.shape[2], k.shape[2], q)).transpose(1, 2)
        b, t = y.shape[:2]
        if self.joined == "einops":
            y = rearrange(y, "b n h d -> b n (h d)")
        elif self.joined == "flatten":
            y = y.flatten(2)
        elif self.joined == "-1":
            y = y.reshape(b, t, -1)
        elif self.joined == "inner":
            y = y.reshape(b, t, self.inner)
        else:
            y = y.contiguous().view(b, t, self.heads * self.width)
        return self.out(y)

    def context(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        if self.method == "fused":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        if self.method == "fused scaled":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        if self.method == "sdpa mask" and bias is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.4)
        if self.method == "linear":
            return torch.einsum("bhld,bhdv->bhlv", q, torch.einsum("bhld,bhlv->bhdv", k, v)) * 0.1
        if self.method == "unit":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        if self.method == "einsum":
            score = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
        elif self.method == "sqrt":
            score = q @ k.mT / math.sqrt(q.size(-1))
        else:
            score = (q * self.scale) @ k.transpose(-2, -1)
        return (score if bias is None else score + bias).softmax(-1) @ v


@maps("sequence")
def attention(d: Draw, c: int, o: int) -> nn.Module:
    return Attention(d, c, o)


@maps("sequence")
def attention_again(d: Draw, c: int, o: int) -> nn.Module:
    return Attention(d, c, o)


@sames("sequence")
def attention_in_place(d: Draw, c: int, o: int) -> nn.Module:
    """The common short form: as wide as its input, sizes taken from shapes."""
    heads, keep = d.divisor(c), d.chance()

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = s.qkv(x).reshape(b, n, 3, s.heads, c // s.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q @ k.transpose(-2, -1) * s.scale).softmax(-1)
        y = (weights @ v).transpose(1, 2)
        return s.proj(y.reshape(b, n, c) if keep else y.reshape(b, n, -1))

    layers = {"qkv": nn.Linear(c, 3 * c), "proj": nn.Linear(c, c)}
    return Does(forward, heads=heads, scale=(c // heads) ** -0.5, **layers)


@sames("sequence")
def attended_by_few(d: Draw, c: int, o: int) -> nn.Module:
    """Learned queries read the sequence, and it reads them (Perceiver)."""
    m, inner, heads = 3, 4, 2

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        few = s.queries.expand(x.shape[0], -1, -1)
        read = F.scaled_dot_product_attention(s.q(few), s.k(x), s.v(x), scale=0.3)
        back = (x @ few.mT * 0.3).softmax(-1)
        return x + back @ s.out(read)

    layers = {"q": nn.Linear(c, inner), "k": nn.Linear(c, inner), "v": nn.Linear(c, inner * heads)}
    out, queries = nn.Linear(inner * heads, c), nn.Parameter(torch.empty(1, m, c))
    return Does(forward, **layers, out=out, queries=queries)


@sames("sequence")
def attention_of_torch(d: Draw, c: int, o: int) -> nn.Module:
    if d.chance():
        options = {"dim_feedforward": d.width(), "norm_first": d.chance(), "batch_first": True}
        return Plain(nn.TransformerEncoderLayer(c, d.divisor(c), **options))
    inner = nn.MultiheadAttention(c, d.divisor(c), bias=d.chance(), batch_first=True)
    return Does(lambda s, x, *rest: s.inner(x, x, x, need_weights=False)[0], inner=inner)


@maps("sequence")
def windows(d: Draw, c: int, o: int) -> nn.Module:
    """Attention inside of windows of the sequence, padded to a multiple of them."""
    w, inner = 4, d.width()

    def forward(s: Any, x: Tensor, *rest: Tensor) -> Tensor:
        b, t, c = x.shape
        y = F.pad(x, (0, 0, 0, (-t) % s.w)).reshape(-1, s.w, c)
        q, k, v = s.q(y), s.k(y), s.v(y)
        y = (q @ k.mT * 0.3 + s.table[None]).softmax(-1) @ v
        return s.out(y.view(b, -1, y.shape[-1])[:, :t])

    layers = {name: nn.Linear(c, inner) for name in "qkv"}
    table = nn.Parameter(torch.empty(w, w))
    return Does(forward, **layers, table=table, out=nn.Linear(inner, o), w=w)
