"""Models that were built of one config: what is cut in place says its sizes, others keep theirs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from tests.zoo import torchvision_models


@dataclass
class Sizes:
    width: int = 12
    inner: Any = field(default_factory=lambda: SimpleNamespace(depth=3))


class Part(nn.Module):
    def __init__(self, sizes: Any):
        super().__init__()
        self.sizes = sizes
        self.up, self.down = nn.Linear(6, sizes.width), nn.Linear(sizes.width, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x).relu().view(*x.shape[:-1], self.sizes.width)
        return x + self.down(hidden)


class Net(nn.Module):
    """Says its sizes in one object, which its part holds too."""

    def __init__(self, config: Any, sizes: Any):
        super().__init__()
        self.config = config
        self.part, self.head = Part(sizes), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x))


FORMS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "dataclass": lambda: (sizes := Sizes(), sizes),
    "namespace": lambda: (sizes := SimpleNamespace(width=12), sizes),
    "nested": lambda: (SimpleNamespace(text=(sizes := Sizes()), version=3), sizes),
    "twice nested": lambda: (
        SimpleNamespace(all=SimpleNamespace(text=(sizes := SimpleNamespace(width=12)))),
        sizes,
    ),
}


@pytest.fixture(params=FORMS)
def twins(request: pytest.FixtureRequest) -> tuple[Net, Net, Any, Any]:
    torch.manual_seed(0)
    config, sizes = FORMS[request.param]()
    return Net(config, sizes).eval(), Net(config, sizes).eval(), config, sizes


X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


def test_prune_when_two_models_have_one_config_then_the_other_ones_stays(
    twins: tuple[Net, Net, Any, Any],
) -> None:
    net, other, config, sizes = twins
    before, said = other(X), copy.deepcopy(config)
    result = sc.prune(net, X, 0.5, names=["part.*"], inplace=True)
    assert result.model is net
    assert net.part.sizes.width == 6
    assert net(X).shape == before.shape
    assert config == said
    assert other.config is config
    assert other.part.sizes is sizes
    assert sizes.width == 12
    assert torch.equal(other(X), before)


def test_prune_when_several_modules_hold_a_config_then_they_hold_one_still(
    twins: tuple[Net, Net, Any, Any],
) -> None:
    net, _, config, _ = twins
    sc.prune(net, X, 0.5, names=["part.*"], inplace=True)
    held: Any = net.config
    assert held is not config
    while not hasattr(held, "width"):
        held = getattr(held, "text", None) or held.all
    assert held is net.part.sizes


def test_prune_when_it_fails_then_the_model_has_the_same_config_as_before(
    twins: tuple[Net, Net, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, _, config, sizes = twins

    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("secateur.shrinking.cut.Surgery.describe", failing)
    with pytest.raises(RuntimeError, match="no"):
        sc.prune(net, X, 0.5, names=["part.*"], inplace=True)
    assert net.config is config
    assert net.part.sizes is sizes
    assert sizes.width == 12


def test_load_when_the_model_was_built_of_a_shared_config_then_others_keep_theirs(
    twins: tuple[Net, Net, Any, Any], tmp_path: Any
) -> None:
    net, other, _, sizes = twins
    small = sc.prune(copy.deepcopy(net), X, 0.5, names=["part.*"])
    small.save(tmp_path / "small")
    loaded = sc.load_pruned(tmp_path / "small", net)
    assert torch.equal(loaded(X), small.model(X))
    assert loaded.part.sizes.width == 6
    assert sizes.width == 12
    assert other.part.sizes is sizes


@pytest.mark.slow
@pytest.mark.parametrize("what", ["width", "heads", "depth"])
def test_prune_when_transformers_models_have_one_config_then_the_other_can_be_saved(
    what: str, tmp_path: Any
) -> None:
    torchvision_models()  # transformers imports it
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    net, other = (transformers.LlamaForCausalLM(config).eval() for _ in range(2))
    ids = torch.arange(10)[None]
    before = other(ids).logits
    if what == "depth":  # it cuts a copy; what is loaded becomes as deep in place
        sc.prune(net, ids, 0.5, data=[ids], what=[what]).save(tmp_path / "small")
        assert sc.load_pruned(tmp_path / "small", net) is net
    else:
        sc.prune(net, ids, 0.5, inplace=True, uniform=True, data=[ids], what=[what])
    other.save_pretrained(tmp_path / "other")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "other")
    assert torch.equal(again(ids).logits, before)
    assert net.config.to_dict() != other.config.to_dict()
    assert all(m.config is net.config for m in net.modules() if hasattr(m, "config"))
