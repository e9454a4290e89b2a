"""Depth: dropped layers are taken out, the rest counted anew; equal to skipping, and it loads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.replacements.passing import PassThrough, skipping
from tests import zoo

SEED = torch.Generator().manual_seed(0)
WIDTH = 8


class Layer(nn.Module):
    """Attention's stand-in and a feed-forward, normed before, after or not at all."""

    def __init__(self, norm: str, place: int = 0, kind: str = "plain"):
        super().__init__()
        self.norm, self.place, self.kind = norm, place, kind
        self.mix, self.first = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        self.second = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        mixed = self.mix(F.silu(self.first(x) if self.norm == "pre" else x))
        if memory is not None:
            mixed = mixed + memory.mean(-2, keepdim=True)
        if self.kind == "doubled":
            mixed = 2 * mixed
        x = self.first(x + mixed) if self.norm == "post" else x + mixed
        y = self.down(torch.tanh(self.up(self.second(x) if self.norm == "pre" else x)))
        return self.second(x + y) if self.norm == "post" else x + y


class Listed(nn.Module):
    """A ModuleList that is gone through in one of many ways."""

    way = "for"

    def __init__(self, norm: str = "pre", depth: int = 4, config: Any = None):
        super().__init__()
        self.depth = depth
        self.embed = nn.Linear(5, WIDTH)
        self.layers = nn.ModuleList(Layer(norm, i) for i in range(depth))
        self.head = nn.Linear(WIDTH, 3)
        self.plain: list[Any] = list(self.layers) if "plain" in self.way else []

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.ordered():
            x = layer(x)
        return self.head(x)

    def ordered(self) -> list[nn.Module]:
        layers = self.layers
        if self.way == "range of an attribute":
            return [layers[i] for i in range(self.depth)]
        if self.way == "zip with another":
            return [layer for layer, _ in zip(layers, range(self.depth), strict=True)]
        if self.way == "slice":
            return list(layers[: self.depth])
        if self.way == "each by its place":
            return [layers[layer.place] for layer in layers]
        if self.way == "from a table made before":
            return [layers[i] for i in (0, 1, 2, 3)]
        if self.way == "through a plain list":
            return self.plain
        return list(layers)


class Sequence(nn.Module):
    def __init__(self, norm: str = "pre", named: bool = False):
        super().__init__()
        layers = {f"layer{i}" if named else f"{i}": Layer(norm, i) for i in range(4)}
        self.embed, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.layers = nn.Sequential()
        for name, layer in layers.items():
            self.layers.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x)))


class Translator(nn.Module):
    """An encoder, and a decoder whose layers are given what it made."""

    def __init__(self, norm: str = "pre"):
        super().__init__()
        self.source, self.target = nn.Linear(5, WIDTH), nn.Linear(5, WIDTH)
        self.encoder = nn.ModuleList(Layer(norm, i) for i in range(3))
        self.decoder = nn.ModuleList(Layer(norm, i) for i in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.source(x), self.target(y)
        for layer in self.encoder:
            x = layer(x)
        for layer in self.decoder:
            y = layer(y, memory=x)
        return y


class Staged(nn.Module):
    """Lists in a list: one loses some of its own, and another goes as a whole."""

    def __init__(self, norm: str = "pre"):
        super().__init__()
        self.embed = nn.Linear(5, WIDTH)
        self.stages = nn.ModuleList(nn.Sequential(Layer(norm), Layer(norm)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for stage in self.stages:
            x = stage(x)
        return x


def listed(way: str) -> type[Listed]:
    return type("Listed", (Listed,), {"way": way})


def x(rows: int = 5) -> Tensor:
    return torch.randn(2, rows, 5, generator=SEED)


FORMS: dict[str, tuple[Callable[[str], nn.Module], Any, list[str], bool]] = {
    "list": (Listed, (x(),), ["layers.1"], True),
    "list, first and last": (Listed, (x(),), ["layers.0", "layers.3"], True),
    "list, all but one": (Listed, (x(),), ["layers.0", "layers.1", "layers.3"], True),
    "sequential": (Sequence, (x(),), ["layers.2"], True),
    "named sequential": (lambda n: Sequence(n, True), (x(),), ["layers.layer2"], True),
    "both stacks": (Translator, (x(), x(7)), ["encoder.1", "decoder.0"], True),
    "stages": (Staged, (x(),), ["stages.0", "stages.2.0"], True),
    **{
        way: (listed(way), (x(),), ["layers.1"], out)
        for way, out in (
            ("range of an attribute", True),
            ("zip with another", True),
            ("slice", True),
            ("each by its place", True),
            ("from a table made before", False),
            ("through a plain list", False),
        )
    },
}


SLOW = pytest.mark.slow
QUICK = {"list", "both stacks", "stages", "range of an attribute", "through a plain list"}
CASES = [
    pytest.param(form, norm, marks=() if form in QUICK and norm != "none" else SLOW)
    for form in FORMS
    for norm in ("pre", "post", "none")
]


@pytest.mark.parametrize(("form", "norm"), CASES)
def test_drop_when_layers_go_then_it_equals_skipping_and_loads(form, norm, tmp_path):
    build, inputs, names, taken_out = FORMS[form]
    torch.manual_seed(0)
    model = build(norm).eval()
    blocks = {block.name: block for block in sc.analyze(model, inputs).blocks}
    assert set(names) <= set(blocks), form
    result = sc.drop_blocks(model, names, inputs)
    small = result.model
    assert result.verification.exact
    assert result.verification.passed
    with torch.no_grad(), skipping(model, {n: (b.position, b.returns) for n, b in blocks.items()
                                           if n in names}):  # fmt: skip
        expected = model(*inputs)
    with torch.no_grad():
        torch.testing.assert_close(small(*inputs), expected)
    assert any(isinstance(m, PassThrough) for m in small.modules()) is not taken_out
    assert any("returns what it is given" in note for note in result.notes) is not taken_out
    assert result.after.params == sum(p.numel() for p in small.parameters())
    assert not any(isinstance(m, PassThrough) for m in model.modules())
    result.save(tmp_path)
    loaded = sc.load_pruned(tmp_path, build(norm)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(*inputs), small.eval()(*inputs))
    assert list(loaded.state_dict()) == list(small.state_dict())


class Cached(nn.Module):
    """Layers of two kinds by a list in the config, and a cache that is asked by their places."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(5, WIDTH)
        kinds = zip(range(config.layers), config.kinds, strict=True)
        self.blocks = nn.ModuleList(Layer(config.norm, i, kind) for i, kind in kinds)

    def forward(self, x: Tensor, cache: dict[int, Tensor] | None = None) -> Tensor:
        x = self.embed(x)
        for block in self.blocks[: self.config.layers]:
            if cache is not None:
                cache[block.place] = x
            x = block(x)
        return x


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("names", [["blocks.0"], ["blocks.1", "blocks.2"]])
def test_drop_when_a_config_has_a_value_for_each_layer_then_it_says_those_that_stay(
    norm, kind, names, tmp_path
):
    kinds = kind(["plain", "doubled", "plain", "doubled"])
    config = SimpleNamespace(layers=4, kinds=kinds, norm=norm, others=[1, 2, 3], width=WIDTH)
    torch.manual_seed(0)
    model = Cached(config).eval()
    result = sc.drop_blocks(model, names, inputs := x())
    said = result.model.config
    left = [i for i in range(4) if f"blocks.{i}" not in names]
    assert (said.layers, said.kinds) == (len(left), kind(kinds[i] for i in left))
    assert (config.layers, config.kinds, said.others) == (4, kinds, [1, 2, 3])
    assert result.rebuilt
    assert f"layers={len(left)}" in result.loads_with
    stock = Cached(copy.deepcopy(said)).eval()
    stock.load_state_dict(result.model.state_dict())
    cache: dict[int, Tensor] = {}
    assert torch.equal(stock(inputs, cache), result.model(inputs))
    assert list(cache) == list(range(len(left)))
    result.save(tmp_path)
    loaded = sc.load_pruned(tmp_path, Cached(copy.deepcopy(config))).eval()
    assert torch.equal(loaded(inputs), result.model(inputs))
    assert vars(loaded.config) == vars(said)


def test_drop_when_kinds_follow_from_the_place_then_the_config_cannot_say_it(tmp_path):
    class Alternating(nn.Module):
        def __init__(self, config: Any):
            super().__init__()
            self.config, self.embed = config, nn.Linear(5, WIDTH)
            kinds = ["doubled" if i % 2 else "plain" for i in range(config.layers)]
            self.blocks = nn.ModuleList(Layer("pre", i, kind) for i, kind in enumerate(kinds))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for block in self.blocks:
                x = block(x)
            return x

    torch.manual_seed(0)
    model = Alternating(SimpleNamespace(layers=4)).eval()
    result = sc.drop_blocks(model, ["blocks.1"], x())
    assert [block.kind for block in result.model.blocks] == ["plain", "plain", "doubled"]
    assert (result.config, result.rebuilt) == (None, False)
    assert "secateur.load_pruned" in result.loads_with


def test_blocks_when_layers_alike_hand_on_no_stream_then_they_are_none():
    plain = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(3)))
    assert sc.analyze(plain, torch.randn(2, WIDTH)).blocks == ()
    norms = nn.Sequential(nn.Linear(5, WIDTH), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH))
    assert sc.analyze(norms, torch.randn(2, 5)).blocks == ()


TINY = {"num_attention_heads": 4, "vocab_size": 64, "pad_token_id": 0}
SIZES = {"hidden_size": 32, "intermediate_size": 48, **TINY}
GROUPED = {**SIZES, "num_key_value_heads": 2}
START = {"pad_token_id": 0, "decoder_start_token_id": 0}
BOTH = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 64} | {
    f"{side}_attention_heads": 4 for side in ("encoder", "decoder")
}
CLASSES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "LlamaForCausalLM": ("num_hidden_layers", GROUPED, ["layers.0"]),
    "Qwen3ForCausalLM": ("num_hidden_layers", {**GROUPED, "head_dim": 8}, ["layers.0", "layers.2"]),
    "Gemma2ForCausalLM": ("num_hidden_layers", {**SIZES, "head_dim": 8}, ["layers.1"]),
    "GPT2LMHeadModel": ("n_layer", {"n_embd": 32, "n_head": 4, "vocab_size": 64}, ["h.0"]),
    "OPTForCausalLM": ("num_hidden_layers", {**TINY, "hidden_size": 32, "ffn_dim": 48,
                                            "word_embed_proj_dim": 32}, ["layers.1"]),
    "MixtralForCausalLM": ("num_hidden_layers", {**GROUPED, "num_local_experts": 4}, ["layers.1"]),
    "BertForMaskedLM": ("num_hidden_layers", SIZES, ["layer.0", "layer.3"]),
    "RobertaForMaskedLM": ("num_hidden_layers", SIZES, ["layer.2"]),
    "BartForConditionalGeneration": ("encoder_layers", BOTH, ["encoder.layers.1"]),
    "MarianMTModel": ("decoder_layers", {**BOTH, **START}, ["decoder.layers.1"]),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [n if n[:4] in ("Llam", "Bert") else pytest.param(n, marks=SLOW) for n in CLASSES]
)
def test_drop_when_it_is_a_class_of_transformers_then_the_stock_loader_takes_it(name, tmp_path):
    zoo.torchvision_models()
    transformers = pytest.importorskip("transformers")
    number, sizes, ends = CLASSES[name]
    kind = getattr(transformers, name)
    config = kind.config_class(**sizes, **{number: 4})
    torch.manual_seed(0)
    model = kind(config).eval()
    tokens = torch.randint(1, 64, (2, 7), generator=SEED)
    inputs = {"input_ids": tokens}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens[:, :5]
    names = [b.name for b in sc.analyze(model, inputs).blocks if b.name.endswith(tuple(ends))]
    assert len(names) == len(ends)
    result = sc.drop_blocks(model, names, inputs)
    assert result.verification.passed
    assert (result.rebuilt, getattr(result.model.config, number)) == (True, 4 - len(names))
    result.model.save_pretrained(tmp_path)
    stock = kind.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(stock(**inputs)[0], result.model(**inputs)[0])
    if hasattr(stock, "generate") and "Masked" not in name:
        options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
        made = [m.generate(tokens, use_cache=u, **options) for m, u in (
            (stock, True), (result.model, True), (result.model, False))]  # fmt: skip
        assert torch.equal(made[0], made[1])
        assert torch.equal(made[0], made[2])


DEPTH = {"what": ["depth"]}


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True) for _ in range(4))
    return nn.Sequential(*layers).eval()


def test_prune_when_depth_is_asked_for_then_it_is_drop_blocks_by_error():
    x, data = torch.randn(2, 3, 8), [torch.randn(4, 3, 8) for _ in range(4)]
    for repair in ("none", "least_squares"):
        asked = sc.prune(encoder(), x, 0.5, **DEPTH, data=data, repair=repair)
        named = sc.drop_blocks(encoder(), 2, x, data=data, by="error", repair=repair)
        assert asked.plan == named.plan
        assert len(asked.model) == 2
        assert torch.equal(asked.model(x), named.model(x))
    assert sc.drop_blocks(encoder(), 0.3, x, data=data, by="error").plan.drop == (
        named.plan.drop[0],
    )


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "too little": ({"sparsity": 0.1}, "10% of 4 blocks is none: 0.25 is one"),
    "all": ({"sparsity": 1.0}, "4 blocks cannot go"),
    "a criterion": ({"criterion": "l2"}, "the share of blocks, without criterion"),
    "no share": ({"sparsity": None, "threshold": 0.1}, "without threshold"),
    "in place": ({"inplace": True}, "cuts a copy"),
    "no data": ({"data": None}, "needs data"),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG)
def test_prune_when_depth_does_not_go_with_a_setting_then_that_is_said(given, said):
    settings = {"sparsity": 0.5, "data": [torch.randn(4, 3, 8)] * 4, **DEPTH, **given}
    with pytest.raises(sc.errors.ConfigError, match=said):
        sc.prune(encoder(), torch.randn(2, 3, 8), **settings)


def test_pruner_when_depth_is_asked_for_then_it_says_who_removes_blocks():
    config, x = sc.Config(sparsity=0.5, **DEPTH), torch.randn(2, 3, 8)
    with pytest.raises(sc.errors.ConfigError, match=r"by prune\(\), in one shot"):
        sc.Pruner(encoder(), config, x)
    with pytest.raises(sc.errors.NoMatchError, match="no groups: alone it goes by prune"):
        sc.Pruner(encoder(), config, x, trained=False)


class Memory:
    """Keys that blocks leave for the next call."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []


class Remembering(nn.Module):
    """Residual blocks that fill a memory, which goes out under the name of an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Kept() for _ in range(4)])

    def forward(self, x: Tensor, memory: Memory | None = None, **options: Any) -> dict[str, Any]:
        memory = memory or Memory()
        for block in self.blocks:
            x = block(x, memory)
        return {"x": x, "memory": memory}


class Kept(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        memory.keys.append(self.key(x).relu())
        return x + self.value(memory.keys[-1])


class Wrapped(nn.Module):
    """What hands on all that it is given, as PEFT's models do."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("times", [0, 1, 2])
def test_blocks_when_a_model_is_wrapped_then_its_memory_is_no_output_either(times):
    model: nn.Module = Remembering()
    for _ in range(times):
        model = Wrapped(model)
    x = torch.randn(2, 3, 8)
    assert len(sc.analyze(model, x).blocks) == 4
    assert len(sc.drop_blocks(model, 0.5, x, data=[x] * 4).plan.drop) == 2


def test_drop_when_there_is_no_block_then_says_what_one_is():
    flat = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(sc.errors.ConfigError, match="no block that can go: a module that returns"):
        sc.drop_blocks(flat, 0.5, torch.randn(2, 8), data=[torch.randn(2, 8)] * 4)
