"""2:4 layers on sparse kernels: which are converted and why; the kernels stand in on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ConfigError, FileError, MaskError, UnknownNameError
from secateur.runtime.measure import Latency
from secateur.shrinking import semi_structured as module
from secateur.shrinking.semi_structured import SparseLayer, is_semi_structured, write_layers

X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.aside = nn.Linear(16, 64), nn.Linear(64, 16), nn.Linear(16, 16)
        self.dense = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.down(self.up(x).relu()))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        for layer in (net.up, net.down, net.aside):
            layer.weight.view(len(layer.weight), -1, 4)[..., :2] = 0
    return net


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand in for the kernels: ``faster`` (features in), and what conversion makes of a weight."""
    held: dict[str, Any] = {"faster": {16, 64}, "make": torch.clone}

    def converted(weight: Tensor) -> nn.Parameter:
        return nn.Parameter(held["make"](weight.detach()), requires_grad=False)

    def timed(layers: dict[str, nn.Linear], x: Tensor) -> dict[str, Latency]:
        sparse = 1.0 if x.shape[1] in held["faster"] else 3.0
        spread = {"dense": 2.0, "sparse": sparse}
        return {name: Latency(t, t - 0.1, t + 0.1, 15, 1) for name, t in spread.items()}

    monkeypatch.setattr(module, "_check_device", lambda model: None)
    monkeypatch.setattr(module, "_converted", converted)
    monkeypatch.setattr(module, "latency", timed)
    return held


def test_semi_structured_when_layers_are_timed_then_the_faster_are_converted(net, kernels):
    kernels["faster"] = {64}
    weights = dict(net.named_parameters())
    expected = net(X)
    found = {layer.name: layer for layer in sc.semi_structured(net, X)}
    assert found["down"] == SparseLayer("down", (16, 64), 15, 2.0, 1.0, converted=True)
    assert found["up"] == SparseLayer("up", (64, 16), 15, 2.0, 3.0, why="it is not faster")
    assert found["aside"].why == "the example does not reach it"
    assert "dense" not in found
    changed = [name for name, p in net.named_parameters() if p is not weights[name]]
    assert changed == ["down.weight"]
    assert torch.equal(net(X), expected)
    assert str(found["down"]) == "down 16 × 64: sparse, 2 → 1 ms on 15 rows"


def test_semi_structured_when_a_kernel_computes_something_else_then_the_layer_stays(net, kernels):
    kernels["make"] = lambda weight: weight * 1.1
    assert {layer.why.split(" by ")[0] for layer in sc.semi_structured(net, X) if layer.rows} == {
        "outputs differ"
    }


def refuse(weight: Tensor) -> Tensor:
    raise RuntimeError("Error original_tensor.shape is not supported!\nmore")


def test_semi_structured_when_torch_has_no_kernel_then_the_layer_says_why(net, kernels):
    kernels["make"] = refuse
    every = [*sc.semi_structured(net, X)[:2], *sc.semi_structured(net, layers=["up"])]
    assert {layer.why for layer in every} == {"Error original_tensor.shape is not supported!"}
    assert not any(layer.converted for layer in every)


def test_semi_structured_when_it_is_interrupted_then_every_layer_is_as_before(net, kernels):
    made: list[Tensor] = []

    def once(weight: Tensor) -> Tensor:
        if made:
            raise KeyboardInterrupt
        made.append(weight)
        return weight.clone()

    weights = list(net.parameters())
    for how in ({"example": X}, {"layers": ["up", "down"]}):
        made.clear()
        kernels["make"] = once
        with pytest.raises(KeyboardInterrupt):
            sc.semi_structured(net, **how)
        assert all(a is b for a, b in zip(weights, net.parameters(), strict=True))


def test_semi_structured_when_a_file_names_layers_then_these_are_converted(net, kernels, tmp_path):
    kernels["faster"] = {64}
    write_layers(sc.semi_structured(net, X), tmp_path / "semi_structured.json")
    again = sc.semi_structured(net, layers=tmp_path)
    assert [(layer.name, layer.converted, layer.rows) for layer in again] == [("down", True, 0)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no semi-structured layers"),
        ("[]", "names no semi-structured layers"),
        ('{"layers": [{"name": "down"}]}', "converted"),
        ('{"layers": 3}', "names no semi-structured layers"),
        ("[" * 100_000, "names no semi-structured layers"),
    ],
)
def test_semi_structured_when_a_file_is_damaged_then_file_error(net, kernels, tmp_path, text, said):
    path: Path = tmp_path / "layers.json"
    path.write_text(text)
    with pytest.raises(FileError, match=said):
        sc.semi_structured(net, layers=path)
    with pytest.raises(FileError, match="No such file"):
        sc.semi_structured(net, layers=tmp_path / "none.json")


def test_semi_structured_when_a_file_names_other_layers_then_it_is_said(net, kernels, tmp_path):
    path: Path = tmp_path / "layers.json"
    path.write_text(json.dumps({"layers": [{"name": "downs", "converted": True}]}))
    with pytest.raises(UnknownNameError, match="Did you mean 'down'"):
        sc.semi_structured(net, layers=path)
    with pytest.raises(MaskError, match=r"dense\.weight is not 2:4"):
        sc.semi_structured(net, layers=["up", "dense"])
    assert type(net.up.weight) is nn.Parameter
    assert net.up.weight.requires_grad  # nothing was converted


def test_semi_structured_when_asked_for_nothing_or_too_early_then_it_is_said(net, kernels):
    with pytest.raises(ConfigError, match="example.*layers"):
        sc.semi_structured(net)
    pruner = sc.Pruner(net, sc.Config(granularity="2:4", criterion="magnitude"), X)
    pruner.step()
    with pytest.raises(MaskError, match=r"finish\(\)"):
        sc.semi_structured(net, X)


def test_is_semi_structured_when_a_model_was_pruned_2_4_then_its_layers_are():
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 6))
    assert not is_semi_structured(net[0].weight)
    result = sc.prune(net, torch.zeros(1, 16), criterion="magnitude", granularity="2:4")
    assert is_semi_structured(result.model[0].weight)
    assert not is_semi_structured(result.model[0].bias)
    assert not is_semi_structured(torch.zeros(2, 6))


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a CUDA device")
def test_semi_structured_when_there_is_no_cuda_device_then_config_error(net):
    with pytest.raises(ConfigError, match=r"'up\.weight' is on cpu.*half\(\)\.cuda\(\)"):
        sc.semi_structured(net, X)
