"""Where a smaller model loads: its own constructor with other numbers, or only our loader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.shrinking.expressed import rebuilt
from tests import zoo

SEED = torch.Generator().manual_seed(0)


@dataclass
class Sizes:
    """What the model is built from."""

    width: int = 8
    inner: int = 24
    depth: int = 2
    scale: str = "none"
    spare: bool = False


class Net(nn.Module):
    def __init__(self, config: Sizes):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(6, config.width)
        self.up = nn.ModuleList(nn.Linear(config.width, config.inner) for _ in range(config.depth))
        self.down = nn.ModuleList(
            nn.Linear(config.inner, config.width) for _ in range(config.depth)
        )
        if config.spare:
            self.register_buffer("spare", torch.zeros(config.inner))  # no forward reads it
        self.factor = 1 / config.inner if config.scale == "built" else 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + self.factor * down(torch.relu(up(x)))
        return x


def pruned(uniform: bool = True, **sizes: Any) -> sc.Result:
    torch.manual_seed(0)
    x = torch.randn(4, 6, generator=SEED)
    if uniform:
        return sc.prune(Net(Sizes(**sizes)), x, sparsity=0.5, names=["up*"], uniform=True)
    targets = [{"names": ["up.0"], "sparsity": 0.5}, {"names": ["up.1"], "sparsity": 0.25}]
    return sc.prune(Net(Sizes(**sizes)), x, targets=targets)


def test_config_when_widths_are_uniform_then_its_integers_say_them(tmp_path):
    result = pruned()
    assert result.config == {"inner": (24, 12)}
    assert result.rebuilt
    assert result.loads_with == "Net(config) with inner=12 (the same outputs were seen)"
    assert result.model.config == Sizes(inner=12)
    Net(result.model.config).load_state_dict(result.model.state_dict())
    result.save(tmp_path)
    loaded = sc.load_pruned(tmp_path, Net(Sizes()))
    assert loaded.config == Sizes(inner=12)
    again = sc.prune(result.model, torch.randn(4, 6), sparsity=0.5, names=["up*"], uniform=True)
    assert again.config == {"inner": (12, 6)}
    again.save(tmp_path)
    assert sc.load_pruned(tmp_path, Net(Sizes())).config == Sizes(inner=6)


def test_config_when_what_nothing_reads_keeps_its_size_then_only_our_loader_is_named(tmp_path):
    result = pruned(spare=True)
    assert result.verification.passed
    assert result.config is None
    assert result.loads_with.startswith("secateur.load_pruned")
    result.save(tmp_path)
    x = torch.randn(4, 6)
    assert torch.equal(sc.load_pruned(tmp_path, Net(Sizes(spare=True)))(x), result.model(x))


def test_config_when_widths_differ_then_only_our_loader_is_named():
    result = pruned(uniform=False)
    assert len(set(result.plan.counts.values())) > 1
    assert result.config is None
    assert result.model.config == Sizes()
    assert result.loads_with.startswith("secateur.load_pruned, onto a freshly built Net; not with")


def test_config_when_its_model_computes_another_thing_then_only_our_loader_is_named():
    result = pruned(scale="built")
    assert result.verification.passed
    assert result.config is None
    assert result.model.config.inner == 24


def test_config_when_not_verified_then_it_says_that_only_shapes_agree():
    torch.manual_seed(0)
    result = sc.prune(
        Net(Sizes()), torch.randn(4, 6), sparsity=0.5, names=["up*"], uniform=True, verify=False
    )
    assert result.loads_with == "Net(config) with inner=12 (the shapes agree)"


@dataclass
class Many:
    """Numbers of more kinds of widths than can be tried in all combinations."""

    width: int = 8
    a: int = 24
    b: int = 48
    c: int = 16
    d: int = 12
    e: int = 36
    f: int = 20
    unread: int = 24


@dataclass
class Outer:
    """A config that holds configs, as those of models of words and pictures do."""

    text: Sizes
    image: Sizes
    text_width: int = 8


class Widths(nn.Module):
    """A residual block for each number of its config, with layers named as in OPT: fc1, fc2."""

    def __init__(self, config: Many):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(6, config.width)
        inner = [getattr(config, name) for name in "abcdef"]
        self.blocks = nn.ModuleList(Wide(config.width, n) for n in (*inner, *inner))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x


class Wide(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(torch.relu(self.fc1(x)))


class Both(nn.Module):
    """Two parts, each of which is built from a config within the model's."""

    def __init__(self, config: Outer):
        super().__init__()
        self.config = config
        self.image, self.text = Net(config.image), Net(config.text)

    def forward(self, x: Tensor) -> Tensor:
        return self.text(x) + self.image(x)


def test_config_when_many_kinds_of_widths_change_then_each_of_its_integers_follows():
    torch.manual_seed(0)
    shares = dict(zip("abcdef", (0.5, 0.25, 0.5, 0.5, 0.25, 0.5), strict=True))
    targets = [
        {"names": [f"blocks.{i}.fc1", f"blocks.{i + 6}.fc1"], "sparsity": share}
        for i, share in enumerate(shares.values())
    ]
    result = sc.prune(Widths(Many()), torch.randn(4, 6), targets=targets)
    assert result.config == {
        n: (getattr(Many, n), round(getattr(Many, n) * (1 - share))) for n, share in shares.items()
    }
    assert result.rebuilt


@pytest.mark.parametrize("parts", [("text",), ("image",), ("text", "image")], ids=str)
def test_config_when_it_holds_others_then_the_one_that_was_cut_says_it(parts, tmp_path):
    def build() -> Both:
        torch.manual_seed(0)
        return Both(Outer(Sizes(), Sizes()))

    names = [f"{part}.up*" for part in parts]
    result = sc.prune(build(), torch.randn(4, 6), sparsity=0.5, names=names, uniform=True)
    assert result.config == {f"{part}.inner": (24, 12) for part in parts}
    assert result.rebuilt
    assert [result.model.config.text.inner, result.model.config.image.inner] == [
        12 if part in parts else 24 for part in ("text", "image")
    ]
    result.save(tmp_path)
    assert sc.load_pruned(tmp_path, build()).config == result.model.config


def test_config_when_heads_or_their_width_would_do_then_the_one_that_the_forward_reads_is_said():
    @dataclass
    class Heads:
        heads: int = 4
        head: int = 8

    class Attention(nn.Module):
        def __init__(self, config: Heads):
            super().__init__()
            self.config = config
            self.heads, self.head = config.heads, config.head
            self.q, self.k, self.v = (nn.Linear(6, self.heads * self.head) for _ in range(3))
            self.out = nn.Linear(self.heads * self.head, 6)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                f(x).view(*x.shape[:2], self.heads, self.head).transpose(1, 2)
                for f in (self.q, self.k, self.v)
            )
            x = (q @ k.transpose(2, 3) / 10).softmax(-1) @ v
            return self.out(x.transpose(1, 2).reshape(*x.shape[:1], -1, self.heads * self.head))

    found = {}
    for grid in ("coarse", "fine"):
        torch.manual_seed(0)
        model, x = Attention(Heads()), torch.randn(2, 5, 6)
        found[grid] = sc.prune(model, x, sparsity=0.5, grid=grid, uniform=True).config
    assert found["coarse"] == {"heads": (4, 2)}
    assert found["fine"] == {"head": (8, 4)}


class Picky(Net):
    def __init__(self, config: Sizes, extra: int):
        super().__init__(config)


def test_config_when_the_class_is_built_from_more_then_only_our_loader_is_named():
    model = Picky(Sizes(), 1)
    result = sc.prune(model, torch.randn(4, 6), sparsity=0.5, names=["up*"], uniform=True)
    assert result.config is None


def test_pretrained_when_layers_are_numbered_in_their_names_then_the_stock_loader_takes_it(
    tmp_path,
):
    """What are called fc1 and fc2 are not one kind of layer in places 1 and 2."""
    zoo.torchvision_models()
    transformers = pytest.importorskip("transformers")
    config = transformers.OPTConfig(
        vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=32, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.OPTForCausalLM(config).eval()
    result = sc.prune(model, INPUTS, sparsity=0.5, what=["width"], uniform=True)
    assert result.config == {"ffn_dim": (48, 24)}
    result.save(tmp_path)
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(stock(**INPUTS).logits, result.model(**INPUTS).logits)


@pytest.fixture
def llama() -> Any:
    zoo.torchvision_models()
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip

    def build() -> nn.Module:
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config.__class__(**config.to_dict())).eval()

    return build


TOKENS = torch.randint(1, 64, (2, 7), generator=SEED)
INPUTS = {"input_ids": TOKENS}


def generated(model: nn.Module) -> Tensor:
    return model.generate(TOKENS, max_new_tokens=5, do_sample=False)


def test_pretrained_when_widths_are_uniform_then_the_stock_loader_takes_it(llama, tmp_path):
    result = sc.prune(llama(), INPUTS, sparsity=0.5, exclude=["*attn*"], uniform=True)
    assert result.config == {"intermediate_size": (48, 24)}
    assert "save_pretrained and from_pretrained" in result.loads_with
    result.model.save_pretrained(tmp_path)
    stock = type(result.model).from_pretrained(tmp_path).eval()
    assert torch.equal(generated(stock), generated(result.model))


@pytest.mark.parametrize(
    "family",
    [
        "Llama",
        "Qwen2",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("Qwen3", "Mistral")),
    ],
)
def test_pretrained_when_whole_heads_go_then_the_stock_loader_takes_it(family, tmp_path):
    zoo.torchvision_models()
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
    }  # fmt: skip

    def build() -> nn.Module:
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**sizes)
        return getattr(transformers, f"{family}ForCausalLM")(config).eval()

    # a config that says another hidden size says the epsilon of norms of other widths, too
    stays = {"grid": "coarse", "uniform": True, "exclude": ["*embed_tokens"]}
    result = sc.prune(build(), INPUTS, sparsity=0.5, **stays)
    said = {"num_attention_heads": (4, 2), "num_key_value_heads": (2, 1)}
    assert said.items() <= result.config.items()
    assert result.rebuilt
    if family == "Qwen2":  # its config has no head_dim, but its code reads one
        assert result.config["head_dim"] == (None, 8)
    result.save(tmp_path / "ours")
    loaded = sc.load_pruned(tmp_path / "ours", build())
    for model in (result.model, loaded):
        model.save_pretrained(tmp_path / "theirs")
        stock = type(model).from_pretrained(tmp_path / "theirs").eval()
        assert torch.equal(stock(**INPUTS).logits, result.model(**INPUTS).logits)


@pytest.mark.parametrize("inner", [None, 48])
@pytest.mark.parametrize("family", ["GPT2", "GPTJ"])
def test_pretrained_when_a_config_leaves_a_width_unsaid_then_it_is_said(family, inner, tmp_path):
    zoo.torchvision_models()
    transformers = pytest.importorskip("transformers")
    kind = {"GPT2": "GPT2LMHeadModel", "GPTJ": "GPTJForCausalLM"}[family]
    sizes = {
        "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32,
        "bos_token_id": 1, "eos_token_id": 2, "n_inner": inner,
    } | ({"rotary_dim": 4} if family == "GPTJ" else {})  # fmt: skip

    def build() -> nn.Module:
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**sizes)
        return getattr(transformers, kind)(config).eval()

    result = sc.prune(build(), INPUTS, sparsity=0.5, what=["width"], uniform=True)
    assert result.config == {"n_inner": (inner, (inner or 128) // 2)}
    result.save(tmp_path / "small")
    stock = type(result.model).from_pretrained(tmp_path / "small").eval()
    for loaded in (stock, sc.load_pruned(tmp_path / "small", build())):
        assert torch.equal(loaded(**INPUTS).logits, result.model(**INPUTS).logits)
    assert loaded.config.n_inner == (inner or 128) // 2


def test_pretrained_when_heads_shrink_then_its_weights_and_our_plan_load(llama, tmp_path):
    result = sc.prune(llama(), INPUTS, sparsity=0.5, inexact=True, grid="fine")
    assert result.config is None
    result.model.save_pretrained(tmp_path)
    sc.save_pruned(result.model, tmp_path, weights=False)
    with torch.device("meta"):
        fresh = llama()
    for model in (llama(), fresh):
        loaded = sc.load_pruned(tmp_path, model).eval()
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
        assert torch.equal(generated(loaded), generated(result.model))


def test_pretrained_when_its_writer_renames_tensors_then_the_error_says_how_to_keep_them(tmp_path):
    zoo.torchvision_models()
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config).eval()
    result = sc.prune(model, INPUTS, sparsity=0.5, names=["*experts*"])
    result.model.save_pretrained(tmp_path)
    sc.save_pruned(result.model, tmp_path, weights=False)
    with pytest.raises(sc.errors.FileError, match="save_original_format=False"):
        sc.load_pruned(tmp_path, transformers.MixtralForCausalLM(config))
    result.model.save_pretrained(tmp_path, save_original_format=False)
    loaded = sc.load_pruned(tmp_path, transformers.MixtralForCausalLM(config)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**INPUTS).logits, result.model(**INPUTS).logits)


class Sized:
    """A config of one number."""

    def __init__(self, width):
        self.width = width


class Plain(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.up, self.down = nn.Linear(4, config.width), nn.Linear(config.width, 2)
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, x):
        return self.down(self.up(x + self.table).relu())


class Looks(Plain):
    """Its constructor reads a weight."""

    def __init__(self, config):
        super().__init__(config)
        self.first = float(self.up.weight[0, 0].detach())


class Lazy(Plain):
    """Holds what no state dict has, and its constructor fills."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("filled", torch.empty(4).fill_(0.5), persistent=False)

    def forward(self, x):
        return super().forward(x * self.filled)


class Loads(Plain):
    """Loads in a way of its own."""

    def load_state_dict(self, state_dict, strict=True):
        return super().load_state_dict(dict(state_dict), strict)


def test_rebuilt_when_the_class_loads_in_its_own_way_then_it_is_asked():
    model, x = Loads(Sized(6)).eval(), torch.randn(3, 4)
    assert torch.equal(rebuilt(model, model.config)(x), model(x))


@pytest.mark.parametrize("kind", [Plain, Looks, Lazy])
def test_rebuilt_when_a_config_says_it_then_no_weight_is_there_twice(kind):
    model, x = kind(Sized(6)).eval(), torch.randn(3, 4)
    drawn = torch.get_rng_state()
    new = rebuilt(model, model.config)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not any(t.is_meta for t in (*new.parameters(), *new.buffers()))
    assert torch.equal(new(x), model(x))
    for one, other in zip(new.parameters(), model.parameters(), strict=True):
        assert one is not other
        assert one.data_ptr() == other.data_ptr()
