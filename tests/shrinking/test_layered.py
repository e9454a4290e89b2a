"""Layers of different widths: transformers' ``per_layer_config``, where a class honours it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.shrinking.overrides import overrides_of
from tests import zoo

zoo.torchvision_models()  # transformers imports it
transformers = pytest.importorskip("transformers")
Config, Model = transformers.PreTrainedConfig, transformers.PreTrainedModel
if not hasattr(Config, "per_layer_config"):
    pytest.skip("this transformers has no per_layer_config", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore:.*")


class Sizes(Config):
    model_type = "secateur_layers"

    def __init__(self, honours: str = "all", **others: Any) -> None:
        sizes = {"hidden_size": 16, "inner": 24, "num_hidden_layers": 3, "heads": 4, "groups": 2}
        self.honours = honours
        for name, value in (sizes | {"head": 4, "experts": 4, "vocab_size": 20}).items():
            setattr(self, name, others.pop(name, value))
        super().__init__(**others)


class Layer(nn.Module):
    """Attention with groups of heads, a gated feed-forward part, and experts that are stacked."""

    def __init__(self, config: Any, own: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.groups, self.head = own.heads, own.groups, own.head
        self.q = nn.Linear(width, own.heads * own.head)
        self.kv = nn.ModuleList(nn.Linear(width, own.groups * own.head) for _ in range(2))
        self.out = nn.Linear(own.heads * own.head, width)
        self.up, self.gate = nn.Linear(width, own.inner), nn.Linear(width, own.inner)
        self.down = nn.Linear(own.inner, width)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], -1, self.head)
        q, k, v = (f(x).view(shape).transpose(1, 2) for f in (self.q, *self.kv))
        k, v = (each.repeat_interleave(self.heads // self.groups, 1) for each in (k, v))
        found = ((q @ k.transpose(2, 3)) / 2).softmax(-1) @ v
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.down(torch.relu(self.gate(x)) * self.up(x))


class Net(Model):
    config_class = Sizes
    base_model_prefix = ""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        own = [config] * config.num_hidden_layers
        if config.honours != "nothing":
            own = [config.per_layer_config[i] for i in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(Layer(config, each) for each in own)
        self.scale = 1.0
        if config.honours == "and computes another thing":
            self.scale = 1 / (1 + len(overrides_of(config) or {}))
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        pass

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.scale * x)


WORDS = torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(0))


def built(**sizes: Any) -> Net:
    torch.manual_seed(0)
    return Net(Sizes(**sizes)).eval()


def targets(**shares: float) -> list[dict[str, Any]]:
    return [
        {"names": [name.replace("_", ".")], "sparsity": share} for name, share in shares.items()
    ]


RAGGED: dict[str, dict[str, Any]] = {
    "one layer": {"targets": targets(layers_1_up=0.5)},
    "each its width": {"targets": targets(layers_0_up=0.25, layers_1_up=0.5, layers_2_up=0.75)},
    "heads of one": {"targets": [{"names": ["layers.0.q*", "layers.0.kv*"], "sparsity": 0.5}],
                     "grid": "coarse"},
    "widths together": {"sparsity": 0.4, "scope": "global", "what": ["width"]},
    "all together": {"sparsity": 0.4, "scope": "global", "grid": "coarse",
                     "what": ["width", "heads"]},
}  # fmt: skip


QUICK = ("each its width", "all together")


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in RAGGED]
)
def test_save_when_layers_are_unlike_and_the_class_honours_it_then_its_loader_takes_it(
    form: str, tmp_path: Path
) -> None:
    model = built()
    result = sc.prune(model, WORDS, **RAGGED[form])
    assert len({layer.up.out_features for layer in result.model.layers}) > 1 or "heads" in form
    assert result.config is None
    assert result.rebuilt
    assert "per_layer_config" in result.loads_with
    assert "from_pretrained" in result.loads_with
    result.save(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())["per_layer_config"]
    assert {int(i) for i in told} <= {0, 1, 2}
    stock = Net.from_pretrained(tmp_path).eval()
    assert torch.equal(stock(WORDS), result.model(WORDS))
    assert not overrides_of(model.config), "the user's model is as it was"
    again = sc.load_pruned(tmp_path, built()).eval()
    assert torch.equal(again(WORDS), result.model(WORDS))


@pytest.mark.parametrize("honours", ["nothing", "and computes another thing"])
def test_save_when_the_class_does_not_honour_it_then_no_config_is_saved(
    honours: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    result = sc.prune(built(honours=honours), WORDS, **RAGGED["each its width"])
    assert not caplog.records, "what transformers says of configs that were only tried"
    assert result.verification.passed
    assert result.layers is None
    assert "not with the dense model's loader" in result.loads_with
    result.save(tmp_path)
    assert not (tmp_path / "config.json").exists()
    again = sc.load_pruned(tmp_path, built(honours=honours)).eval()
    assert torch.equal(again(WORDS), result.model(WORDS))


def test_save_when_transformers_has_no_such_thing_then_our_loader_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sizes, "per_layer_config", None)
    result = sc.prune(built(honours="nothing"), WORDS, **RAGGED["each its width"])
    assert result.layers is None
    result.save(tmp_path)
    again = sc.load_pruned(tmp_path, built(honours="nothing")).eval()
    assert torch.equal(again(WORDS), result.model(WORDS))


def test_prune_when_layers_are_unlike_already_then_it_goes_on_from_there(tmp_path: Path) -> None:
    sizes = {"per_layer_config": {1: {"inner": 12}}}
    result = sc.prune(built(**sizes), WORDS, sparsity=0.5, what=["width"])
    assert [layer.up.out_features for layer in result.model.layers] == [12, 6, 12]
    assert result.rebuilt
    result.save(tmp_path)
    stock = Net.from_pretrained(tmp_path).eval()
    assert torch.equal(stock(WORDS), result.model(WORDS))
    again = sc.prune(stock, WORDS, sparsity=0.5, what=["width"])
    assert [layer.up.out_features for layer in again.model.layers] == [6, 3, 6]
    assert again.rebuilt


def test_drop_when_single_layers_have_numbers_then_these_go_with_them(tmp_path: Path) -> None:
    sizes = {"per_layer_config": {0: {"inner": 20}, 2: {"inner": 12, "experts": 2}}}
    result = sc.drop_blocks(built(**sizes), ["layers.1"], WORDS)
    said = {0: {"inner": 20}, 1: {"inner": 12, "experts": 2}}
    assert overrides_of(result.model.config) == said
    assert result.rebuilt
    result.save(tmp_path)
    stock = Net.from_pretrained(tmp_path).eval()
    assert torch.equal(stock(WORDS), result.model(WORDS))
    assert overrides_of(stock.config) == said
    again = sc.load_pruned(tmp_path, built(**sizes)).eval()
    assert overrides_of(again.config) == said
    assert torch.equal(again(WORDS), result.model(WORDS))


def test_drop_when_it_fails_then_the_config_says_what_it_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = built(per_layer_config={2: {"inner": 12}})
    monkeypatch.setattr("secateur.shrinking.depth._runs", lambda *_: False)
    result = sc.drop_blocks(model, ["layers.1"], WORDS)
    for each in (model, result.model):
        assert overrides_of(each.config) == {2: {"inner": 12}}
        assert each.config.num_hidden_layers == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layers.0.self_attn.q_proj[1]", "layers.1.self_attn.q_proj"])
def test_save_when_a_class_of_transformers_has_heads_of_each_layer_then_its_loader_takes_it(
    name: str, tmp_path: Path
) -> None:
    kind = transformers.Step3p7TextModel
    config = kind.config_class(
        vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=3, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, num_sliding_attention_heads=4, pad_token_id=0,
        sliding_window=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model, x = kind(config).eval(), {"input_ids": WORDS}
    result = sc.apply_plan(model, sc.Plan({name: (1,)}), x)
    assert "num_attention_heads" in result.loads_with
    result.save(tmp_path)
    stock = kind.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(stock(**x)[0], result.model(**x)[0])
        again = sc.from_pretrained(tmp_path)
        assert torch.equal(again(**x)[0], result.model(**x)[0])
