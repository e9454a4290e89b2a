"""One small model of each kind, with inputs that share a few directions, so that data says much."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import zoo

Batches = list[Any]
Kind = Callable[[torch.Generator], tuple[nn.Module, Callable[[], Any]]]
"""From where numbers come to a model in eval mode and what draws a batch for it."""

KINDS: dict[str, Kind] = {}


def kind(function: Kind) -> Kind:
    KINDS[function.__name__.replace("_", " ")] = function
    return function


def low_rank(generator: torch.Generator, *shape: int, rank: int = 3) -> Callable[[], Tensor]:
    """Return what draws tensors of few directions, ``shape`` with the batch first."""
    basis = torch.randn(rank, *shape[1:], generator=generator)

    def draw() -> Tensor:
        weights = torch.randn(shape[0], rank, generator=generator)
        own = 0.1 * torch.randn(shape, generator=generator)
        return torch.tensordot(weights, basis, dims=1) + own

    return draw


def sequences(generator: torch.Generator, batch: int, length: int, width: int) -> Any:
    """Return what draws ``(batch, length, width)`` whose steps share few directions."""
    flat = low_rank(generator, batch * length, width)
    return lambda: flat().view(batch, length, width)


def tokens(generator: torch.Generator, batch: int, length: int, words: int = 48) -> Any:
    """Return what draws ids, of which few are frequent."""
    share = torch.arange(1, words + 1).double().reciprocal()

    def draw() -> dict[str, Tensor]:
        ids = torch.multinomial(share, batch * length, replacement=True, generator=generator)
        return {"input_ids": ids.view(batch, length)}

    return draw


def hugging_face(name: str, **config: Any) -> nn.Module:
    pytest.importorskip("transformers")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # transformers' own
        zoo.torchvision_models()
        transformers = importlib.import_module("transformers")
        torch.manual_seed(0)
        kind = getattr(transformers, f"{name}Config")(**config)
        what = {"Llama": "ForCausalLM", "Mixtral": "ForCausalLM", "Mamba": "ForCausalLM"}
        model: nn.Module = getattr(transformers, f"{name}{what.get(name, 'Model')}")(kind)
    return shaken(model)


def shaken(model: nn.Module) -> nn.Module:
    """Return a model in eval mode whose biases and norms are nothing special."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            elif parameter.std() < 0.05:  # transformers begins with 0.02: nothing would happen
                parameter.mul_(0.2 / float(parameter.std().clamp(min=1e-4)))
    return model.eval()


def convolution(inputs: int, outputs: int, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **options),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


@kind
def grouped_convolutions(generator: torch.Generator) -> Any:
    net = nn.Sequential(
        convolution(3, 16),
        convolution(16, 16, groups=4),
        convolution(16, 16),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    return shaken(net), low_rank(generator, 16, 3, 8, 8)


class Inverted(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.open = nn.Sequential(nn.Conv2d(width, inner, 1), nn.BatchNorm2d(inner), nn.ReLU6())
        self.depth = convolution(inner, inner, groups=inner)
        self.close = nn.Sequential(nn.Conv2d(inner, width, 1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.close(self.depth(self.open(x)))


@kind
def depthwise(generator: torch.Generator) -> Any:
    net = nn.Sequential(
        convolution(3, 8), Inverted(8, 16), Inverted(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return shaken(nn.Sequential(*net, nn.Linear(8, 5))), low_rank(generator, 16, 3, 8, 8)


@kind
def vit(generator: torch.Generator) -> Any:
    net = hugging_face(
        "ViT", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        image_size=12, patch_size=4,
    )  # fmt: skip
    return net, low_rank(generator, 16, 3, 12, 12)


@kind
def swin(generator: torch.Generator) -> Any:
    net = hugging_face(
        "Swin", image_size=16, patch_size=2, embed_dim=8, depths=[2, 1], num_heads=[2, 2],
        window_size=4, mlp_ratio=2.0,
    )  # fmt: skip
    return net, low_rank(generator, 8, 3, 16, 16)


@kind
def bert(generator: torch.Generator) -> Any:
    net = hugging_face(
        "Bert", vocab_size=48, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    return net, tokens(generator, 8, 16)


@kind
def shared_weights(generator: torch.Generator) -> Any:
    net = hugging_face(
        "Albert", vocab_size=48, embedding_size=8, hidden_size=16, num_hidden_layers=3,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    return net, tokens(generator, 8, 16)


LLAMA = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip


@kind
def llama(generator: torch.Generator) -> Any:
    return hugging_face("Llama", **LLAMA), tokens(generator, 8, 16)


@kind
def mixtral(generator: torch.Generator) -> Any:
    net = hugging_face("Mixtral", **LLAMA, num_local_experts=4, pad_token_id=0)
    return net, tokens(generator, 16, 16)


@kind
def mamba(generator: torch.Generator) -> Any:
    net = hugging_face(
        "Mamba", vocab_size=48, hidden_size=16, state_size=4, num_hidden_layers=2, expand=2
    )
    return net, tokens(generator, 8, 12)


@kind
def conv1d(generator: torch.Generator) -> Any:
    net = hugging_face("GPT2", vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return net, tokens(generator, 8, 16)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 16)
        self.lstm = nn.LSTM(16, 16, num_layers=2, batch_first=True)
        self.hidden = nn.Linear(16, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(self.project(x).relu())[0]
        return self.head(self.hidden(out).relu())


@kind
def lstm(generator: torch.Generator) -> Any:
    return shaken(Reader()), sequences(generator, 16, 6, 8)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = convolution(3, 8), convolution(8, 16)
        self.deep = convolution(16, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = convolution(16, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.first(x)
        deep = self.deep(self.second(nn.functional.max_pool2d(wide, 2)))
        return self.head(self.last(torch.cat([wide, self.up(deep)], 1)))


@kind
def unet(generator: torch.Generator) -> Any:
    return shaken(UNet()), low_rank(generator, 8, 3, 8, 8)


@kind
def generator(generator: torch.Generator) -> Any:
    net = nn.Sequential(
        nn.ConvTranspose2d(6, 16, 4), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 12, 4, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.ConvTranspose2d(12, 3, 4, stride=2, padding=1), nn.Tanh(),
    )  # fmt: skip
    return shaken(net), low_rank(generator, 32, 6, 1, 1)


@kind
def graph(generator: torch.Generator) -> Any:
    layers = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed")

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (
                layers.GCNConv(6, 16), layers.GCNConv(16, 16), layers.GCNConv(16, 4)
            )  # fmt: skip

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.c(self.b(self.a(x, edges).relu(), edges).relu(), edges)

    features = low_rank(generator, 40, 6)
    return shaken(Network()), lambda: (
        features(),
        torch.randint(40, (2, 120), generator=generator),
    )


class Experts(nn.Module):
    """A mixture written by hand: a loop over experts, each on the tokens that chose it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(3)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 8)
        gates, chosen = self.gate(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            here = (chosen == i).nonzero()[:, 0]
            out = out.index_add(0, here, expert(x[here]) * gates[here, None])
        return self.head(x + out)


@kind
def experts_by_hand(generator: torch.Generator) -> Any:
    return shaken(Experts()), sequences(generator, 16, 8, 8)


def made(name: str, batches: int = 8) -> tuple[nn.Module, Batches]:
    """Return a model of a kind and batches of inputs for it."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, draw = KINDS[name](generator)
    return model, [draw() for _ in range(batches)]
