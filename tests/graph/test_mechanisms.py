"""What transformers are made of, one small model for each mechanism: its groups, cut and compared.

The models are as people write them: sizes as attributes, in a config that the layers share, or
taken from shapes.  Everything is random and in float64, so that a wrong slice shows in the output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import PlanError, TraceError
from secateur.graph.groups import Group
from secateur.shrinking import Plan, Result, cut_and_verify, group_masks
from secateur.structure import Structure, analyze

HIDDEN, HEADS, WIDTH = 12, 4, 6


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return model.double().eval()


def tokens(batch: int = 2, length: int = 5, width: int = HIDDEN) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, width, generator=generator, dtype=torch.float64)


def half(structure: Structure, groups: tuple[Group, ...], model: nn.Module, x: Any) -> Result:
    keeps = {}
    for g in groups:
        left = max(g.least, g.step * -(-(g.size // 2) // g.step), 1)
        keeps[g.name] = torch.arange(g.size) >= g.size - left
    plan = Plan.from_keeps(structure, keeps)
    masks = group_masks(structure, keeps)
    return cut_and_verify(copy.deepcopy(model), structure, plan, masks, x, notes=[], verify=True)


def turned(x: Tensor) -> Tensor:
    left, right = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-right, left), -1)


def turned_pairs(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def repeated(x: Tensor, times: int) -> Tensor:
    batch, heads, length, width = x.shape
    x = x[:, :, None].expand(batch, heads, times, length, width)
    return x.reshape(batch, heads * times, length, width)


class Attention(nn.Module):
    """Self-attention; ``method`` computes the context from queries, keys and values."""

    def __init__(self, method: Callable[..., Tensor], key_heads: int = HEADS, value: int = WIDTH):
        super().__init__()
        self.method = method
        self.heads, self.key_heads = HEADS, key_heads
        self.times = HEADS // key_heads
        self.width, self.value_width = WIDTH, value
        self.scale = WIDTH**-0.5
        self.q = nn.Linear(HIDDEN, HEADS * WIDTH)
        self.k = nn.Linear(HIDDEN, key_heads * WIDTH)
        self.v = nn.Linear(HIDDEN, key_heads * value)
        self.out = nn.Linear(HEADS * value, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[:-1]
        q = self.q(x).view(*shape, self.heads, self.width).transpose(1, 2)
        k = self.k(x).view(*shape, self.key_heads, self.width).transpose(1, 2)
        v = self.v(x).view(*shape, self.key_heads, self.value_width).transpose(1, 2)
        return self.out(self.method(self, q, k, v).transpose(1, 2).reshape(*shape, -1))


def eager(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(2, 3) * m.scale).softmax(-1) @ v


def fused(m: Any, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=m.scale, **options)


def scaled_by_its_size(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(2, 3) / m.width**0.5).softmax(-1) @ v


def scaled_by_a_tensor(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scale = torch.sqrt(torch.tensor(q.size(-1), dtype=q.dtype))
    return (q @ k.transpose(2, 3) / scale).softmax(-1) @ v


def scaled_out_of_sight(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.zeros(1, 1, q.size(2), k.size(2), dtype=q.dtype)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def asked_for_groups(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return fused(m, q, k, v, enable_gqa=m.times > 1)


def rotated(turn: Callable[[Tensor], Tensor], part: int = WIDTH) -> Callable[..., Tensor]:
    """Rotary position embeddings on the first ``part`` of each head, from a buffer."""

    def method(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not hasattr(m, "frequencies"):
            m.register_buffer("frequencies", torch.rand(part // 2, dtype=torch.float64))
        angle = torch.outer(torch.arange(q.size(2), dtype=q.dtype), m.frequencies)
        joined = torch.cat((angle, angle), -1)
        angle = joined if turn is turned else angle[..., None].expand(*angle.shape, 2).flatten(-2)
        cos, sin, n = angle.cos(), angle.sin(), angle.shape[-1]

        def rope(x: Tensor) -> Tensor:
            first, rest = x[..., :n], x[..., n:]
            return torch.cat((first * cos + turn(first) * sin, rest), -1)

        return fused(m, rope(q), rope(k), v)

    return method


def rotated_as_complex(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if not hasattr(m, "frequencies"):
        m.register_buffer("frequencies", torch.rand(WIDTH // 2, dtype=torch.float64))
    angle = torch.outer(torch.arange(q.size(2), dtype=q.dtype), m.frequencies)
    turns = torch.polar(torch.ones_like(angle), angle)

    def rope(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns).flatten(-2)

    return fused(m, rope(q), rope(k), v)


def biased(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A learned bias for each distance and head."""
    if not hasattr(m, "table"):
        m.table = nn.Embedding(16, HEADS, dtype=torch.float64)
    place = torch.arange(q.size(2))
    bias = m.table((place[:, None] - place[None, :]).clamp(-8, 7) + 8).permute(2, 0, 1)
    return (q @ k.transpose(2, 3) * m.scale + bias[None]).softmax(-1) @ v


def by_the_function_of_torch(m: Any, x: Tensor) -> Tensor:
    """All of it in one call, which computes its sizes where nobody sees them."""
    out, _ = F.multi_head_attention_forward(
        *([x.transpose(0, 1)] * 3),
        *(m.wide, m.heads, m.packed.weight, m.packed.bias, None, None, False, 0.0),
        *(m.out.weight, m.out.bias),
        need_weights=False,
    )
    return out.transpose(0, 1)


class Called(nn.Module):
    """A layer that is read by torch's own function of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.heads = 8, 2
        self.first, self.packed = nn.Linear(HIDDEN, 8), nn.Linear(8, 24)
        self.out, self.last = nn.Linear(8, 8), nn.Linear(8, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(by_the_function_of_torch(self, self.first(x)))


def linear(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention: no softmax over positions."""
    return torch.einsum("bhld,bhdv->bhlv", q, torch.einsum("bhld,bhlv->bhdv", k, v)) * m.scale


@dataclass
class Case:
    model: nn.Module
    exact: dict[str, int]
    inexact: dict[str, str]
    example: Any


def attention(
    method: Any,
    exact: dict[str, int],
    inexact: dict[str, str] | None = None,
    key_heads: int = HEADS,
    value: int = WIDTH + 1,
) -> Case:
    torch.manual_seed(0)
    model = randomised(Attention(method, key_heads, value))
    model(tokens())  # what the method keeps
    return Case(randomised(model), exact, inexact or {}, tokens())


class Layer(nn.Module):
    """Reads its sizes from a config, of which all layers have the same."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        inner = config.heads * config.width
        self.q, self.k, self.v = (nn.Linear(HIDDEN, inner) for _ in range(3))
        self.out = nn.Linear(inner, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        heads, width = self.config.heads, self.config.width
        q, k, v = (
            f(x).view(*x.shape[:2], heads, width).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        y = (q @ k.mT * 0.3).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).reshape(*x.shape[:2], heads * width))


class Config:
    """Half of it is computed, as configs do."""

    def __init__(self, heads: int = HEADS, inner: int = HEADS * WIDTH):
        self.heads, self.inner = heads, inner

    @property
    def width(self) -> int:
        return self.inner // self.heads


class Packed(nn.Module):
    """One matrix for queries, keys and values, of different widths, cut by sums of sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(heads=HEADS, key_heads=2)
        self.times, self.width = 2, WIDTH
        self.qkv = nn.Linear(HIDDEN, (HEADS + 4) * WIDTH)
        self.out = nn.Linear(HEADS * WIDTH, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        packed, shape = self.qkv(x), (*x.shape[:2], -1, self.width)
        end = self.config.heads * self.width
        q = packed[..., :end].view(shape).transpose(1, 2)
        k = packed[..., end : end + self.config.key_heads * self.width]
        v = packed[..., end + self.config.key_heads * self.width :]
        k, v = (repeated(y.view(shape).transpose(1, 2), self.times) for y in (k, v))
        y = (q @ k.mT * 0.4).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Checked(nn.Module):
    """Raises when its input is not as wide as it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.first, self.last = nn.Linear(HIDDEN, 8), nn.Linear(8, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if y.shape[-1] != self.width:
            raise ValueError(f"{y.shape[-1]} is not {self.width}")
        return self.last(y.relu())


class Latent(nn.Module):
    """Keys and values from a narrow latent; part of each key is shared by all heads and turned."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.plain, self.rope, self.value, self.rank = HEADS, WIDTH, 4, 5, 7
        self.q = nn.Linear(HIDDEN, HEADS * (WIDTH + 4))
        self.down = nn.Linear(HIDDEN, self.rank + self.rope)
        self.up = nn.Linear(self.rank, HEADS * (WIDTH + self.value))
        self.out = nn.Linear(HEADS * self.value, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, self.heads, -1).transpose(1, 2)
        q_plain, q_rope = q.split([self.plain, self.rope], -1)
        latent, k_rope = self.down(x).split([self.rank, self.rope], -1)
        kv = self.up(latent).view(batch, length, self.heads, self.plain + self.value)
        k_plain, v = kv.transpose(1, 2).split([self.plain, self.value], -1)
        keys = k_plain.new_empty(batch, self.heads, length, self.plain + self.rope)
        keys[..., : self.plain] = k_plain
        keys[..., self.plain :] = turned(k_rope)[:, None]
        queries = torch.cat((q_plain, turned(q_rope)), -1)
        y = (queries @ keys.mT * 0.3).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


class Stacked(nn.Module):
    """Experts as two parameters of three dimensions; ``method`` runs them."""

    def __init__(self, method: Callable[..., Tensor], experts: int = 4, width: int = 8):
        super().__init__()
        self.method, self.experts, self.width = method, experts, width
        self.router = nn.Linear(HIDDEN, experts)
        self.up = nn.Parameter(torch.empty(experts, 2 * width, HIDDEN))
        self.down = nn.Parameter(torch.empty(experts, HIDDEN, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(0, 1)
        weight, chosen = self.router(x).softmax(-1).topk(2, -1)
        return self.method(self, x, chosen, weight)


def gated(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def one_by_one(m: Any, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    hit = F.one_hot(chosen, m.experts).permute(2, 1, 0)
    for expert in hit.sum((-1, -2)).nonzero():
        place, token = torch.where(hit[expert[0]])
        y = F.linear(gated(F.linear(x[token], m.up[expert[0]])), m.down[expert[0]])
        out.index_add_(0, token, y * weight[token, place, None])
    return out


def batched(m: Any, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
    many = x.repeat_interleave(2, 0)[..., None]
    up, down = m.up[chosen.reshape(-1)], m.down[chosen.reshape(-1)]
    y = down @ gated((up @ many).squeeze(-1))[..., None]
    return (y.squeeze(-1) * weight.reshape(-1, 1)).view(x.shape[0], 2, -1).sum(1)


def grouped(m: Any, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
    order = chosen.reshape(-1).argsort()
    ends = torch.histc(chosen.float(), m.experts, 0, m.experts - 1).cumsum(0, dtype=torch.int32)
    y = F.grouped_mm(x[order // 2], m.up.mT, offs=ends)
    y = F.grouped_mm(gated(y), m.down.mT, offs=ends)
    out = torch.empty_like(y)
    out[order] = y
    return (out * weight.reshape(-1, 1)).view(x.shape[0], 2, -1).sum(1)


class Mixer(nn.Module):
    """A state-space mixer: a causal convolution, a selective scan, a gate."""

    def __init__(self, inner: int = 8, state: int = 4, rank: int = 3):
        super().__init__()
        self.inner, self.state, self.rank = inner, state, rank
        self.into = nn.Linear(HIDDEN, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, 3, groups=inner, padding=2)
        self.select = nn.Linear(inner, rank + 2 * state, bias=False)
        self.step = nn.Linear(rank, inner)
        self.decay = nn.Parameter(torch.empty(inner, state))
        self.skip = nn.Parameter(torch.empty(inner))
        self.out = nn.Linear(inner, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        y, gate = self.into(x).transpose(1, 2).chunk(2, 1)
        y = F.silu(self.conv(y)[..., :length])
        sizes = [self.rank, self.state, self.state]
        step, b, c = self.select(y.transpose(1, 2)).split(sizes, -1)
        step = F.softplus(self.step(step)).transpose(1, 2)
        a = torch.exp(-torch.exp(self.decay)[None, :, None, :] * step[..., None])
        update = step[..., None] * b[:, None] * y[..., None]
        state = torch.zeros(batch, self.inner, self.state, dtype=x.dtype)
        seen = []
        for i in range(length):
            state = a[:, :, i] * state + update[:, :, i]
            seen.append(torch.matmul(state, c[:, i, :, None])[..., 0])
        y = torch.stack(seen, -1) + y * self.skip[None, :, None]
        return self.out((y * F.silu(gate)).transpose(1, 2))


class Modules(nn.Module):
    """Experts as modules of their own, of which a loop calls those that are chosen."""

    def __init__(self, experts: int = 4, width: int = 8):
        super().__init__()
        self.router = nn.Linear(HIDDEN, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(HIDDEN, width), nn.GELU(), nn.Linear(width, HIDDEN))
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(0, 1)
        best, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            (rows,) = torch.where(chosen == number)
            out[rows] = expert(x[rows]) * best[rows, None]
        return out


def single(case: Case) -> Case:
    """The same in single precision."""
    return replace(case, model=case.model.float(), example=case.example.float())


def whole(model: nn.Module, exact: dict[str, int], inexact: dict[str, str] | None = None) -> Case:
    return Case(randomised(model), exact, inexact or {}, tokens())


ALL = {"q": HEADS, "q[1]": WIDTH, "v": WIDTH + 1}
SCALED = {"q[1]": "computes a number from its size"}
CHOSEN = {"router": "softmax"}
CASES = {
    "eager": attention(eager, ALL),
    "fused": attention(fused, ALL),
    "fused-causal": attention(lambda *a: fused(*a, is_causal=True), ALL),
    "scaled-by-its-size": attention(scaled_by_its_size, {"q": HEADS, "v": WIDTH + 1}, SCALED),
    "scaled-by-a-tensor": attention(scaled_by_a_tensor, {"q": HEADS, "v": WIDTH + 1}, SCALED),
    "scaled-out-of-sight": attention(scaled_out_of_sight, {"q": HEADS, "v": WIDTH + 1}, SCALED),
    "one-width-for-all": attention(eager, {"q": HEADS, "q[1]": WIDTH, "v": WIDTH}, value=WIDTH),
    "keys-shared": attention(
        lambda m, q, k, v: eager(m, q, repeated(k, m.times), repeated(v, m.times)),
        {"q": 2, "q[1]": 2, "q[2]": WIDTH, "v": WIDTH + 1},
        key_heads=2,
    ),
    "keys-shared-fused": attention(
        asked_for_groups, {"q": 2, "q[1]": 2, "q[2]": WIDTH, "v": WIDTH + 1}, key_heads=2
    ),
    "one-key-head": attention(
        asked_for_groups, {"q": HEADS, "q[1]": WIDTH, "v": WIDTH + 1}, key_heads=1
    ),
    "rotary-halves": attention(rotated(turned), {"q": HEADS, "q[1]": WIDTH // 2, "v": WIDTH + 1}),
    "rotary-part": attention(
        rotated(turned, 4), {"q": HEADS, "q[1]": 2, "q[2]": 2, "v": WIDTH + 1}
    ),
    "rotary-pairs": attention(
        rotated(turned_pairs), {"q": HEADS, "q[1]": WIDTH // 2, "v": WIDTH + 1}
    ),
    "rotary-complex": attention(
        rotated_as_complex, {"q": HEADS, "q[1]": WIDTH // 2, "v": WIDTH + 1}
    ),
    "position-table": attention(biased, ALL),
    "linear": attention(linear, ALL),
    "config-of-all-layers": whole(
        nn.Sequential(*map(Layer, [Config()] * 2)),
        {f"{i}.{name}": size for i in (0, 1) for name, size in (ALL | {"v": WIDTH}).items()},
    ),
    "packed": whole(Packed(), {"qkv": 2, "qkv[1]": 2, "qkv[2]": WIDTH, "qkv[3]": WIDTH}),
    "checked": whole(Checked(), {"first": 8}),
    "latent": whole(
        Latent(), {"q": HEADS, "q[1]": WIDTH, "q[2]": 2, "q[3]": 2, "down": 7, "up": 5}
    ),
    "experts-one-by-one": whole(Stacked(one_by_one), {"up:1": 8}),
    "experts-batched": whole(Stacked(batched), {"up:1": 8}, CHOSEN),
    "experts-grouped": single(whole(Stacked(grouped, width=16), {"up:1": 16}, CHOSEN)),
    "experts-as-modules": whole(Modules(), {f"experts.{i}.0": 8 for i in range(4)}),
    "state-space": whole(Mixer(), {"into": 8, "select": 3, "select[1]": 4}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_analyze_when_a_mechanism_is_known_then_its_groups_are_these(case):
    structure = analyze(case.model, case.example)
    assert {g.name: g.size for g in structure.exact} == case.exact
    assert {g.name for g in structure.groups if not g.exact} == set(case.inexact)
    for name, words in case.inexact.items():
        assert words in structure[name].inexact.why
    assert not structure.unknown


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cut_when_half_of_every_exact_group_goes_then_it_is_the_masked_model(case):
    structure = analyze(case.model, case.example)
    result = half(structure, structure.exact, case.model, case.example)
    single = case.example.dtype == torch.float32
    assert result.verification.difference < (1e-5 if single else 1e-10)
    left = sum(p.numel() for p in result.model.parameters())
    assert left == result.after.params < result.before.params


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cut_when_half_of_every_group_goes_then_it_runs_and_is_cut_again(case):
    structure = analyze(case.model, case.example)
    result = half(structure, structure.groups, case.model, case.example)
    unproven = [n for n in case.inexact if not structure[n].unchosen]
    assert result.verification.exact == (not unproven)
    again = analyze(result.model, case.example)
    assert again.cost().params == result.after.params
    twice = half(again, again.exact, result.model, case.example)
    assert twice.verification.passed


def test_heads_when_their_width_is_cut_too_then_each_knows_the_other():
    structure = analyze(CASES["eager"].model, CASES["eager"].example)
    assert structure["q"].grid == ("q[1]", "v")
    assert structure["q[1]"].grid == structure["v"].grid == ("q",)


def test_group_when_a_config_of_all_layers_names_it_then_the_layers_stay_alike():
    case = CASES["config-of-all-layers"]
    structure = analyze(case.model, case.example)
    assert structure["0.q"].sized == ("1.q",)
    result = half(structure, structure.exact, case.model, case.example)
    config = result.model[0].config
    assert config is result.model[1].config
    assert (config.heads, config.inner, config.width) == (2, 6, 3)
    assert (case.model[0].config.heads, case.model[0].config.inner) == (HEADS, HEADS * WIDTH)


def test_group_when_it_is_sized_with_an_inexact_one_then_it_is_inexact_with_that_reason():
    model = randomised(Attention(scaled_by_its_size, value=WIDTH))
    model.value_width = 0
    model.forward = lambda x: _one_width(model, x)
    structure = analyze(model, tokens())
    assert structure["v"].sized == ("q[1]",)
    assert "as many positions as 'q[1]'" in structure["v"].inexact.why


def _one_width(m: Any, x: Tensor) -> Tensor:
    shape = (*x.shape[:-1], m.heads, m.width)
    q, k, v = (f(x).view(shape).transpose(1, 2) for f in (m.q, m.k, m.v))
    return m.out(m.method(m, q, k, v).transpose(1, 2).flatten(2))


def test_attention_when_one_function_of_torch_does_it_all_then_it_stays_and_is_told_its_width():
    structure = analyze(randomised(Called()), tokens())
    assert structure.groups == ()
    assert "written in the code" in structure["packed[1]"].frozen.why
    assert [str(a) for a in structure.inferred.attributes] == ["wide"]


def test_pairs_when_they_become_complex_numbers_then_rows_still_begin_at_an_even_place():
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes = [6, 4]
            self.layer, self.last = nn.Linear(HIDDEN, 10), nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            plain, pairs = self.layer(x).split(self.sizes, -1)
            pairs = torch.view_as_complex(pairs.view(*pairs.shape[:-1], -1, 2))
            return self.last(torch.cat((plain, torch.view_as_real(pairs).flatten(-2)), -1))

    model = randomised(Sized())
    structure = analyze(model, tokens())
    assert structure["layer"].size == 6
    assert structure["layer"].step == 2
    assert half(structure, structure.exact, model, tokens()).verification.passed


def test_experts_when_two_are_chosen_then_two_stay():
    case = CASES["experts-batched"]
    structure = analyze(case.model, case.example)
    assert structure["router"].least == 2
    with pytest.raises(PlanError, match="at least 2 positions, not 1"):
        Plan({"router": (0,)}).check(structure)


def test_experts_when_rows_must_be_aligned_then_a_multiple_stays():
    case = CASES["experts-grouped"]
    structure = analyze(case.model, case.example)
    assert (
        structure["up:1"].step == 8
    )  # 16 bytes of bfloat16, in which what is float32 here may run
    with pytest.raises(PlanError, match="multiple of 8"):
        Plan({"up:1": (0, 1, 2)}).check(structure)


@pytest.mark.parametrize("fails", [False, True])
def test_analyze_when_it_ends_then_every_integer_is_as_it_was(fails):
    config = SimpleNamespace(heads=HEADS, sizes=[1, 2], inner=SimpleNamespace(width=WIDTH))

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config, self.layer, self.several = config, nn.Linear(HIDDEN, HEADS * WIDTH), (3, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.config.heads
            y = self.layer(x).view(*x.shape[:2], self.config.heads, self.config.inner.width)
            if fails:
                raise ValueError(type(self.config.sizes[0]).__name__)
            return y

    model = randomised(Reader())
    with pytest.raises(TraceError, match="TracedInt") if fails else nullcontext():
        analyze(model, tokens())
    held = [config.heads, *config.sizes, config.inner.width, *model.several]
    assert held == [HEADS, 1, 2, WIDTH, 3, 4]
    assert not hasattr(model, "seen")
    assert {type(n) for n in held} == {int}
