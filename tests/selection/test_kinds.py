"""What goes, by the words of people: width, heads, experts, hidden; alone and together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ConfigError, NoMatchError
from secateur.graph.kinds import kinds
from tests.mixtures import batches, mixture
from tests.repair.kinds import LLAMA, hugging_face


def named(structure: sc.Structure) -> dict[str, set[str]]:
    return {kind: kinds[kind](structure.inferred, structure.groups) for kind in kinds}


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return hugging_face("Llama", **LLAMA).eval()


TOKENS = torch.arange(1, 17).view(1, 16)


def test_kinds_when_a_model_is_a_decoder_then_each_group_is_of_one_or_part_of_a_grid(llama):
    structure = sc.analyze(llama, TOKENS)
    found = named(structure)
    assert not found["experts"]
    assert found["hidden"] == {"model.embed_tokens:1"}
    assert all("mlp" in name for name in found["width"])
    assert all("self_attn" in name for name in found["heads"])
    assert len(found["width"]) == len(found["heads"]) == LLAMA["num_hidden_layers"]
    left = {g.name for g in structure.groups} - set().union(*found.values())
    assert all(structure[name].grid for name in left)
    assert sum(map(len, found.values())) == len(set().union(*found.values()))


def test_kinds_when_a_model_is_a_mixture_then_experts_and_their_neurons_are_apart():
    found = named(sc.analyze(mixture(), batches()[0]))
    assert found == {
        "width": {"up:1"},
        "heads": set(),
        "experts": {"router"},
        "hidden": set(),
        "depth": set(),
    }


def test_kinds_when_a_network_is_convolutional_then_groups_are_heads_and_the_stream_is_hidden():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.up = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 1)
            self.mid = nn.Conv2d(16, 16, 3, padding=1, groups=4)
            self.down, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head(x + self.down(self.mid(self.up(x).relu())))

    structure = sc.analyze(Net().eval(), torch.randn(1, 3, 8, 8))
    found = named(structure)
    assert found["hidden"] == {"stem"}
    assert all(structure[name].size == 4 for name in found["heads"])
    assert not found["experts"]


@pytest.mark.parametrize("what", [["width"], ["heads"], ["hidden"], ["width", "heads"]])
def test_prune_when_kinds_are_named_then_these_lose_and_no_others(llama, what):
    found = named(sc.analyze(llama, TOKENS))
    result = sc.prune(llama, TOKENS, 0.5, "l2", what=what)
    assert {*result.plan.keep} == set().union(*(found[kind] for kind in what))
    assert result.verification.exact
    assert result.verification.passed


@pytest.mark.parametrize(("share", "gone"), [(0.25, 0), (0.5, 1)])
def test_prune_when_a_share_is_less_than_a_head_then_it_stays_and_a_note_says_so(
    llama, share, gone
):
    heads = {g.name: g.size for g in sc.analyze(llama, TOKENS).groups if g.grid}
    result = sc.prune(llama, TOKENS, share, "l2", names=["*attn*"])
    said = [note for note in result.notes if "less than one position" in note]
    if gone:
        assert not said
        assert result.plan.counts
        assert all(heads[name] - count == 1 for name, count in result.plan.counts.items())
    else:
        assert not result.plan.counts
        (note,) = said
        assert "ask for 50% or more" in note
        assert "grid='fine'" in note
        assert any(repr(name) in note for name in heads)


def test_prune_when_experts_are_named_then_any_criterion_ranks_them():
    result = sc.prune(mixture(), batches()[0], 0.34, "l2", what=["experts"])
    assert {*result.plan.keep} == {"router"}
    assert result.verification.exact
    both = sc.prune(mixture(), batches()[0], 0.5, "l2", what=["experts", "width"])
    assert {*both.plan.keep} == {"router", "up:1"}
    assert both.verification.passed
    default = sc.prune(mixture(), batches()[0], 0.5, "l2")
    assert "router" not in default.plan.keep, "experts go when they are asked for"


def test_prune_when_targets_name_other_kinds_then_each_has_its_share(llama):
    targets = [{"what": ["width"], "sparsity": 0.25}, {"what": ["heads"], "sparsity": 0.5}]
    result = sc.prune(llama, TOKENS, config={"criterion": "l2", "targets": targets})
    structure = result.structure
    for kind, left in (("width", 0.75), ("heads", 0.5)):
        for name in named(structure)[kind]:
            assert len(result.plan.keep[name]) == left * structure[name].size


def test_prune_when_a_model_has_none_of_a_kind_then_that_is_said(llama):
    said = "what='experts': LlamaForCausalLM has none .it has heads, hidden, width"
    with pytest.raises(NoMatchError, match=said):
        sc.prune(llama, TOKENS, 0.5, "l2", what=["experts"])
    with pytest.raises(NoMatchError, match="what='width' is 'up:1'"):
        sc.prune(mixture(), batches()[0], 0.5, "reap", what=["width"], data=batches())


def test_config_when_a_kind_is_unknown_or_has_no_groups_then_that_is_said():
    with pytest.raises(ConfigError, match="unknown kind of group 'head'. Did you mean 'heads'"):
        sc.Config(sparsity=0.5, what=["head"])
    with pytest.raises(ConfigError, match="for granularity 'group' alone"):
        sc.Config(sparsity=0.5, what=["heads"], granularity="element")
    assert sc.Config(sparsity=0.5, what=["heads"], granularity="group").what == ("heads",)


class Pooled(nn.Module):
    """A head that is run and dropped, and channels that are read without a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.pooler = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 6)
        self.summed = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.outer(self.inner(x).relu())
        self.pooler(x).tanh()
        return self.summed(x).relu().sum(-1)


def test_width_when_nothing_reads_a_layer_then_that_is_left_alone():
    model = Pooled()
    structure = sc.analyze(model, torch.randn(2, 8))
    assert {"inner", "pooler", "summed"} <= {group.name for group in structure.groups}
    assert kinds["width"](structure.inferred, structure.groups) == {"inner", "summed"}
    result = sc.prune(model, torch.randn(2, 8), 0.5, "l2", what=["width"])
    assert result.model.pooler.out_features == 6


class Attending(nn.Module):
    """Heads whose number is written in the code, so that only their widths can be cut."""

    def __init__(self, fused: bool, how: str) -> None:
        super().__init__()
        self.fused, self.how = fused, how
        self.qkv = nn.Linear(8, 24) if fused else nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        every = self.qkv(x).chunk(3, -1) if self.fused else [layer(x) for layer in self.qkv]
        q, k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in every)
        if self.how == "fused":
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        elif self.how == "einsum":
            chances = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
            mixed = torch.einsum("bhqk,bhkd->bhqd", chances, v)
        else:
            mixed = (q @ k.mT).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(self.up(x).relu())


@pytest.mark.parametrize("how", ["fused", "einsum", "product"])
@pytest.mark.parametrize("fused", [True, False])
def test_width_when_heads_cannot_go_then_their_widths_are_left_alone(fused: bool, how: str):
    model = Attending(fused, how)
    structure = sc.analyze(model, torch.randn(2, 5, 8))
    assert any("qkv" in group.name for group in structure.groups)
    assert kinds["width"](structure.inferred, structure.groups) == {"up"}


@pytest.mark.parametrize(
    ("settings", "measured"),
    [
        ({"of": "params"}, True),
        ({"budget": "80 % params", "sparsity": None}, True),
        ({"of": "params", "criterion": "l2"}, True),
        ({"of": "params", "what": ["experts"]}, False),
        ({"of": "params", "allocate": "uniform"}, False),
        ({"of": "params", "data": None}, False),
        ({}, False),
    ],
)
def test_prune_when_several_kinds_share_a_cost_then_who_loses_how_much_is_measured(
    settings: dict[str, Any], measured: bool
) -> None:
    given: dict[str, Any] = {"sparsity": 0.3, "what": ["experts", "width"], "data": batches()}
    result = sc.prune(mixture(), batches()[0], **{**given, **settings})
    assert any(note.startswith("shared out ") for note in result.notes) is measured


class Biased(nn.Module):
    """Two layers of attention, to whose scores one bias of each head is added."""

    def __init__(self, heads: int = 4, width: int = 4) -> None:
        super().__init__()
        size = heads * width
        self.shape = (heads, width)
        self.bias = nn.Embedding(6, heads)
        self.layers = nn.ModuleList(
            nn.ModuleDict({n: nn.Linear(size, size) for n in ("q", "k", "v", "o")})
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        many = x.shape[1]
        bias = self.bias.weight[:many].T[None, :, :, None].expand(len(x), -1, many, many)
        for layer in self.layers:
            q, k, v = (layer[n](x).unflatten(2, self.shape).transpose(1, 2) for n in "qkv")
            scores = torch.matmul(q, k.transpose(2, 3)) / self.shape[1] ** 0.5
            mixed = torch.matmul((scores + bias).softmax(-1), v).transpose(1, 2)
            x = x + layer["o"](mixed.flatten(2))
        return x.mean(1)


def test_kinds_when_all_layers_share_a_bias_of_heads_then_these_are_heads_and_not_hidden() -> None:
    found = named(sc.analyze(Biased().eval(), torch.randn(2, 5, 16)))
    assert len(found["heads"]) == 1
    assert not found["heads"] & found["hidden"]


class Scan(nn.Module):
    """A mixer whose inner width is added to itself and read twice, and stays inside of it."""

    def __init__(self, size: int = 8, inner: int = 12) -> None:
        super().__init__()
        self.up, self.more = nn.Linear(size, inner), nn.Linear(inner, inner)
        self.down = nn.Linear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()
        return self.down(h + self.more(h).tanh())


class Scans(nn.Module):
    """Mixers on a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.mixers = nn.ModuleList(Scan() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for mixer in self.mixers:
            x = x + mixer(x)
        return self.head(x)


def test_kinds_when_a_width_stays_inside_of_a_module_then_it_is_no_hidden_size() -> None:
    found = named(sc.analyze(Scans().eval(), torch.randn(2, 4)))
    assert found["hidden"] == {"stem"}
    assert len(found["width"]) == 2
    for depth in (1, 2):  # a wrapper hands on nothing of the kind
        wrapped: nn.Module = Scans()
        for _ in range(depth):
            wrapped = nn.Sequential(wrapped)
        found = named(sc.analyze(wrapped.eval(), torch.randn(2, 4)))
        assert found["hidden"] == {"0." * depth + "stem"}
        assert len(found["width"]) == 2
    alone = named(sc.analyze(Scan().eval(), torch.randn(2, 8)))
    assert len(alone["hidden"] | alone["width"]) == 1


def test_prune_when_one_of_several_kinds_is_not_there_then_a_note_says_so(llama: nn.Module) -> None:
    result = sc.prune(llama, TOKENS, 0.5, "l2", what=["width", "experts"])
    assert [n for n in result.notes if n.startswith("stays whole: what='experts'")]
    every = sc.prune(llama, TOKENS, 0.5, "l2", what=["width", "heads"])
    assert not [note for note in every.notes if note.startswith("stays whole")]
